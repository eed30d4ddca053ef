"""`examples/search.py` and `examples/qualitative.py` on a few clips of the bundled corpus and a tiny random model."""

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.report import contact_sheet as sheets
from modeling_mmt.search.index import Hit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import qualitative  # noqa: E402
import search  # noqa: E402

CORPUS = str(ROOT / "datasets_scripts" / "emoji9")
QUERIES = ["red dog", "Hund", "home fast runs"]
NUM_ROWS = 12


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")
        yield


@pytest.fixture(scope="module")
def split():
    return datasets.load_dataset(CORPUS, split="test")


@pytest.fixture(scope="module")
def rows(split):
    """The first ones, stills and animations."""
    rows = split.select(range(NUM_ROWS))
    assert set(rows["num_frames"]) == {1, 8}
    return rows


@pytest.fixture(scope="module")
def features(split):
    generator = np.random.default_rng(0)
    return {clip: generator.standard_normal((2, 8)).astype(np.float32) for clip in split["video_id"]}


@pytest.fixture(scope="module")
def options(features, tmp_path_factory):
    """What names a saved checkpoint and a store on the command line."""
    from conftest import build_model, build_processor

    folder = tmp_path_factory.mktemp("search")
    build_model().save_pretrained(folder / "model")
    build_processor().save_pretrained(folder / "model")
    write_feature_store(folder / "store", features.items(), extractor="random", revision="1")
    return ["--model", str(folder / "model"), "--features", str(folder / "store"), "--dataset", CORPUS]


def scores_one_by_one(model, processor, query, rows, features):
    """No batches, no padding, no sorting: the cosine of each clip by itself."""
    scores = []
    for clip in rows["video_id"]:
        with torch.no_grad():
            output = model(**processor([query], [features[clip]]))
        scores.append(float(output.text_embeds[0] @ output.video_embeds[0]))
    return scores


def test_the_clips_found_are_those_of_a_naive_computation(make_model, make_processor, rows, features):
    model, processor = make_model(), make_processor()
    found = search.search(model, processor, QUERIES, rows, features, top=5)
    for query, hits in zip(QUERIES, found, strict=True):
        scores = scores_one_by_one(model, processor, query, rows, features)
        best = sorted(range(NUM_ROWS), key=lambda row: -scores[row])[:5]
        assert [hit.row for hit in hits] == best
        np.testing.assert_allclose([hit.score for hit in hits], [scores[row] for row in best], atol=1e-5)


def test_equal_clips_stay_in_the_order_of_the_rows(make_model, make_processor, rows):
    same = dict.fromkeys(rows["video_id"], np.ones((2, 8), dtype=np.float32))
    (hits,) = search.search(make_model(), make_processor(), ["red dog"], rows, same, top=NUM_ROWS)
    assert [hit.row for hit in hits] == list(range(NUM_ROWS))


@pytest.mark.parametrize("top", [0, -1, NUM_ROWS + 1])
def test_a_top_outside_the_corpus_is_refused_with_its_size(make_model, make_processor, rows, features, top):
    with pytest.raises(ValueError, match=f"top is {top}; there are {NUM_ROWS} clips"):
        search.search(make_model(), make_processor(), ["red dog"], rows, features, top)


