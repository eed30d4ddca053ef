"""An index's manifest: its segments, which of their rows are current, and the model that made them.

    index.json                  the model (name, revision, fingerprint), the width, how rows were made of files, and of
                                each segment its rows, which of its files were dropped, each part's size and SHA-256
    segments/000001/            a folder that never changes (`segments.py`)
        embeddings.safetensors  `embeddings` `(n, P)` float32, unit norm; read memory-mapped
        clips.parquet           row i's `video_id`, `file`, `start`, `end`, and what else was kept
        thumbnails.parquet      row i's `thumbnail`: JPEG bytes, or null
        files.parquet           the media files that the rows are of (none for a dataset's clips): identity, number of
                                rows, and of an unreadable one the reason

A change writes a new segment and then the manifest, whose rename is the change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import write_json
from modeling_mmt.data.limits import check_numbers

FORMAT = 2
MAX_DIM = 2**20  # far above any model's
INDEX, SEGMENTS = "index.json", "segments"
SOURCE = "source.json"  # beside it, and not published: what the rows were read from on this machine
EMBEDDINGS, CLIPS = "embeddings.safetensors", "clips.parquet"
THUMBNAILS, FILES = "thumbnails.parquet", "files.parquet"
PARTS = (EMBEDDINGS, CLIPS, THUMBNAILS, FILES)
REMEDY = "build or download the index again"


class SearchIndexError(InputError):
    """An index is damaged, or another model's; the message says where and what to do."""


@dataclass(frozen=True)
class Segment:
    """What the manifest says of a segment.

    Args:
        name: of its folder.
        num_clips: rows in it, alive or not.
        num_files: files in it.
        dropped: places in its `files.parquet` of those whose rows are dead.
        files: name -> `num_bytes`, `sha256`.
    """

    name: str
    num_clips: int
    num_files: int
    dropped: tuple[int, ...]
    files: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Manifest:
    """`index.json`.

    Args:
        fingerprint: of the model.
        model: its name or folder, for people.
        revision: its commit or tag.
        dim: P.
        settings: how rows were made of files; empty for a dataset's clips.
        written: how many segments were ever written: the next one's name is free.
        segments: in the order of writing.
    """

    fingerprint: str
    model: str
    revision: str | None
    dim: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    written: int = 0
    segments: tuple[Segment, ...] = ()

    def write(self, folder: Path) -> None:
        """Make it the folder's, whole or not at all."""
        write_json(folder / INDEX, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The folder's.

        Raises:
            FileNotFoundError: it has none.
            SearchIndexError: it is no manifest, or of another format.
        """
        path = folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; {folder} is not a search index: build one")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SearchIndexError(f"{path}: not JSON ({error}); {REMEDY}") from error
        checked = _checked(content, {"format": int}, str(path))
        if checked["format"] != FORMAT:
            raise SearchIndexError(
                f"{path}: format is {checked['format']}, and this version reads {FORMAT}; build the index again"
            )
        content = _checked(content, _MANIFEST_KINDS, str(path))
        if not 0 < content["dim"] <= MAX_DIM:
            raise SearchIndexError(f"{path}: dim is {content['dim']}, no width of embeddings; {REMEDY}")
        _check_settings(content["settings"], str(path))
        segments = []
        for number, segment in enumerate(content["segments"]):
            segment = _checked(segment, _SEGMENT_KINDS, f"{path}, segments[{number}]")
            segments.append(Segment(**segment | {"dropped": tuple(segment["dropped"])}))
            _check_segment(segments[-1], f"{path}, segments[{number}]")
        return cls(**content | {"segments": tuple(segments)})


_MANIFEST_KINDS: dict[str, Any] = {"fingerprint": str, "model": str, "revision": str | None, "dim": int}
_MANIFEST_KINDS |= {"settings": dict, "written": int, "segments": list}
_SEGMENT_KINDS: dict[str, Any] = {"name": str, "num_clips": int, "num_files": int, "dropped": list, "files": dict}


def _checked(content: Any, kinds: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of an object, each of its kind; others are left out."""
    for name, kind in kinds.items():
        if not isinstance(content, dict) or name not in content:
            raise SearchIndexError(f"{where}: field {name!r} is missing; {REMEDY}")
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise SearchIndexError(f"{where}: {name} is {str(content[name])[:80]!r}, of another kind; {REMEDY}")
    return {name: content[name] for name in kinds}


def _check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings of another kind than `mmt index` writes; a stranger may have written these."""
    for name in ("window", "stride", "frames_per_second"):
        if name in settings:
            _checked(settings, {name: int | float}, f"{where}, settings")
            check_numbers({name: settings[name]}, f"{where}, settings: ")
    encoders = settings.get("encoders") or []
    if not isinstance(encoders, list) or not all(isinstance(encoder, dict) for encoder in encoders):
        raise SearchIndexError(f"{where}, settings: encoders is {str(encoders)[:80]!r}, of another kind; {REMEDY}")
    for encoder in encoders:
        _checked(encoder, {"name": str}, f"{where}, settings, encoders")


def _check_segment(segment: Segment, where: str) -> None:
    if not segment.name.isdecimal():
        raise SearchIndexError(f"{where}: name is {segment.name[:80]!r}, no number; {REMEDY}")
    for part in PARTS:
        _checked(segment.files.get(part), {"num_bytes": int, "sha256": str}, f"{where}, {part}")
    if any(not isinstance(place, int) or not 0 <= place < segment.num_files for place in segment.dropped):
        raise SearchIndexError(f"{where}: dropped names a file that is not among its {segment.num_files}; {REMEDY}")


def read_source(folder: Path) -> dict[str, Any]:
    """What an index says that it was read from, on the machine that built it; empty where it does not.

    Raises:
        SearchIndexError: `source.json` is no JSON object.
    """
    path = folder / SOURCE
    try:
        source = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        if not isinstance(source.get("media_folder"), str | None):
            raise TypeError("media_folder is not a string")
        return source
    except (ValueError, TypeError) as error:
        raise SearchIndexError(
            f"{path}: not the JSON that `mmt search` or `mmt index` writes ({error}); build the index again"
        ) from error
