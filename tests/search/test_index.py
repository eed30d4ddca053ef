"""`modeling_mmt.search.index` and its engines, on tiny models and clips."""

import json
import os

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_vision import clip as vision_clip
from tiny_vision import vision_model, vision_processor

from modeling_mmt.data.files import file_sha256
from modeling_mmt.search.index import SearchIndex, SearchIndexError, model_fingerprint
from modeling_mmt.search.manifest import CLIPS, EMBEDDINGS, INDEX, PARTS, SEGMENTS

NUM_CLIPS = 30
IDS = ["../../etc/passwd", "/abs", "a/b", "nul\0", "clip with spaces", *(f"clip-{row}" for row in range(5, NUM_CLIPS))]
TEXTS = ["red dog", "Hund rennt", "home"]


@pytest.fixture
def rows():
    return Dataset.from_dict(
        {"video_id": IDS, "is_flag": [row % 3 == 0 for row in range(NUM_CLIPS)], "length": list(range(NUM_CLIPS))}
    )


@pytest.fixture
def features(make_clips):
    return dict(zip(IDS, make_clips([1 + row % 4 for row in range(NUM_CLIPS)]), strict=True))


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def processor(make_processor):
    return make_processor()


@pytest.fixture
def index(model, processor, rows, features):
    return SearchIndex.build(model, processor, rows, features, columns=["is_flag", "length"])


def cosines(model, processor, text, features):
    """Each clip by itself: no batch, no padding, no index."""
    with torch.no_grad():
        outputs = [model(**processor([text], [features[video_id]])) for video_id in IDS]
    return [float(output.text_embeds[0] @ output.video_embeds[0]) for output in outputs]


def test_texts_find_the_clips_of_a_naive_computation(index, model, processor, features):
    for text, hits in zip(TEXTS, index.search_texts(model, processor, TEXTS, top=NUM_CLIPS), strict=True):
        scores = cosines(model, processor, text, features)
        assert [hit.row for hit in hits] == sorted(range(NUM_CLIPS), key=lambda row: -scores[row])  # noqa: B023
        np.testing.assert_allclose([hit.score for hit in hits], sorted(scores, reverse=True), atol=1e-5)


def test_one_text_in_place_of_a_list_is_refused_not_read_as_letters(index, model, processor):
    with pytest.raises(TypeError, match=r"give a list of texts: \['cat'\]"):
        index.search_texts(model, processor, "cat", top=2)


def test_a_clip_finds_itself_by_its_id_and_by_its_features(index, model, processor, features):
    by_id = index.search_clips(IDS, top=1)
    by_features = index.search_videos(model, processor, [features[video_id] for video_id in IDS], top=1)
    assert [hits[0].video_id for hits in by_id] == IDS
    assert [hits[0].row for hits in by_id] == [hits[0].row for hits in by_features] == list(range(NUM_CLIPS))
    assert all(hits[0].score == pytest.approx(1, abs=1e-6) for hits in by_id)


def test_a_picture_finds_the_clip_with_its_features(tmp_path):
    model = vision_model()
    processor = vision_processor(model)
    pictures = [Image.fromarray(frames[0]) for frames in (vision_clip(1, seed=seed) for seed in range(6))]
    pictures[1].save(tmp_path / "1.png")
    with torch.inference_mode():
        features = [model.video_model.features(**processor(images=[picture]))[0].numpy() for picture in pictures]
    rows = Dataset.from_dict({"video_id": [str(row) for row in range(6)]})
    index = SearchIndex.build(model, processor, rows, dict(zip(rows["video_id"], features, strict=True)))
    asked = [pictures[4], tmp_path / "1.png", (tmp_path / "1.png").read_bytes()]
    hits = index.search_images(model, processor, asked, 2)
    assert [line[0].row for line in hits] == [4, 1, 1]
    assert all(line[0].score == pytest.approx(1, abs=1e-4) and line[1].score < line[0].score for line in hits)
    with pytest.raises(ValueError, match="is not a supported video or picture"):
        index.search_images(model, processor, [b"no picture"], 1)


def test_a_model_without_a_vision_encoder_says_so(index, model, processor):
    with pytest.raises(ValueError, match="has no vision encoder to look at pictures with"):
        index.search_images(model, processor, [b""], 1)


def test_a_filter_leaves_what_its_columns_say(index):
    (hits,) = index.search_clips([IDS[1]], NUM_CLIPS, where={"is_flag": True, "length": [0, 3, 4, 27]})
    assert sorted(hit.row for hit in hits) == [0, 3, 27]
    with pytest.raises(ValueError, match="leaves no clip"):
        index.search_clips([IDS[1]], 1, where={"length": 99})
    with pytest.raises(ValueError, match="no column 'colour' .*; its columns are video_id, is_flag, length, file"):
        index.search_clips([IDS[1]], 1, where={"colour": "red"})


def test_a_saved_index_answers_as_the_one_in_memory(index, model, processor, tmp_path):
    folder = index.save(tmp_path / "kept" / "index")
    loaded = SearchIndex.load(folder, model)
    assert sorted(os.listdir(folder)) == sorted([SEGMENTS, INDEX])  # and no file named by an id
    assert os.listdir(folder / SEGMENTS) == ["000001"]
    assert sorted(os.listdir(folder / SEGMENTS / "000001")) == sorted(PARTS)
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    assert loaded.search_texts(model, processor, TEXTS, 7) == index.search_texts(model, processor, TEXTS, 7)
    assert loaded.clips[:] == index.clips[:]
    assert set(loaded.clips["file"]) == set(loaded.clips["start"]) == {None}  # of a dataset
    assert loaded.thumbnail(0) is None and loaded.media_folder is None
    assert (loaded.model, loaded.revision) == (index.model, index.revision)
    with pytest.raises(FileExistsError, match="already exists"):
        index.save(folder)


