"""`mmt search` and `mmt evaluate` on an index of videos and pictures: an untrained checkpoint, real files."""

import io
import json
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from command_line import build_checkpoint, call
from datasets import Dataset
from PIL import Image
from tiny_media import build_media, save_pixel_checkpoint
from video_files import numbers_of, write_video

from modeling_mmt.commands.search import clock
from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.evaluation.evaluate import EvalSpec, open_checkpoint, open_corpus
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.report.contact_sheet import sheet_size
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.video_decoding_mmt import read_clip

STARTS = {"a/one.mp4": [0.0, 1.0, 2.0], "two.mkv": [0.0, 1.0, 2.0, 3.0], "three.mp4": [0.0, 1.0, 2.0], "p.png": [None]}
ROWS = [(file, start) for file, starts in STARTS.items() for start in starts] + [(None, None)]
IDS = [f"{file}#{start}" for file, start in ROWS]
YEARS = {video_id: str(2020 + row % 2) for row, video_id in enumerate(IDS)}
QUERIES = ["red dog", "weißer Wal"]


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    return build_checkpoint(corpus, tmp_path_factory.mktemp("moments") / "untrained")


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    (folder / "a").mkdir()
    for file in ("a/one.mp4", "two.mkv", "three.mp4"):
        write_video(folder / file, 150, options={"g": "10", "sc_threshold": "0", "bf": "0"})
    Image.new("RGB", (40, 20), "red").save(folder / "p.png")
    return folder


def jpeg(colour):
    stream = io.BytesIO()
    Image.new("RGB", (160, 90), colour).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def index(checkpoint, media, tmp_path_factory):
    """Ten windows of three videos, a picture, and a clip of no file."""
    model, processor = open_checkpoint(str(checkpoint))
    opened = open_corpus(EvalSpec.of_checkpoint(checkpoint))
    built = SearchIndex.build(model, processor, opened.rows, opened.clips)
    files, starts = zip(*ROWS, strict=True)
    columns = {"video_id": IDS, "file": list(files), "start": list(starts), "year": list(YEARS.values())}
    columns["end"] = [None if start is None else start + 2.0 for start in starts]
    index = SearchIndex(
        built.embeddings,
        Dataset.from_dict(columns),
        built.fingerprint,
        str(checkpoint),
        thumbnails=[jpeg(("red", "blue")[row % 2]) for row in range(11)] + [None],
        media_folder=str(media),
    )
    return index.save(tmp_path_factory.mktemp("index") / "index")


def told(capsys, *words):
    code, out, _ = call(capsys, "search", *words, "--json")
    assert code == 0
    return json.loads(out)


def test_the_moments_are_those_of_the_index(index, checkpoint, capsys):
    model, processor = open_checkpoint(str(checkpoint))
    loaded = SearchIndex.load(index, model)
    expected = loaded.search_moments(embed_texts(model, processor, QUERIES), top=3)
    for result, moments in zip(told(capsys, index, *QUERIES, "--top", "3"), expected, strict=True):
        assert list(result["hits"][0]) == ["file", "start", "end", "score", "video_id", "name"]
        for hit, moment in zip(result["hits"], moments, strict=True):
            assert hit["score"] == pytest.approx(moment.score, abs=1e-4)
            assert (hit["file"], hit["video_id"]) == (moment.file, moment.video_id)
            assert [hit["start"], hit["end"]] == pytest.approx([moment.start, moment.end], abs=1e-3)


def test_all_windows_are_shown_unjoined_and_places_without_times_are_null(index, capsys):
    (result,) = told(capsys, index, "red dog", "--windows", "--top", "99")
    by_id = {hit["video_id"]: (hit["file"], hit["start"], hit["end"]) for hit in result["hits"]}
    assert len(by_id) == 12
    assert by_id["two.mkv#3.0"] == ("two.mkv", 3.0, 5.0)
    assert by_id["p.png#None"] == ("p.png", None, None) and by_id["None#None"] == (None, None, None)


def test_the_table_says_file_and_time(index, capsys):
    code, out, _ = call(capsys, "search", index, "--windows", "--top", "12", "red dog")
    assert code == 0
    assert re.search(r"^ +\d+ +-?\d\.\d{3}  two\.mkv  00:03-00:05$", out, re.MULTILINE)
    assert re.search(r"^ +\d+ +-?\d\.\d{3}  p\.png$", out, re.MULTILINE)
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3725)] == ["00:00", "01:00", "01:01", "1:02:05"]


def test_filters_compare_as_the_column_does(index, capsys):
    for words in (["year=2020"], ["year=2020", "file=two.mkv"], ["file=two.mkv", "file=p.png"]):
        (result,) = told(capsys, index, "red dog", "--windows", "--top", "12", "--where", *words)
        wanted = {word.partition("=")[2] for word in words}
        assert result["hits"]
        for hit in result["hits"]:
            assert YEARS[hit["video_id"]] in wanted or "year=2020" not in words
            assert hit["file"] in wanted or len(words) == 1
    code, _, err = call(capsys, "search", index, "dog", "--where", "start=soon")
    assert code == 2 and "column 'start' holds double, and 'soon' is none" in err


