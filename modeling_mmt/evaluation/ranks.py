"""The rank of every query, in every language; `metrics.py` turns ranks into R@k.

Letters: `Nq` queries, `Ng` gallery items, `Nt` captions, `Nv` clips, `P` projection width. A rank is 1 when the
correct item comes first. R@k and MRR are percentages, 0 to 100; MedR and MeanR are ranks.

Three rules that published evaluation scripts leave open:

- **Ties.** The rank is the expected one if tied items were shuffled. With one correct item that is the average rank,
  so a constant model ranks every query `(Ng + 1) / 2`. With several correct items, the expected rank of the first.
- **What a tie is.** Scores are inner products in float64, and two of them tie when float64 cannot tell them apart
  (`tie_tolerance`). A float32 matrix product only sorts out what is certainly above or below: what lies within its
  proven rounding error of the correct item's score is computed again in float64. So ranks depend neither on the block
  size nor on the order of the gallery nor on the library that multiplies, and equal gallery rows always tie.
- **NaN.** A score that is not finite is an error that names the row, not a query that goes missing.

Memory is one tile of `block_size x block_size` scores, beside the embeddings and a few vectors.

This module imports neither the model nor the processor: they are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from modeling_mmt.evaluation.metrics import DIRECTIONS, Array
from modeling_mmt.evaluation.processes import Group, contiguous_share, parts_of_all

Targets: TypeAlias = Any  # (Nq,) integers, or one sequence of integers for each query


_PAIRS_AT_ONCE = 1 << 18  # pairs scored again together: bounds the memory of that step
_ROWS_AT_ONCE = 1 << 7  # pairs gathered together, each 2 * P float64: no more than a cache holds


# ---------------------------------------------------------------------------------------------------------------------
# ranks
# ---------------------------------------------------------------------------------------------------------------------


def ranks(
    query_embeds: Array,
    gallery_embeds: Array,
    targets: Targets = None,
    block_size: int = 2048,
    group: Group = None,
) -> np.ndarray:
    """Rank of the correct gallery item for every query.

    Args:
        query_embeds: `(Nq, P)` float (float16, bfloat16, float32 or float64); larger inner product = better.
        gallery_embeds: `(Ng, P)` float.
        targets: `(Nq,)` integers, the correct gallery row of each query; or, for queries with several correct items,
            one sequence of integers for each query (the best-ranked correct item counts). None: row i belongs to
            row i.
        block_size: side of the square tile of scores that is in memory at one time. It never changes the result.
        group: processes that share the queries, each with an equal share but for one; all have all the ranks. None:
            this one alone. It never changes the result either.

    Returns:
        `(Nq,)` float64, 1 = best; half ranks come from ties.

    Raises:
        ValueError: an embedding is not finite (names the row), widths differ, or a target lies outside the gallery.
    """
    queries = as_matrix("query_embeds", query_embeds)
    gallery = as_matrix("gallery_embeds", gallery_embeds)
    correct = correct_pairs(targets, len(queries), len(gallery))
    (result,) = _tiled_ranks(queries, gallery, correct, query_axes=(0,), block_size=block_size, group=group)
    return result


def ranks_both_ways(
    text_embeds: Array, video_embeds: Array, targets: Targets = None, block_size: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Text-to-video and video-to-text ranks from one pass over the scores, at half the cost of two calls of `ranks`.

    Args:
        text_embeds: `(Nt, P)` float.
        video_embeds: `(Nv, P)` float.
        targets: as in `ranks`: the clip (or clips) of each caption.
        block_size: as in `ranks`.

    Returns:
        `(Nt,)` float64, rank of the clip for each caption; and `(Nv,)` float64, rank of the best-ranked caption for
        each clip, NaN for a clip that no caption names (there is nothing to find).
    """
    texts = as_matrix("text_embeds", text_embeds)
    videos = as_matrix("video_embeds", video_embeds)
    correct = correct_pairs(targets, len(texts), len(videos))
    text_ranks, video_ranks = _tiled_ranks(texts, videos, correct, query_axes=(0, 1), block_size=block_size)
    return text_ranks, video_ranks


