"""Diagnostics beyond R@k: whether transfer holds query by query, where it fails, and how much of the gap is closed.

Letters: `L` languages, `N` clips (one query a clip and language, in the same order), `Nq` queries, `Ng` gallery items,
`P` projection width, `k` results looked at. Everything is a pure function of embeddings, results or ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_QUERIES_AT_ONCE = 1024
_SAMPLES_AT_ONCE = 500


# ---------------------------------------------------------------------------------------------------------------------
# the gap
# ---------------------------------------------------------------------------------------------------------------------


def gap_to_english(values: Mapping[str, float]) -> dict[str, float]:
    """Each language's figure minus English's, in points; empty where English was not asked.

    Args:
        values: language -> figure, larger = better.
    """
    if "en" not in values:
        return {}
    return {language: value - values["en"] for language, value in values.items() if language != "en"}


def gap_closed(ours: float, zero_shot: float, translate_train: float) -> float | None:
    """Percent of the way from a plain zero-shot model (0) to one trained on every language (100).

    None where training on every language does not beat zero-shot: there is no gap to close.
    """
    if translate_train <= zero_shot:
        return None
    return 100.0 * (ours - zero_shot) / (translate_train - zero_shot)


def gap_closed_interval(
    ours: np.ndarray,
    zero_shot: np.ndarray,
    translate_train: np.ndarray,
    num_samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of `gap_closed` of three means over the same clips, drawn together.

    Args:
        ours: `(N,)` figure of each clip, such as the mean hit over languages.
        zero_shot: the same of the model that transfers without help.
        translate_train: the same of the model trained on every language.
        num_samples: bootstrap samples.
        seed: of the draws.
        level: of the interval, 0 to 1.

    Returns:
        Lower and upper end; None where more than `1 - level` of the samples have no gap, so that the share is not
        determined by this many clips.
    """
    values = np.stack([ours, zero_shot, translate_train], axis=1).astype(np.float64)  # (N, 3)
    rng = np.random.default_rng(seed)
    even = np.full(len(values), 1 / len(values))
    means = np.concatenate(
        [
            rng.multinomial(len(values), even, size=min(_SAMPLES_AT_ONCE, num_samples - start)) @ values / len(values)
            for start in range(0, num_samples, _SAMPLES_AT_ONCE)
        ]
    )
    gap = means[:, 2] - means[:, 1]
    if np.mean(gap <= 0) > 1 - level:
        return None
    shares = 100.0 * (means[:, 0] - means[:, 1])[gap > 0] / gap[gap > 0]
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: what each would be as the only test of the family."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.array(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# the results of each query
# ---------------------------------------------------------------------------------------------------------------------


