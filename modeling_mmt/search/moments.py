"""Moments: neighbouring windows of one video that match a query, joined to one answer with start and end.

For one query let `s_i` be the cosine of window i, `b` the background, which is the mean of the cosines of all windows
of the index, and `p` the score of the best window that is still free. Then

    cutoff = p - (1 - threshold) * max(p - b, 0)

so that `threshold` is a share of the way up from the background to the best window. The free windows of its video
that score at least the cutoff, and that overlap or touch it or one another in a row, are the moment. Its score is `p`.

Windows overlap, so their union is too long: a window scores well from when half of it shows what is asked for. The
moment's start is therefore where the line from its first window (score `s`, centre `c`) to the neighbour before it
(score `s'` below the cutoff, not less than `b`; centre `c'`) crosses the cutoff,

    start = c' + (c - c') * (cutoff - s') / (s - s')        within the time that both windows show,

and its end likewise: the full width at `threshold` of the maximum. Windows that touch and do not overlap, as shots do,
keep their borders, and so does a window without a neighbour. A window that overlaps a moment belongs to no later one,
and the next best free window begins the next moment. A picture, or a clip without times, is a moment by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset

LONGEST = 1e9  # seconds; an index that says more of a window is wrong
TOUCHING = 1e-3  # seconds; windows no further apart touch
HITS_A_MOMENT = 8  # windows that are asked for first, for each moment that is wanted
ROWS_AT_ONCE = 1 << 12  # whose float64 copy stays in the cache


@dataclass(frozen=True)
class JoinRule:
    """Which windows are joined; see the module for the formula.

    Args:
        threshold: share, from 0 to below 1, of the way from the background to the best window's score that a window
            must reach: the score of one of which half shows what is asked for.

    Raises:
        ValueError: another threshold.
    """

    threshold: float = 0.7

    @classmethod
    def of_index(cls, settings: Mapping[str, Any]) -> JoinRule:
        """The best rule of film9's validation films: 0.8 for windows that the clock cuts and that touch, else 0.7."""
        window, is_by_clock = settings.get("window"), not settings.get("shots")
        return cls(0.8 if window is not None and window == settings.get("stride") and is_by_clock else 0.7)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}: give a share of at least 0 and below 1")

    def cutoff(self, best: float, background: float) -> float:
        """The score that a window of a moment must reach."""
        return best - (1 - self.threshold) * max(best - background, 0.0)


class Moment(NamedTuple):
    """A part of a video that a query found.

    Attributes:
        file: path below the indexed folder; None for a clip of a dataset.
        start: seconds from the file's first frame; None for pictures and clips of a dataset.
        end: likewise.
        score: cosine of its best window.
        video_id: of its best window.
        row: of its best window in the index.
    """

    file: str | None
    start: float | None
    end: float | None
    score: float
    video_id: str
    row: int


class Timeline:
    """The windows of an index in the order of their files and times.

    Args:
        clips: N rows; those with `file`, `start` and `end` are windows.
        embeddings: `(N, P)` float32 unit vectors.

    Attributes:
        files: `(N,)` texts or None.
        spans: `(N, 2)` float64, start and end in seconds; NaN where a row is no window.
        background: `(P,)` float64, mean of the windows' embeddings: its product with a query is the mean cosine.
    """

    def __init__(self, clips: Dataset, embeddings: torch.Tensor):
        self.files = _column(clips, "file", pa.large_string())
        times = [_column(clips, name, pa.float64()) for name in ("start", "end")]
        self.spans = np.stack([pc.fill_null(time, np.nan).to_numpy() for time in times], axis=1)
        self._numbers = pc.fill_null(self.files.dictionary_encode().indices, -1).to_numpy()
        starts, ends = self.spans.T
        is_window = (self._numbers >= 0) & (starts >= 0) & (ends >= starts) & (ends <= LONGEST)  # False for NaN
        self.spans[~is_window] = np.nan
        rows = np.flatnonzero(~np.isnan(self.spans[:, 0]))
        self._rows = rows[np.lexsort((self.spans[rows, 1], self.spans[rows, 0], self._numbers[rows]))]
        self._numbers_in_order = self._numbers[self._rows]
        self.background = _mean(embeddings, rows)

    def span(self, row: int) -> tuple[float, float] | tuple[None, None]:
        """Start and end of a row in seconds; None and None where it is no window."""
        start, end = self.spans[row].tolist()
        return (start, end) if start == start else (None, None)

    def windows_beside(self, row: int) -> np.ndarray:
        """Rows of the windows of a window's file, by start and end."""
        number = self._numbers[row]
        first, last = np.searchsorted(self._numbers_in_order, [number, number + 1])
        return self._rows[first:last]

    def moment_of(self, hit: Any) -> Moment:
        """A single window, picture or clip as it was found, a `Hit`."""
        start, end = self.span(hit.row)
        return Moment(self.files[hit.row].as_py(), start, end, hit.score, hit.video_id, hit.row)


def _column(clips: Dataset, name: str, kind: pa.DataType) -> Any:
    if name not in clips.column_names:
        return pa.nulls(len(clips), kind)
    return clips.select_columns([name]).with_format("arrow")[:][name].combine_chunks().cast(kind)


