"""`experiments/film9*.py`: windows, answers, truth and figures by closed forms; the whole path is `make film9`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import film9  # noqa: E402
import film9_report as report  # noqa: E402
import film9_search as search  # noqa: E402

from modeling_mmt.data.feature_store import FeatureStore  # noqa: E402
from modeling_mmt.data.feature_store_writer import write_feature_store  # noqa: E402
from modeling_mmt.evaluation.moments import IOUS  # noqa: E402
from modeling_mmt.search.media_windows import WindowRule  # noqa: E402
from modeling_mmt.search.moments import JoinRule  # noqa: E402
from modeling_mmt.training.recipe_reading import load_recipe  # noqa: E402


@pytest.fixture
def store(tmp_path):
    """Two films of 10 and 21 seconds at 2 steps a second."""
    clips = [("a", np.ones((20, 3))), ("b", np.ones((42, 3)))]
    write_feature_store(tmp_path / "store", iter(clips), extractor="made up", revision="1", rate=2.0)
    return FeatureStore(tmp_path / "store")


def test_every_film_is_cut_by_the_rule_and_by_its_own_shots(store):
    windows = search.windows_of(store, WindowRule(8.0, 8.0))
    assert windows.film.tolist() == ["a", "a", "b", "b", "b"]
    assert windows.spans.tolist() == [[0, 8], [8, 10], [0, 8], [8, 16], [16, 21]]
    shots = search.windows_of(store, WindowRule(30.0, 30.0, shots=True), {"a": [4.2], "b": []})
    assert shots.spans.tolist() == [[0, 4.2], [4.2, 10], [0, 21]]


def test_a_window_is_embedded_by_the_steps_in_its_middle(tmp_path, monkeypatch):
    clips = [("a", np.arange(20.0)[:, None])]
    write_feature_store(tmp_path / "steps", iter(clips), extractor="made up", revision="1", rate=2.0)
    monkeypatch.setattr(
        search, "embed_videos", lambda *given, **_: torch.tensor([float(one[0, 0]) for one in given[2]])
    )
    windows = search.Windows(np.array(["a", "a"]), np.array([[0.0, 2.0], [7.5, 10.0]]))
    first = search.embed_windows(None, None, FeatureStore(tmp_path / "steps"), windows)
    assert first.tolist() == [0.0, 15.0]


SPANS = np.array([[0, 2], [2, 4], [4, 6], [0, 2], [2, 4]], float)
SCORED = search.Scored(
    search.Windows(np.array(["a", "a", "a", "b", "b"]), SPANS), np.array([[0.1, 0.9, 0.88, 0.2, 0.3]])
)


def test_the_best_window_its_neighbourhood_and_what_is_joined_about_it():
    assert SCORED.best().spans.tolist() == [[2, 4]] and SCORED.best().film.tolist() == ["a"]
    assert SCORED.about_best(5.0).spans.tolist() == [[0, 6]]  # cut at both ends of the film
    assert SCORED.about_best(0.5).spans.tolist() == [[2.5, 3.5]]
    assert SCORED.joined(JoinRule(0.8)).spans.tolist() == [[2, 6]]


def test_a_moment_counts_by_the_nearest_showing_of_its_own_film():
    found = search.Answers(np.array(["a", "a"]), np.array([[0.0, 4.0], [0.0, 4.0]]))
    truth = [{"a": [(8.0, 12.0), (0.0, 2.0)], "b": [(0.0, 4.0)]}, {"b": [(0.0, 4.0)]}]
    assert search.best_ious(found, truth).tolist() == [0.5, 0.0]


def test_truth_is_read_by_clip_and_film_of_one_split(tmp_path):
    showings = [{"video_id": "x", "start": 0, "end": 3}, {"video_id": "y", "start": 3, "end": 6}]
    films = {
        "test/film000.mp4": {"split": "test", "showings": showings},
        "test/film001.mkv": {"split": "test", "showings": showings[:1]},
        "train/film000.mp4": {"split": "train", "showings": showings},
    }
    (tmp_path / "truth.json").write_text(json.dumps({"films": films}))
    truth = search.read_truth(tmp_path / "truth.json", "test")
    assert truth == {"x": {"film000": [(0, 3)], "film001": [(0, 3)]}, "y": {"film000": [(3, 6)]}}


def configuration(family, score, cut="c"):
    values = {"IoU 0.3": 99.0, "IoU 0.5": score, "IoU 0.7": 0.0}
    return {"cut": cut, "answer": "best", "family": family, "R@1": values}


def test_each_family_gives_its_best_by_validation_and_the_default_is_none_of_the_plain_ways():
    found = report.chosen(
        [configuration("grid", 50.0), configuration("windows", 20.0), configuration("windows", 30.0, "d")]
    )
    assert found["windows"]["cut"] == "d" and report.default_of(found) == "windows"


def ious_of(films, clips, none):
    """Two seeds, 40 clips, nine languages: so many clips in 40 reach IoU 0.8 in every language."""
    ious = {}
    for row, count in ((report.FILMS, films), (report.CLIPS, clips), (report.BASE, none)):
        for seed in (0, 1):
            values = np.where(np.arange(40) < count, 0.8, 0.0)
            ious[row, seed] = {way: np.tile(values, (9, 1)) for way in ("windows", "grid", "frames")}
    return ious


def test_gains_and_their_ratio_are_those_of_the_hits():
    found = report.gains(ious_of(20, 24, 4), "windows", 0.5, [0, 1])
    assert found["G(films)"]["difference"] == pytest.approx(40.0)
    assert found["G(emoji9)"]["difference"] == pytest.approx(50.0)
    assert found["ratio"] == pytest.approx(0.8) and found["ratio per seed"] == pytest.approx([0.8, 0.8])
    low, high = found["ratio ci95"]
    assert low < 0.8 < high


def test_the_interval_of_a_ratio_is_a_point_where_one_is_a_multiple_of_the_other():
    below = np.random.default_rng(0).random((3, 50)) + 1
    assert report.ratio_interval(0.75 * below, below) == pytest.approx((0.75, 0.75))


def test_the_page_says_that_a_bound_is_missed():
    ways = report.chosen([configuration(way, 10.0) for way in ("windows", "grid", "frames")])

    def page(films):
        results = report.summary(ious_of(films, 24, 4), ways, [0, 1], IOUS)
        results |= {"seeds": [0, 1], "machine": "none", "about": "made up", "configurations": [configuration("g", 1)]}
        return report.markdown(results)

    assert "is MISSED: 0.50" in page(14) and "is reached: 1.00" in page(24)


def test_the_rows_differ_in_their_pre_training_alone_and_draw_as_often(tmp_path):
    corpus = film9.Corpus(tmp_path)
    films = ((f"film{number}", np.ones((4, 3))) for number in range(5))
    write_feature_store(corpus.features("train"), films, extractor="made up", revision="1", rate=2.0)
    corpus.clips.mkdir(parents=True)
    Dataset.from_dict({"video_id": [f"clip{number}" for number in range(10)]}).to_parquet(
        corpus.clips / "train.parquet"
    )
    rows = film9.recipes(corpus)
    assert list(rows) == list(film9.ROWS)
    for name, recipe in rows.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        assert load_recipe([str(tmp_path / f"{name}.yaml")]).cache_windows
    films_row, clips_row = rows["mmp_films"], rows["mmp_emoji9"]
    assert {key for key in films_row if films_row[key] != clips_row[key]} == {"pretraining"}
    assert rows["none"]["data"] == films_row["data"] and "pretraining" not in rows["none"]
    assert films_row["pretraining"]["num_train_epochs"] * 5 == clips_row["pretraining"]["num_train_epochs"] * 10


@pytest.mark.parametrize(
    ("cut", "answer", "name"),
    [
        ("grid 10", "best", "grid"),
        ("frames", "+-3 s", "frames"),
        ("windows 8/4", "best", "windows"),
        ("shots", "joined at 0.5", "shots, joined"),
    ],
)
def test_a_configuration_belongs_to_one_of_the_ways(cut, answer, name):
    assert film9.family(cut, answer) == name


def test_every_cut_has_the_answers_of_its_way():
    assert list(film9.answers(SCORED, "grid 10")) == ["best"]
    assert len(film9.answers(SCORED, "frames")) == len(film9.NEIGHBOURHOODS)
    assert list(film9.answers(SCORED, "windows 8/4"))[:2] == ["best", "joined at 0.3"]
