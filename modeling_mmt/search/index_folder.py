"""An index's folder for its single writer: adds and removes files, and merges segments.

Whoever is killed before a manifest's rename has changed nothing, and leaves a segment that the next writer removes. A
file that was replaced or is gone is named in `dropped` of the segment that has it. Segments are merged, the larger
ones rarely: `FAN` of one size (within a factor of `FAN`) become one, and one of which more than `MAX_DROPPED` of the
files are dropped is written anew; above `MAX_MERGED_CLIPS` rows they stay apart. So N rows lie in at most
N / MAX_MERGED_CLIPS + FAN log_FAN(MAX_MERGED_CLIPS) segments, and a row is written about log_FAN(N) times.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from modeling_mmt.search.manifest import SEGMENTS, Manifest, Segment
from modeling_mmt.search.media_files import MediaFile
from modeling_mmt.search.segments import Rows, StoredSegment, write_segment

FAN = 8
MAX_DROPPED = 0.25
MAX_MERGED_CLIPS = 2**17


class StoredFile(NamedTuple):
    """A media file as an index knows it: its identity, and where its rows lie."""

    file: str
    size: int
    mtime_ns: int
    sha256: str | None
    num_clips: int
    reason: str | None
    segment: str
    place: int  # in the segment's files

    def is_as(self, file: MediaFile) -> bool:
        """Whether a file of the media folder is this one, by its size and time."""
        return (self.size, self.mtime_ns) == (file.size, file.mtime_ns)


class IndexFolder:
    """An index's folder, changed by one process: whoever makes one holds the folder's lock.

    Args:
        folder: that has a manifest.

    Raises:
        FileNotFoundError, SearchIndexError: as `Manifest.read` and `StoredSegment`.
    """

    def __init__(self, folder: Path):
        self.folder, self.manifest = folder, Manifest.read(folder)
        self.files: dict[str, StoredFile] = {}
        self._opened: dict[str, StoredSegment] = {}
        self._note_files(self.manifest.segments)

    def _stored(self, segment: Segment) -> StoredSegment:
        """A segment, opened; its parts are read and checked once."""
        if segment.name not in self._opened:
            self._opened[segment.name] = StoredSegment(self.folder, segment, self.manifest.dim)
        opened = self._opened[segment.name]
        opened.segment = segment  # more may have been dropped since
        return opened

    def _note_files(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            dropped = set(segment.dropped)
            for place, record in enumerate(self._stored(segment).files.to_pylist()):
                if place not in dropped:
                    self.files[record["file"]] = StoredFile(**record, segment=segment.name, place=place)

    @property
    def num_clips(self) -> int:
        """Rows that are alive."""
        return sum(file.num_clips for file in self.files.values())

    @property
    def num_bytes(self) -> int:
        """Of what the manifest names."""
        return sum(part["num_bytes"] for segment in self.manifest.segments for part in segment.files.values())

    def rows_of(self, stored: StoredFile, files: pa.Table) -> Rows:
        """The rows of a file, as rows of the one file of `files`, which has the same content."""
        segment, name = self._opened[stored.segment], files["file"][0].as_py()
        rows = segment.take(np.arange(segment.segment.num_clips)[segment.rows_by_file[stored.file]], files)
        renamed = [name + video_id[len(stored.file) :] for video_id in rows.clips["video_id"].to_pylist()]
        for column, values in (("video_id", renamed), ("file", [name] * len(renamed))):
            place = rows.clips.column_names.index(column)
            rows.clips = rows.clips.set_column(place, column, pa.array(values, pa.string()))
        return rows

    def rename_model(self, model: str, revision: str | None) -> None:
        """Say where the model, whose fingerprint is the same, is found now."""
        if (model, revision) != (self.manifest.model, self.manifest.revision):
            self.manifest = replace(self.manifest, model=model, revision=revision)
            self.manifest.write(self.folder)

    def commit(self, rows: Rows | None = None, gone: Iterable[str] = ()) -> None:
        """Take joined rows in, in the place of what their files had, and files out, in one change."""
        new = set() if rows is None else set(rows.files["file"].to_pylist())
        dropped: dict[str, list[int]] = {}
        for file in (self.files[name] for name in {*new, *gone} if name in self.files):
            dropped.setdefault(file.segment, []).append(file.place)
        segments = [
            replace(segment, dropped=tuple(sorted({*segment.dropped, *dropped.get(segment.name, ())})))
            for segment in self.manifest.segments
        ]
        added = []
        if rows is not None and len(rows.files):
            added.append(write_segment(self.folder, self.manifest.written + 1, rows))
        if added or dropped:
            self._put(segments + added, self.manifest.written + len(added))
        for name in gone:
            self.files.pop(name, None)
        self._note_files(added)

    def compact(self) -> None:
        """Merge segments until none has too many dropped files, and none too many of its size."""
        while merged := self._to_merge():
            parts = []
            for segment in map(self._stored, merged):
                parts.append(segment.take(segment.alive(), segment.live_files()))
            names, rows = {segment.name for segment in merged}, Rows.join(parts)
            remaining = [segment for segment in self.manifest.segments if segment.name not in names]
            new = [write_segment(self.folder, self.manifest.written + 1, rows)] if len(rows.files) else []
            self._put(remaining + new, self.manifest.written + len(new))
            self._note_files(new)
        self.clean()

    def _to_merge(self) -> list[Segment]:
        """The segments that become one next; none if all is well."""
        worn = [one for one in self.manifest.segments if len(one.dropped) > MAX_DROPPED * one.num_files]
        if worn:
            return worn[:1]

        def tier(segment: Segment) -> int:
            return int(math.log(max(segment.num_clips, 1), FAN))

        small = [segment for segment in self.manifest.segments if segment.num_clips < MAX_MERGED_CLIPS]
        for _, alike in groupby(sorted(small, key=tier), key=tier):
            if len(group := list(alike)) >= FAN:
                return group
        return []

    def _put(self, segments: Sequence[Segment], written: int) -> None:
        manifest = replace(self.manifest, segments=tuple(segments), written=written)
        manifest.write(self.folder)
        self.manifest = manifest

    def clean(self) -> None:
        """Remove what the manifest does not name: merged segments, and what a killed writer left."""
        live = {segment.name for segment in self.manifest.segments}
        self._opened = {name: opened for name, opened in self._opened.items() if name in live}
        for path in self._leftovers(live):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _leftovers(self, live: set[str]) -> Iterator[Path]:
        if (self.folder / SEGMENTS).is_dir():
            yield from (path for path in (self.folder / SEGMENTS).iterdir() if path.name not in live)
        yield from self.folder.glob("*.partial")
