"""Lists of videos and pictures: a folder, with or without `metadata.jsonl`, or a list in a file.

    media/kitchen/kettle.mp4            a folder: its id is kitchen/kettle
    media/kitchen/cups.jpg              a picture is a clip of one step
    media/metadata.jsonl                {"file_name": "kitchen/kettle.mp4", "video_id": "kettle-01"}, as datasets'
                                        `videofolder` has it; then the lines say which clips there are
    media.txt                           a path a line, relative to the list's folder or absolute
    media.csv, media.tsv, .jsonl        fields file_name; optional: video_id, start, end (seconds of a span), and what
                                        else the table has, such as captions: one with a line a caption is a list too

Without `video_id`, the id of a span is its file's and its seconds: `kitchen/kettle#8.0-16.0`. An id names a clip and
nothing else: no file's name is ever made of it.
"""

import hashlib
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from modeling_mmt.data.folders import counted, files_below, kind_of
from modeling_mmt.data.sources import SourceError, Sources
from modeling_mmt.data.tables import read_json_lines, read_lines, read_table
from modeling_mmt.picture_formats_mmt import PICTURE_SUFFIXES, picture_formats

LISTS = (".txt", ".csv", ".tsv", ".jsonl")
METADATA = ("metadata.jsonl", "metadata.csv")
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .ivf .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .qt .ts .vob "
    ".webm .wmv .y4m".split()
)
MEDIA_SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES.keys()
MAX_ID_BYTES = 1000
MOST_LISTED = 5  # of what is wrong with a list


class Video(NamedTuple):
    """A clip to read: where it is, and which seconds of it."""

    video_id: str
    source: Any  # a path, or what else the reader of the videos understands
    start: float = 0.0
    end: float | None = None


class FoundVideos(list[Video]):
    """Clips in their order, and the files beside them that are none.

    Args:
        videos: the clips.
        left: what was left out of a folder, by kind.
    """

    def __init__(self, videos: Iterable[Video] = (), left: Mapping[str, int] | None = None):
        super().__init__(videos)
        self.left = Counter(left)

    def summary(self) -> str:
        """The files of each kind: `taken: 12 mp4, 3 jpg; left out: 2 txt, 1 link to a folder`."""
        taken = Counter(kind_of(source) for source in dict.fromkeys(str(video.source) for video in self))
        return f"taken: {counted(taken)}" + (f"; left out: {counted(self.left)}" if self.left.total() else "")


def find_videos(place: str | Path) -> FoundVideos:
    """The videos and pictures of a folder, in the order of their paths, or of a list, in its order; none is opened.

    Raises:
        FileNotFoundError: there is no such folder or list.
        SourceError: it has no clips, an id is unusable or appears twice, or a line is invalid.
    """
    place = Path(place)
    if place.is_dir():
        listed = next((name for name in METADATA if (place / name).is_file()), None)
        videos = FoundVideos(_listed(place / listed, inside=True)) if listed else videos_below(place)
    elif not place.is_file():
        raise FileNotFoundError(f"{place} does not exist; give a folder of videos or a list ({', '.join(LISTS)})")
    elif place.suffix.lower() not in LISTS:
        raise SourceError(f"{place}: a list of videos ends in one of {', '.join(LISTS)}; a single video: list it")
    else:
        videos = FoundVideos(_listed(place, inside=False))
    if not videos:
        known = ", ".join(sorted(MEDIA_SUFFIXES))
        raise SourceError(f"{place}: no video or picture; known endings are {known} ({videos.summary()})")
    check_ids(videos, str(place))
    return videos


def videos_below(folder: str | Path) -> FoundVideos:
    """The videos and pictures of a folder and of all folders in it, each file a clip; links to folders are followed.

    A picture beside a video of its name is the video's thumbnail, and no clip. Pictures of one name (`cat.jpg`,
    `cat.png`) keep their endings in their ids; videos of one name have one id, which `find_videos` refuses.
    """
    folder, found = Path(folder), FoundVideos()
    paths = files_below(folder, found.left)
    videos = {path.with_suffix("") for path in paths if path.suffix.lower() in VIDEO_SUFFIXES}
    pictures = Counter(path.with_suffix("") for path in paths if path.suffix.lower() in PICTURE_SUFFIXES)
    readable = picture_formats()
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in MEDIA_SUFFIXES:
            found.left[kind_of(path)] += 1
        elif suffix not in VIDEO_SUFFIXES and path.with_suffix("") in videos:
            found.left[f"{kind_of(path)} named as a video is"] += 1
        elif suffix not in VIDEO_SUFFIXES and PICTURE_SUFFIXES[suffix] not in readable:
            remedy = "pip install pillow-heif" if PICTURE_SUFFIXES[suffix] == "HEIF" else "pip install -U pillow"
            found.left[f"{kind_of(path)} ({remedy} to have them read)"] += 1
        else:
            name = path.relative_to(folder).as_posix()
            found.append(Video(name if pictures[path.with_suffix("")] > 1 else clip_id(name), str(path)))
    return found


