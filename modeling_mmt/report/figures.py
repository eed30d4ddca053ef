"""The report's pictures: a few numbers in, a matplotlib figure out.

Colours are Okabe and Ito's, distinct under any common colour blindness, and nothing depends on colour alone. Labels
are language codes and Latin names, so that no font but matplotlib's own is needed: text in nine scripts stands in the
page, where the reader's browser has fonts for it.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure  # not pyplot: no window, no global state

BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
OTHERS = ((ORANGE, "s"), (GREEN, "D"), (PINK, "^"), (SKY, "v"), (RED, "P"), ("#000000", "X"))
INK, GREY, PALE = "#222222", "#767676", "#DDDDDD"
STYLE: Any = {  # matplotlib's type names every key
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",  # what was looked at is what everyone sees
    "svg.hashsalt": "mmt",  # or two runs differ in their ids
}

Interval = tuple[float, float, float]  # value, lower and upper end


def r1_by_language(rows: Mapping[str, Mapping[str, Interval | None]], averages: Sequence[str] = ("avg",)) -> Figure:
    """R@1 with 95 % intervals: a column a language, a colour and marker a checkpoint, the first one filled and on top.

    Args:
        rows: checkpoint -> language or average -> value, lower and upper end, the same keys in each.
        averages: the keys that stand apart, at the right.
    """
    keys = list(next(iter(rows.values())))
    places = {key: place + (0.5 if key in averages else 0.0) for place, key in enumerate(keys)}
    width = 0.62
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(7.4, 3.4)
        ends = []
        for number, values in enumerate(rows.values()):
            colour, marker = (BLUE, "o") if number == 0 else OTHERS[(number - 1) % len(OTHERS)]
            shift = width * (number / max(1, len(rows) - 1) - 0.5) if len(rows) > 1 else 0.0
            for key in keys:
                value, low, high = values[key] or (math.nan,) * 3
                x = places[key] + shift
                axes.plot([x, x], [low, high], color=colour, linewidth=1.1, alpha=0.75, zorder=2 - number / 100)
                face = colour if number == 0 else "white"
                axes.plot(
                    x, value, marker, color=colour, markersize=5.5, markerfacecolor=face, zorder=4 - number / 100
                )
            ends.append((values[keys[-1]] or (0.0,))[0])
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top)
        for place in list(places.values())[::2]:
            axes.axvspan(place - 0.5, place + 0.5, color="0.96", zorder=0)
        right = places[keys[-1]] + 0.5
        for number, (name, level) in enumerate(zip(rows, spread(ends, 0.062 * top), strict=True)):
            colour = BLUE if number == 0 else OTHERS[(number - 1) % len(OTHERS)][0]
            axes.annotate(
                name, (right - 0.2, ends[number]), (right + 0.35, level), color=_dark(colour), va="center",
                fontweight="bold" if number == 0 else "normal", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
            )  # fmt: skip
        names = {"avg": "all", "avg_non_en": "all\nbut en"}
        axes.set_xticks(list(places.values()), [names.get(key, key) for key in keys])
        axes.set_xlim(-0.5, right)
        axes.tick_params(axis="x", length=0)
        _title(axes, "Right clip first, % of queries (R@1), with 95 % intervals")
        axes.grid(axis="y", color=PALE, linewidth=0.5)
    return figure


def recall_curves(curves: Mapping[str, np.ndarray], num_items: int) -> Figure:
    """Share of queries whose clip is among the first k, for every k; English is bold.

    Args:
        curves: language -> `(queries,)` ranks.
        num_items: clips searched.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(7.4, 3.6)
        places = np.unique(np.geomspace(1, max(2, num_items), 120).round())
        last = min(num_items, 30)
        starts = {}
        for number, (language, ranks) in enumerate(curves.items()):
            share = np.array([100.0 * np.mean(ranks <= place) for place in places])
            bold = language == "en"
            colour = BLUE if bold else ("#7F8FA0", "#A58D6F", "#8FA58D")[number % 3]
            axes.plot(places, share, color=colour, linewidth=2.2 if bold else 1.1, zorder=3 if bold else 2)
            starts[language] = (share[0], colour)
        axes.plot(places, 100.0 * places / num_items, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            "by chance", (0.4 * num_items, 40), (5, -5), textcoords="offset points", color=GREY, va="top", fontsize=8
        )
        axes.set_xscale("log")
        axes.set_ylim(0, 100)
        axes.set_xlim(1, num_items)
        levels = spread([value for value, _ in starts.values()], 4.6)
        for (language, (value, colour)), level in zip(starts.items(), levels, strict=True):
            axes.annotate(
                language, (1, value), (-16, level), xycoords="data", textcoords=("offset points", "data"),
                color=_dark(colour), ha="right", va="center", annotation_clip=False,
                fontweight="bold" if language == "en" else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
            )  # fmt: skip
        ticks = sorted({place for place in (1, 5, 10, last, 100, 1000, 10000) if place < num_items} | {num_items})
        axes.set_xticks(ticks, [f"{place:,}" for place in ticks])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.tick_right()
        axes.spines["left"].set_visible(False)
        axes.grid(color=PALE, linewidth=0.5)
        axes.set_xlabel("clips looked at (k)")
        _title(axes, "Right clip among the first k, % of queries (R@k)")
    return figure