def ranks_from_scores(scores: Array, targets: Targets = None) -> np.ndarray:
    """As `ranks`, for a score matrix that exists already; here two scores tie when they are equal.

    Args:
        scores: `(Nq, Ng)` numbers, larger = better.
        targets: as in `ranks`.

    Returns:
        `(Nq,)` float64 ranks, 1 = best.
    """
    matrix = as_matrix("scores", scores)
    rows, columns = correct_pairs(targets, *matrix.shape)
    best = np.full(len(matrix), -np.inf, dtype=matrix.dtype)
    np.maximum.at(best, rows, matrix[rows, columns])
    tied_correct = np.bincount(rows[matrix[rows, columns] == best[rows]], minlength=len(matrix))
    above = np.count_nonzero(matrix > best[:, None], axis=1)
    tied = np.count_nonzero(matrix == best[:, None], axis=1)
    return _expected_rank(above, tied - tied_correct, tied_correct)


def _expected_rank(above: np.ndarray, tied_wrong: np.ndarray, tied_correct: np.ndarray) -> np.ndarray:
    """Rank of the first correct item if ties are shuffled: of m wrong among c correct, m / (c + 1) come before."""
    return 1.0 + above + tied_wrong / (tied_correct + 1.0)


def _tile_error(width: int) -> float:
    """Bound on |float32 inner product - exact| / (|q| |g|): `width` roundings, two casts of the inputs, 5 % slack."""
    return 1.05 * (width + 4) * 2.0**-24


def tie_tolerance(width: int) -> float:
    """Scores that differ by less, relative to |q| max|g|, tie: twice the worst error of two float64 inner products."""
    return 4.0 * (width + 2) * 2.0**-53


class _Direction:
    """One way to ask the score matrix `rows @ columns.T`: which axis holds the queries, and what was counted so far.

    A query's score to beat is that of its best correct item, in float64. `low` and `high` bracket it, in float32, by
    the error that a tile's score can have: above `high` certainly beats it, below `low` certainly does not.
    """

    def __init__(
        self,
        axis: int,
        correct: tuple[np.ndarray, np.ndarray],
        correct_scores: np.ndarray,
        norms: tuple[np.ndarray, np.ndarray],
        width: int,
    ) -> None:
        self.axis = axis
        query_of_pair = correct[axis]
        scale = norms[axis] * norms[1 - axis].max()  # (Nq,) the largest |score| a query can have
        self.to_beat = np.full(len(scale), -np.inf)
        np.maximum.at(self.to_beat, query_of_pair, correct_scores)
        self.answerable = np.isfinite(self.to_beat)
        self.to_beat[~self.answerable] = np.inf  # so that nothing is counted
        self.tolerance = tie_tolerance(width) * scale
        margin = _tile_error(width) * scale + width * 2.0**-149 * (1 + norms[0].max() + norms[1].max())
        self.high = np.nextafter((self.to_beat + margin).astype(np.float32), np.float32(np.inf))
        self.low = np.nextafter((self.to_beat - margin).astype(np.float32), np.float32(-np.inf))
        self.low[~self.answerable] = np.inf
        ties = correct_scores >= (self.to_beat - self.tolerance)[query_of_pair]
        self.tied_correct = np.bincount(query_of_pair[ties], minlength=len(scale))
        self.counts = np.zeros((2, len(scale)), dtype=np.int64)
        self.above, self.tied_wrong = self.counts  # views

    def sort_out(self, tile: np.ndarray, row_start: int, column_start: int) -> np.ndarray:
        """Counts the scores that are certainly better; returns the flat places in the tile left open."""
        start = (row_start, column_start)[self.axis]
        mine = slice(start, start + tile.shape[self.axis])
        high, low = self.high[mine], self.low[mine]
        if self.axis == 0:
            high, low = high[:, None], low[:, None]
        better = tile > high
        if self.axis == 0:
            self.above[mine] += np.count_nonzero(better, axis=1)
        else:
            self.above[mine] += np.add.reduce(better.view(np.uint8), axis=0, dtype=np.uint32)
        near = tile >= low
        near ^= better
        return np.flatnonzero(near)

    def settle(self, rows: np.ndarray, columns: np.ndarray, scores: np.ndarray) -> None:
        """Counts wrong items whose float64 scores are known."""
        queries = (rows, columns)[self.axis]
        difference = scores - self.to_beat[queries]
        tolerance = self.tolerance[queries]
        self.above += np.bincount(queries[difference > tolerance], minlength=len(self.above))
        self.tied_wrong += np.bincount(queries[np.abs(difference) <= tolerance], minlength=len(self.above))

    def result(self) -> np.ndarray:
        above, tied_wrong = self.counts
        expected = _expected_rank(above, tied_wrong, self.tied_correct)
        expected[~self.answerable] = np.nan
        return expected


