"""`modeling_mmt.evaluation.moments` against closed forms and a loop."""

from typing import NamedTuple

import numpy as np
import pytest
from datasets import Dataset

from modeling_mmt.evaluation.moments import (
    DEPTHS,
    IOUS,
    Span,
    judge,
    moment_metrics,
    spans_by_text,
    spans_of_rows,
    temporal_iou,
)


class Found(NamedTuple):
    file: str | None
    start: float | None
    end: float | None


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ((0, 10), (0, 10), 1),
        ((0, 10), (10, 20), 0),
        ((0, 10), (5, 15), 1 / 3),
        ((0, 10), (2, 7), 0.5),
        ((0, 1), (5, 6), 0),
    ],
)
def test_temporal_iou_of_known_spans(a, b, iou):
    found, spans = np.array([a], dtype=float), np.array([b], dtype=float)
    assert temporal_iou(found, spans) == temporal_iou(spans, found) == pytest.approx(np.array([[iou]]))
    assert temporal_iou(found + 100, spans + 100) == pytest.approx(np.array([[iou]]))
    assert temporal_iou(found * 7, spans * 7) == pytest.approx(np.array([[iou]]))


def test_a_hit_lies_in_the_right_file_and_any_showing_counts():
    right = [Span("a", 0, 10), Span("a", 50, 60), Span("b", 0, 10)]
    found = [Found("c", 0, 10), Found("b", 0, 5), Found("a", 51, 60), Found(None, None, None), Found("a", None, None)]
    judged = judge(found, right)
    assert judged.ious.tolist() == pytest.approx([0, 0.5, 0.9, 0, 0])
    assert judged.in_file.tolist() == [False, True, True, False, False]
    figures = moment_metrics([judged])
    assert [figures[f"R@1 IoU={iou}"] for iou in IOUS] == [0, 0, 0] and figures["R@1 file"] == 0
    assert [figures[f"R@5 IoU={iou}"] for iou in IOUS] == [100, 100, 100]
    assert figures["start_error"] is None


def test_the_start_error_is_the_median_over_first_moments_in_a_right_file():
    right = [Span("a", 10, 20), Span("a", 40, 50)]
    starts = [("a", 12.0), ("a", 39.5), ("a", 24.0), ("b", 10.0)]
    judged = [judge([Found(file, start, start + 1)], right) for file, start in starts]
    assert [one.start_error for one in judged[:3]] == [2.0, 0.5, 14.0] and np.isnan(judged[3].start_error)
    figures = moment_metrics(judged)
    assert figures["start_error"] == 2.0 and figures["R@1 file"] == 75.0


def test_nothing_found_is_no_hit():
    figures = moment_metrics([judge([], [Span("a", 0, 1)])])
    assert figures["start_error"] is None and set(figures.values()) == {0.0, None}
    with pytest.raises(ValueError, match="no query to measure"):
        moment_metrics([])


def naive_figures(found, right):
    """Definition by definition, a query and a moment at a time."""
    figures, errors, in_file = {}, [], 0
    for iou in IOUS:
        for depth in DEPTHS:
            hits = 0
            for moments, spans in zip(found, right, strict=True):
                hit = False
                for moment in moments[:depth]:
                    for span in spans:
                        if moment.file == span.file:
                            shared = max(0, min(moment.end, span.end) - max(moment.start, span.start))
                            union = (moment.end - moment.start) + (span.end - span.start) - shared
                            hit = hit or shared / union >= iou
                hits += hit
            figures[f"R@{depth} IoU={iou}"] = 100 * hits / len(found)
    for moments, spans in zip(found, right, strict=True):
        distances = [abs(moments[0].start - span.start) for span in spans if span.file == moments[0].file]
        if distances:
            in_file += 1
            errors.append(min(distances))
    figures["R@1 file"] = 100 * in_file / len(found)
    figures["start_error"] = sorted(errors)[len(errors) // 2] if len(errors) % 2 else None
    return figures


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_a_naive_loop(seed):
    generator = np.random.default_rng(seed)

    def spans(kind, count):
        starts = generator.uniform(0, 12, count)
        files = generator.choice(["a", "b"], count)
        return [
            kind(str(file), start, start + generator.uniform(1, 6)) for file, start in zip(files, starts, strict=True)
        ]

    found = [spans(Found, 7) for _ in range(60)]
    right = [spans(Span, int(generator.integers(1, 4))) for _ in range(60)]
    expected = naive_figures(found, right)
    figures = moment_metrics([judge(moments, of) for moments, of in zip(found, right, strict=True)])
    if expected["start_error"] is None:
        del expected["start_error"], figures["start_error"]
    assert figures == pytest.approx(expected)
    order = generator.permutation(60)
    shuffled = moment_metrics([judge(found[place], right[place]) for place in order])
    assert {name: shuffled[name] for name in figures} == pytest.approx(figures)


def rows_of(file, start, end, column="file"):
    return Dataset.from_dict({column: [file], "start": [start], "end": [end]})


def test_a_text_is_one_query_and_all_its_rows_are_right():
    spans = [Span("a.mp4", 0, 4), Span("a.mp4", 5, 9), Span("b.mp4", 1, 2), None]
    right = spans_by_text(spans, ["cat", "dog", "cat", "fox", "hen"], [0, 1, 2, 3, 3])
    assert right == {"cat": [Span("a.mp4", 0, 4), Span("b.mp4", 1, 2)], "dog": [Span("a.mp4", 5, 9)]}


@pytest.mark.parametrize("column", ["file", "video"])
def test_rows_say_where_they_lie_in_seconds_or_not_at_all(column):
    assert spans_of_rows(rows_of("a.mp4", 0, 4, column)) == [Span("a.mp4", 0.0, 4.0)]
    assert spans_of_rows(rows_of(None, 0, 4, column)) == spans_of_rows(rows_of("a.mp4", 0, None, column)) == [None]
    assert spans_of_rows(rows_of("a.mp4", 0, 4, "video_id")) == [None]  # a clip's name, not a file's
    assert spans_of_rows(Dataset.from_dict({"file": ["a.mp4"], "start": [0]})) == [None]


@pytest.mark.parametrize(("start", "end"), [(2, 1), (0, float("inf")), (float("nan"), 1.0), (-1, 1), ("soon", "late")])
def test_times_that_are_none_are_refused_by_their_row(start, end):
    with pytest.raises(ValueError, match="row 0: start is .* and end is .*; write seconds with 0 <= start < end"):
        spans_of_rows(rows_of("a", start, end))
