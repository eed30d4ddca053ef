"""The table and the figure that `experiments/tables.py` makes from a results.json."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import tables  # noqa: E402

LANGUAGES = ("en", "de", "sw")


def direction(base):
    def cell(value):
        return {"mean": value, "per_seed": [value - 1, value + 1], "ci95": [value - 2, value + 2]}

    values = {lang: base - 5 * i for i, lang in enumerate(LANGUAGES)}
    values |= {"avg": base - 5, "avg_non_en": base - 7.5}
    return {metric: {key: cell(value) for key, value in values.items()} for metric in tables.SHOWN_METRICS}


def row(pretraining, finetuning, base):
    return {
        "pretraining": pretraining,
        "finetuning": finetuning,
        "split": "test",
        "t2v": direction(base),
        "v2t": direction(base + 1),
        "without_flags": {"t2v": direction(base + 2), "v2t": direction(base + 3)},
        "n_queries": 300,
        "command": f"mmt train emoji9/{pretraining}",
        "commit": "0123456789abcdef",
        "seconds": 61.4,
    }


@pytest.fixture
def results():
    return {
        "machine": "2 cores",
        "versions": {"torch": "2.13.0"},
        "seeds": [0, 1, 2],
        "rows": [row("none", "en", 20.0), row("MMP", "en", 30.0)],
        "comparisons": [
            {"a": "MMP / en", "b": "none / en", "scope": "avg_non_en", "difference": 10.0, "ci95": [8, 12], "p": 1e-4}
        ],
    }


def test_the_table_marks_the_best_of_each_column_and_gives_intervals_of_averages(results):
    lines = tables.metric_table(results["rows"]).splitlines()
    assert lines[0] == "| pre-train / fine-tune | en | de | sw | avg | avg w/o en |"
    assert lines[2] == "| none / en | 20.0 | 15.0 | 10.0 | 15.0 [13.0, 17.0] | 12.5 [10.5, 14.5] |"
    assert lines[3].startswith("| MMP / en | **30.0** | **25.0** | **20.0** | **25.0** [23.0, 27.0] |")


def test_a_low_median_rank_is_the_best_one(results):
    lines = tables.metric_table(results["rows"], metric="MedR").splitlines()
    assert lines[2].startswith("| none / en | **20.0** |")


def test_a_row_for_one_language_has_dashes_elsewhere(results):
    only = row("MMP-sw", "en", 40.0)
    only["t2v"]["R@1"] = {"sw": only["t2v"]["R@1"]["sw"]}
    lines = tables.metric_table([*results["rows"], only]).splitlines()
    assert lines[4] == "| MMP-sw / en | – | – | **30.0** | – | – |"
    assert len(tables.r1_figure([*results["rows"], only]).axes) == 1


def test_the_page_has_every_section_and_real_commands(results):
    page = tables.markdown_report(results, figure="r1_by_language.png")
    for text in (
        "Mean over 3 seeds",
        "torch 2.13.0",
        "## Text to video, R@1 (test, 300 queries a language)",
        "## Video to text, R@1",
        "without flags",
        "![R@1 by language",
        "| MMP / en | none / en | avg_non_en | +10.0 | [+8.0, +12.0] | < 0.001 |",
        "`mmt train emoji9/MMP`",
    ):
        assert text in page


def test_comparisons_are_left_out_when_there_are_none(results):
    del results["comparisons"]
    assert "Paired comparisons" not in tables.markdown_report(results)


def test_the_command_writes_a_page_and_a_picture_beside_the_json(tmp_path, results):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    page, picture = tables.main([str(path)])
    assert page.read_text(encoding="utf-8").startswith("# emoji9")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_the_figure_shows_each_value_once(results):
    axes = tables.r1_figure(results["rows"]).axes[0]
    lines = [container.lines[0] for container in axes.containers]
    np.testing.assert_allclose(lines[0].get_ydata(orig=False), [20, 15, 10, 15, 12.5])
    np.testing.assert_allclose(lines[1].get_ydata(orig=False), [30, 25, 20, 25, 22.5])


def test_an_empty_results_file_says_what_to_run(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"rows": []}')
    with pytest.raises(ValueError, match="make table"):
        tables.main([str(path)])
