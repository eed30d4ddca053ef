"""Which videos there are: a folder of them, with `metadata.jsonl` or without, or a list in a file.

    videos/kitchen/kettle.mp4           a folder: its id is kitchen/kettle
    videos/metadata.jsonl               {"file_name": "kitchen/kettle.mp4", "video_id": "kettle-01"}, as datasets'
                                        `videofolder` has it; then the lines say which videos there are
    videos.txt                          a path a line, relative to the list's folder or absolute
    videos.csv, videos.tsv, .jsonl      fields file_name; optional: video_id, start, end (seconds of a span)

An id names a clip and nothing else: no file's name is ever made of it.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from modeling_mmt.data.sources import SourceError, Sources, json_object
from modeling_mmt.data.tables import read_table

LISTS = (".txt", ".csv", ".tsv", ".jsonl")
METADATA = ("metadata.jsonl", "metadata.csv")
VIDEO_SUFFIXES = frozenset(
    ".3gp .apng .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .webp .wmv".split()
    + [".jpeg", ".jpg", ".png"]
)
MAX_ID_BYTES = 1000


class Video(NamedTuple):
    """A clip to read: where it is, and which seconds of it."""

    video_id: str
    source: Any  # a path, or what else the reader of the videos understands
    start: float = 0.0
    end: float | None = None


def find_videos(place: str | Path) -> list[Video]:
    """The videos of a folder, in the order of their paths, or of a list, in its order; none is opened.

    Raises:
        FileNotFoundError: there is no such folder or list.
        SourceError: it has no videos, an id is unusable or there twice, or a line is not as it must be.
    """
    place = Path(place)
    if place.is_dir():
        listed = next((name for name in METADATA if (place / name).is_file()), None)
        videos = list(_listed(place / listed, inside=True) if listed else _walked(place))
    elif not place.is_file():
        raise FileNotFoundError(f"{place} does not exist; give a folder of videos or a list ({', '.join(LISTS)})")
    elif place.suffix not in LISTS:
        raise SourceError(f"{place}: a list of videos ends in one of {', '.join(LISTS)}; a single video: list it")
    else:
        videos = list(_listed(place, inside=False))
    if not videos:
        raise SourceError(f"{place}: no video; known endings are {', '.join(sorted(VIDEO_SUFFIXES))}")
    check_ids(videos, str(place))
    return videos


def videos_below(folder: str | Path) -> list[Video]:
    """The videos of a folder and of all folders in it, in the order of their paths; two files may have one id."""
    return list(_walked(Path(folder)))


def check_ids(videos: Iterable[Video], where: str) -> None:
    """Refuses ids that are empty, too long, of control characters, or there twice.

    Raises:
        SourceError: an id is so.
    """
    source_of: dict[str, Any] = {}
    for video_id, source, *_ in videos:
        shown = f"{where}: id {str(video_id)[:100]!r} of {source if isinstance(source, str) else 'a clip'}"
        if not isinstance(video_id, str) or not video_id.strip():
            raise SourceError(f"{shown}: an id must be a text that is not empty")
        if len(video_id.encode(errors="replace")) > MAX_ID_BYTES:
            raise SourceError(f"{shown} is longer than {MAX_ID_BYTES} bytes; give shorter ids in a list")
        if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in video_id):
            raise SourceError(f"{shown} has control characters or is not valid Unicode; give other ids in a list")
        if video_id in source_of:
            also = f", also of {source_of[video_id]}" if isinstance(source_of[video_id], str) else ""
            raise SourceError(f"{shown} appears twice{also}; give the clips ids of their own in a list (video_id)")
        source_of[video_id] = source


def fingerprint(videos: Sequence[Video], folder: str | Path) -> str:
    """SHA-256 over ids, paths relative to `folder`, sizes and spans, in order: what a resumed run finds the same."""
    digest = hashlib.sha256()
    for video_id, source, start, end in videos:
        name = Path(os.path.relpath(source, folder)).as_posix()
        size = os.path.getsize(source) if os.path.isfile(source) else None
        digest.update(json.dumps([video_id, name, size, start, end]).encode() + b"\n")
    return digest.hexdigest()


def _walked(folder: Path) -> Iterator[Video]:
    paths = []
    for inner, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths += [
            Path(inner, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES
        ]
    for path in sorted(paths, key=lambda path: path.relative_to(folder).parts):
        yield Video(path.relative_to(folder).with_suffix("").as_posix(), str(path))


def _listed(path: Path, inside: bool) -> Iterator[Video]:
    for where, line in _lines(path):
        name = line["file_name"]
        if not isinstance(name, str) or not name or "\0" in name:
            raise SourceError(f"{where}: file_name is {name!r}; write the path of a video")
        if inside and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts):
            raise SourceError(f"{where}: file_name {name!r} lies outside the folder; give a path inside it")
        video_id = line.get("video_id")
        if video_id in (None, ""):
            video_id = PurePosixPath(name).with_suffix("").as_posix()
        yield Video(video_id, str(path.parent / name), *_span(line, where))


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A list's lines as objects, with their places."""
    sources, fields = Sources(path.parent), ["file_name"]
    if path.suffix in (".csv", ".tsv"):
        yield from read_table(sources, path.name, fields)
        return
    for number, text in enumerate(sources.lines(path.name), start=1):
        where = f"{path}, line {number}"
        if not text.strip():
            continue
        if path.suffix == ".txt":
            yield where, {"file_name": text.strip()}
            continue
        yield where, json_object(text, where, fields)


def _span(line: Mapping[str, Any], where: str) -> tuple[float, float | None]:
    times = {key: line[key] for key in ("start", "end") if line.get(key) not in (None, "")}
    try:
        start = float(times.get("start", 0.0))
        end = float(times["end"]) if "end" in times else None
    except (ValueError, TypeError) as error:
        raise SourceError(f"{where}: start and end are {times}; write seconds") from error
    if not 0 <= start < (float("inf") if end is None else end):
        raise SourceError(f"{where}: start and end are {times}; 0 <= start < end must hold")
    return start, end
