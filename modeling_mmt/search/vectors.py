"""An index of vectors made by another model: a matrix in a NumPy file, and a table that describes its rows.

Any model may have made them; only that model's vectors can ask. `SearchIndex.search` takes them as they come from it:

    index = index_of_vectors("clips.csv", "clips.npy", "my-model")
    index.save("index")
    hits = SearchIndex.load("index").search(unit_vectors, top=5)
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.sources import Sources
from modeling_mmt.data.tables import read_json_lines, read_table
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.segments import PLACES

FINGERPRINT = "vectors of "  # begins an index's fingerprint in the place of a model's hash


def index_of_vectors(table: str | Path, embeddings: str | Path, model: str) -> SearchIndex:
    """Read vectors and what they are of.

    Args:
        table: `.csv`, `.tsv`, `.jsonl` or `.parquet`, a line a vector, in their order: `video_id`, or `file` with or
            without `start` and `end` in seconds, which then make the id; other columns filter and show.
        embeddings: `.npy` of `(N, P)` real numbers; each row is divided by its norm.
        model: what made them, in words; it stands in the place of a fingerprint.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: a file is invalid; names it, the row and the remedy.
    """
    vectors = _unit_vectors(Path(embeddings))
    rows = _rows(Path(table))
    if len(rows) != len(vectors):
        raise InputError(
            f"{table} has {len(rows)} rows, {embeddings} {len(vectors)}; give one line a vector, in order"
        )
    clips = Dataset(_columns(table, [_placed(*row) for row in rows]))
    return SearchIndex(vectors, clips, FINGERPRINT + model, model)


def _unit_vectors(path: Path) -> torch.Tensor:
    """`(N, P)` float32."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the .npy file of the vectors")
    with naming_input(str(path)):
        try:
            vectors = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:  # whose words advise to load it unsafely
            raise InputError(f"{path}: damaged, or no array of numbers; save the matrix alone by np.save") from error
    if not isinstance(vectors, np.ndarray):
        raise InputError(f"{path}: several arrays; save the matrix by itself with np.save")
    if vectors.ndim != 2 or 0 in vectors.shape or vectors.dtype.kind != "f":
        raise InputError(f"{path}: {vectors.dtype} {vectors.shape}; give a matrix of real numbers, a row a clip")
    values = vectors.astype(np.float64)
    largest = np.abs(values).max(axis=1)
    bad = np.flatnonzero(~np.isfinite(largest) | (largest == 0))
    if len(bad):
        raise InputError(f"{path}: row {bad[0]} is zero or not finite; leave it out of both files")
    scaled = values / largest[:, None]  # whose squares are neither too large nor too small
    return torch.from_numpy((scaled / np.linalg.norm(scaled, axis=1)[:, None]).astype(np.float32))


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a table, each with its place."""
    suffix, sources = path.suffix.lower(), Sources(path.parent)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the table of what the vectors are of")
    if suffix == ".parquet":
        with naming_input(str(path)):
            table = pq.read_table(path)
            table.validate(full=True)
            return [(f"{path}, row {number}", row) for number, row in enumerate(table.to_pylist())]
    if suffix in (".csv", ".tsv"):
        return [(where, dict(row)) for where, row in read_table(sources, path.name)]
    if suffix == ".jsonl":
        return read_json_lines(sources, path.name)
    raise InputError(f"{path}: a table of clips ends in .csv, .tsv, .jsonl or .parquet")


def _placed(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row with `video_id` and the columns of `PLACES`, in their types."""
    file, video_id = row.get("file") or None, row.get("video_id") or None
    times = {name: _seconds(row.get(name), f"{where}: {name}") for name in ("start", "end")}
    if file is not None and video_id is None:
        video_id = file if times["start"] is None else f"{file}#{times['start']}-{times['end']}"
    if not isinstance(video_id, str) or not isinstance(file, str | None):
        raise InputError(f"{where}: neither video_id nor file names the clip in words; write one")
    start, end = times["start"], times["end"]
    if (start is None) != (end is None) or (start is not None and end is not None and start >= end):
        raise InputError(f"{where}: start is {start} and end {end}; write both, the end after the start, or neither")
    others = {name: value for name, value in row.items() if name not in (*PLACES, "video_id")}
    return {"video_id": video_id, "file": file, **times, **others}


def _columns(path: str | Path, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as columns: every one that any row has, of one type each."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows], PLACES.get(name))
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(f"{path}: {name} has values of several types, or too large; give it one type") from error
        if pa.types.is_struct(kind := columns[name].type) and not kind.num_fields:
            raise InputError(f"{path}: {name} has empty objects, which no file of an index can hold; leave it out")
    return pa.table(columns)


def _seconds(value: Any, where: str) -> float | None:
    if value in (None, ""):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{where} is {value!r}; write seconds from 0")
    return seconds
