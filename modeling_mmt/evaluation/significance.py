"""Uncertainty of figures: bootstrap intervals over clips, summaries over seeds, a paired test between two rows.

R@k and MRR are percentages, 0 to 100; MedR and MeanR are ranks. A clip, not a query, is what is drawn: its captions in
several languages go together.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modeling_mmt.evaluation.metrics import METRICS, STATISTIC, Array, average_over_languages, per_query

_SAMPLES_AT_ONCE = 500  # bootstrap samples drawn together: bounds memory at 500 * clips


def bootstrap_interval(
    values: Array,
    num_samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    statistic: Callable[..., Any] = np.mean,
    groups: Array = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean or median over clips.

    What is resampled: clips, with replacement. Everything that belongs to a clip moves with it: the trailing axes of
    `values` (its nine languages, the seeds) are not resampled, because they are not independent draws. With `groups`,
    whole groups are drawn (all captions of one clip), so an interval over 20 captions a clip is not 20 times too sure.
    What is not: the training run and the choice of languages.

    Args:
        values: `(clips,)` or `(clips, ...)` numbers, one per query (such as 100 * (rank <= 1)). The statistic is taken
            over clips and then averaged over the trailing axes.
        num_samples: bootstrap samples.
        seed: of the draws.
        level: of the interval, 0 to 1.
        statistic: `numpy.mean` or `numpy.median`.
        groups: `(clips,)` labels of the rows of `values` that are drawn together; None: each row by itself.

    Returns:
        Lower and upper end.
    """
    samples = _bootstrap(np.asarray(values, dtype=np.float64), statistic, num_samples, seed, groups)
    return _interval(samples.reshape(num_samples, -1).mean(axis=1), level)


