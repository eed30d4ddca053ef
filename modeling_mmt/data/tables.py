"""Tables as spreadsheets save them: CSV with commas, semicolons or tabs, in any encoding, with what Excel adds."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from modeling_mmt.data.encodings import decode
from modeling_mmt.data.sources import SourceError, Sources

DELIMITERS = ",;\t"


def read_table(sources: Sources, name: str, fields: Sequence[str] = ()) -> list[tuple[str, dict[str, str]]]:
    """The rows of a table with a header, each with its place: the file and the line that it begins at.

    Heads are taken in lower case, without spaces around; rows without any value are left out, as are columns that have
    neither a head nor a value. The delimiter is the one that the header has most of, or what Excel's line `sep=` says.

    Args:
        sources: the files.
        name: of the table.
        fields: heads that must be there.

    Raises:
        FileNotFoundError: it is not there.
        SourceError: a column is missing or there twice, or a row does not fit the header; names file, line and column.
    """
    path = sources.folder / name
    with sources.open(name) as stream:
        text, _ = decode(stream.read(), str(path))
    skipped = 0
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
        raise SourceError(f"{where}: column {repeated[0]!r} is there twice; remove or rename one")
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
        if cell.strip() and (number >= len(heads) or not heads[number]):
            raise SourceError(
                f"{where}: column {number + 1} is {cell[:40]!r}, which has no head: not as many fields as the header; "
                "quote what has the delimiter in it"
            )
    return {head: cell for head, cell in zip(heads, cells, strict=False) if head}