def test_a_contact_sheet_has_a_row_a_query_and_the_thumbnails(index, tmp_path, capsys):
    path = tmp_path / "new" / "found.png"
    code, out, _ = call(capsys, "search", index, *QUERIES, "--windows", "--top", "4", "--contact_sheet", path)
    assert code == 0 and out.splitlines()[-1] == str(path)
    with Image.open(path) as picture:
        assert picture.size == sheet_size(2, 4, 160)
        colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert any(abs(r - 254) < 3 and g < 3 and b < 3 for r, g, b in colours)


def test_moments_are_saved_under_their_query_and_rank(index, media, tmp_path, capsys):
    folder = tmp_path / "found"
    (result,) = told(capsys, index, "red dog", "--where", "file=two.mkv", "file=p.png", "--save_moments", folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"01-{rank:02d}{hit['file'][-4:]}" for rank, hit in enumerate(result["hits"], start=1)]
    for rank, hit in enumerate(result["hits"], start=1):
        path = folder / f"01-{rank:02d}{hit['file'][-4:]}"
        if hit["start"] is None:
            assert path.read_bytes() == (media / "p.png").read_bytes()
            continue
        numbers = numbers_of(read_clip(path, FrameSampling(num_frames=None, frames_per_second=25)).frames)
        first, last = int(hit["start"] * 25), int(np.ceil(hit["end"] * 25)) - 1
        assert numbers[0] == first // 10 * 10 and last <= numbers[-1] <= last + 4
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, out, err = call(capsys, "search", index, "dog", "--save_moments", folder)
    assert (code, out) == (2, "") and "already exists; name a new folder" in err
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_another_engine_is_built_beside_the_index_and_finds_the_same(index, tmp_path, capsys):
    pytest.importorskip("faiss", reason="an optional engine: extra `search`")
    copy = shutil.copytree(index, tmp_path / "index")
    assert told(capsys, copy, *QUERIES, "--engine", "faiss:Flat") == told(capsys, copy, *QUERIES)
    assert [path.name for path in (copy / "engines").iterdir() if path.suffix == ".index"] == ["faiss-Flat.index"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dog", "--engine", "nothing"], "engine is 'nothing'; give exact, faiss:FACTORY such as"),
        ([], "no query: give a text, --by_picture or --by_video"),
        (["dog", "--at", "3"], "--at 3 needs a video"),
        (["dog", "--top", "0"], "--top is 0"),
        (["dog", "--contact_sheet", "found.bmp"], "choose .png"),
        (["--by_picture", "nowhere.png"], "nowhere.png does not exist"),
        (["caf\udce9"], "query 1 has bytes that are not UTF-8"),
    ],
)
def test_bad_options_are_one_line(index, capsys, words, message):
    code, out, err = call(capsys, "search", index, *words)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_what_cannot_be_saved_is_one_line_and_leaves_nothing(index, checkpoint, tmp_path, capsys, media):
    loaded = SearchIndex.load(index)
    place = {"start": [0.0], "end": [1.0]}
    for number, (columns, words) in enumerate(
        (
            ({"file": ["../secret.mp4"], **place}, "'../secret.mp4', outside"),
            ({"file": ["gone.mp4"], **place}, "gone.mp4 does not exist"),
            ({}, "clip of a dataset"),
        )
    ):
        clips = Dataset.from_dict({"video_id": ["x"], **columns})
        one = SearchIndex(
            loaded.embeddings[:1], clips, loaded.fingerprint, str(checkpoint), media_folder=str(media)
        ).save(tmp_path / f"index {number}")
        code, out, err = call(capsys, "search", one, "dog", "--json", "--save_moments", tmp_path / "found")
        assert (code, out) == (2, "") and words in err and err.count("\n") == 1
        assert not (tmp_path / "found").exists()


