"""Segments: rows of an index with their files and thumbnails, written once and never changed.

torch is imported only where embeddings are used: an unchanged folder is recognised by names, sizes and times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError

from modeling_mmt.data.files import file_sha256, writing_folder
from modeling_mmt.data.parquet import read_parquet
from modeling_mmt.search.manifest import (
    CLIPS,
    EMBEDDINGS,
    FILES,
    INDEX,
    PARTS,
    REMEDY,
    SEGMENTS,
    THUMBNAILS,
    Manifest,
    SearchIndexError,
    Segment,
)

if TYPE_CHECKING:
    import torch

PLACES = {"file": pa.string(), "start": pa.float64(), "end": pa.float64()}  # of every index; null where unknown
FILE_SCHEMA = pa.schema(
    [
        ("file", pa.string()),  # relative to the media folder, with /
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("sha256", pa.string()),  # null of one that could not even be read
        ("num_clips", pa.int64()),
        ("reason", pa.string()),  # why it has no rows; null of a good one
    ]
)
NO_FILES = FILE_SCHEMA.empty_table()
NO_CLIPS = pa.schema({"video_id": pa.string(), **PLACES}).empty_table()
THUMBNAILS_AT_ONCE, MAX_THUMBNAILS_BYTES = 64, 2**24  # read together


@dataclass
class Rows:
    """Rows in memory and the files that they are of.

    Args:
        embeddings: `(n, P)` float32.
        clips: n rows with `video_id` and the columns of `PLACES`.
        thumbnails: n JPEGs or None.
        files: of `FILE_SCHEMA`; empty for a dataset's clips.
    """

    embeddings: torch.Tensor
    clips: pa.Table
    thumbnails: Sequence[bytes | None]
    files: pa.Table

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """All rows in their canonical order: by file, then start; those of a dataset in its order."""
        import torch

        clips = pa.concat_tables([part.clips for part in parts], promote_options="default").combine_chunks()
        thumbnails = [thumbnail for part in parts for thumbnail in part.thumbnails]
        embeddings = parts[0].embeddings if len(parts) == 1 else torch.cat([part.embeddings for part in parts])
        files = pa.concat_tables([part.files for part in parts]).combine_chunks()
        files = files.take(pa.array(_order(files, "file")))
        order = _order(clips, "file", "start")
        if (np.diff(order) == 1).all():
            return cls(embeddings, clips, thumbnails, files)
        return cls(embeddings[order], clips.take(order), [thumbnails[row] for row in order], files)


def _order(table: pa.Table, *columns: str) -> np.ndarray:
    """Rows in rising order of columns, nulls first, equal ones as they are."""
    first = {"file": "", "start": -1.0}  # less than any that is there
    keys = pa.table({name: table[name].fill_null(first[name]) for name in columns} | {"place": np.arange(len(table))})
    return pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]).to_numpy().astype(int)


def with_places(clips: pa.Table) -> pa.Table:
    """Clips with the columns of `PLACES`; null where they were not there."""
    for name, kind in PLACES.items():
        if name not in clips.column_names:
            clips = clips.append_column(name, pa.nulls(len(clips), kind))
        elif pa.types.is_null(clips.schema.field(name).type):
            clips = clips.set_column(clips.column_names.index(name), name, clips[name].cast(kind))
    return clips


def write_segment(folder: Path, number: int, rows: Rows) -> Segment:
    """Write rows as a segment's folder; the manifest does not name it yet."""
    from safetensors.torch import save_file

    name = f"{number:06d}"
    with writing_folder(folder / SEGMENTS / name, replace=True) as partial:
        save_file({"embeddings": rows.embeddings.contiguous()}, partial / EMBEDDINGS)
        pq.write_table(rows.clips, partial / CLIPS)
        thumbnails = pa.table({"thumbnail": pa.array(list(rows.thumbnails), pa.binary())})
        pq.write_table(thumbnails, partial / THUMBNAILS, row_group_size=THUMBNAILS_AT_ONCE, compression="none")
        pq.write_table(rows.files, partial / FILES)
        files = {
            part: {"num_bytes": (partial / part).stat().st_size, "sha256": file_sha256(partial / part)}
            for part in PARTS
        }
    return Segment(name, len(rows.clips), len(rows.files), (), files)


