"""Saves moments as files: the packets of a video, unchanged, from the keyframe before a moment to its end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.video_lists import VIDEO_SUFFIXES
from modeling_mmt.search.media_files import path_below
from modeling_mmt.video_decoding_mmt import kind_of_file
from modeling_mmt.video_packets_mmt import extent_of, is_indexed, packets_from_keyframe, stamp_of


def media_file(index: Any, file: str | None) -> Path:
    """Where a file of an index lies on this machine.

    Args:
        index: a `SearchIndex`.
        file: of a row, relative to the folder that was indexed.

    Raises:
        InputError: the row is a dataset's, the file leads out of the folder, or one of the two is missing.
    """
    folder = index.media_folder
    if file is None or folder is None:
        raise InputError("a clip of a dataset has no file; index the folder of its videos with `mmt index`")
    if Path(file).is_absolute() or Path(file).drive or ".." in Path(file).parts:
        raise InputError(f"the index names {file!r}, outside the folder that was indexed; build it again")
    path = path_below(folder, file)
    if not path.is_file():
        raise InputError(f"{path} does not exist; put the folder back to {folder}, or index it anew")
    return path


def save_excerpt(source: Path, start: float | None, end: float | None, stem: Path) -> Path:
    """Copy a moment of a video without encoding it anew; pictures and animations are copied whole.

    The file begins at the last keyframe that is not later than `start`, since a decoder can begin nowhere else, and
    has the video's best stream and its sound.

    Args:
        source: a video or a picture.
        start: seconds from the video's first frame; None copies the file.
        end: likewise.
        stem: of the file that is written, without an ending; the ending is the source's.

    Returns:
        The file.

    Raises:
        InputError: PyAV is not installed, or FFmpeg cannot copy the streams; names the source.
    """
    suffix = source.suffix.lower() if source.suffix.lower() in VIDEO_SUFFIXES else ".mkv"
    kind = kind_of_file(source)
    if start is None or end is None or kind == "picture":
        return Path(shutil.copyfile(source, stem.with_name(stem.name + source.suffix.lower())))
    target = stem.with_name(stem.name + suffix)
    with naming_input(str(source)):
        _copy_packets(source, kind, start, end, target)
    return target


def _copy_packets(source: Path, kind: str, start: float, end: float, target: Path) -> None:
    try:
        import av
    except ImportError as error:
        raise InputError("PyAV is not installed, which copies moments: pip install 'modeling_mmt[video]'") from error

    def opened() -> Any:
        return av.open(f"file:{source}", format=kind, metadata_errors="replace")

    with opened() as container:
        video = container.streams.best("video")
        first = extent_of(container, video, str(source)).first
    with opened() as container:
        video = container.streams.best("video")
        begin = _keyframe(container, video, first + floor(start / video.time_base))
    stop = first * video.time_base + Fraction(end)
    with opened() as container, av.open(f"file:{target}", "w") as output:
        video = container.streams.best("video")
        streams = {one.index: output.add_stream_from_template(one) for one in (video, *container.streams.audio)}
        for packet in _between(container, video, list(streams), begin, stop):
            offset = round(begin * video.time_base / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - offset
            packet.dts = None if packet.dts is None else packet.dts - offset
            packet.stream = streams[packet.stream_index]
            output.mux(packet)


def _keyframe(container: Any, video: Any, target: int) -> int:
    """When the last keyframe that is not later than the target is shown; the first one where all are later."""
    found = None
    for packet in packets_from_keyframe(container, video, target, None):
        stamp = stamp_of(packet, video)
        if stamp is not None and packet.size and packet.is_keyframe:
            if found is not None and stamp > target:
                break
            found = stamp
    if found is None:
        raise InputError("no keyframe to begin at")
    return found


def _between(container: Any, video: Any, streams: list[int], begin: int, stop: Fraction) -> Iterator[Any]:
    """The packets of some streams from the video's keyframe at `begin` until all have passed `stop` seconds."""
    if is_indexed(container):
        container.seek(begin, stream=video)
    has_begun, past = False, set()
    for packet in container.demux([container.streams[number] for number in streams]):
        stamp = packet.dts if packet.pts is None else stamp_of(packet, video)
        if stamp is None or not packet.size:
            continue
        is_video = packet.stream_index == video.index
        has_begun = has_begun or (is_video and bool(packet.is_keyframe) and stamp == begin)
        # without a time of decoding, as after a keyframe in Matroska, a packet may be shown after later ones
        if packet.dts is not None and packet.dts * packet.time_base >= stop:
            past.add(packet.stream_index)
            if len(past) == len(streams):
                return
        elif stamp * packet.time_base >= begin * video.time_base and (has_begun or not is_video):
            yield packet
