"""From `results.json` to what a person reads: a Markdown table and a figure of R@1 by language.

    python experiments/tables.py results/emoji9/results.json

writes `README.md` and `r1_by_language.png` beside the JSON. The functions are pure: JSON in, text or figure out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_mmt.evaluation.metrics import SHOWN_METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

DIRECTION_NAMES = {"t2v": "Text to video", "v2t": "Video to text"}
AVERAGES = {"avg": "avg", "avg_non_en": "avg w/o en"}
# Okabe and Ito's colours, distinct for people with any common kind of colour blindness; markers distinguish them
# apart without colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = "osD^vPX*"


def row_name(row: Row) -> str:
    """`"MMP / en"`: pre-training / fine-tuning."""
    return f"{row['pretraining']} / {row['finetuning']}"


def columns_of(rows: Sequence[Row], direction: str = "t2v") -> list[str]:
    """Languages in the order of the first row (later rows may add some), then the averages."""
    seen: dict[str, None] = {}
    for row in rows:
        seen.update(dict.fromkeys(row[direction]["R@1"]))
    return [key for key in seen if key not in AVERAGES] + [key for key in AVERAGES if key in seen]


def metric_table(
    rows: Sequence[Row], direction: str = "t2v", metric: str = "R@1", part: str | None = None, digits: int = 1
) -> str:
    """Markdown table of one metric: a line a row, a column a language.

    Args:
        rows: of `results.json`.
        direction: `"t2v"` or `"v2t"`.
        metric: a key of a row's direction, such as `"R@1"`.
        part: `"without_flags"` for that part of each row; None for the whole test set.
        digits: decimals.

    Returns:
        The table; the best value of each column is bold (for MedR, the lowest), the averages carry their interval. A
        language that a row lacks is a dash.
    """
    cells = [_cells(row, direction, metric, part) for row in rows]
    columns = columns_of([row if part is None else row[part] for row in rows], direction)
    pick = min if metric.startswith("Me") else max
    best = {
        column: pick(round(cell[column]["mean"], digits) for cell in cells if column in cell) for column in columns
    }
    lines = [
        "| pre-train / fine-tune | " + " | ".join(AVERAGES.get(column, column) for column in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for row, cell in zip(rows, cells, strict=True):
        line = [row_name(row)]
        for column in columns:
            if column not in cell:
                line.append("–")
                continue
            value = cell[column]["mean"]
            text = f"{value:.{digits}f}"
            if round(value, digits) == best[column] and len(rows) > 1:
                text = f"**{text}**"
            if column in AVERAGES and cell[column].get("ci95"):
                low, high = cell[column]["ci95"]
                text += f" [{low:.{digits}f}, {high:.{digits}f}]"
            line.append(text)
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def average_table(rows: Sequence[Row], part: str | None = None) -> str:
    """Markdown table of every metric, averaged over all languages, in both directions."""
    directions = [key for key in DIRECTION_NAMES if all(key in (row if part is None else row[part]) for row in rows)]
    heads = [f"{key} {metric}" for key in directions for metric in SHOWN_METRICS]
    lines = ["| pre-train / fine-tune | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for row in rows:
        values = [
            f"{_cells(row, direction, metric, part)['avg']['mean']:.1f}"
            for direction in directions
            for metric in SHOWN_METRICS
        ]
        lines.append(f"| {row_name(row)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the paired tests: `{"a", "b", "scope", "difference", "ci95", "p"}` each."""
    lines = ["| A | B | scope | A - B | 95 % interval | p |", "|---|---|---|---|---|---|"]
    for test in comparisons:
        low, high = test["ci95"]
        p = "< 0.001" if test["p"] < 0.001 else f"{test['p']:.3f}"
        interval = f"[{low:+.1f}, {high:+.1f}]"
        lines.append(f"| {test['a']} | {test['b']} | {test['scope']} | {test['difference']:+.1f} | {interval} | {p} |")
    return "\n".join(lines)


def markdown_report(results: Mapping[str, Any], title: str = "emoji9", figure: str | None = None) -> str:
    """The whole page for `results.json` (its format: see `results/emoji9/`).

    Args:
        results: the parsed JSON.
        title: of the page.
        figure: name of the picture beside the page; None leaves it out.
    """
    parts = [f"# {title}: search in each language", _provenance(results)]
    splits = list(dict.fromkeys(row["split"] for row in results["rows"]))
    for split in splits:
        rows = [row for row in results["rows"] if row["split"] == split]
        where = f"{split}, {_queries(rows)}"
        for direction, name in DIRECTION_NAMES.items():
            if all(direction in row for row in rows):
                parts += [f"## {name}, R@1 ({where})", metric_table(rows, direction)]
            if direction == "t2v" and figure is not None and split == splits[0]:
                parts.append(f"![R@1 by language and row, with 95 % intervals]({figure})")
        parts += [f"## All metrics, averaged over the languages ({split})", average_table(rows)]
        if all("without_flags" in row for row in rows):
            parts += [f"## Text to video without flags, R@1 ({split})", metric_table(rows, part="without_flags")]
    if results.get("comparisons"):
        parts += [
            "## Paired comparisons",
            "The interval draws clips and seeds; p flips the signs of clips' differences, for these runs alone. "
            "Where they disagree, the interval decides: a difference whose interval holds 0 has not been shown.",
            comparison_table(results["comparisons"]),
        ]
    parts += ["## How each row was made", _commands(results["rows"])]
    return "\n\n".join(parts) + "\n"