def test_a_picture_and_a_moment_of_a_video_are_queries(tmp_path, capsys):
    media, checkpoint = build_media(tmp_path / "media"), save_pixel_checkpoint(tmp_path / "model")
    place, windows = tmp_path / "of pixels", ["--window", "8", "--stride", "4", "--num_workers", "1"]
    assert call(capsys, "index", media, "--model", checkpoint, "--output_dir", place, *windows)[0] == 0
    queries = ["--by_picture", media / "photo.png", "--by_picture", media / "kitchen" / "cup.png"]
    results = told(capsys, place, *queries, "--by_video", media / "z.mkv", "--at", "8", "--windows", "--top", "20")
    assert [result["query"] for result in results] == [*map(str, queries[1::2]), f"{media / 'z.mkv'} at 8"]
    for result, video_id in zip(results, ("photo.png", "kitchen/cup.png", "z.mkv#4.0-12.0"), strict=True):
        scores = {hit["video_id"]: hit["score"] for hit in result["hits"]}
        assert scores[video_id] == max(scores.values()) == pytest.approx(1.0, abs=1e-4)


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """A corpus whose rows say where in the index's files they lie."""
    folder = tmp_path_factory.mktemp("spans") / "spans"
    rows = {
        "video_id": ["s1", "s2", "s3"],
        "file": ["a/one.mp4", "two.mkv", "two.mkv"],
        "start": [0.5, 0.0, 2.5],
        "end": [2.5, 2.0, 4.0],
        "caption_en": ["red dog", "white whale", "red dog"],
        "caption_de": ["rot Hund", None, "rot Hund"],
    }
    (folder / "data").mkdir(parents=True)
    Dataset.from_dict(rows).to_parquet(str(folder / "data" / "test-00000-of-00001.parquet"))
    return folder


def test_evaluate_measures_moments_of_an_index(index, checkpoint, spans, capsys):
    options = ["--dataset", spans, "--split", "test"]
    code, out, _ = call(capsys, "evaluate", index, *options, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["n_queries"] == {"en": 3, "de": 2}
    moments = told(capsys, index, "red dog", "white whale", "--top", "5")
    right = {"red dog": [("a/one.mp4", 0.5, 2.5), ("two.mkv", 2.5, 4.0)], "white whale": [("two.mkv", 0.0, 2.0)]}
    hits = []
    for result in moments:
        hits.append(
            any(
                hit["file"] == file
                and hit["start"] is not None
                and max(0, min(end, hit["end"]) - max(start, hit["start"]))
                >= 0.3 * (max(end, hit["end"]) - min(start, hit["start"]))
                for hit in result["hits"]
                for file, start, end in right[result["query"]]
            )
        )
    assert found["moments"]["en"]["R@5 IoU=0.3"] == pytest.approx(100 * np.mean(hits))
    code, out, _ = call(capsys, "evaluate", index, *options)
    assert code == 0 and "R@1 IoU=0.5" in out and re.search(r"^all but en ", out, re.MULTILINE)


def test_an_index_without_the_files_of_the_corpus_is_refused(index, corpus, spans, tmp_path, capsys):
    code, _, err = call(capsys, "evaluate", index, "--dataset", corpus / "corpus")
    assert code == 2 and "no row has a file, a start and an end" in err
    rows = Dataset.from_parquet(str(spans / "data" / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "other" / "data").mkdir(parents=True)
    other = rows.map(lambda row: {"file": "elsewhere.mp4"})
    other.to_parquet(str(tmp_path / "other" / "data" / "test-00000-of-00001.parquet"))
    code, _, err = call(capsys, "evaluate", index, "--dataset", tmp_path / "other", "--split", "test")
    assert code == 2 and "none of its files is in" in err and "'elsewhere.mp4'" in err


def with_change(index, folder, column=None, thumbnails=None):
    """A copy of an index with a column of names, or other thumbnails."""
    loaded = SearchIndex.load(index)
    clips = loaded.clips if column is None else loaded.clips.add_column("name_en", column)
    thumbnails = loaded.thumbnails if thumbnails is None else thumbnails
    changed = SearchIndex(loaded.embeddings, clips, loaded.fingerprint, loaded.model, thumbnails=thumbnails)
    return changed.save(folder)


@pytest.mark.parametrize("name", [7, True, [7], [None], [], {"a": 1}, b"\xff"])
def test_a_name_that_is_no_text_is_not_shown(index, capsys, tmp_path, name):
    (result,) = told(capsys, with_change(index, tmp_path / "index", column=[name] * 12), "red dog", "--windows")
    assert all(hit["name"] == (hit["file"] or hit["video_id"]) for hit in result["hits"])


def png_of(width, height):
    """The head of a picture of any size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("thumbnail", [b"junk", png_of(60_000, 60_000)])
def test_a_thumbnail_that_is_no_picture_or_a_huge_one_is_named(index, capsys, tmp_path, thumbnail):
    changed = with_change(index, tmp_path / "index", thumbnails=[thumbnail] * 12)
    code, _, err = call(capsys, "search", changed, "red dog", "--contact_sheet", tmp_path / "found.png")
    assert code == 2 and "thumbnail of " in err and err.count("\n") == 1


def test_moments_are_not_saved_onto_a_link_to_nothing(index, capsys, tmp_path):
    (tmp_path / "moments").symlink_to("nowhere")
    code, _, err = call(capsys, "search", index, "red dog", "--save_moments", tmp_path / "moments")
    assert code == 2 and "already exists; name a new folder" in err
