"""Contact sheets: one row per query, with its text above and the results below, each with two lines of text."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageOps

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import writing_file
from modeling_mmt.report.lettering import write

# Pixels of the picture
CELL = 128  # side of a clip
GAP = 16  # round each cell; a frame that marks a right clip is drawn in it
TITLE = 34  # height of a query's text
CAPTION = 38  # height of the two lines under a clip
INK, GREY, EDGE, RIGHT = "#222222", "#666666", "#DDDDDD", "#009E73"
FRAME_MILLISECONDS = 150
ENDINGS = (".png", ".gif", ".webp")


class Cell(NamedTuple):
    """One thing found: its pictures in the order of time, none where there is none; two lines; whether it is right."""

    frames: Sequence[Image.Image]
    lines: tuple[str, str]
    is_right: bool = False


def sheet_size(num_titles: int, columns: int, cell: int = CELL) -> tuple[int, int]:
    """Width and height in pixels of what `contact_sheet` makes."""
    return GAP + columns * (cell + GAP), GAP + num_titles * (TITLE + cell + CAPTION + GAP)


def contact_sheet(
    titles: Sequence[str], found: Sequence[Sequence[Cell]], cell: int = CELL, font: str | None = None
) -> list[Image.Image]:
    """Draw a sheet.

    Args:
        titles: one a row, any script.
        found: the cells of each row.
        cell: side of a cell in pixels; a picture of another shape is fitted into it.
        font: file to draw text with that DejaVu Sans lacks characters of; None looks among the installed fonts.

    Returns:
        RGB pictures of `sheet_size`, one a moment: as many as the longest cell has frames.
    """
    size = sheet_size(len(titles), max(1, *map(len, found)), cell)
    still = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(still)
    places: list[tuple[Sequence[Image.Image], tuple[int, int]]] = []
    for line, (title, cells) in enumerate(zip(titles, found, strict=True)):
        top = GAP + line * (TITLE + cell + CAPTION + GAP)
        write(pen, (GAP, top), title, "title", size[0] - 2 * GAP, INK, font)
        for column, (frames, lines, is_right) in enumerate(cells):
            left, upper = GAP + column * (cell + GAP), top + TITLE
            places.append(([fitted(frame, cell) for frame in frames], (left, upper)))
            if is_right:
                pen.rectangle((left - 6, upper - 6, left + cell + 5, upper + cell + 5), outline=RIGHT, width=5)
            else:
                pen.rectangle((left - 1, upper - 1, left + cell, upper + cell), outline=EDGE)
            below = upper + cell + 7
            write(pen, (left, below), lines[0], "caption", cell, GREY, font)
            write(pen, (left, below + 15), lines[1], "caption", cell, INK, font)
    moments = max((len(frames) for frames, _ in places), default=0) or 1
    pictures = [still.copy() for _ in range(moments)]
    for moment, picture in enumerate(pictures):
        for frames, place in places:
            if frames:
                picture.paste(frames[moment * len(frames) // moments], place)
    return pictures


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """A picture in the middle of a white square, as large as it fits."""
    if picture.size == (side, side):
        return picture
    return ImageOps.pad(picture.convert("RGB"), (side, side), color="white")


def save(pictures: Sequence[Image.Image], path: str | Path):
    """Write a still picture (`.png`: the middle one) or an animation (`.gif`, `.webp`).

    Raises:
        InputError: another ending.
    """
    path = Path(path)
    check_ending(path)
    kind = path.suffix.removeprefix(".")
    with writing_file(path) as partial:
        if path.suffix == ".png":
            pictures[len(pictures) // 2].save(partial, format=kind)
        else:
            rest = pictures[1:]
            pictures[0].save(
                partial, format=kind, save_all=True, append_images=rest, duration=FRAME_MILLISECONDS, loop=0
            )


def check_ending(path: str | Path):
    """Refuse a file name that `save` cannot write.

    Raises:
        InputError: another ending, or a folder of it is a file.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InputError(f"output {path} ends in {path.suffix!r}; choose .png, or .gif or .webp for one that moves")
    if there := next((folder for folder in path.parents if folder.is_file()), None):
        raise InputError(f"output {path}: {there} is a file; name a folder")