class StoredSegment:
    """A segment of a folder, each part read and checked when it is first asked for.

    Args:
        folder: of the index.
        segment: what the manifest says of it.
        dim: P.
        verify: compare SHA-256 too, which reads a part whole; else sizes alone.

    Raises:
        FileNotFoundError: on access, a part is missing.
        SearchIndexError: on access, a part was cut short or changed, or is not what it must be.
    """

    def __init__(self, folder: Path, segment: Segment, dim: int, verify: bool = True):
        self.segment, self.dim, self.verify = segment, dim, verify
        self.folder = folder / SEGMENTS / segment.name

    @cached_property
    def embeddings(self) -> torch.Tensor:
        """`(n, P)` float32, memory-mapped."""
        import torch
        from safetensors.torch import load_file

        path = self._checked_part(EMBEDDINGS)
        try:
            embeddings = load_file(path)["embeddings"]
        except (SafetensorError, KeyError, OSError) as error:
            raise SearchIndexError(f"{path}: unreadable ({error}); {REMEDY}") from error
        if tuple(embeddings.shape) != (self.segment.num_clips, self.dim) or embeddings.dtype != torch.float32:
            raise SearchIndexError(
                f"{path}: {embeddings.dtype} {tuple(embeddings.shape)}, {INDEX} says float32 "
                f"{(self.segment.num_clips, self.dim)}; {REMEDY}"
            )
        return embeddings

    @cached_property
    def clips(self) -> pa.Table:
        """The rows."""
        return self._table(CLIPS, self.segment.num_clips, {"video_id": pa.string(), **PLACES})

    @cached_property
    def files(self) -> pa.Table:
        """The files of the rows, dropped ones too."""
        return self._table(FILES, self.segment.num_files, dict(zip(FILE_SCHEMA.names, FILE_SCHEMA.types, strict=True)))

    @cached_property
    def _thumbnails(self) -> pq.ParquetFile:
        path = self._checked_part(THUMBNAILS)
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise SearchIndexError(f"{path}: unreadable ({error}); {REMEDY}") from error
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        if any(one.num_rows > THUMBNAILS_AT_ONCE or one.total_byte_size > MAX_THUMBNAILS_BYTES for one in groups):
            raise SearchIndexError(
                f"{path}: more than {THUMBNAILS_AT_ONCE} thumbnails or {MAX_THUMBNAILS_BYTES} bytes in one piece; "
                f"{REMEDY}"
            )
        return file

    def thumbnails_of(self, places: Sequence[int]) -> list[bytes | None]:
        """JPEGs of rows."""
        groups = sorted({place // THUMBNAILS_AT_ONCE for place in places})
        try:
            read = {group: self._thumbnails.read_row_group(group)["thumbnail"].to_pylist() for group in groups}
            return [read[place // THUMBNAILS_AT_ONCE][place % THUMBNAILS_AT_ONCE] for place in places]
        except (pa.ArrowException, OSError, IndexError, KeyError) as error:
            raise SearchIndexError(f"{self.folder / THUMBNAILS}: unreadable ({error}); {REMEDY}") from error

    @cached_property
    def rows_by_file(self) -> dict[str, slice]:
        """Where each file's rows lie: side by side, since rows are in their canonical order."""
        names = self.clips["file"].combine_chunks().dictionary_encode()
        numbers = names.indices.to_numpy(zero_copy_only=False)
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))
        ends = np.append(begins[1:], len(numbers))
        return {
            names.dictionary[int(numbers[begin])].as_py(): slice(int(begin), int(end))
            for begin, end in zip(begins, ends, strict=True)
        }

    def alive(self) -> np.ndarray:
        """Places of the rows whose files are not dropped, rising."""
        if not self.segment.dropped:
            return np.arange(self.segment.num_clips)
        dropped = self.files["file"].take(pa.array(self.segment.dropped))
        is_dead = pc.is_in(self.clips["file"], value_set=dropped.combine_chunks())
        return np.flatnonzero(~is_dead.to_numpy())

    def take(self, places: np.ndarray, files: pa.Table) -> Rows:
        """Some rows, thumbnails and all, as rows of these files."""
        clips, embeddings = self.clips.take(pa.array(places)), self.embeddings[places]
        return Rows(embeddings, clips, self.thumbnails_of(places.tolist()), files)

    def live_files(self) -> pa.Table:
        """The files that are not dropped."""
        alive = np.setdiff1d(np.arange(self.segment.num_files), np.array(self.segment.dropped, dtype=np.int64))
        return self.files.take(pa.array(alive))

    def _table(self, part: str, num_rows: int, columns: Mapping[str, pa.DataType]) -> pa.Table:
        path = self._checked_part(part)
        try:
            table = read_parquet(path)
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise SearchIndexError(f"{path}: unreadable ({error}); {REMEDY}") from error
        if len(table) != num_rows:
            raise SearchIndexError(f"{path}: {len(table)} rows, {INDEX} says {num_rows}; {REMEDY}")
        for name, kind in columns.items():
            if name not in table.column_names or table.schema.field(name).type not in (kind, pa.large_string()):
                raise SearchIndexError(f"{path}: no column {name} of {kind}; {REMEDY}")
        return table

    def _checked_part(self, part: str) -> Path:
        path, entry = self.folder / part, self.segment.files[part]
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; {REMEDY}")
        num_bytes = path.stat().st_size
        if num_bytes != entry["num_bytes"]:
            raise SearchIndexError(
                f"{path}: {num_bytes} bytes, {INDEX} says {entry['num_bytes']}; the file was cut short or changed: "
                f"{REMEDY}"
            )
        if self.verify and file_sha256(path) != entry["sha256"]:
            raise SearchIndexError(f"{path}: its SHA-256 is not {INDEX}'s; {REMEDY}")
        return path


class Thumbnails(Sequence[bytes | None]):
    """The thumbnails of rows that lie in several segments; each is read when it is asked for.

    Args:
        segments: opened.
        places: `(N, 2)`: of each row the number of its segment, and its place there.
    """

    def __init__(self, segments: Sequence[StoredSegment], places: np.ndarray):
        self.segments, self.places = segments, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: Any) -> Any:
        segment, place = self.places[row]
        return self.segments[segment].thumbnails_of([int(place)])[0]

    def __iter__(self) -> Iterator[bytes | None]:
        for first in range(0, len(self), 2**12):  # neighbours lie together
            places = self.places[first : first + 2**12]
            found: dict[tuple[int, int], bytes | None] = {}
            for number in set(places[:, 0].tolist()):
                rows = places[places[:, 0] == number, 1].tolist()
                found |= {
                    (number, row): jpeg
                    for row, jpeg in zip(rows, self.segments[number].thumbnails_of(rows), strict=True)
                }
            yield from (found[number, row] for number, row in places.tolist())


def open_rows(folder: Path, manifest: Manifest, verify: bool = True) -> tuple[torch.Tensor, pa.Table, Thumbnails]:
    """Embeddings, clips and thumbnails of all rows that are alive, in their canonical order.

    The embeddings of an index of one segment of which nothing was dropped stay on disk until they are read.

    Raises:
        FileNotFoundError: a file is missing.
        SearchIndexError: a file was cut short or changed.
    """
    import torch

    segments = [StoredSegment(folder, segment, manifest.dim, verify) for segment in manifest.segments]
    alive = [segment.alive() for segment in segments]
    places = np.concatenate(
        [np.empty((0, 2), np.int64)]
        + [np.stack([np.full(len(rows), number), rows], axis=1) for number, rows in enumerate(alive)]
    )
    tables = [
        segment.clips if len(rows) == len(segment.clips) else segment.clips.take(pa.array(rows))
        for segment, rows in zip(segments, alive, strict=True)
    ]
    clips = pa.concat_tables(tables or [NO_CLIPS], promote_options="default").combine_chunks()
    order = _order(clips, "file", "start")
    if not (np.diff(order) == 1).all():
        clips, places = clips.take(pa.array(order)), places[order]
    if len(segments) == 1 and len(places) == len(segments[0].embeddings) and (np.diff(places[:, 1]) == 1).all():
        return segments[0].embeddings, clips, Thumbnails(segments, places)
    embeddings = torch.empty(len(places), manifest.dim)
    for number, segment in enumerate(segments):
        rows = np.flatnonzero(places[:, 0] == number)
        embeddings[torch.from_numpy(rows)] = segment.embeddings[torch.from_numpy(places[rows, 1])]
    return embeddings, clips, Thumbnails(segments, places)