def _tiled_ranks(
    rows: np.ndarray,
    columns: np.ndarray,
    correct: tuple[np.ndarray, np.ndarray],
    query_axes: tuple[int, ...],
    block_size: int,
    group: Group = None,
) -> list[np.ndarray]:
    """Ranks in the asked directions from one pass over `rows @ columns.T`, whose rows a group's processes share."""
    if rows.shape[1] != columns.shape[1]:
        raise ValueError(f"embedding widths differ: {rows.shape[1]} and {columns.shape[1]}; both come from one model")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    width = rows.shape[1]
    norms = (row_norms(rows), row_norms(columns))
    if max(norms[0].max(), norms[1].max(), norms[0].max() * norms[1].max()) > 1e38:
        raise ValueError("embeddings are so long that a float32 score would overflow; L2-normalise them first")
    correct_scores = _pair_scores(rows, columns, *correct)
    directions = [_Direction(axis, correct, correct_scores, norms, width) for axis in query_axes]
    correct_keys = np.sort(correct[0] * len(columns) + correct[1])

    def count_share() -> list[np.ndarray]:
        _count(rows, columns, contiguous_share(len(rows), group), directions, correct_keys, block_size)
        return [direction.counts for direction in directions]

    for direction, counts in zip(directions, zip(*parts_of_all(count_share, group), strict=True), strict=True):
        direction.counts = np.sum(counts, axis=0)  # integers, so that who counted what does not matter
    return [direction.result() for direction in directions]


def _count(
    rows: np.ndarray,
    columns: np.ndarray,
    own: slice,
    directions: list[_Direction],
    correct_keys: np.ndarray,
    block_size: int,
) -> None:
    """Let the directions count what is better, and what ties, in the tiles of some of the rows."""
    buffer = np.empty(min(block_size, len(rows)) * min(block_size, len(columns)), dtype=np.float32)

    for row_start in range(own.start, own.stop, block_size):
        block = rows[row_start : min(row_start + block_size, own.stop)]
        row_block = block.astype(np.float32, copy=False)
        for column_start in range(0, len(columns), block_size):
            column_block = columns[column_start : column_start + block_size].astype(np.float32, copy=False)
            shape = (len(row_block), len(column_block))
            tile = np.matmul(row_block, column_block.T, out=buffer[: math.prod(shape)].reshape(shape))
            exact_tile = None
            for direction in directions:
                open_places = direction.sort_out(tile, row_start, column_start)
                if exact_tile is None and open_places.size * 32 > tile.size:  # a nearly constant model
                    exact_tile = (
                        block.astype(np.float64)
                        @ columns[column_start : column_start + block_size].astype(np.float64).T
                    )
                for first in range(0, open_places.size, _PAIRS_AT_ONCE):
                    places = open_places[first : first + _PAIRS_AT_ONCE]
                    tile_rows, tile_columns = np.divmod(places, tile.shape[1])
                    pair_rows, pair_columns = tile_rows + row_start, tile_columns + column_start
                    wrong = ~_contains(correct_keys, pair_rows * len(columns) + pair_columns)
                    pair_rows, pair_columns = pair_rows[wrong], pair_columns[wrong]
                    if exact_tile is None:
                        scores = _pair_scores(rows, columns, pair_rows, pair_columns)
                    else:
                        scores = exact_tile[tile_rows[wrong], tile_columns[wrong]]
                    direction.settle(pair_rows, pair_columns, scores)


def _pair_scores(rows: np.ndarray, columns: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Float64 inner products of the given pairs, `(K,)`."""
    scores = np.empty(len(row))
    for start in range(0, len(row), _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        left, right = rows[row[here]].astype(np.float64), columns[column[here]].astype(np.float64)
        scores[here] = np.einsum("ij,ij->i", left, right)
    return scores


def row_norms(embeds: np.ndarray) -> np.ndarray:
    """`(N,)` float64 lengths of rows."""
    return np.sqrt(np.einsum("ij,ij->i", embeds, embeds, dtype=np.float64))


def _contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    places = np.searchsorted(sorted_keys, keys)
    return sorted_keys[np.minimum(places, len(sorted_keys) - 1)] == keys


def as_matrix(name: str, values: Array) -> np.ndarray:
    """A 2-D float32 or float64 array on the CPU; half precision becomes float32, which holds it exactly."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()
    array = np.asarray(values)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a matrix with at least one row and one column, got shape {array.shape}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} row {int(np.argmin(finite))} holds a NaN or infinite value ({int((~finite).sum())} such rows); "
            "a score that is not finite has no rank: find where the model or its input broke"
        )
    return array


