"""Builds an index of a folder of videos and pictures, and updates it.

    update_index("my_folder", "index", model="runs/demo/mmp_en")      adds, replaces, drops; touches nothing else
    index_status("my_folder", "index")                                what that would do, and what could not be read

A file is what it was as long as its size and time are; else its content (SHA-256) decides: one that is known already,
under this name or another, keeps its rows, and only what is new is decoded. What a file's rows are depends on the
file, the model and the settings, not on other files, nor on where a run was killed. One that cannot be read is listed
with the reason, and tried again once it changes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import locked
from modeling_mmt.search.index_folder import IndexFolder
from modeling_mmt.search.manifest import INDEX, Manifest, SearchIndexError, read_source
from modeling_mmt.search.media_files import MediaFile, find_media
from modeling_mmt.search.media_status import (
    IndexOptions,
    IndexReport,
    IndexStatus,
    check_is_of,
    index_status,
    source_of,
    status_of,
)

__all__ = ["IndexOptions", "IndexReport", "IndexStatus", "index_status", "update_index"]

LOCK = "index.lock"


def update_index(media: str | Path, folder: str | Path, options: IndexOptions) -> IndexReport:
    """Bring an index in step with a folder; make it if it does not exist.

    Args:
        media: folder of videos and pictures.
        folder: of the index.
        options: how.

    Raises:
        FileNotFoundError: there is no such media folder, or no checkpoint.
        SearchIndexError: the index is busy, damaged, of another model, of other settings, or of another folder.
        InputError: a checkpoint does not say whose features it takes, or none of the files can be read.
    """
    media, folder = Path(os.path.abspath(media)), Path(folder)
    found = find_media(media)
    if not (folder / INDEX).is_file():
        _check_can_begin(folder, media, found, options)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, SearchIndexError(f"{folder}: another process is indexing there; wait for it")):
        index = IndexFolder(folder) if (folder / INDEX).is_file() else None
        if index is not None:
            check_is_of(folder, media, index.manifest)
            _check_settings(folder, index.manifest, options)
            if not found and index.num_clips:
                raise SearchIndexError(
                    f"{media} no longer holds any video or picture; is its disk mounted? Else delete {folder}"
                )
            if status_of(index, found).is_current and _is_as_last(folder, media, index.manifest, options):
                return IndexReport()
        from modeling_mmt.search.media_update import bring_in_step  # imports transformers, which takes its time

        return bring_in_step(media, folder, index, found, options)


def _is_as_last(folder: Path, media: Path, manifest: Manifest, options: IndexOptions) -> bool:
    """Whether media and checkpoint are those of the last run, so that the checkpoint need not be read to know it."""
    if options.encoders or options.image_size:
        return False  # which must be compared
    name = os.path.abspath(options.model) if options.model else manifest.model
    return name == manifest.model and Path(name).is_dir() and read_source(folder) == source_of(media, name)


def _check_can_begin(folder: Path, media: Path, found: Mapping[str, MediaFile], options: IndexOptions) -> None:
    """Refuse to make an index of nothing, by no model, or among other files."""
    if options.model is None:
        raise InputError(f"{folder} has no index yet; name the checkpoint to build it with: --model CHECKPOINT")
    if not found:
        raise SearchIndexError(
            f"{media} holds no video or picture; give the folder that contains them, or a parent of it"
        )
    begun = (LOCK, INDEX)  # segments come after the manifest: without one they are not ours, and would be removed
    others = [path.name for path in folder.iterdir() if not path.name.startswith(begun)] if folder.is_dir() else []
    if others:
        raise SearchIndexError(f"{folder} holds other files, such as {sorted(others)[0]}; name a new folder")


def _check_settings(folder: Path, manifest: Manifest, options: IndexOptions) -> None:
    for name, value in options.rule.items():
        if value is not None and value != manifest.settings.get(name):
            raise SearchIndexError(
                f"{folder} was made with --{name} {manifest.settings.get(name)}, and --{name} is {value}; leave it "
                "out, or name a new folder"
            )
