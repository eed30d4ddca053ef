"""`experiments/storybook8.py`: figures of languages that not every page has, drawn by story."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import storybook8 as stories  # noqa: E402

# Three stories; the third has no Swahili.
STORIES = {"en": np.array(["0001", "0001", "0002", "0003"]), "sw": np.array(["0001", "0002"])}
RANKS = {"en": [1.0, 4.0, 1.0, 2.0], "sw": [2.0, 1.0]}


def run_of(ranks):
    part = {"all": {"t2v": ranks}}
    stages = {"finetuning": {"seconds": 2.0}}
    return {"ranks": {"test": part}, "metrics": stages, "done": {"commit": "abc", "seconds": 2.0}}


@pytest.mark.parametrize(("metric", "english", "swahili"), [("R@1", 50.0, 50.0), ("MRR", 68.75, 75.0)])
def test_the_mean_over_stories_is_the_mean_over_each_languages_queries(metric, english, swahili):
    table = stories.by_story(RANKS, STORIES, metric)
    assert table.shape == (3, 2)
    np.testing.assert_allclose(table.mean(axis=0), [english, swahili])


def test_a_story_adds_its_own_queries_alone():
    table = stories.by_story(RANKS, STORIES, "R@1")
    np.testing.assert_allclose(table, [[75.0, 0.0], [75.0, 150.0], [0.0, 0.0]])


def test_a_row_has_each_language_the_averages_and_an_interval_around_the_mean():
    found = {("mmp_en", 0): run_of(RANKS), ("mmp_en", 1): run_of(RANKS | {"sw": [1.0, 1.0]})}
    row = stories.row("mmp_en", "test", found, STORIES, [0, 1])
    cell = row["t2v"]["R@1"]
    assert {key: cell[key]["mean"] for key in cell} == {"en": 50.0, "sw": 75.0, "avg": 62.5, "avg_non_en": 75.0}
    assert cell["sw"]["per_seed"] == [50.0, 100.0]
    assert all(of["ci95"][0] <= of["mean"] <= of["ci95"][1] for of in cell.values())
    assert (row["pretraining"], row["finetuning"], row["commit"], row["seconds"]) == ("MMP", "en", "abc", [2.0, 2.0])


def test_two_rows_are_compared_in_the_other_languages_alone():
    worse = RANKS | {"en": [9.0] * 4, "sw": [3.0, 3.0]}
    found = {("mmp_en", 0): run_of(RANKS), ("none_en", 0): run_of(worse)}
    assert stories.comparison("R@1", "mmp_en", "none_en", found, STORIES, [0])["difference"] == pytest.approx(50.0)
    same = stories.comparison("R@1", "mmp_en", "mmp_en", found, STORIES, [0])
    assert same["difference"] == 0.0 and same["p"] == 1.0


def test_the_page_says_who_won_and_on_how_many_stories():
    found = {(name, 0): run_of(RANKS) for name in stories.ROWS}
    results = {
        "machine": "2 cores",
        "seeds": [0],
        "splits": {"test": {"stories": 3, "pages": 50, "queries": {"en": 4, "sw": 2}}},
        "rows": [stories.row(name, "test", found, STORIES, [0]) for name in stories.ROWS],
        "comparisons": [stories.comparison("R@1", "mmp_en", "none_en", found, STORIES, [0])],
    }
    page = stories.markdown(results)
    assert "| MMP / en | 50.0 | 50.0 | 50.0 [" in page
    assert "50 pages of 3 stories; chance is 2.0 for R@1, 20.0 for R@10; queries: en 4, sw 2" in page
    assert "| R@1 | MMP/en - none/en | +0.0 |" in page