def paired_test(
    values_a: Array, values_b: Array, num_samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """Is row A better than row B on the same clips and seeds?

    - `p`, two-sided: the sign of each clip's difference (the mean over seeds, and over languages if given) is flipped
      at random; p is the share of flips, the real signs included, whose mean is as far from 0. It asks whether the
      difference would survive other clips from the same source, for these training runs: seeds are averaged, not
      permuted (3 seeds have only 8 sign patterns).
    - `ci95`: percentile bootstrap that draws clips and seeds, each with replacement and independently, so it is wider
      where training runs disagree. With few seeds it is still too narrow: S seeds show (S - 1) / S of their variance.

    The two can disagree: p ignores the spread of training runs, the interval counts it.

    Args:
        values_a: `(seeds, clips)` or `(seeds, clips, languages)`, one number per query.
        values_b: the same shape; seed s and clip c are the same in both.
        num_samples: sign flips, and bootstrap samples.
        seed: of the draws.
        level: of the interval, 0 to 1.

    Returns:
        `{"difference": mean of A - B, "ci95": [low, high], "p"}`.
    """
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim < 2 or a.size == 0:
        raise ValueError(f"values_a and values_b must share a shape (seeds, clips, ...), got {a.shape} and {b.shape}")
    difference = (a - b).reshape(*a.shape[:2], -1).mean(axis=2)  # (seeds, clips)
    if not np.isfinite(difference).all():
        raise ValueError("values_a or values_b holds a NaN or infinite value")
    num_seeds, num_clips = difference.shape
    by_clip = difference.mean(axis=0)  # (clips,)
    observed = abs(by_clip.mean())
    as_far = 0
    rng = np.random.default_rng([seed, 0])
    for count in _chunks(num_samples):
        flipped = (1.0 - 2.0 * rng.integers(2, size=(count, num_clips))) @ by_clip / num_clips
        as_far += int(np.count_nonzero(np.abs(flipped) >= observed - 1e-12 * np.abs(by_clip).max()))
    rng = np.random.default_rng([seed, 1])
    samples = []
    for count in _chunks(num_samples):
        seed_counts = _draw(num_seeds, count, rng)
        clip_counts = _draw(num_clips, count, rng)
        samples.append(np.einsum("bs,sc,bc->b", seed_counts, difference, clip_counts, optimize=True))
    low, high = _interval(np.concatenate(samples) / (num_seeds * num_clips), level)
    return {"difference": float(by_clip.mean()), "ci95": [low, high], "p": (1 + as_far) / (1 + num_samples)}


def _bootstrap(
    values: np.ndarray, statistic: Callable[..., Any], num_samples: int, seed: int, groups: Array
) -> np.ndarray:
    """`(num_samples, ...)` values of the statistic over axis 0."""
    if values.ndim < 1 or len(values) == 0:
        raise ValueError(f"values must have at least one row, got shape {values.shape}")
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
        raise ValueError(f"values row {row} is NaN or infinite (a clip without a caption?): leave such rows out")
    if statistic not in (np.mean, np.median):
        raise ValueError(f"statistic must be numpy.mean or numpy.median, got {statistic!r}")
    flat = values.reshape(len(values), -1)
    group_of_row = np.arange(len(flat)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(group_of_row) != len(flat):
        raise ValueError(f"groups has {len(group_of_row)} labels for {len(flat)} rows")
    num_groups = int(group_of_row.max()) + 1
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    rng = np.random.default_rng(seed)
    samples = []
    for count in _chunks(num_samples):
        weights = _draw(num_groups, count, rng)[:, group_of_row]  # (count, rows): how often each row was drawn
        if statistic is np.mean:
            samples.append(weights @ flat / weights.sum(axis=1, keepdims=True))
        else:
            samples.append(np.stack([_weighted_median(column, weights) for column in flat.T], axis=1))
    return np.concatenate(samples).reshape(num_samples, *values.shape[1:])


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Median of `values` repeated `weights[s]` times, for each sample s; an even number averages the middle two."""
    order = np.argsort(values)
    reached = np.cumsum(weights[:, order], axis=1)
    total = reached[:, -1:]
    lower = np.argmax(reached >= np.floor((total + 1) / 2), axis=1)
    upper = np.argmax(reached >= np.floor(total / 2) + 1, axis=1)
    return (values[order][lower] + values[order][upper]) / 2


def _draw(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`(count, size)` float64: how often each of `size` things is drawn in `size` draws with replacement."""
    drawn = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(np.float64)


def _chunks(num_samples: int) -> list[int]:
    whole, rest = divmod(num_samples, _SAMPLES_AT_ONCE)
    return [_SAMPLES_AT_ONCE] * whole + [rest] * (rest > 0)


def _interval(samples: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise_seeds(
    ranks_of_seeds: Sequence[Mapping[str, Mapping[str, np.ndarray]]],
    num_samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """One row of `results.json` from the ranks of the row's seeds.

    Args:
        ranks_of_seeds: one result of `ranks_by_language` for each training seed, on the same queries. All languages
            must have the same queries in the same order (one caption a clip), for a clip is resampled in all of them
            at once.
        num_samples: bootstrap samples.
        seed: of the bootstrap.
        level: of the interval, 0 to 1.

    Returns:
        `{"t2v": {"R@1": {"en": {"mean", "per_seed", "ci95"}, ..., "avg", "avg_non_en"}, ...}, "v2t": {...}}`: the mean
        over seeds, each seed's value, and the interval of that mean as in `bootstrap_interval`: over clips, with these
        seeds held fixed. It says how much the numbers would move with other clips, not with other training runs.
    """
    result: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for direction in ranks_of_seeds[0]:
        languages = list(ranks_of_seeds[0][direction])
        shapes = {np.shape(run[direction][language]) for run in ranks_of_seeds for language in languages}
        if len(shapes) != 1:
            raise ValueError(
                f"{direction}: seeds and languages must have the same queries, got shapes {sorted(shapes)}"
            )
        stacked = np.stack(
            [np.stack([run[direction][language] for language in languages], axis=-1) for run in ranks_of_seeds],
            axis=-1,
        )  # (clips, languages, seeds)
        result[direction] = {}
        for name in METRICS:
            values = per_query(name, stacked)
            samples = _bootstrap(values, STATISTIC[name], num_samples, seed, groups=None).mean(axis=-1)
            point = STATISTIC[name](values, axis=0)
            points = average_over_languages(dict(zip(languages, point, strict=True)))
            spreads = average_over_languages(dict(zip(languages, samples.T, strict=True)))
            result[direction][name] = {
                key: {
                    "mean": float(np.mean(points[key])),
                    "per_seed": [float(value) for value in points[key]],
                    "ci95": list(_interval(spreads[key], level)),
                }
                for key in points
            }
    return result
