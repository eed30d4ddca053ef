"""The media files of a folder, and how changes are detected: by size and time, then by content."""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from modeling_mmt.data.video_lists import videos_below
from modeling_mmt.search.manifest import SearchIndexError


class MediaFile(NamedTuple):
    """A file of a media folder as it lies there.

    Attributes:
        file: path relative to the folder, with `/`; bytes that are no UTF-8 are written out as escapes.
        path: to open it by.
        size: in bytes.
        mtime_ns: when it was written, in nanoseconds.
    """

    file: str
    path: str
    size: int
    mtime_ns: int


def find_media(folder: Path) -> dict[str, MediaFile]:
    """The videos and pictures below a folder by their names, in the order of their paths; none is opened.

    Raises:
        FileNotFoundError: there is no such folder.
        SearchIndexError: two names look alike once they are written in UTF-8.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of videos and pictures")
    found: dict[str, MediaFile] = {}
    for path in (Path(video.source) for video in videos_below(folder)):
        try:
            status = os.stat(path)
        except OSError:  # it went between listing and looking, or is a link to nothing
            continue
        if not stat.S_ISREG(status.st_mode):
            continue
        name = path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode("utf-8")
        if name in found:
            raise SearchIndexError(
                f"{folder}: two files have the name {name} once it is decoded; rename the one that is not UTF-8"
            )
        found[name] = MediaFile(name, str(path), status.st_size, status.st_mtime_ns)
    return found


def path_below(folder: str | Path, file: str) -> Path:
    """Where a file that `find_media` named lies; its escapes are bytes again where no file is called as it stands."""
    path = Path(folder, file)
    if path.exists():
        return path
    return Path(folder, re.sub(r"\\udc([89a-f][0-9a-f])", lambda byte: chr(0xDC00 + int(byte[1], 16)), file))