def top_results(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> np.ndarray:
    """The `k` best gallery rows of each query, best first; all of them where there are fewer.

    Args:
        queries: `(Nq, P)` float.
        gallery: `(Ng, P)` float.
        k: results a query.

    Returns:
        `(Nq, min(k, Ng))` int64. Which of equally good rows comes first is not defined.
    """
    k = min(k, len(gallery))
    blocks = [
        (queries[start : start + _QUERIES_AT_ONCE] @ gallery.T).topk(k, dim=1).indices
        for start in range(0, len(queries), _QUERIES_AT_ONCE)
    ]
    return torch.cat(blocks).numpy()


def overlap(results: np.ndarray) -> np.ndarray:
    """Percent of the results that two languages' queries for the same clip share, over all clips.

    Args:
        results: `(L, N, k)` gallery rows, no row twice in one query's.

    Returns:
        `(L, L)` float, 0 to 100; 100 on the diagonal.
    """
    num_languages, _, k = results.shape
    shared = np.empty((num_languages, num_languages))
    for a in range(num_languages):
        for b in range(num_languages):
            shared[a, b] = 100.0 * (results[a][:, :, None] == results[b][:, None, :]).sum(axis=(1, 2)).mean() / k
    return shared


def agreement(first: np.ndarray, reference: int) -> np.ndarray:
    """Percent of clips whose query finds the same first clip as the reference language's query, right or wrong.

    Args:
        first: `(L, N)` best gallery row of each query.
        reference: row of the reference language.

    Returns:
        `(L,)` float, 0 to 100.
    """
    return 100.0 * (first == first[reference]).mean(axis=1)


def unanimity(first: np.ndarray) -> float:
    """Percent of clips whose queries in all languages find one and the same first clip. `first`: `(L, N)`."""
    return float(100.0 * (first == first[0]).all(axis=0).mean())


def mean_rank_variance(ranks: np.ndarray) -> float:
    """MRV: the variance over languages of the right clip's rank, averaged over clips; 0 if languages do not matter.

    Args:
        ranks: `(L, N)` ranks, 1 = best.
    """
    return float(np.asarray(ranks, dtype=np.float64).var(axis=0).mean())


# ---------------------------------------------------------------------------------------------------------------------
# hubs
# ---------------------------------------------------------------------------------------------------------------------


def occurrences(results: np.ndarray, num_items: int) -> np.ndarray:
    """In how many queries' results each gallery item is.

    Args:
        results: `(..., k)` gallery rows.
        num_items: Ng.

    Returns:
        `(Ng,)` int64.
    """
    return np.bincount(np.ravel(results), minlength=num_items)


def hubness(counts: np.ndarray) -> dict[str, float]:
    """How unevenly the results are spread over the gallery.

    Args:
        counts: `(Ng,)` of `occurrences`.

    Returns:
        `skewness`: third standardised moment of the counts, 0 where they are symmetric or all equal, positive where a
        few items (hubs) are in many results; `anti_hubs`: percent of items in no result; `largest`: the largest count.
    """
    centred = np.asarray(counts, dtype=np.float64) - np.mean(counts)
    deviation = np.sqrt(np.mean(centred**2))
    return {
        "skewness": float(np.mean(centred**3) / deviation**3) if deviation else 0.0,
        "anti_hubs": float(100.0 * np.mean(np.asarray(counts) == 0)),
        "largest": float(np.max(counts)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# languages beside each other, and what is confused
# ---------------------------------------------------------------------------------------------------------------------


def text_similarity(texts: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """How near the texts of one clip are across languages, and those of different clips.

    Args:
        texts: `(L, N, P)` unit norm.

    Returns:
        `(L, L)` mean cosine of the two texts of one clip; `(L, L)` mean cosine of texts of different clips (NaN for a
        single clip).
    """
    values = texts.double()
    num_clips = values.shape[1]
    same = torch.einsum("anp,bnp->ab", values, values)
    sums = values.sum(dim=1)  # (L, P)
    different = sums @ sums.T - same
    pairs = num_clips * (num_clips - 1)
    return (same / num_clips).numpy(), (different / pairs).numpy() if pairs else np.full(same.shape, np.nan)


@dataclass(frozen=True)
class Confusion:
    """A clip asked for, the wrong clip that came first, and in which languages."""

    expected: int
    retrieved: int
    languages: tuple[str, ...]


def confusions(first: np.ndarray, expected: Sequence[int], languages: Sequence[str]) -> list[Confusion]:
    """Which wrong clip comes first in place of which, most languages first, then in the order of the clips.

    Args:
        first: `(L, N)` best gallery row of each query.
        expected: `(N,)` right gallery row.
        languages: `(L,)` codes.
    """
    by_pair: dict[tuple[int, int], list[str]] = {}
    for language, row in zip(languages, first, strict=True):
        for right, best in zip(expected, row.tolist(), strict=True):
            if best != right:
                by_pair.setdefault((right, best), []).append(language)
    pairs = [Confusion(expected, best, tuple(of)) for (expected, best), of in by_pair.items()]
    return sorted(pairs, key=lambda pair: (-len(pair.languages), pair.expected, pair.retrieved))


def hardest(ranks: np.ndarray) -> list[int]:
    """The clips' places from hardest to easiest, by the mean over languages of 1 / rank (then of the rank).

    Args:
        ranks: `(L, N)` ranks, 1 = best.
    """
    values: Any = np.asarray(ranks, dtype=np.float64)
    return np.lexsort((-values.mean(axis=0), (1 / values).mean(axis=0))).tolist()