def heat_map(values: np.ndarray, languages: Sequence[str], title: str, digits: int, hide_diagonal: bool) -> Figure:
    """A language x language matrix with its numbers in the cells.

    Args:
        values: `(L, L)`.
        languages: `(L,)` codes.
        title: says what a number is.
        digits: decimals.
        hide_diagonal: leave out what a language is to itself, which says nothing here.
    """
    size = len(languages)
    shown = np.array(values, dtype=np.float64)
    if hide_diagonal:
        np.fill_diagonal(shown, np.nan)
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(max(3.6, 1.2 + 0.46 * size), 0.9 + 0.40 * size)
        colours = matplotlib.colormaps["cividis"].with_extremes(bad="#F4F4F4")
        image = axes.imshow(np.ma.masked_invalid(shown), cmap=colours, aspect="auto")
        for row in range(size):
            for column in range(size):
                if np.isfinite(shown[row, column]):
                    red, green, blue, _ = image.cmap(image.norm(shown[row, column]))
                    light = 0.299 * red + 0.587 * green + 0.114 * blue
                    text = f"{shown[row, column]:.{digits}f}".removeprefix("0") or "0"
                    axes.text(column, row, text, ha="center", va="center", color=INK if light > 0.5 else "white")
        axes.set_xticks(range(size), languages)
        axes.set_yticks(range(size), languages)
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        _title(axes, title)
    return figure


def gap_bars(
    zero_shot: Mapping[str, float],
    ours: Mapping[str, float],
    translate_train: Mapping[str, float],
    names: Sequence[str],
    shares: Mapping[str, float | None],
) -> Figure:
    """Between a zero-shot model and one trained on every language: where ours stands, a line a language, widest first.

    Args:
        zero_shot: language -> R@1.
        ours: the same.
        translate_train: the same.
        names: of the three, in this order.
        shares: language -> percent of the gap that is closed.
    """
    languages = sorted(ours, key=lambda language: zero_shot[language] - translate_train[language])
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(7.4, 1.0 + 0.27 * len(languages))
        right = 1.22 * max(*zero_shot.values(), *ours.values(), *translate_train.values())
        for row, language in enumerate(languages):
            low, here, high = zero_shot[language], ours[language], translate_train[language]
            axes.plot([low, high], [row, row], color=PALE, linewidth=5, solid_capstyle="butt", zorder=1)
            axes.plot(low, row, "s", color=ORANGE, markerfacecolor="white", markersize=6, zorder=2)
            axes.plot(high, row, "D", color=GREEN, markerfacecolor="white", markersize=5.5, zorder=2)
            axes.plot(here, row, "o", color=BLUE, markersize=7, zorder=3)
            share = shares[language]
            words = "no gap" if share is None else f"{share:.0f} %"
            axes.text(right, row, words, color=_dark(BLUE), ha="right", va="center", fontsize=8)
        widest = [values[languages[0]] for values in (zero_shot, ours, translate_train)]
        levels = spread(widest, 0.14 * right)
        for name, place, level, colour in zip(names, widest, levels, (ORANGE, BLUE, GREEN), strict=True):
            axes.annotate(
                name, (place, -0.3), (level, -1.0), color=_dark(colour), ha="center", va="bottom",
                fontweight="bold" if colour == BLUE else "normal",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0},
            )  # fmt: skip
        axes.text(right, -1.0, "closed", color=_dark(BLUE), ha="right", va="bottom", fontsize=8)
        axes.set_yticks(range(len(languages)), languages)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, right)
        axes.set_ylim(len(languages) - 0.5, -1.8)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=PALE, linewidth=0.5)
        axes.set_axisbelow(True)
        _title(axes, "Right clip first, % of queries (R@1)")
    return figure


