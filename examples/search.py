"""Type a query in any language, look at the clips that a checkpoint finds.

    python examples/search.py --model runs/demo/mmp_en "con mèo"
    python examples/search.py "a cyclist" "ein Radfahrer" "骑自行车的人" --output search.webp
    python examples/search.py --model runs/pixels --videos my_videos "mbwa"

The last one searches a folder of videos (mp4, GIF, WebP, ...) with a checkpoint that was trained from pixels. It
prints each query's best clips and writes one picture, a row a query. A `.png` is still; a `.gif` or `.webp` plays the
clips. `search` and `draw` are meant to be imported: they know the columns of `datasets_scripts`, not this corpus.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from modeling_mmt.commands.search import check_query
from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.reading import read_split
from modeling_mmt.data.video_lists import find_videos
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.search.index import Hit, SearchIndex
from modeling_mmt.video_decoding_mmt import read_clip

# Pixels of the picture
CELL = 128  # side of a clip
GAP = 16  # round each cell; a frame that marks a right clip is drawn in it
TITLE = 34  # height of a query's text
CAPTION = 38  # height of rank, score and name under a clip
FONT_SIZES = {"title": 18, "caption": 12}
INK, GREY, EDGE, RIGHT = "#222222", "#666666", "#DDDDDD", "#009E73"
FRAME_MILLISECONDS = 150
FONT_PACKAGE = "pylopdf_fonts_zh_cn"  # Noto Sans SC by pip, where no font can be installed otherwise
STYLED = ("bold", "italic", "oblique", "black", "light", "thin", "mono", "serif", "condensed")  # last among fonts


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


def picture_size(num_titles: int, top: int, cell: int = CELL) -> tuple[int, int]:
    """Width and height in pixels of what `draw` makes."""
    return GAP + top * (cell + GAP), GAP + num_titles * (TITLE + cell + CAPTION + GAP)


def draw(
    titles: Sequence[str],
    found: Sequence[Sequence[Hit]],
    rows: Dataset | Mapping[int, Mapping[str, Any]],
    name_column: str,
    right: Sequence[int] | None = None,
    cell: int = CELL,
    font: str | None = None,
) -> list[Image.Image]:
    """A picture with a row a query: its title, and under it the clips that it found.

    Args:
        titles: one a query, any script.
        found: the hits of each, equally many.
        rows: of `search`, with `frames` and `num_frames` as `datasets_scripts.emoji9.frames_of` reads them.
        name_column: what is written under a clip.
        right: the right row of each query, which gets a frame; None frames nothing.
        cell: side of a clip in pixels.
        font: file to draw text with that DejaVu Sans lacks characters of; None looks among the installed fonts.

    Returns:
        RGB pictures of `picture_size`, one a moment of the clips: as many as the longest clip has frames.
    """
    clips = {row: frames_of(rows[row]) for row in {hit.row for hits in found for hit in hits}}
    size = picture_size(len(titles), len(found[0]), cell)
    still = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(still)
    places: list[tuple[int, tuple[int, int]]] = []
    for line, (title, hits) in enumerate(zip(titles, found, strict=True)):
        top = GAP + line * (TITLE + cell + CAPTION + GAP)
        write(pen, (GAP, top), title, "title", size[0] - 2 * GAP, INK, font)
        for rank, hit in enumerate(hits, start=1):
            left, upper = GAP + (rank - 1) * (cell + GAP), top + TITLE
            places.append((hit.row, (left, upper)))
            if right is not None and hit.row == right[line]:
                pen.rectangle((left - 6, upper - 6, left + cell + 5, upper + cell + 5), outline=RIGHT, width=5)
            else:
                pen.rectangle((left - 1, upper - 1, left + cell, upper + cell), outline=EDGE)
            below = upper + cell + 7
            write(pen, (left, below), f"{rank}   {hit.score:.3f}", "caption", cell, GREY, font)
            write(pen, (left, below + 15), rows[hit.row][name_column], "caption", cell, INK, font)
    pictures = []
    moments = max(map(len, clips.values()))
    for moment in range(moments):
        pictures.append(still.copy())
        for row, place in places:
            frame = clips[row][moment * len(clips[row]) // moments]
            pictures[-1].paste(frame if frame.size == (cell, cell) else frame.resize((cell, cell)), place)
    return pictures


def save(pictures: Sequence[Image.Image], path: str | Path):
    """Write a still picture (`.png`: the middle one) or an animation (`.gif`, `.webp`).

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    check_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        pictures[len(pictures) // 2].save(path)
    else:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=FRAME_MILLISECONDS, loop=0)


def check_ending(path: Path):
    """Refuse a file name that `save` cannot write."""
    if path.suffix not in (".png", ".gif", ".webp"):
        raise ValueError(f"output {path} ends in {path.suffix!r}; choose .png, or .gif or .webp for one that moves")
    if there := next((folder for folder in path.parents if folder.is_file()), None):
        raise ValueError(f"output {path}: {there} is a file; name a folder")


