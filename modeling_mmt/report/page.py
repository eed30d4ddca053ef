"""A report's text, tables, figures and pictures, written twice from one list of blocks: as HTML and as Markdown."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure as Drawing
from PIL import Image

from modeling_mmt.report.figures import as_svg

TEMPLATE = "report_page.html.jinja"
PNG_DPI = 130
PICTURE_SIDE = 88  # pixels of a clip's picture in the page


@dataclass(frozen=True)
class Words:
    """Text of a dataset: its language tells a browser which font and direction it needs."""

    text: str
    language: str


@dataclass(frozen=True)
class Heading:
    """Opens a section."""

    text: str

    kind = "heading"

    @property
    def anchor(self) -> str:
        """What a link to the section ends in."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.text.lower()).split())


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    kind = "text"


@dataclass(frozen=True)
class Table:
    """Cells are text, `Words`, or None for a dash; `strong` names the rows that stand out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Words | None]]
    strong: Sequence[int] = ()
    note: str = ""

    kind = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing: `name` is its file's beside the Markdown; `alt` says in words what it shows."""

    name: str
    drawing: Drawing
    alt: str
    note: str = ""

    kind = "figure"

    @property
    def address(self) -> str:
        """The drawing itself, as an address."""
        return as_svg(self.drawing)


@dataclass(frozen=True)
class Clip:
    """A clip as it is shown: its picture (None where the dataset has none), what it is called, a line about it."""

    picture: Image.Image | None
    name: str
    line: str = ""

    @property
    def address(self) -> str:
        """The picture itself, as an address; empty without one."""
        if self.picture is None:
            return ""
        small = self.picture.convert("RGB")
        small.thumbnail((2 * PICTURE_SIDE, 2 * PICTURE_SIDE))
        buffer = io.BytesIO()
        small.save(buffer, format="WEBP", quality=80, method=6)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Card:
    """Clips side by side, and text of the dataset under them."""

    clips: Sequence[Clip]
    lines: Sequence[tuple[str, Words]] = ()  # label, text
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Cards in a grid; `between` stands between a card's clips."""

    cards: Sequence[Card]
    between: str = ""

    kind = "gallery"


Block = Heading | Text | Table | Figure | Gallery


@dataclass
class Page:
    """A title, the sentences under it, and blocks."""

    title: str
    summary: Sequence[str]
    blocks: list[Block] = field(default_factory=list)

    def html(self) -> str:
        """One file that needs nothing else: no script, no address that is fetched."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        return environment.get_template(TEMPLATE).render(page=self, side=PICTURE_SIDE, is_words=_is_words)

    def markdown(self) -> str:
        """The same without pictures of clips; the figures are files beside it (`save_figures`)."""
        parts = [f"# {_plain(self.title)}", *(_plain(sentence) for sentence in self.summary)]
        for block in self.blocks:
            match block:
                case Heading(text):
                    parts.append(f"## {_plain(text)}")
                case Text(text):
                    parts.append(_plain(text))
                case Table():
                    parts.append(_markdown_table(block))
                case Figure():
                    parts += [f"![{_plain(block.alt)}]({block.name}.png)", *([_plain(block.note)] * bool(block.note))]
                case Gallery():
                    parts.append("\n".join(_markdown_card(card, block.between) for card in block.cards))
        return "\n\n".join(parts) + "\n"

    def save_figures(self, folder: Path):
        """Write each figure as a PNG that the Markdown names."""
        for block in self.blocks:
            if isinstance(block, Figure):
                path = folder / f"{block.name}.png"
                block.drawing.savefig(path, dpi=PNG_DPI, metadata={"Software": None})


def _is_words(value: Any) -> bool:
    return isinstance(value, Words)


def _plain(value: str | Words | None) -> str:
    """One line that Markdown does not take for its own signs."""
    if value is None:
        return "–"
    text = value.text if isinstance(value, Words) else value
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _markdown_table(table: Table) -> str:
    lines = ["| " + " | ".join(_plain(column) for column in table.columns) + " |"]
    lines.append("|---" + "|---:" * (len(table.columns) - 1) + "|")
    for number, row in enumerate(table.rows):
        cells = [_plain(cell) for cell in row]
        lines.append("| " + " | ".join(f"**{cell}**" if number in table.strong else cell for cell in cells) + " |")
    return "\n".join([*lines, *(["", _plain(table.note)] if table.note else [])])


def _markdown_card(card: Card, between: str) -> str:
    clips = [f"**{_plain(clip.name)}**" + (f" ({_plain(clip.line)})" if clip.line else "") for clip in card.clips]
    lines = [f"{_plain(label)} {_plain(words)}" for label, words in card.lines]
    tail = "; ".join(filter(None, [_plain(card.note) if card.note else "", ", ".join(lines)]))
    return "- " + f" {between or ','} ".join(clips) + (f": {tail}" if tail else "")
