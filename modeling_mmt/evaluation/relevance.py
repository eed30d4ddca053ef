"""Metrics of queries with several correct answers: mean average precision and nDCG@10, both 0 to 100.

A query for "crab" has every photo of a crab for an answer. R@k of such a query is that of its best-ranked answer
(`ranks.py`); what is here looks at all of them. Relevance is binary.

Ties take the expected value if tied items were shuffled, in closed form (McSherry and Najork, ECIR 2008), so
that, as with ranks, nothing depends on the order of the gallery. What a tie is, `ranks.py` says. Without
ties the figures are trec_eval's `map` and `ndcg_cut.10`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from modeling_mmt.evaluation.metrics import RELEVANCE_METRICS, Array
from modeling_mmt.evaluation.processes import Group, in_turn, parts_of_all, share
from modeling_mmt.evaluation.ranks import Targets, as_matrix, correct_pairs, row_norms, tie_tolerance

CUTOFF = 10  # of nDCG
_SCORES_AT_ONCE = 1 << 21  # bounds memory: each is sorted, and has a dozen numbers beside it


def relevance(
    query_embeds: Array, gallery_embeds: Array, targets: Targets, group: Group = None
) -> dict[str, np.ndarray]:
    """Average precision and nDCG@10 of every query, in percent.

    Args:
        query_embeds: `(Nq, P)` float; larger inner product = better.
        gallery_embeds: `(Ng, P)` float.
        targets: the gallery rows that answer each query, as in `ranks.ranks`.
        group: processes that share the queries, in the blocks of one process; None: this one alone.

    Returns:
        Of each of `RELEVANCE_METRICS`, `(Nq,)` float64; its mean is the metric.

    Raises:
        ValueError: an embedding is not finite, or a target lies outside the gallery.
    """
    queries = as_matrix("query_embeds", query_embeds).astype(np.float64)
    gallery = as_matrix("gallery_embeds", gallery_embeds).astype(np.float64)
    tolerance = tie_tolerance(queries.shape[1]) * row_norms(queries) * row_norms(gallery).max()
    owners, items = correct_pairs(targets, len(queries), len(gallery))

    def measure_share() -> list[dict[str, np.ndarray]]:
        return [
            _measured(queries[here] @ gallery.T, _relevant(owners, items, here, len(gallery)), tolerance[here])
            for here in share(_blocks(len(queries), len(gallery)), group)
        ]

    return _joined(in_turn(parts_of_all(measure_share, group)))


def relevance_from_scores(scores: Array, targets: Targets) -> dict[str, np.ndarray]:
    """As `relevance`, for scores `(Nq, Ng)` that exist already; here two scores tie when they are equal."""
    matrix = as_matrix("scores", scores)
    owners, items = correct_pairs(targets, *matrix.shape)
    parts = []
    for here in _blocks(*matrix.shape):
        relevant = _relevant(owners, items, here, matrix.shape[1])
        parts.append(_measured(matrix[here].astype(np.float64), relevant, np.zeros(len(relevant))))
    return _joined(parts)


def relevance_by_language(
    text_embeds: Mapping[str, Array],
    video_embeds: Array,
    answers: Mapping[str, Sequence[Sequence[int]]],
    exclude: np.ndarray,
    group: Group = None,
) -> dict[str, dict[str, np.ndarray]]:
    """As `relevance`, for each language's captions against one set of clips.

    Args:
        text_embeds: language code -> `(Nt, P)` float.
        video_embeds: `(Nv, P)` float.
        answers: language code -> the clips that answer each caption.
        exclude: `(Nv,)` bool; True drops the clip. A caption stays while one of its clips does.
        group: as in `relevance`.

    Returns:
        Language code -> metric -> `(kept captions,)` float64.
    """
    is_kept, new_index = ~exclude, np.cumsum(~exclude) - 1
    result = {}
    for language, texts in text_embeds.items():
        remaining = [new_index[np.asarray(rows)[is_kept[rows]]] for rows in answers[language]]
        asked = [number for number, rows in enumerate(remaining) if len(rows)]
        targets = [remaining[number] for number in asked]
        result[language] = relevance(texts[asked], video_embeds[is_kept], targets, group)
    return result


def _blocks(num_queries: int, num_items: int) -> list[slice]:
    size = max(1, _SCORES_AT_ONCE // num_items)
    return [slice(start, min(start + size, num_queries)) for start in range(0, num_queries, size)]


def _relevant(owners: np.ndarray, items: np.ndarray, here: slice, num_items: int) -> np.ndarray:
    """`(queries here, Ng)` bool: which items answer."""
    first, last = np.searchsorted(owners, [here.start, here.stop])
    relevant = np.zeros((here.stop - here.start, num_items), dtype=bool)
    relevant[owners[first:last] - here.start, items[first:last]] = True
    return relevant


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in RELEVANCE_METRICS}


def _measured(scores: np.ndarray, relevant: np.ndarray, tolerance: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of rows of scores `(B, Ng)`; scores next to each other that differ by no more than this tie."""
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, relevant = np.take_along_axis(scores, order, axis=1), np.take_along_axis(relevant, order, axis=1)
    is_first = np.ones(scores.shape, dtype=bool)
    is_first[:, 1:] = scores[:, :-1] - scores[:, 1:] > tolerance[:, None]
    group = np.cumsum(is_first).reshape(scores.shape) - 1  # a number for each group of ties of each row
    size = np.bincount(group.ravel())[group]
    hits = np.bincount(group.ravel(), weights=relevant.ravel())[group]  # right answers within the group
    place = np.broadcast_to(np.arange(1, scores.shape[1] + 1), scores.shape)  # from 1
    within = place - place[is_first][group]  # from 0
    found_before = (np.cumsum(relevant, axis=1) - relevant)[is_first][group]

    share = hits / size  # how likely a right answer stands at this place
    others = np.maximum(hits - 1, 0) / np.maximum(size - 1, 1)  # the same of the group's other places, if one does
    precision = (found_before + 1 + within * others) / place
    num_relevant = relevant.sum(axis=1)
    discount = 1 / np.log2(1 + np.arange(1, min(CUTOFF, scores.shape[1]) + 1))
    ideal = np.cumsum(discount)[np.minimum(num_relevant, len(discount)) - 1]
    return {
        "mAP": 100 * (share * precision).sum(axis=1) / num_relevant,
        "nDCG@10": 100 * (share[:, : len(discount)] * discount).sum(axis=1) / ideal,
    }
