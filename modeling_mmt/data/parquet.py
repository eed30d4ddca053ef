"""Parquet files of strangers: a small one may unpack to any size, so its footer is looked at first."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_TABLE_BYTES = 2**32
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}  # bytes of a value


def read_parquet(source: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """A table as `pyarrow.parquet.read_table` reads it, if it has at most `MAX_TABLE_BYTES` once it is unpacked.

    A column of texts is read with each text once, and spread over its rows when it is known how much that takes.

    Raises:
        pyarrow.ArrowInvalid: it has more, or is no Parquet file.
        OSError: it is damaged.
    """
    schema = pq.read_schema(source)
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    file = pq.ParquetFile(source, read_dictionary=texts)
    _check(sum(_declared(file.metadata, columns)))
    table = file.read(columns)
    _check(sum(_spread(column) for column in table.columns))
    return table.cast(pa.schema([schema.field(name) for name in table.column_names], schema.metadata))


def _declared(footer: pq.FileMetaData, columns: Sequence[str] | None) -> Iterator[int]:
    """Bytes of each row group: all its columns as they are packed, or the numbers that are read, whichever is more.

    Of a group the footer's sums are read alone: Arrow ends the process where what it says of a column is damaged.
    """
    fields = [footer.schema.column(number) for number in range(footer.num_columns)]
    widths = [
        field.length if field.physical_type == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS.get(field.physical_type, 0)
        for field in fields
        if columns is None or field.path.partition(".")[0] in columns
    ]
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        yield max(group.total_byte_size, group.num_rows * sum(widths))


def _spread(column: pa.ChunkedArray) -> int:
    """Bytes of a column whose texts were read once each, with each in its row."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    total = 0
    for chunk in column.chunks:
        lengths = pc.fill_null(pc.binary_length(chunk.dictionary), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        times = np.bincount(pc.drop_null(chunk.indices).to_numpy(), minlength=len(lengths))
        total += int(lengths @ times)
    return total


def _check(num_bytes: int) -> None:
    if num_bytes > MAX_TABLE_BYTES:
        raise pa.ArrowInvalid(f"{num_bytes:,} bytes once it is unpacked, of at most {MAX_TABLE_BYTES:,}")