# ---------------------------------------------------------------------------------------------------------------------
# a folder of videos
# ---------------------------------------------------------------------------------------------------------------------


def search_folder(
    model: Any, processor: Any, queries: Sequence[str], folder: str, top: int
) -> tuple[list[list[Hit]], dict[int, dict[str, Any]]]:
    """As `search`, in a folder or list of videos; and the rows that were found, as `draw` takes them, by number.

    Raises:
        FileNotFoundError, ValueError: there is no video, one cannot be read, or the model has no vision encoder.
    """
    if processor.feature_extractor.pixels is None:
        raise ValueError(
            f"--videos {folder}: the checkpoint has no vision encoder, it was trained on features. Train one from "
            "pixels (model.vision_model in a recipe, such as emoji9/pixels_frozen), or extract features "
            f"by the extractor that its card names (`mmt extract {folder}`) and search with "
            "--features"
        )
    videos = find_videos(folder)
    rows = Dataset.from_dict({"video_id": [video.video_id for video in videos]})
    found = search(model, processor, queries, rows, {video.video_id: video.source for video in videos}, top)
    shown = {}
    for row in {hit.row for hits in found for hit in hits}:
        strip, number = film_strip(videos[row].source)
        shown[row] = {"video_id": videos[row].video_id, "frames": strip, "num_frames": number}
    return found, shown


def film_strip(source: Any, num_frames: int = 8, side: int = CELL) -> tuple[Image.Image, int]:
    """A video as `frames_of` takes it: frames side by side, each fitted into a white square; and how many."""
    frames = read_clip(source, FrameSampling(num_frames), max_side=side).frames.permute(0, 2, 3, 1).numpy()
    strip = Image.new("RGB", (len(frames) * side, side), "white")
    for number, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        strip.paste(picture, (number * side + (side - picture.width) // 2, (side - picture.height) // 2))
    return strip, len(frames)


# ---------------------------------------------------------------------------------------------------------------------
# text of every script
# ---------------------------------------------------------------------------------------------------------------------


def write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, kind: str, width: int, colour: str, font: str | None
):
    """Draw one line of text, cut with an ellipsis where it is wider than `width` pixels."""
    drawn = ImageFont.truetype(font_for(text, font), FONT_SIZES[kind])
    if drawn.getlength(text) > width:
        while text and drawn.getlength(text + "…") > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    pen.text(place, text, fill=colour, font=drawn)


@cache
def font_for(text: str, extra: str | None = None) -> str:
    """File of the first font that has every character of `text`: DejaVu Sans, `extra`, then what is installed.

    If none has, the one that lacks fewest, and a note on the standard error stream.
    """
    needed = {ord(character) for character in text if not character.isspace()}
    lacking: dict[str, set[int]] = {}
    for file in font_files(extra):
        lacking[file] = needed - characters_of(file)
        if not lacking[file]:
            return file
    best = min(lacking, key=lambda file: len(lacking[file]))
    missing = "".join(map(chr, sorted(lacking[best])))
    print(
        f"note: no installed font has {missing}; the picture shows boxes. Install one (for Chinese: pip install "
        f"{FONT_PACKAGE.replace('_', '-')}, or Debian's fonts-noto-cjk), or name a font file with --font",
        file=sys.stderr,
    )
    return best


def font_files(extra: str | None) -> Iterator[str]:
    """DejaVu Sans, which matplotlib brings, `extra`, pip's, then the system's: plain styles first, no colour fonts."""
    yield font_manager.findfont("DejaVu Sans")
    if extra is not None:
        yield extra
    package = find_spec(FONT_PACKAGE)
    if package is not None and package.origin is not None:
        yield from map(str, sorted(Path(package.origin).parent.glob("*Sans*.otf")))
    names = {file: Path(file).name.lower() for file in font_manager.findSystemFonts()}
    plain_first = sorted(names, key=lambda file: (any(style in names[file] for style in STYLED), file))
    yield from (file for file in plain_first if "emoji" not in names[file])


@cache
def characters_of(file: str) -> frozenset[int]:
    """Code points that a font file has a glyph for; none if it is not readable."""
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


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
    parser.add_argument("--videos", metavar="FOLDER", help="folder or list of videos to search in place of a dataset")
    parser.add_argument("--name_column", default="name_en", help="what a clip is called in the output (%(default)s)")
    parser.add_argument("--top", type=int, default=8, help="clips a query (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("search.png"), help=".png, .gif or .webp (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        check_ending(arguments.output)
        queries = [check_query(query, place) for place, query in enumerate(arguments.queries, start=1)]
        rows: Any
        if arguments.videos is not None:
            model, processor = open_model(arguments)
            arguments.name_column = "video_id"
            found, rows = search_folder(model, processor, queries, arguments.videos, arguments.top)
        else:
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