def correct_pairs(targets: Targets, num_queries: int, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """`(K,)` query and `(K,)` item of each correct pair."""
    if targets is None:
        if num_queries != num_items:
            raise ValueError(f"{num_queries} queries and {num_items} items are not paired row by row: pass `targets`")
        targets = np.arange(num_queries)
    if isinstance(targets, torch.Tensor):
        targets = targets.cpu().numpy()
    if len(targets) != num_queries:
        raise ValueError(f"targets has {len(targets)} entries for {num_queries} queries; give one for each query")
    items_of_query = [np.atleast_1d(np.asarray(items)) for items in targets] if _is_ragged(targets) else None
    if items_of_query is None:
        queries, items = np.arange(num_queries), np.asarray(targets)
    else:
        counts = np.array([len(items) for items in items_of_query])
        if (counts == 0).any():
            raise ValueError(f"targets[{int(np.argmin(counts))}] is empty: a query needs at least one correct item")
        queries, items = np.repeat(np.arange(num_queries), counts), np.concatenate(items_of_query)
    if not np.issubdtype(items.dtype, np.integer):
        raise ValueError(f"targets must be integers (gallery rows), got {items.dtype}")
    items = items.astype(np.int64)
    outside = (items < 0) | (items >= num_items)
    if outside.any():
        first = int(np.argmax(outside))
        raise ValueError(f"targets[{queries[first]}] = {items[first]} is outside the gallery of {num_items} items")
    keys = np.unique(queries * num_items + items)  # an item given twice counts once
    return keys // num_items, keys % num_items


def _is_ragged(targets: Targets) -> bool:
    if isinstance(targets, np.ndarray) and targets.dtype != object:
        return targets.ndim > 1
    return any(np.ndim(items) > 0 for items in targets)


def ranks_by_language(
    text_embeds: Mapping[str, Array],
    video_embeds: Array,
    targets: Targets | Mapping[str, Targets] = None,
    exclude: Array = None,
    block_size: int = 2048,
    group: Group = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Ranks in both directions for each language's captions against one set of clips.

    Args:
        text_embeds: language code -> `(Nt, P)` float. Languages may have different numbers of captions.
        video_embeds: `(Nv, P)` float.
        targets: the clip of each caption, as in `ranks`, one for all languages or a mapping by language. None: caption
            i describes clip i.
        exclude: `(Nv,)` bool; True drops the clip, as an answer and as a query, together with its captions (the
            numbers "without flags"). A caption stays while one of its clips stays.
        block_size: as in `ranks`.
        group: as in `ranks`; they share the captions.

    Returns:
        `{"t2v": {language: (Nt',)}, "v2t": {language: (Nv',)}}`, in the order of the kept captions and clips. Among
        several captions of a clip, v2t counts the best-ranked one. A clip without a caption in a language has rank NaN
        in v2t, so that rows of different languages stay aligned.
    """
    videos = as_matrix("video_embeds", video_embeds)
    is_included = np.ones(len(videos), dtype=bool)
    if exclude is not None:
        dropped = np.asarray(exclude.cpu() if isinstance(exclude, torch.Tensor) else exclude)
        if dropped.dtype != bool or dropped.shape != is_included.shape:
            raise ValueError(f"exclude must be {is_included.shape} bool, got {dropped.shape} {dropped.dtype}")
        is_included = ~dropped
    if not is_included.any():
        raise ValueError("exclude drops every clip; nothing is left to search")
    gallery, new_index = videos if is_included.all() else videos[is_included], np.cumsum(is_included) - 1
    result: dict[str, dict[str, np.ndarray]] = {direction: {} for direction in DIRECTIONS}
    for language, embeds in text_embeds.items():
        texts = as_matrix(f"text_embeds[{language!r}]", embeds)
        language_targets = targets[language] if isinstance(targets, Mapping) else targets
        caption, clip = correct_pairs(language_targets, len(texts), len(videos))
        caption, clip = caption[is_included[clip]], new_index[clip[is_included[clip]]]
        if not caption.size:
            raise ValueError(f"exclude drops every caption in {language!r}")
        used_captions, caption = np.unique(caption, return_inverse=True)
        if len(used_captions) < len(texts):
            texts = texts[used_captions]
        result["t2v"][language], result["v2t"][language] = _tiled_ranks(
            texts, gallery, (caption, clip), query_axes=(0, 1), block_size=block_size, group=group
        )
    return result