def _mean(embeddings: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    total = torch.zeros(embeddings.shape[1], dtype=torch.float64)
    weights = torch.zeros(len(embeddings), dtype=torch.float64)
    weights[torch.from_numpy(rows)] = 1.0
    for weight, block in zip(weights.split(ROWS_AT_ONCE), embeddings.split(ROWS_AT_ONCE), strict=True):
        total += weight @ block.double()
    return (total / max(len(rows), 1)).numpy()


def search_moments(
    index: Any,
    queries: torch.Tensor,
    top: int,
    where: Mapping[str, Any] | None = None,
    rule: JoinRule | None = None,
) -> list[list[Moment]]:
    """The best moments of each query, best first; equal ones in the order of their best windows' rows.

    Args:
        index: a `SearchIndex` of windows, pictures and clips.
        queries: `(q, P)` float32 unit vectors.
        top: moments a query, at most; there may be fewer.
        where: as `SearchIndex.search`: which windows may be found and joined.
        rule: None is `JoinRule.of_index`.

    Raises:
        ValueError: `top` is below 1, or as `SearchIndex.search`.
    """
    if top < 1:
        raise ValueError(f"top is {top}; give a number of moments from 1")
    rule, allowed = rule or JoinRule.of_index(index.settings), index.allowed(where)
    free = np.ones(len(index), dtype=bool) if allowed is None else allowed.numpy()
    found: dict[int, list[Moment]] = {}
    depth, pending = HITS_A_MOMENT * top, list(range(len(queries)))
    while pending:
        depth = min(depth, len(index))
        for place, hits in zip(pending, index.search(queries[pending], depth, where), strict=True):
            found[place] = _first(_moments(index, queries[place], hits, free, rule), top)
        pending = [place for place in pending if len(found[place]) < top and depth < min(len(index), free.sum())]
        depth *= HITS_A_MOMENT
    return [found[place] for place in range(len(queries))]


def _first(moments: Iterator[Moment], count: int) -> list[Moment]:
    return list(islice(moments, count))


def _moments(
    index: Any, query: torch.Tensor, hits: Sequence[Any], free: np.ndarray, rule: JoinRule
) -> Iterator[Moment]:
    """The moments that a query's hits begin, best first."""
    timeline, exact = index.timeline, query.double().numpy()
    background, free = float(timeline.background @ exact), free.copy()
    for hit in hits:
        if np.isnan(timeline.spans[hit.row, 0]):
            yield timeline.moment_of(hit)
        elif free[hit.row]:
            rows = timeline.windows_beside(hit.row)
            scores = index.embeddings[torch.from_numpy(rows)].double().numpy() @ exact
            best = int(np.flatnonzero(rows == hit.row)[0])
            start, end = join(timeline.spans[rows], scores, best, background, rule, free[rows])
            free[rows[_overlap(timeline.spans[rows], start, end)]] = False
            free[hit.row] = False
            yield timeline.moment_of(hit)._replace(start=start, end=end)


def join(
    spans: np.ndarray, scores: np.ndarray, best: int, background: float, rule: JoinRule, free: np.ndarray
) -> tuple[float, float]:
    """Start and end in seconds of the moment about one window of a video.

    Args:
        spans: `(n, 2)` seconds, rising: the windows of the video.
        scores: `(n,)` cosines.
        best: place of the window that the moment begins with.
        background: mean cosine of all windows.
        rule: see the module.
        free: `(n,)` bool, windows that belong to no better moment; `best` is one of them.
    """
    cutoff = rule.cutoff(scores[best], background)
    places = np.flatnonzero((scores >= cutoff) & free)
    begins = spans[places[1:], 0] > np.maximum.accumulate(spans[places, 1])[:-1] + TOUCHING
    chain = np.concatenate([[0], np.cumsum(begins)])
    members = places[chain == chain[np.searchsorted(places, best)]]
    first, last = members[0], members[np.argmax(spans[members, 1])]
    backwards = -spans[:, ::-1]  # time reversed, in which the end is a start
    return (
        _edge(spans, scores, first, cutoff, background),
        -_edge(backwards, scores, last, cutoff, background),
    )


def _edge(spans: np.ndarray, scores: np.ndarray, first: int, cutoff: float, background: float) -> float:
    """Where the line between a moment's first window and the one before it crosses the cutoff."""
    is_before = (spans < spans[first]).all(axis=1) & (spans[:, 1] > spans[first, 0]) & (scores < cutoff)
    if not is_before.any() or cutoff <= background:
        return float(spans[first, 0])
    centres = spans.mean(axis=1)
    before = np.flatnonzero(is_before)[np.argmax(centres[is_before])]
    low = max(scores[before], background)
    share = (cutoff - low) / (scores[first] - low)
    crossing = centres[before] + share * (centres[first] - centres[before])
    return float(np.clip(crossing, spans[first, 0], spans[before, 1]))


def _overlap(spans: np.ndarray, start: float, end: float) -> np.ndarray:
    return (np.minimum(spans[:, 1], end) - np.maximum(spans[:, 0], start)) > TOUCHING
