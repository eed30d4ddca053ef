"""A figure of transfer: one clip searched by its name in every language, the right one framed where it is found.

Where it is not among the first clips, its rank stands beside the query.

    python examples/qualitative.py --model runs/demo/mmp_en --output qualitative.png
    python examples/qualitative.py --clips fox 1f681 --top 5

The clips are drawn at random with `--seed`, so that the figure is not a choice of the best cases; `--clips` names some
by `video_id`, emoji or English name, and a figure made so should say it.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import search
from datasets import Dataset
from PIL import Image

CELL = 96  # pixels; nine rows fit a page


def languages_of(rows: Dataset, kind: str) -> list[str]:
    """Languages that have a column `<kind>_<language>`, in the order of the columns."""
    return [column.removeprefix(f"{kind}_") for column in rows.column_names if column.startswith(f"{kind}_")]


def choose(rows: Dataset, wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Rows of the clips that are wanted.

    Args:
        rows: a split.
        wanted: each a `video_id`, an emoji or a name.
        names: the name of each row.

    Raises:
        ValueError: no clip is called so.
    """
    labels = [rows["video_id"][:], rows["emoji"][:] if "emoji" in rows.column_names else [], names]
    places = {label: row for column in reversed(labels) for row, label in enumerate(column)}
    for label in wanted:
        if label not in places:
            raise ValueError(f"clips: no clip {label!r} in this split; give a video_id, an emoji or an English name")
    return [places[label] for label in wanted]


def queries_of(row: dict[str, Any], kind: str, languages: Sequence[str]) -> dict[str, str]:
    """A clip's text in each language that has one; the first of several."""
    texts = {language: row[f"{kind}_{language}"] for language in languages}
    return {language: text if isinstance(text, str) else text[0] for language, text in texts.items() if text}


def side_by_side(blocks: Sequence[Sequence[Image.Image]]) -> list[Image.Image]:
    """Several animations as one, from left to right; a shorter one is stretched in time."""
    moments = max(map(len, blocks))
    size = sum(block[0].width for block in blocks), max(block[0].height for block in blocks)
    pictures = [Image.new("RGB", size, "white") for _ in range(moments)]
    for moment, picture in enumerate(pictures):
        left = 0
        for block in blocks:
            picture.paste(block[moment * len(block) // moments], (left, 0))
            left += block[0].width
    return pictures


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, int]]:
    """Search, print, draw; returns the rank of each chosen clip (by `video_id`) in each language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    search.add_inputs(parser)
    parser.add_argument("--text_column", default="name", help="kind of text that is searched by (%(default)s)")
    parser.add_argument("--clips", nargs="+", default=[], help="video_id, emoji or English name of each")
    parser.add_argument("--num_clips", type=int, default=2, help="drawn at random without --clips (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (%(default)s)")
    parser.add_argument("--top", type=int, default=5, help="clips a query (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("qualitative.png"), help=".png, .gif or .webp")
    arguments = parser.parse_args(argv)
    kind = arguments.text_column
    name_column = f"{kind}_en"
    try:
        search.check_ending(arguments.output)
        model, processor, rows, features = search.open_inputs(arguments, [name_column])
        languages, names = languages_of(rows, kind), rows[name_column][:]
        if not 1 <= arguments.num_clips <= len(rows):
            raise ValueError(f"--num_clips is {arguments.num_clips}; there are {len(rows)} clips")
        chosen = choose(rows, arguments.clips, names) or sorted(
            random.Random(arguments.seed).sample(range(len(rows)), arguments.num_clips)
        )
        queries = [queries_of(rows[row], kind, languages) for row in chosen]
        texts = [text for of_clip in queries for text in of_clip.values()]
        found = iter(search.search(model, processor, texts, rows, features, len(rows)))
        if not 1 <= arguments.top <= len(rows):
            raise ValueError(f"--top is {arguments.top}; there are {len(rows)} clips")
    except (OSError, KeyError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
    ranks: dict[str, dict[str, int]] = {}
    blocks = []
    for row, of_clip in zip(chosen, queries, strict=True):
        hits = [next(found) for _ in of_clip]
        rank = [[hit.row for hit in line].index(row) + 1 for line in hits]
        ranks[rows[row]["video_id"]] = dict(zip(of_clip, rank, strict=True))
        inside = sum(place <= arguments.top for place in rank)
        print(f"{names[row]}: among the first {arguments.top} in {inside} of {len(rank)} languages; ranks:")
        print("  " + ", ".join(f"{language} {place}" for language, place in ranks[rows[row]["video_id"]].items()))
        titles = [
            f"{language}:  {text}" + ("" if place <= arguments.top else f"   (right clip: {place})")
            for (language, text), place in zip(of_clip.items(), rank, strict=True)
        ]
        best = [line[: arguments.top] for line in hits]
        blocks.append(search.draw(titles, best, rows, name_column, [row] * len(best), CELL, arguments.font))
    search.save(side_by_side(blocks), arguments.output)
    print(f"picture: {arguments.output}")
    return ranks


if __name__ == "__main__":
    main()