def occurrence_histogram(counts: Mapping[str, np.ndarray], k: int, num_queries: int) -> Figure:
    """How often a clip is among the first k, against what an even spread over the clips would give.

    Args:
        counts: language -> `(clips,)` of `diagnostics.occurrences`, from `num_queries` queries each.
        k: results a query.
        num_queries: of each language.
    """
    pooled = np.concatenate(list(counts.values()))
    num_items = len(next(iter(counts.values())))
    edge = int(np.quantile(pooled, 0.995)) + 1
    step = max(1, math.ceil(edge / 40))
    starts = np.arange(0, edge + step, step)
    share = np.array([100.0 * np.mean((pooled >= start) & (pooled < start + step)) for start in starts])
    share[-1] += 100.0 * np.mean(pooled >= starts[-1] + step)
    probability = min(1.0, k / num_items)
    even = [
        100.0 * sum(_binomial(count, num_queries, probability) for count in range(start, start + step))
        for start in starts.tolist()
    ]
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(7.4, 2.9)
        axes.bar(starts, share, width=0.82 * step, color=SKY, align="center", zorder=2)
        axes.bar(0, share[0], width=0.82 * step, color=BLUE, align="center", zorder=2)
        axes.plot(starts, even, color=INK, linewidth=1.2, zorder=3)
        peak = int(np.argmax(even))
        beyond = next((i for i in range(peak, len(even)) if even[i] < 0.8 * even[peak]), peak)
        axes.annotate(
            "if results were spread at random", (starts[beyond], even[beyond]), (6, 0), textcoords="offset points",
            color=INK, fontsize=8, va="bottom",
        )  # fmt: skip
        height = 1.12 * max(share.max(), max(even))
        words = f"{100.0 * np.mean(pooled == 0):.1f} % of clips\nare in no result"
        axes.annotate(
            words, (0, share[0]), (-0.4 * step, 0.62 * height),
            color=_dark(BLUE), va="bottom", fontsize=8,
            arrowprops={"arrowstyle": "-", "color": BLUE, "linewidth": 0.6, "relpos": (0.05, 0), "shrinkB": 0},
        )  # fmt: skip
        ticks = [int(tick) for tick in axes.get_xticks() if 0 <= tick < starts[-1] and tick == int(tick)]
        axes.set_xticks([*ticks, int(starts[-1])], [*(f"{tick}" for tick in ticks), f"≥ {starts[-1]}"])
        axes.set_xlim(-step, starts[-1] + step)
        axes.set_ylim(0, height)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=6))
        axes.grid(axis="y", color=PALE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"times among the first {k}, of {num_queries:,} queries")
        _title(axes, "% of clips")
    return figure


def token_ranges(tokens: Mapping[str, np.ndarray], limit: int) -> Figure:
    """Length of the captions in tokens: median, middle 90 % and range, a line a language, with what the model reads.

    Args:
        tokens: language -> `(captions,)`.
        limit: longest caption that is not cut.
    """
    languages = list(tokens)
    longest = max(int(counts.max()) for counts in tokens.values())
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas(7.4, 0.8 + 0.25 * len(languages))
        for row, language in enumerate(languages):
            low, start, middle, end, high = np.quantile(tokens[language], [0, 0.05, 0.5, 0.95, 1])
            axes.plot([low, high], [row, row], color=GREY, linewidth=0.9, zorder=1)
            axes.plot([start, end], [row, row], color=SKY, linewidth=7, solid_capstyle="butt", zorder=2)
            axes.plot(middle, row, "o", color=BLUE, markersize=5.5, zorder=3)
        first = np.quantile(tokens[languages[0]], [0.5, 0.95, 1])
        for value, words, side in zip(first, ("median", " 95 %", " longest"), ("center", "left", "left"), strict=True):
            axes.text(value, -0.62, words, fontsize=7.5, color=GREY, ha=side, va="bottom")
        right = 1.06 * max(longest, limit if limit < 1.6 * longest else 0)
        if limit < right:
            axes.axvline(limit, color=RED, linewidth=1.2)
            axes.text(limit, -0.62, f"limit {limit} ", color=_dark(RED), ha="right", va="bottom", fontsize=7.5)
        axes.set_xlim(0, right)
        axes.set_ylim(len(languages) - 0.4, -1.3)
        axes.set_yticks(range(len(languages)), languages)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=PALE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        cut = "" if limit < right else f"; the model reads up to {limit}"
        _title(axes, f"Tokens a caption, special ones included{cut}")
    return figure


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Places near the values, in their order, that are at least `gap` apart: where labels of the values may stand."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    groups: list[tuple[float, int]] = []  # (centre, members) of labels that touch
    for i in order:
        centre, members = float(values[i]), 1
        while groups and groups[-1][0] + gap * (groups[-1][1] - 1) / 2 + gap > centre - gap * (members - 1) / 2:
            other, count = groups.pop()
            centre, members = (other * count + centre * members) / (count + members), count + members
        groups.append((centre, members))
    places = [centre + gap * (member - (members - 1) / 2) for centre, members in groups for member in range(members)]
    result = [0.0] * len(values)
    for i, place in zip(order, places, strict=True):
        result[i] = place
    return result


def as_svg(figure: Figure) -> str:
    """A figure as a `data:` address that an `img` shows; the same figure gives the same text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _canvas(width: float, height: float) -> tuple[Figure, Any]:
    """An empty figure of this size in inches, with its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _title(axes: Any, text: str):
    axes.set_title(text, loc="left", fontsize=9.5, color=INK, pad=8)


def _dark(colour: str) -> str:
    """The colour, as dark as text on white must be to be read easily: contrast 4.5 or more (WCAG AA)."""
    linear = [((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    factor = min(1.0, 0.18 / luminance)
    red, green, blue = (max(0.0, 1.055 * (factor * c) ** (1 / 2.4) - 0.055) for c in linear)
    return matplotlib.colors.to_hex((red, green, blue))


def _binomial(count: int, trials: int, probability: float) -> float:
    if probability >= 1 or count > trials:
        return float(count == trials)
    log = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return math.exp(log + count * math.log(probability) + (trials - count) * math.log1p(-probability))
