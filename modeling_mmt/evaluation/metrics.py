"""Metrics computed from ranks: recall, median and mean rank, MRR, and their averages over languages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any  # numpy array, torch tensor (any device, any float type) or nested lists of numbers
METRICS = ("R@1", "R@5", "R@10", "MedR", "MeanR", "MRR")
SHOWN_METRICS = tuple(metric for metric in METRICS if metric != "MeanR")  # to people: outliers move a mean rank
RELEVANCE_METRICS = ("mAP", "nDCG@10")  # of queries with many right answers (`relevance.py`)
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
AVERAGES = {"avg": "all", "avg_non_en": "all but en"}  # over languages


def retrieval_metrics(ranks: Array) -> dict[str, float]:
    """R@1, R@5, R@10 and MRR in percent (0 to 100), MedR and MeanR as ranks.

    Args:
        ranks: `(Nq,)` ranks, 1 = best, as `ranks` returns them. R@k counts ranks <= k, so a tie for the first place
            (rank 1.5) is not a hit at 1.

    Raises:
        ValueError: no rank, or a rank that is not a number of at least 1.
    """
    values = np.asarray(ranks, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"ranks must be a vector with at least one entry, got shape {values.shape}")
    if not (values >= 1).all():
        row = int(np.argmin(values >= 1))
        raise ValueError(f"ranks[{row}] = {values[row]} is not a rank; ranks are numbers from 1")
    return {name: float(STATISTIC[name](per_query(name, values))) for name in METRICS}


def shown_metrics(figures: Mapping[str, Any]) -> list[str]:
    """Those of a table's columns: `SHOWN_METRICS`, and of queries with many right answers `RELEVANCE_METRICS`.

    Args:
        figures: by metric.
    """
    return [metric for metric in (*SHOWN_METRICS, *RELEVANCE_METRICS) if metric in figures]


def per_query(metric: str, ranks: np.ndarray) -> np.ndarray:
    """What a metric averages (or, for MedR, takes the median of) over queries."""
    if metric.startswith("R@"):
        return 100.0 * (ranks <= int(metric[2:]))
    return 100.0 / ranks if metric == "MRR" else ranks


STATISTIC: dict[str, Callable[..., Any]] = {
    name: np.median if name == "MedR" else np.mean for name in (*METRICS, *RELEVANCE_METRICS)
}


def average_over_languages(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds `avg`, over all languages, and `avg_non_en`, over all but English (absent if English is alone, or absent).

    Args:
        values: language code -> number or array; every language weighs the same.
    """
    result = dict(values)
    result["avg"] = np.mean(list(values.values()), axis=0)
    foreign = [value for language, value in values.items() if language != "en"]
    if 0 < len(foreign) < len(values):
        result["avg_non_en"] = np.mean(foreign, axis=0)
    return result
