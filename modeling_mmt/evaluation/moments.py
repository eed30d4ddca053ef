"""Metrics of moment search: R@1 and R@5 at temporal IoU 0.3, 0.5 and 0.7, and the error of the start.

A query is a text, and right is every span of a video that shows what it says. A hit is a moment in the right file
whose IoU with any of these spans reaches the threshold; R@k is the percent of queries with a hit among the first k
moments (Gao et al. 2017, TALL, section 4.1, where each query has one span).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from datasets import Dataset, Value

from modeling_mmt.data.errors import InputError

IOUS = (0.3, 0.5, 0.7)
DEPTHS = (1, 5)
FILE_COLUMNS = ("file", "video")


class Span(NamedTuple):
    """A part of a video: its file, and seconds from its first frame."""

    file: str
    start: float
    end: float


class Found(Protocol):
    """What is asked of a moment that was found, as `modeling_mmt.search.moments.Moment`."""

    @property
    def file(self) -> str | None:
        """Of the video."""

    @property
    def start(self) -> float | None:
        """In seconds; None for what has no times."""

    @property
    def end(self) -> float | None:
        """In seconds."""


def temporal_iou(found: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """`(m, 2)` and `(n, 2)` starts and ends to the `(m, n)` share of their union that two spans have in common."""
    shared = np.minimum(found[:, None, 1], spans[None, :, 1]) - np.maximum(found[:, None, 0], spans[None, :, 0])
    shared = np.maximum(shared, 0.0)
    lengths = np.diff(found, axis=1) + np.diff(spans, axis=1).T
    return shared / np.maximum(lengths - shared, np.finfo(float).tiny)


class Judged(NamedTuple):
    """What was found for one query, held against the spans that are right.

    Attributes:
        ious: `(m,)` of each moment the largest IoU with a right span of its file.
        in_file: `(m,)` bool, whether the moment lies in a right file.
        start_error: seconds between the first moment's start and the nearest start of a right span of its file; NaN
            where it lies in a wrong file, or nothing was found.
    """

    ious: np.ndarray
    in_file: np.ndarray
    start_error: float


def judge(found: Sequence[Found], right: Sequence[Span]) -> Judged:
    """Hold the moments of one query, best first, against the spans that are right."""
    ious, in_file, start_error = np.zeros(len(found)), np.zeros(len(found), dtype=bool), np.nan
    for rank, moment in enumerate(found):
        spans = np.array([span[1:] for span in right if span.file == moment.file], dtype=float)
        if moment.start is None or moment.end is None or not len(spans):
            continue
        in_file[rank] = True
        ious[rank] = temporal_iou(np.array([[moment.start, moment.end]]), spans).max()
        if rank == 0:
            start_error = float(np.abs(spans[:, 0] - moment.start).min())
    return Judged(ious, in_file, start_error)


def moment_metrics(judged: Sequence[Judged]) -> dict[str, float | None]:
    """The figures of a language.

    Returns:
        `R@<k> IoU=<t>` and `R@1 file`, percent of queries; `start_error`, the median in seconds over the queries whose
        first moment lies in a right file (their share is `R@1 file`), None where there is none.

    Raises:
        ValueError: no query.
    """
    if not judged:
        raise ValueError("no query to measure; name a language that the dataset has texts of")
    result: dict[str, float | None] = {
        f"R@{depth} IoU={iou}": recall(judged, depth, iou) for iou in IOUS for depth in DEPTHS
    }
    result["R@1 file"] = 100.0 * float(np.mean([one.in_file[:1].any() for one in judged]))
    errors = np.array([one.start_error for one in judged])
    errors = errors[~np.isnan(errors)]
    result["start_error"] = float(np.median(errors)) if len(errors) else None
    return result


def recall(judged: Sequence[Judged], depth: int, iou: float) -> float:
    """Percent of queries with a moment of at least that IoU among the first `depth`."""
    return 100.0 * float(np.mean([(one.ious[:depth] >= iou).any() for one in judged]))


def file_column(rows: Dataset) -> str | None:
    """The column that says in which file a row with a `start` and an `end` lies; None where rows have no spans."""
    if not {"start", "end"} <= set(rows.column_names):
        return None
    return next((name for name in FILE_COLUMNS if name in rows.column_names and _is_text(rows.features[name])), None)


def _is_text(kind: Any) -> bool:
    return isinstance(kind, Value) and kind.dtype in ("string", "large_string")


def spans_of_rows(rows: Dataset) -> list[Span | None]:
    """Where each row lies; None for one without a file, a start or an end.

    Raises:
        InputError: the times are none; names the row.
    """
    column = file_column(rows)
    if column is None:
        return [None] * len(rows)
    spans: list[Span | None] = []
    for number, place in enumerate(zip(rows[column][:], rows["start"][:], rows["end"][:], strict=True)):
        if None in place:
            spans.append(None)
            continue
        try:
            span = Span(place[0], float(place[1]), float(place[2]))
        except ValueError:
            span = Span(place[0], np.nan, np.nan)
        if not 0 <= span.start < span.end < np.inf:
            raise InputError(
                f"row {number}: start is {place[1]!r} and end is {place[2]!r}; write seconds with 0 <= start < end"
            )
        spans.append(span)
    return spans


def spans_by_text(
    spans: Sequence[Span | None], captions: Sequence[str], owners: Sequence[int]
) -> dict[str, list[Span]]:
    """The texts of a language, each once, with every span that it describes; without those that describe none.

    Args:
        spans: of `spans_of_rows`.
        captions: texts of the language.
        owners: the row that each text belongs to.
    """
    right: dict[str, list[Span]] = {}
    for caption, row in zip(captions, owners, strict=True):
        if (span := spans[row]) is not None:
            right.setdefault(caption, []).append(span)
    return right
