"""Compares an index with its media folder: settings, contents, and changes since the last run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_mmt.data.files import state_of
from modeling_mmt.data.limits import check_numbers
from modeling_mmt.search.index_folder import IndexFolder
from modeling_mmt.search.manifest import Manifest, SearchIndexError, read_source
from modeling_mmt.search.media_files import MediaFile, find_media


@dataclass(frozen=True)
class IndexOptions:
    """How an index is made; None is what the index has, and else the value in brackets.

    Args:
        model: checkpoint, a folder or a name on the Hub.
        revision: tag or commit of a name on the Hub.
        window: seconds of a window (4; of a shot that stays whole 8).
        stride: seconds from one window's start to the next one's (4, or the window where that is shorter).
        shots: whether windows end at shot changes (no).
        frames_per_second: that are looked at (2).
        encoders: of a checkpoint from features: what makes them, where it does not say so.
        image_size: side of these encoders' frames in pixels.
        batch_size: steps that go through an encoder together.
        device: where encoders and model run.
        num_workers: processes that decode; None is one a core, and on a cluster one a task, which takes as many cores.
        timeout: seconds that looking into a file, or decoding a piece of one, may take.
        progress: whether to show a bar.
        cluster: a Ray cluster whose nodes decode and encode, as in `ClusterPool`; None is this process.

    Raises:
        InputError: a number is not positive, or too large.
    """

    model: str | None = None
    revision: str | None = None
    window: float | None = None
    stride: float | None = None
    shots: bool | None = None
    frames_per_second: float | None = None
    encoders: tuple[str, ...] = ()
    image_size: int | None = None
    batch_size: int = 16
    device: str = "cpu"
    num_workers: int | None = None
    timeout: float = 600.0
    progress: bool = False
    cluster: str | None = None

    def __post_init__(self) -> None:
        numbers = ("window", "stride", "frames_per_second", "image_size", "batch_size", "num_workers", "timeout")
        check_numbers({name: getattr(self, name) for name in numbers})

    @property
    def rule(self) -> dict[str, Any]:
        """What the manifest's settings must agree with."""
        return {name: getattr(self, name) for name in ("window", "stride", "shots", "frames_per_second")}


@dataclass
class IndexStatus:
    """An index beside its folder of media.

    Args:
        files: how many files it has rows of.
        rows: how many.
        new: files of the folder that it does not know.
        changed: files of another size or time than when they were indexed.
        gone: files that it knows and the folder has no more.
        failed: file -> why it could not be read.
        model: name or folder of the checkpoint.
        num_bytes: of the index.
    """

    files: int
    rows: int
    new: list[str]
    changed: list[str]
    gone: list[str]
    failed: dict[str, str]
    model: str
    num_bytes: int

    @property
    def to_encode(self) -> list[str]:
        """Files whose rows must be made, by name."""
        return sorted([*self.new, *self.changed])

    @property
    def is_current(self) -> bool:
        """Whether the folder is as it was indexed."""
        return not (self.to_encode or self.gone)


@dataclass
class IndexReport:
    """What an update did, in files; of those added and replaced, how many needed no decoding; seconds of new video."""

    added: int = 0
    replaced: int = 0
    dropped: int = 0
    recognised: int = 0
    failed: int = 0  # new or changed, and cannot be read: neither added nor replaced
    seconds_of_video: float = 0.0


def index_status(media: str | Path, folder: str | Path) -> IndexStatus:
    """What an index holds, and what `update_index` would do; nothing is decoded or changed.

    Raises:
        FileNotFoundError: there is no such index or media folder.
        SearchIndexError: the index is damaged, or another folder's.
    """
    media, folder = Path(os.path.abspath(media)), Path(folder)
    index = IndexFolder(folder)
    check_is_of(folder, media, index.manifest)
    return status_of(index, find_media(media))


def status_of(index: IndexFolder, found: Mapping[str, MediaFile]) -> IndexStatus:
    """The same of an index and a folder that were read."""
    stored = index.files
    return IndexStatus(
        files=sum(file.reason is None for file in stored.values()),
        rows=index.num_clips,
        new=[name for name in found if name not in stored],
        changed=[name for name, file in found.items() if name in stored and not stored[name].is_as(file)],
        gone=[name for name in stored if name not in found],
        failed={name: file.reason for name, file in stored.items() if file.reason is not None},
        model=index.manifest.model,
        num_bytes=index.num_bytes,
    )


def source_of(media: Path, checkpoint: str) -> dict[str, Any]:
    """What `source.json` says: where media and checkpoint lie here, and the state of the latter's files."""
    state = state_of(Path(checkpoint)) if Path(checkpoint).is_dir() else None
    return {"media_folder": str(media), "checkpoint": state}


def check_is_of(folder: Path, media: Path, manifest: Manifest) -> None:
    """Refuse an index of a dataset's clips, and of another folder that is still there; a folder may be moved."""
    if not manifest.settings or any(segment.num_clips and not segment.num_files for segment in manifest.segments):
        raise SearchIndexError(f"{folder} was built from a dataset's clips, or is a published copy; name a new folder")
    last = read_source(folder).get("media_folder")
    if last is not None and Path(last).is_dir() and os.path.realpath(last) != os.path.realpath(media):
        raise SearchIndexError(f"{folder} indexes the media in {last}; give that folder, or a new index folder")