def test_an_index_of_another_model_is_refused(index, make_model, tmp_path):
    folder = index.save(tmp_path / "index")
    with pytest.raises(SearchIndexError, match="load that model, or build the index again"):
        SearchIndex.load(folder, make_model(seed=1))
    with pytest.raises(SearchIndexError, match="this model's is"):
        index.check_model(make_model(seed=1))


def test_a_fingerprint_outlives_saving_and_changes_with_a_weight_the_config_or_the_precision(
    model, make_model, tmp_path
):
    first = model_fingerprint(model)
    model.save_pretrained(tmp_path / "model")
    assert model_fingerprint(type(model).from_pretrained(tmp_path / "model")) == first
    others = [make_model(), make_model(pooling="mean"), make_model().double()]
    with torch.no_grad():
        others[0].video_projection.output.weight[0, 0] += 1e-6
    assert len({first, *map(model_fingerprint, others)}) == 4


@pytest.mark.parametrize("part", [EMBEDDINGS, CLIPS])
def test_a_file_that_is_cut_short_or_changed_or_gone_is_named(index, part, tmp_path):
    folder = index.save(tmp_path / "index")
    name = f"{SEGMENTS}/000001/{part}"
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-5])
    with pytest.raises(SearchIndexError, match=f"{name}: {len(whole) - 5} bytes, index.json says {len(whole)}"):
        SearchIndex.load(folder)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    (folder / name).write_bytes(changed)
    with pytest.raises(SearchIndexError, match=f"{name}: its SHA-256 is not"):
        SearchIndex.load(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        SearchIndex.load(folder)


def test_a_cut_file_whose_description_was_cut_too_is_still_no_index(index, tmp_path):
    """A size that fits does not make a file readable."""
    folder = index.save(tmp_path / "index")
    for part in (EMBEDDINGS, CLIPS):
        description, path = (folder / INDEX).read_text(), folder / SEGMENTS / "000001" / part
        content, kept = json.loads(description), path.read_bytes()
        path.write_bytes(kept[:-5])
        content["segments"][0]["files"][part] = {"num_bytes": len(kept) - 5, "sha256": file_sha256(path)}
        (folder / INDEX).write_text(json.dumps(content))
        with pytest.raises(SearchIndexError, match="unreadable"):
            SearchIndex.load(folder)
        path.write_bytes(kept)
        (folder / INDEX).write_text(description)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "field 'format' is missing"),
        (json.dumps({"format": 1, "num_clips": 7}), "format is 1, and this version reads 2; build the index again"),
        (json.dumps({"format": 2}), "field 'fingerprint' is missing"),
    ],
)
def test_a_description_that_is_none_is_refused(index, tmp_path, text, words):
    folder = index.save(tmp_path / "index")
    (folder / INDEX).write_text(text)
    with pytest.raises(SearchIndexError, match=words):
        SearchIndex.load(folder)
    with pytest.raises(FileNotFoundError, match="is not a search index: build one"):
        SearchIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": "10"}, "dim is '10', of another kind"),
        ({"segments": {}}, "segments is '{}', of another kind"),
        ({"segments": [7]}, r"segments\[0\]: field 'name' is missing"),
        ({"name": "../../etc"}, "name is '../../etc', no number"),
        ({"dropped": [0]}, "dropped names a file that is not among its 0"),
        ({"num_clips": 31}, "30 rows, index.json says 31"),
        ({"files": {}}, "field 'num_bytes' is missing"),
    ],
)
def test_a_manifest_of_another_shape_is_one_line(index, tmp_path, change, words):
    folder = index.save(tmp_path / "index")
    content = json.loads((folder / INDEX).read_text())
    (content if set(change) <= set(content) else content["segments"][0]).update(change)
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(SearchIndexError, match=words):
        SearchIndex.load(folder)


def test_the_same_index_is_saved_as_the_same_bytes(index, tmp_path):
    first, second = (index.save(tmp_path / name) for name in "ab")
    assert (first / INDEX).read_bytes() == (second / INDEX).read_bytes()  # which has every file's SHA-256


def unit(*shape, seed=0):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_bad_embeddings_and_ids_are_named():
    def make(ids, embeddings):
        return SearchIndex(embeddings, Dataset.from_dict({"video_id": ids}), "f")

    broken = unit(2, 3)
    broken[1, 2] = float("nan")
    with pytest.raises(ValueError, match="embeddings row 1 holds a NaN"):
        make(["a", "b"], broken)
    with pytest.raises(SearchIndexError, match="video_id 'a' appears twice"):
        make(["a", "b", "a"], unit(3, 3))
    with pytest.raises(SearchIndexError, match="3 embeddings and 2 clips"):
        make(["a", "b"], unit(3, 3))
    with pytest.raises(SearchIndexError, match="no column video_id; found name"):
        SearchIndex(unit(1, 3), Dataset.from_dict({"name": ["a"]}), "f")
    one = make(["only"], unit(1, 3))
    assert one.search_clips(["only"], 1)[0][0].row == 0
    with pytest.raises(ValueError, match="top is 2; there are 1 clips"):
        one.search_clips(["only"], 2)
    with pytest.raises(KeyError, match="no clip 'other' among the 1"):
        one.search_clips(["other"], 1)
