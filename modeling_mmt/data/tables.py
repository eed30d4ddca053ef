"""Tables that spreadsheets save: CSV with commas, semicolons or tabs, or JSON Lines, in any encoding.

What Excel adds (a mark, `sep=;`, empty rows) and what pandas adds (a first column of row numbers, without a head) is
left out.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from modeling_mmt.data.encodings import decode
from modeling_mmt.data.sources import SourceError, Sources, json_object

DELIMITERS = ",;\t"


def read_text(sources: Sources, name: str) -> str:
    """A file's text, whatever it is encoded in.

    Raises:
        FileNotFoundError: it does not exist.
        SourceError: no encoding fits.
    """
    return decode(sources.content(name), str(sources.folder / name))[0]


def read_lines(sources: Sources, name: str) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each with its place: the file and the line's number."""
    for number, text in enumerate(re.split("\r\n|\r|\n", read_text(sources, name)), start=1):
        if text.strip():
            yield f"{sources.folder / name}, line {number}", text


def read_json_lines(sources: Sources, name: str, fields: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its place.

    Raises:
        FileNotFoundError: it does not exist.
        SourceError: a line is not an object, or lacks a field.
    """
    return [(where, json_object(text, where, fields)) for where, text in read_lines(sources, name)]


def read_table(sources: Sources, name: str, fields: Sequence[str] = ()) -> list[tuple[str, dict[str, str]]]:
    """The rows of a table with a header, each with its place: the file and the line that it begins at.

    Heads are taken in lower case, without spaces around; rows without any value are left out, as are columns that have
    neither a head nor a value, and a first column without a head. The delimiter is the one that the header has most
    of, or what Excel's line `sep=` says.

    Args:
        sources: the files.
        name: of the table.
        fields: heads that must be there.

    Raises:
        FileNotFoundError: it does not exist.
        SourceError: a column is missing or there twice, or a row does not fit the header; names file, line and column.
    """
    path, text, skipped = sources.folder / name, read_text(sources, name), 0
    if match := re.match(r"sep=(.)\r?\n", text):
        text, skipped = text[match.end() :], 1
    first = text.partition("\n")[0]
    delimiter = match[1] if match else max(DELIMITERS, key=first.count)
    records = _records(text, delimiter, skipped, str(path))
    where, head = next(records, (f"{path}, line 1", []))
    heads = [cell.strip().lower() for cell in head]
    while heads and not heads[-1]:
        heads.pop()
    if lacking := [field for field in fields if field not in heads]:
        shown = ", ".join(filter(None, heads)) or "empty"
        raise SourceError(
            f"{where}: no column {lacking[0]!r}; the header is {shown}, it must have {', '.join(fields)}"
        )
    if repeated := [cell for number, cell in enumerate(heads) if cell and cell in heads[:number]]:
        raise SourceError(f"{where}: column {repeated[0]!r} appears twice; remove or rename one")
    return [(where, _row(cells, heads, where)) for where, cells in records if any(map(str.strip, cells))]


def _records(text: str, delimiter: str, skipped: int, path: str) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        where = f"{path}, line {reader.line_num + skipped + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise SourceError(f"{where}: {error}; close every quote, and write one row a line") from error
        if cells is None:
            return
        yield where, cells


def _row(cells: list[str], heads: list[str], where: str) -> dict[str, str]:
    if len(cells) < len(heads):
        raise SourceError(f"{where}: column {heads[len(cells)]!r} is missing: not as many fields as the header")
    for number, cell in enumerate(cells):
        if cell.strip() and number and (number >= len(heads) or not heads[number]):
            raise SourceError(
                f"{where}: column {number + 1} is {cell[:40]!r}, which has no head: not as many fields as the header; "
                "quote what has the delimiter in it"
            )
    return {head: cell for head, cell in zip(heads, cells, strict=False) if head}
