"""Type a query in any language, look at the clips that a checkpoint finds.

    python examples/search.py --model runs/demo/mmp_en "con mèo"
    python examples/search.py "a cyclist" "ein Radfahrer" "骑自行车的人" --output search.webp

It prints each query's best clips and writes one picture, a row a query. A `.png` is still; a `.gif` or `.webp` plays
the clips. `search` and `draw` are meant to be imported: they know the columns of `datasets_scripts`, not this corpus.
Your own videos and pictures: `mmt index`, then `mmt search INDEX QUERY --contact_sheet search.png`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

from modeling_mmt.commands.search import check_query
from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.reading import read_split
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.report.contact_sheet import CELL, Cell, check_ending, contact_sheet, save
from modeling_mmt.search.index import Hit, SearchIndex


def search(
    model: Any, processor: Any, queries: Sequence[str], rows: Dataset, features: Mapping[str, Any], top: int
) -> list[list[Hit]]:
    """The `top` best clips of each query.

    Args:
        model: an `MMTModel`.
        processor: its processor.
        queries: in any language.
        rows: clips to search, with a column `video_id`.
        features: `(F_i, D_v)` array of each `video_id`, such as a `FeatureStore`; or a video, for a model from pixels.
        top: clips a query.

    Returns:
        One list a query, best clip first; clips with equal scores stay in the order of `rows`.

    Raises:
        ValueError: `top` is not between 1 and the number of clips; or a query or clip that the processor refuses.
    """
    return SearchIndex.build(model, processor, rows, features).search_texts(model, processor, queries, top)


def result_table(
    query: str, hits: Sequence[Hit], rows: Dataset | Mapping[int, Mapping[str, Any]], name_column: str
) -> str:
    """What is printed for a query: rank, cosine, emoji (where the corpus has them) and name of each clip."""
    lines = [query, f"  rank  cosine  {name_column}"]
    for rank, hit in enumerate(hits, start=1):
        row = rows[hit.row]
        lines.append(
            f"  {rank:4d}  {hit.score:6.3f}  {row['emoji'] + ' ' if 'emoji' in row else ''}{row[name_column]}"
        )
    return "\n".join(lines)


def draw(
    titles: Sequence[str],
    found: Sequence[Sequence[Hit]],
    rows: Dataset | Mapping[int, Mapping[str, Any]],
    name_column: str,
    right: Sequence[int] | None = None,
    cell: int = CELL,
    font: str | None = None,
) -> list[Image.Image]:
    """A contact sheet with a row a query: its title, and under it the clips that it found.

    Args:
        titles: one a query, any script.
        found: the hits of each.
        rows: of `search`, with `frames` and `num_frames` as `modeling_mmt.data.clips.frames_of` reads them.
        name_column: what is written under a clip.
        right: the right row of each query, which gets a frame; None frames nothing.
        cell: side of a clip in pixels.
        font: file to draw text with that DejaVu Sans lacks characters of; None looks among the installed fonts.

    Returns:
        RGB pictures, one a moment of the clips: as many as the longest clip has frames.
    """
    clips = {row: frames_of(rows[row]) for row in {hit.row for hits in found for hit in hits}}
    cells = [
        [
            Cell(
                clips[hit.row],
                (f"{rank}   {hit.score:.3f}", rows[hit.row][name_column]),
                right is not None and hit.row == right[line],
            )
            for rank, hit in enumerate(hits, start=1)
        ]
        for line, hits in enumerate(found)
    ]
    return contact_sheet(titles, cells, cell, font)


# ---------------------------------------------------------------------------------------------------------------------
# command line
# ---------------------------------------------------------------------------------------------------------------------


def add_inputs(parser: argparse.ArgumentParser):
    """The options that say what is searched with and in."""
    parser.add_argument("--model", default="runs/demo/mmp_en", help="folder of a checkpoint (default: %(default)s)")
    parser.add_argument("--revision", help="tag or commit; with it, --model is a name on the Hub")
    parser.add_argument("--dataset", default="datasets_scripts/emoji9", help="folder or Hub name (%(default)s)")
    parser.add_argument("--dataset_revision", help="tag or commit of a dataset on the Hub")
    parser.add_argument("--split", default="test", help="searched split (%(default)s)")
    parser.add_argument("--features", default="runs/features/emoji9-lite0-128", help="feature store (%(default)s)")
    parser.add_argument("--font", help="font file for characters that DejaVu Sans lacks; default: an installed one")


def open_inputs(arguments: argparse.Namespace, columns: Sequence[str]) -> tuple[Any, Any, Dataset, FeatureStore]:
    """Model, processor, rows and features that the options name.

    Args:
        arguments: of a parser with `add_inputs`.
        columns: that the rows must have, beside those of a picture.

    Raises:
        FileNotFoundError: no checkpoint, dataset, feature store or font is there.
        ValueError: the dataset lacks a column.
    """
    if not Path(arguments.features).is_dir():
        raise FileNotFoundError(
            f"no feature store in {arguments.features}: `make demo` makes emoji9's, `mmt extract` any other"
        )
    features = FeatureStore(arguments.features)
    rows = read_split(arguments.dataset, arguments.dataset_revision, arguments.split)
    for column in ("video_id", "frames", "num_frames", *columns):
        if column not in rows.column_names:
            raise ValueError(f"{arguments.dataset}: no column {column}; found {', '.join(rows.column_names)}")
    return (*open_model(arguments), rows, features)


def open_model(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Model and processor that the options name.

    Raises:
        FileNotFoundError: no checkpoint or font is there.
        CheckpointError: its weights are torn, or not finite.
    """
    if arguments.revision is None and not (Path(arguments.model) / "config.json").is_file():
        raise FileNotFoundError(
            f"no checkpoint in {arguments.model}: `make demo` makes runs/demo/mmp_en; or give another folder as "
            "--model, or a Hub name with --revision"
        )
    if arguments.font and not Path(arguments.font).is_file():
        raise FileNotFoundError(f"no font file {arguments.font}")
    return open_checkpoint(arguments.model, arguments.revision)


def main(argv: Sequence[str] | None = None) -> list[list[Hit]]:
    """Search, print, draw; returns what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="text in any language")
    add_inputs(parser)
    parser.add_argument("--name_column", default="name_en", help="what a clip is called in the output (%(default)s)")
    parser.add_argument("--top", type=int, default=8, help="clips a query (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("search.png"), help=".png, .gif or .webp (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        check_ending(arguments.output)
        queries = [check_query(query, place) for place, query in enumerate(arguments.queries, start=1)]
        model, processor, rows, features = open_inputs(arguments, [arguments.name_column])
        found = search(model, processor, queries, rows, features, arguments.top)
    except (OSError, KeyError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
    for query, hits in zip(queries, found, strict=True):
        print(result_table(query, hits, rows, arguments.name_column), end="\n\n")
    save(draw(queries, found, rows, arguments.name_column, font=arguments.font), arguments.output)
    print(f"picture: {arguments.output}")
    return found


if __name__ == "__main__":
    main()
