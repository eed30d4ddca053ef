"""Text of any script in a picture: finds a font with its characters, and shortens long lines."""

import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

FONT_SIZES = {"title": 18, "caption": 12}
FONT_PACKAGE = "pylopdf_fonts_zh_cn"  # Noto Sans SC by pip, where no font can be installed otherwise
STYLED = ("bold", "italic", "oblique", "black", "light", "thin", "mono", "serif", "condensed")  # last among fonts


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