def r1_figure(rows: Sequence[Row], direction: str = "t2v") -> Figure:
    """R@1 by language (groups) and row (colour and marker), with 95 % intervals; the averages stand on the right."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    columns = columns_of(rows, direction)
    languages = [column for column in columns if column not in AVERAGES]
    places = {c: i + (0.6 if c in AVERAGES else 0.0) for i, c in enumerate(columns)}
    figure = Figure(figsize=(max(8.0, 0.95 * len(columns)), 4.6), layout="constrained")
    axes = figure.subplots()
    step = 0.8 / len(rows)
    for i, row in enumerate(rows):
        cells = row[direction]["R@1"]
        mine = [column for column in columns if column in cells]
        x = [places[column] + (i - (len(rows) - 1) / 2) * step for column in mine]
        mean = [cells[column]["mean"] for column in mine]
        ends = [cells[column].get("ci95") or (cells[column]["mean"],) * 2 for column in mine]
        errors = [
            [max(0.0, m - low) for m, (low, _) in zip(mean, ends, strict=True)],
            [max(0.0, high - m) for m, (_, high) in zip(mean, ends, strict=True)],
        ]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
        axes.errorbar(
            x, mean, yerr=errors, fmt=marker, color=colour, ecolor=colour, elinewidth=1.2, capsize=2, markersize=5.5,
            markeredgecolor="black", markeredgewidth=0.4, label=row_name(row),
        )  # fmt: skip
    for place in list(places.values())[1::2]:
        axes.axvspan(place - 0.5, place + 0.5, color="0.95", zorder=0)
    if len(languages) < len(columns):
        axes.axvline(len(languages) - 0.2, color="0.6", linewidth=0.8)
    axes.set_xticks(list(places.values()), [AVERAGES.get(column, column) for column in columns])
    axes.set_xlim(-0.5, max(places.values()) + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{DIRECTION_NAMES[direction].lower()} R@1 (%)")
    axes.grid(axis="y", color="0.88", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(rows), 5), frameon=False,
        title="pre-training / fine-tuning",
    )  # fmt: skip
    return figure


def _cells(row: Row, direction: str, metric: str, part: str | None) -> Mapping[str, Any]:
    return (row if part is None else row[part])[direction][metric]


def _provenance(results: Mapping[str, Any]) -> str:
    machine, versions, seeds = (results.get(key) for key in ("machine", "versions", "seeds"))
    lines = []
    if seeds is not None:
        count = len(seeds) if isinstance(seeds, Sequence) else seeds
        lines.append(
            f"Mean over {count} seed{'s' if count != 1 else ''}; brackets: 95 % bootstrap intervals over clips."
        )
    for name, value in (("Machine", machine), ("Versions", versions)):
        if value:
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
            lines.append(f"{name}: {text}.")
    return " ".join(lines)


def _queries(rows: Sequence[Row]) -> str:
    counts = {json.dumps(row.get("n_queries")) for row in rows}
    count = rows[0].get("n_queries")
    return f"{count} queries a language" if len(counts) == 1 and isinstance(count, int) else f"{len(rows)} rows"


def _commands(rows: Sequence[Row]) -> str:
    lines = ["| row | split | seconds | commit | command |", "|---|---|---|---|---|"]
    for row in rows:
        seconds = row.get("seconds")  # one number, or one a seed
        each = seconds if isinstance(seconds, list) else [] if seconds is None else [seconds]
        lines.append(
            f"| {row_name(row)} | {row['split']} | {', '.join(f'{value:.0f}' for value in each) or '–'} "
            f"| {str(row.get('commit') or '–')[:10]} | `{row.get('command') or '–'}` |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Writes the page and the picture; returns their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json")
    parser.add_argument("--output_dir", type=Path, default=None, help="folder to write to (default: beside the JSON)")
    parser.add_argument("--title", default="emoji9", help="title of the page")
    arguments = parser.parse_args(argv)
    results = json.loads(arguments.results.read_text(encoding="utf-8"))
    if not results.get("rows"):
        raise ValueError(f"{arguments.results}: `rows` is empty; run `make table` first")
    folder = arguments.output_dir or arguments.results.parent
    folder.mkdir(parents=True, exist_ok=True)
    picture, page = folder / "r1_by_language.png", folder / "README.md"
    first_split = results["rows"][0]["split"]
    r1_figure([row for row in results["rows"] if row["split"] == first_split]).savefig(picture, dpi=150)
    page.write_text(markdown_report(results, arguments.title, picture.name), encoding="utf-8")
    return [page, picture]


if __name__ == "__main__":
    for written in main():
        print(written)
