"""The packets of a video stream, read with PyAV: when their frames are shown, and where decoding can start."""

import bisect
import math
from collections import deque
from collections.abc import Iterator
from itertools import chain, dropwhile
from typing import Any, NamedTuple

from .frames_mmt import VideoDecodingError

REORDER_DEPTH = 32
"""Packets to look ahead; no codec lets more than 16 frames wait for an earlier one."""

_REORDERED = {"h264", "hevc", "vvc"}  # codecs whose order of showing FFmpeg does not work out from the packets
_INDEXED = ("mov", "matroska")  # formats whose index can be relied on


class LostError(Exception):
    """A shortcut did not lead to the frame."""


class Extent(NamedTuple):
    """What a stream's packets say of it.

    Attributes:
        first: pts of the first frame.
        last: where the last one ends.
        keyframe: pts of the first keyframe where the stream begins between two, as a recording may; else None.
    """

    first: int
    last: int
    keyframe: int | None


def extent_of(container: Any, stream: Any, name: str) -> Extent:
    """From all packets, or from those at both ends where the container has an index.

    Raises:
        VideoDecodingError: the file is cut short, or no packet of the stream has a time.
    """
    index = stream.index_entries
    if len(index) and container.size > 0 and index[-1].pos + index[-1].size > container.size:
        raise VideoDecodingError(f"{name} is cut short: its index goes on beyond its {container.size} bytes")
    starts: list[int] = []  # of the first frames
    latest: list[int] = []  # starts of the last two
    last, last_of_all, keyframe, is_late = 0, 0.0, None, False
    for packet in _at_both_ends(container, stream):
        stamp, is_ours = stamp_of(packet, stream), packet.stream_index == stream.index
        if is_ours and keyframe is None:
            keyframe, is_late = (stamp, is_late) if packet.is_keyframe else (None, True)
        if stamp is None:
            continue
        end = stamp + (packet.duration or 0)
        last_of_all = max(last_of_all, end * float(packet.time_base))
        if is_ours:
            last = max(last, end) if starts else end
            latest = sorted({*latest, stamp})[-2:]
            starts += [stamp] * (len(starts) < REORDER_DEPTH)
    if not starts:
        raise VideoDecodingError(f"{name} holds no frame with a time")
    declared = (container.duration or 0) / 1e6 + min(container.start_time or 0, 0) / 1e6
    if container.format.name.startswith((*_INDEXED, "avi")) and last_of_all + 0.5 < declared:
        raise VideoDecodingError(f"{name} is cut short: it ends at {last_of_all:g} of {declared:g} seconds")
    if last == latest[-1]:  # the container says no duration: the last frame's is that of the one before
        usual = round(1 / (stream.guessed_rate * stream.time_base)) if stream.guessed_rate else 1
        last += latest[-1] - latest[0] or usual
    return Extent(min(starts), last, None) if keyframe is None or not is_late else Extent(keyframe, last, keyframe)


def _at_both_ends(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of all streams that are shown; where there is an index, the first and last ones."""
    count, has_keyframe = 0, False
    for packet in container.demux():
        if packet.size and not packet.is_discard:
            yield packet
            if packet.stream_index == stream.index:
                count, has_keyframe = count + 1, has_keyframe or packet.is_keyframe
        if is_indexed(container) and count >= REORDER_DEPTH and has_keyframe:
            container.seek(2**62, stream=stream)
            yield from (packet for packet in container.demux() if packet.size and not packet.is_discard)
            return


def packets_from(container: Any, stream: Any, keyframe: int | None) -> Iterator[Any]:
    """A stream's packets; those that lean on what was before the recording began are left out, as players do."""
    packets = container.demux(stream)
    if keyframe is None:
        return packets
    whole = dropwhile(lambda packet: not packet.is_keyframe, packets)
    return (packet for packet in whole if packet.pts is None or packet.pts >= keyframe)


def is_unordered(stream: Any) -> bool:
    """Whether packets have no pts but made-up ones: AVI stores none, and FFmpeg does not look for these codecs'."""
    return stream.container.format.name == "avi" and stream.codec_context.name in _REORDERED


def stamp_of(packet: Any, stream: Any) -> int | None:
    """When a packet's frame is shown; where nothing says so, when it is decoded: together they are the same times."""
    return packet.dts if packet.stream_index == stream.index and is_unordered(stream) else packet.pts


def is_indexed(container: Any) -> bool:
    """Whether the container has an index that can be relied on."""
    return container.format.name.startswith(_INDEXED)


def keyframe_before(container: Any, stream: Any, target: int) -> float:
    """When the index has the last keyframe that is not later than the target; -inf where there is none."""
    number = stream.index_entries.search_timestamp(target) if is_indexed(container) else -1
    return -math.inf if number < 0 else stream.index_entries[number].timestamp


def packets_from_keyframe(container: Any, stream: Any, target: int, keyframe: int | None) -> Iterator[Any]:
    """Packets from a keyframe that is not later than the target; from the beginning where there is no index."""
    if not is_indexed(container):
        return packets_from(container, stream, keyframe)
    before = target
    for _ in range(4):
        container.seek(before, stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        if first.size and first.pts is not None and first.is_keyframe and first.pts <= target:
            return chain([first], packets)
        before = min(stamp for stamp in (before, first.pts, first.dts) if stamp is not None) - 1
    raise LostError("no keyframe before the target")


def with_following(packets: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Each packet, and the pts that comes after its own in the order of showing."""
    window: deque[Any] = deque()
    past: deque[int] = deque()
    stamps: list[int] = []  # sorted: those of both, without what is never shown

    def oldest() -> tuple[Any, float]:
        packet = window.popleft()
        if not packet.is_discard:
            past.append(packet.pts)
            if len(past) > REORDER_DEPTH:
                del stamps[bisect.bisect_left(stamps, past.popleft())]
        later = bisect.bisect_right(stamps, packet.pts)
        return packet, stamps[later] if later < len(stamps) else math.inf

    for packet in packets:
        if not packet.size:
            continue
        if packet.pts is None or (stamps and not packet.is_discard and packet.pts in stamps):
            raise LostError("a packet has no time of its own")
        if not packet.is_discard:
            bisect.insort(stamps, packet.pts)
        window.append(packet)
        if len(window) > REORDER_DEPTH:
            yield oldest()
    while window:
        yield oldest()
