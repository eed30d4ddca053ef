"""The input of feature extraction: videos and pictures of a folder or list, or the clips of a dataset.

A dataset's clips are the first column of videos, or film strips as emoji9 has them: `video_id`, `frames` (a picture of
all frames side by side) and `num_frames`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from PIL import Image

from modeling_mmt.data.clips import frames_of, span_columns
from modeling_mmt.data.reading import read_splits
from modeling_mmt.data.video_lists import FoundVideos, Video, check_ids, find_videos, fingerprint

FILMSTRIP_COLUMNS = ("video_id", "frames", "num_frames")


class Clips:
    """What a run extracts from.

    Args:
        videos: one each clip; what `load` makes of one is what a reader gets.
        source: for the manifest.
        are_filmstrips: whether `filmstrip_frames` makes frames of them.
        load: fetches a clip's bytes, for those that do not lie in files.
        summary: of a folder or list: which files were taken, and which left.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        source: dict[str, Any],
        are_filmstrips: bool = False,
        load: Callable[[Video], Video] | None = None,
        summary: str | None = None,
    ):
        self.videos, self.source, self.are_filmstrips = videos, source, are_filmstrips
        self.load, self.summary = load, summary


def clips_of_folder_or_list(place: str, limit: int | None) -> Clips:
    """The videos and pictures of a folder, or of a list in a file."""
    found = find_videos(place)
    videos = FoundVideos(found[:limit], found.left)
    folder = Path(place) if Path(place).is_dir() else Path(place).parent
    source = {"videos": Path(place).name, "fingerprint": fingerprint(videos, folder)}
    return Clips(videos, source, summary=f"{place}: {videos.summary()}")


def clips_of_dataset(name: str, limit: int | None, revision: str | None = None) -> Clips:
    """The clips of a dataset: the first column of videos, or film strips.

    Raises:
        ValueError: it has neither, or a split lacks a column.
    """
    dataset = read_splits(name, revision)
    first = next(iter(dataset.values()))
    column = next((key for key, kind in first.features.items() if isinstance(kind, datasets.Video)), None)
    own_id = [key for key in ("video_id",) if key in first.column_names]
    columns = [*own_id, column, *span_columns(first)] if column else FILMSTRIP_COLUMNS
    for split, part in dataset.items():
        absent = set(columns) - set(part.column_names)
        if absent:
            raise ValueError(f"{name}: split {split!r} has no column {sorted(absent)[0]!r}")
    undecoded = datasets.Video(decode=False) if column else datasets.Image(decode=False)
    parts = {
        split: part.select_columns(list(columns)).cast_column(column or "frames", undecoded)
        for split, part in dataset.items()
    }

    def ids_of(part: datasets.Dataset) -> list[str]:
        if "video_id" in columns:
            return list(part["video_id"])
        return [Path(row[column]["path"] or str(number)).stem for number, row in enumerate(part)]

    ids = {split: ids_of(part) for split, part in parts.items()}
    videos = [Video(video_id, (split, row)) for split in parts for row, video_id in enumerate(ids[split][:limit])]
    check_ids(videos, name)

    def load(video: Video) -> Video:
        split, number = video.source
        row = parts[split][number]
        span = {name: row[name] for name in ("start", "end") if row.get(name) is not None}
        return video._replace(source=row[column] if column else row, **span)

    if column:
        prints = {split: videos_fingerprint(part, column, ids[split]) for split, part in parts.items()}
        return Clips(videos, {"dataset": Path(name).name, "fingerprints": prints, "limit": limit}, load=load)
    prints = {split: clips_fingerprint(part) for split, part in dataset.items()}
    return Clips(videos, {"dataset": Path(name).name, "fingerprints": prints, "limit": limit}, True, load)


def videos_fingerprint(part: datasets.Dataset, column: str, ids: Sequence[str]) -> str:
    """SHA-256 over the ids, sizes in bytes and spans of a split's videos, in order; the videos are not read.

    Args:
        part: the split, its videos not decoded.
        column: of videos.
        ids: of its rows.
    """
    stored = part.data.column(column)
    sizes = pc.binary_length(pc.struct_field(stored, "bytes")).to_pylist()
    for row, path in enumerate(pc.struct_field(stored, "path").to_pylist()):
        if sizes[row] is None and path and Path(path).is_file():
            sizes[row] = Path(path).stat().st_size
    spans = [list(part[name]) for name in span_columns(part)]
    return hashlib.sha256(json.dumps([list(ids), sizes, *spans]).encode()).hexdigest()


def clips_fingerprint(part: datasets.Dataset) -> str:
    """SHA-256 over the ids and stored pictures of a split, in order."""
    digest = hashlib.sha256()
    for row in part.select_columns(["video_id", "frames"]).cast_column("frames", datasets.Image(decode=False)):
        digest.update(row["video_id"].encode())
        digest.update(row["frames"]["bytes"] or Path(row["frames"]["path"]).read_bytes())
    return digest.hexdigest()


def filmstrip_frames(row: Mapping[str, Any]) -> list[Image.Image]:
    """The frames of a strip, as a dataset gives it undecoded."""
    row = dict(row)
    if isinstance(row["frames"], Mapping) and not row["frames"]["bytes"]:
        row["frames"] = Image.open(row["frames"]["path"])
    return frames_of(row)
