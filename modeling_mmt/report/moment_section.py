"""The report's section about moments, for a corpus that gives the file and times of its clips."""

from collections.abc import Mapping
from typing import Any

from modeling_mmt.evaluation.metrics import AVERAGES
from modeling_mmt.report.page import Block, Heading, Table, Text
from modeling_mmt.search.moment_figures import average_moments


def moment_blocks(checkpoints: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """A table for each checkpoint; nothing where no moments were measured.

    Args:
        checkpoints: name to its measures, whose `moments` are of `own_moment_figures`.
    """
    blocks: list[Block] = []
    for name, measures in checkpoints.items():
        figures = average_moments(measures["moments"])
        rows: list[list[Any]] = [
            [AVERAGES.get(key, key), *(None if value is None else f"{value:.1f}" for value in of.values())]
            for key, of in figures.items()
        ]
        if rows:
            strong = [number for number, key in enumerate(figures) if key in AVERAGES]
            columns = ["language", *next(iter(figures.values()))]
            blocks += [Text(f"{name}:"), Table([column.replace("_", " ") for column in columns], rows, strong)]
    if not blocks:
        return []
    about = (
        "R@k IoU=t: percent of queries with a moment in the right file, among the first k, whose overlap with a span "
        "that is right is at least t of their union. Start error: median, in seconds, over the queries whose first "
        "moment lies in a right file (R@1 file). Every text is asked once; all spans that it describes are right."
    )
    return [Heading("Moments"), Text(about), *blocks]