def clip_id(file_name: str, start: float = 0.0, end: float | None = None) -> str:
    """A clip's id by its file's path, without the ending; of a span with its seconds: `kitchen/kettle#8.0-16.0`."""
    stem = PurePosixPath(file_name).with_suffix("").as_posix()
    return stem if end is None and not start else f"{stem}#{start}-{'' if end is None else end}"


def check_ids(videos: Iterable[Video], where: str) -> None:
    """Refuses ids that are empty, too long, of control characters, or there twice.

    Raises:
        SourceError: some are; it names the first five.
    """
    source_of: dict[str, Any] = {}
    refused = []
    for video_id, source, *_ in videos:
        if reason := _refusal(video_id, source_of):
            of = source if isinstance(source, str) else "a clip"
            refused.append(f"id {repr(video_id)[:100]} of {of} {reason}")
        else:
            source_of[video_id] = source
    if refused:
        more = f"; and {len(refused) - MOST_LISTED} more" if len(refused) > MOST_LISTED else ""
        raise SourceError(f"{where}: {'; '.join(refused[:MOST_LISTED])}{more}")


def _refusal(video_id: Any, source_of: Mapping[str, Any]) -> str | None:
    """Why an id cannot be used beside those of `source_of`."""
    if not isinstance(video_id, str) or not video_id.strip():
        return "must be a text that is not empty"
    if len(video_id.encode(errors="replace")) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES} bytes; give shorter ids in a list"
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in video_id):
        return "has control characters or is not valid Unicode; give other ids in a list"
    if video_id in source_of:
        also = f", also of {source_of[video_id]}" if isinstance(source_of[video_id], str) else ""
        return f"appears twice{also}; give the clips ids of their own in a list (video_id)"
    return None


def fingerprint(videos: Sequence[Video], folder: str | Path) -> str:
    """SHA-256 over ids, paths relative to `folder`, sizes and spans, in order: what a resumed run finds the same."""
    digest = hashlib.sha256()
    for video_id, source, start, end in videos:
        name = Path(os.path.relpath(source, folder)).as_posix()
        size = os.path.getsize(source) if os.path.isfile(source) else None
        digest.update(json.dumps([video_id, name, size, start, end]).encode() + b"\n")
    return digest.hexdigest()


def _listed(path: Path, inside: bool) -> Iterator[Video]:
    """The clips of a list, in its order; what several lines say of one clip (a caption each) is one clip."""
    seen: set[str] = set()
    for where, line in _lines(path):
        name = line["file_name"]
        if not isinstance(name, str) or not PurePosixPath(name).name or "\0" in name:
            raise SourceError(f"{where}: file_name is {name!r}; write the path of a video or picture")
        if inside and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts):
            raise SourceError(f"{where}: file_name {name!r} lies outside the folder; give a path inside it")
        span, video_id = _span(line, where), line.get("video_id")
        video = Video(clip_id(name, *span) if video_id in (None, "") else video_id, str(path.parent / name), *span)
        if repr(video) not in seen:
            seen.add(repr(video))
            yield video


def _lines(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """A list's lines as objects, with their places."""
    sources, fields, suffix = Sources(path.parent), ["file_name"], path.suffix.lower()
    if suffix == ".txt":
        return ((where, {"file_name": text.strip()}) for where, text in read_lines(sources, path.name))
    return (read_json_lines if suffix == ".jsonl" else read_table)(sources, path.name, fields)


def _span(line: Mapping[str, Any], where: str) -> tuple[float, float | None]:
    times = seconds_of(line, where)
    start, end = times.get("start", 0.0), times.get("end")
    if not 0 <= start < (math.inf if end is None else end):
        raise SourceError(f"{where}: {shown_span(times)}; 0 <= start < end must hold")
    return start, end


def seconds_of(line: Mapping[str, Any], where: str) -> dict[str, float]:
    """A line's `start` and `end`, where it has them: seconds, as `0.5`, `0,5`, `1:02.5` or `1:00:00`.

    Raises:
        SourceError: one is not a time.
    """
    times = {key: line[key] for key in ("start", "end") if line.get(key) not in (None, "")}
    try:
        return {key: _seconds(value) for key, value in times.items()}
    except ValueError as error:
        raise SourceError(f"{where}: {shown_span(times)}; write seconds, or h:mm:ss") from error


def shown_span(times: Mapping[str, Any]) -> str:
    """A line's times in a message: `start is 5.0, end 3.0`, or `start is missing, end '3'`."""
    start, end = (repr(times[key]) if key in times else "missing" for key in ("start", "end"))
    return f"start is {start}, end {end}"


def _seconds(value: Any) -> float:
    parts = [float(part) for part in str(value).replace(",", ".").split(":")]
    if len(parts) > 3 or not all(math.isfinite(part) and part >= 0 for part in parts):
        raise ValueError(f"{value!r} is not a time")
    return sum(part * 60**place for place, part in enumerate(reversed(parts)))