def test_the_picture_has_a_row_a_query_and_shows_each_clip_in_its_place(rows):
    animated = [row for row in range(NUM_ROWS) if rows[row]["num_frames"] == 8][0]
    still = [row for row in range(NUM_ROWS) if rows[row]["num_frames"] == 1][0]
    found = [[Hit(animated, 0.5, "a"), Hit(still, 0.25, "s")], [Hit(still, 0.5, "s"), Hit(animated, 0.1, "a")]]
    pictures = search.draw(["con chó", "собака"], found, rows, "name_en")
    assert len(pictures) == 8
    row_height = sheets.TITLE + sheets.CELL + sheets.CAPTION + sheets.GAP
    for line, hits in enumerate(found):
        for column, hit in enumerate(hits):
            left = sheets.GAP + column * (sheets.CELL + sheets.GAP)
            upper = sheets.GAP + line * row_height + sheets.TITLE
            frames = frames_of(rows[hit.row])
            for moment, picture in enumerate(pictures):
                assert picture.size == sheets.sheet_size(2, 2) == (304, 448)
                cell = picture.crop((left, upper, left + sheets.CELL, upper + sheets.CELL))
                assert cell.tobytes() == frames[moment * len(frames) // 8].tobytes()


def test_only_the_right_clip_is_framed(rows):
    found = [[Hit(0, 0.5, "0"), Hit(1, 0.4, "1"), Hit(2, 0.3, "2")]]
    framed = search.draw(["dog"], found, rows, "name_en", right=[1])[0]
    plain = search.draw(["dog"], found, rows, "name_en")[0]
    changed = np.argwhere((np.asarray(framed) != np.asarray(plain)).any(axis=2))
    left, upper = sheets.GAP + sheets.CELL + sheets.GAP, sheets.GAP + sheets.TITLE
    assert changed.min(axis=0).tolist() == [upper - 6, left - 6]
    assert changed.max(axis=0).tolist() == [upper + sheets.CELL + 5, left + sheets.CELL + 5]


@pytest.mark.parametrize(("ending", "moments"), [("png", 1), ("gif", 8), ("webp", 8)])
def test_the_command_prints_ranks_and_writes_a_picture(options, split, tmp_path, capsys, ending, moments):
    output = tmp_path / "pictures" / f"found.{ending}"
    found = search.main([*QUERIES, *options, "--top", "8", "--output", str(output)])
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line in QUERIES] == QUERIES
    first = split[found[0][0].row]
    assert f"     1  {found[0][0].score:6.3f}  {first['emoji']} {first['name_en']}" in printed
    with Image.open(output) as picture:
        assert picture.size == sheets.sheet_size(3, 8)
        assert getattr(picture, "n_frames", 1) == moments


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model", "nowhere"], "no checkpoint in nowhere: `make demo` makes"),
        (["--features", "nowhere"], "no feature store in nowhere: `make demo` makes"),
        (["--font", "nowhere.ttf"], "no font file nowhere.ttf"),
        (["--output", "found.bmp"], "choose .png"),
        (["--name_column", "title"], "no column title"),
        (["--top", "301"], "top is 301; there are 300 clips"),
        (["--", " \t"], "query 2 is empty"),
        (["--dataset", "no/where"], "no/where"),
    ],
)
def test_a_bad_option_is_one_line_and_not_a_traceback(options, capsys, monkeypatch, tmp_path, change, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        search.main(["red dog", *options, *change] if change[0] != "--" else [*options, "--", "red dog", change[1]])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error
    assert not list(tmp_path.iterdir())


def test_the_figure_gives_each_language_its_rank_and_a_row(options, split, tmp_path, capsys):
    output = tmp_path / "figure.png"
    ranks = qualitative.main([*options, "--clips", "cat", "🚁", "--top", "3", "--output", str(output)])
    assert list(ranks) == ["1f408", "1f681"]
    assert all(list(of_clip) == list(LANGUAGES) for of_clip in ranks.values())
    assert all(1 <= rank <= len(split) for of_clip in ranks.values() for rank in of_clip.values())
    assert f"en {ranks['1f408']['en']}, de {ranks['1f408']['de']}" in capsys.readouterr().out
    width, height = sheets.sheet_size(len(LANGUAGES), 3, qualitative.CELL)
    with Image.open(output) as picture:
        assert picture.size == (2 * width, height)


def test_the_figures_clips_are_drawn_by_the_seed(options, tmp_path):
    first, again, other = (
        list(qualitative.main([*options, "--num_clips", "1", "--seed", seed, "--output", str(tmp_path / "f.png")]))
        for seed in ("0", "0", "1")
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--clips", "unicorn of no name"], "clips: no clip 'unicorn of no name'"),
        (["--num_clips", "0"], "--num_clips is 0; there are"),
        (["--num_clips", "1000"], "--num_clips is 1000; there are"),
        (["--output", f"{__file__}/figure.png"], f"{__file__} is a file; name a folder"),
    ],
)
def test_a_bad_option_of_the_figure_is_one_line(options, capsys, monkeypatch, tmp_path, change, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        qualitative.main([*options, *change])
    assert stopped.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
