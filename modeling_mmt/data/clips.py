"""The clips of a dataset column, for training from pixels."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from modeling_mmt.data.checks import Faults, are_filled
from modeling_mmt.data.confinement import ConfinementError, leads_out


class ClipColumn(Mapping[str, Any]):
    """`video_id` to what `modeling_mmt.video_decoding_mmt.read_clip` reads; nothing is decoded before it is asked for.

    A column may be of `datasets.Video`, of `datasets.Image` (with `num_frames` beside it: film strips, as emoji9's),
    or of texts: paths of videos, pictures and folders of frames, relative to the dataset's folder or absolute. Those
    of a dataset that is not a local folder are a stranger's, and must be inside it. With columns `start` and `end` of
    numbers, a clip is that span of its video in seconds; null is where it begins, or ends.

    Args:
        rows: with `video_id` and the column.
        column: its name.
        folder: of the dataset, where it is one of this machine.

    Raises:
        ValueError: there is no such column, or it is of another kind.
    """

    def __init__(self, rows: datasets.Dataset, column: str, folder: str | Path = ""):
        if column not in rows.column_names:
            raise ValueError(f"{folder}: no column {column} to read clips from; found {', '.join(rows.column_names)}")
        kind = rows.features[column]
        is_text = kind == datasets.Value("string") or kind == datasets.Value("large_string")
        if not (is_text or isinstance(kind, datasets.Video | datasets.Image)):
            raise ValueError(f"{folder}: column {column} is {kind}; clips are of Video, Image or paths")
        self.are_filmstrips = isinstance(kind, datasets.Image) and "num_frames" in rows.column_names
        names = ["video_id", column, *(["num_frames"] if self.are_filmstrips else span_columns(rows))]
        self.rows, self.column, self.folder = rows.select_columns(names), column, Path(folder)
        if not is_text:
            self.rows = self.rows.cast_column(column, type(kind)(decode=False))
        self._row_of = {video_id: row for row, video_id in enumerate(rows["video_id"][:])}

    def __getitem__(self, video_id: str) -> Any:
        """A clip's source.

        Raises:
            KeyError: no such clip.
            ValueError: the column has nothing there.
            ConfinementError: the column of a dataset that is not a local folder names a path that leads out of it.
        """
        row = self.rows[self._row_of[video_id]]
        source = row[self.column]
        if source is None:
            raise ValueError(f"clip {video_id!r} has no value in column {self.column}; drop the clip")
        if self.are_filmstrips:
            strip = source if source["bytes"] else Image.open(source["path"])
            return frames_of({**row, "frames": strip})
        span = {name: row[name] for name in ("start", "end") if row.get(name) is not None}
        if isinstance(source, Mapping):
            return {**source, **span}
        if leads_out(source) and not self.folder.is_dir():
            raise ConfinementError(
                f"{self.folder}: {self.column} of {video_id!r} names {source!r}, outside the dataset; leave it out"
            )
        path = str(self.folder / source)
        return {"path": path, **span} if span else path

    def problems(self) -> Iterator[str]:
        """Says how many clips have nothing in the column, or name a file that does not exist; none is opened."""
        faults = Faults()
        for batch in self.rows.with_format("arrow").iter(batch_size=1024):
            ids, sources = batch["video_id"], batch[self.column]
            if pa.types.is_struct(sources.type):  # of pictures or videos: bytes, or a path beside the dataset
                kinds = [pc.struct_field(sources, name) for name in ("bytes", "path")]
                faults.add(f"have nothing in {self.column}", ids, ~(are_filled(kinds[0]) | are_filled(kinds[1])))
                continue
            faults.add(f"have nothing in {self.column}", ids, ~are_filled(sources))
            lost = [bool(path) and not (self.folder / path).exists() for path in sources.to_pylist()]
            faults.add(f"name a file in {self.column} that does not exist", ids, np.array(lost))
        yield from faults.sentences("correct or drop them")

    def fingerprint(self) -> str:
        """SHA-256 of the clips: the bytes that rows hold; of files that they name, the paths, sizes and times."""
        digest = sha256()
        for row in self.rows:
            source = row[self.column]
            if "start" in row:
                digest.update(f"{row['start']} {row['end']} ".encode())
            if isinstance(source, Mapping) and source["bytes"]:
                digest.update(sha256(source["bytes"]).digest())
                continue
            path = self.folder / (source["path"] if isinstance(source, Mapping) else source or "")
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                status = file.stat() if file.exists() else None
                digest.update(f"{file} {status and (status.st_size, status.st_mtime_ns)}\n".encode())
        return digest.hexdigest()[:32]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row_of)

    def __len__(self) -> int:
        return len(self._row_of)


def span_columns(rows: datasets.Dataset) -> list[str]:
    """`start` and `end`, if rows have both as numbers.

    Raises:
        ValueError: they are texts, so that every span would be taken for the whole video.
    """
    kinds = {name: getattr(rows.features.get(name), "dtype", "") for name in ("start", "end")}
    if any(kind.endswith("string") for kind in kinds.values()):
        raise ValueError(f"columns start and end are {kinds}; they must be numbers of seconds")
    return ["start", "end"] if all(kind.startswith(("float", "int")) for kind in kinds.values()) else []


@dataclass(frozen=True)
class FrameReader:
    """An id to its clip's frames; picklable, so that worker processes can read.

    Args:
        sources: ids to what `read` takes.
        read: `MMTVideoFeatureExtractor.read`.
        candidates: frames to read in the place of each one that is sampled.
    """

    sources: Mapping[str, Any]
    read: Callable[[Any, int], list[torch.Tensor]]
    candidates: int = 1

    def __call__(self, video_id: str) -> list[torch.Tensor]:
        """`(F, 3, height, width)` uint8 for each vision encoder."""
        return self.read(self.sources[video_id], self.candidates)


def frames_of(row: Mapping[str, Any]) -> list[Image.Image]:
    """Splits a row's film strip into its `num_frames` RGB frames, in order; a single picture may have any shape.

    Args:
        row: has `num_frames` and `frames`, an image, or `{"bytes": ...}` where `datasets` does not decode.

    Raises:
        ValueError: the strip's width is not `num_frames` times its height.
    """
    strip = row["frames"]
    if isinstance(strip, Mapping):
        strip = Image.open(io.BytesIO(strip["bytes"]))
    strip, size = strip.convert("RGB"), strip.height
    if row["num_frames"] == 1:
        return [strip]
    if strip.width != row["num_frames"] * size:
        raise ValueError(
            f"clip {row.get('video_id')!r}: a strip of {strip.width}x{size} pixels does not hold "
            f"{row['num_frames']} square frames; num_frames or the picture is wrong"
        )
    return [strip.crop((left, 0, left + size, size)) for left in range(0, strip.width, size)]
