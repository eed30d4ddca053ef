"""Frames of a video file at given times, with PyAV, whose wheel includes FFmpeg, or torchcodec.

Which frame: the one shown at the sampled time, whatever the frame rate does: pts <= time < next pts. A video is
sampled while it is decoded, and no frame is kept that was not asked for, so memory does not grow with its length.
PyAV's path jumps to a keyframe where the container's index has one on the way, leaves out the work for frames that no
other frame needs, and takes the frame whose pts is the right one; where such a shortcut does not find it, everything
is decoded from the start.

What a frame is: 8-bit RGB, upright (rotation and mirroring of the display matrix), alpha composited on `BACKGROUND`,
grey as three equal channels, with square pixels (as browsers show it; FFmpeg's own frames are as they are stored); HDR
is not tone-mapped, interlaced fields are not separated.

Where FFmpeg's frames and players differ: a recording that begins between two keyframes begins with the first one, and
what leans on the frames before it is left out; frames of H.264 in AVI, which stores no times, follow one another in
the decoder's order; a frame without a time, or with that of an earlier one, begins where the one before ends.

Memory: a decoder may hold as many frames as its codec allows, which must fit into `MAX_DECODER_BYTES`.

Why PyAV comes first where both are installed: torchcodec takes wrong frames of H.264 with intra refresh in mp4 (up to
5 frames off) and of AVI with B-frames, misses frames of MPEG-TS, knows no alpha and no mirroring, and hides damage
that PyAV reports. Elsewhere the two give equal bytes for 8-bit video, and differ by up to 3 of 255 where 10 bits are
rounded to 8. Measured with torchcodec 0.12 on FFmpeg 5.1 beside PyAV 18.1; `make test-system` measures it again.
"""

import bisect
import functools
import math
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .frames_mmt import (
    MAX_PIXELS,
    NUDGE,
    Frames,
    FrameSampling,
    VideoDecodingError,
    check_size,
    first_line,
    on_background,
    span_of,
    with_square_pixels,
)
from .video_packets_mmt import (
    LostError,
    extent_of,
    is_indexed,
    is_unordered,
    keyframe_before,
    packets_from,
    packets_from_keyframe,
    with_following,
)

try:
    import av
    from av.sidedata.sidedata import SideDataContainer
except ImportError:
    av = None  # type: ignore[assignment]

MAX_THREADS = 8
"""A decoder uses as many threads as torch does (one in a worker of a DataLoader), and at most these."""
MAX_DECODER_BYTES = 2**30
"""Of the frames that a decoder holds at once, whatever a file makes it hold: those that later ones refer to, and one
for each of its threads. H.264 and HEVC of 7680 x 4320 with 8 bits fit, AV1 and VP9 also with 10. H.264's own tables
add a third to it."""
_HELD_FRAMES = {"h264": 17, "hevc": 17, "vvc": 17, "av1": 9, "libdav1d": 9, "vp9": 9, "libvpx-vp9": 9}
"""References at most, and the frame at work; 4 for all other codecs."""
_DROPPABLE = {"h264", "mpeg4", "mpeg2video", "mpeg1video"}  # codecs that mark frames which no other frame needs
_ALPHA = ("yuva", "rgba", "argb", "bgra", "abgr", "gbrap", "ya8", "ya16", "pal8")


def video_frames(
    source: Any,
    kind: str,
    name: str,
    sampling: FrameSampling,
    start: float = 0.0,
    end: float | None = None,
    decoder: str | None = None,
) -> tuple[float, Frames]:
    """The duration of a clip in seconds, and its sampled frames as they are decoded.

    Args:
        source: path, or a binary file.
        kind: FFmpeg's name of the container's format; no other one is tried.
        name: of the source, for messages.
        sampling: how many frames, or how often.
        start: seconds from the first frame at which the clip begins.
        end: seconds from the first frame at which it ends; None means where the video ends.
        decoder: "pyav" or "torchcodec"; None takes PyAV where it is installed, else torchcodec.

    Raises:
        VideoDecodingError: the source cannot be read, is damaged or beyond the limits of this module; or the decoder
            is not there.
    """
    decoder = decoder or ("torchcodec" if av is None else "pyav")
    if decoder == "torchcodec" and _torchcodec_module() is not None:
        return decoder_frames(_torchcodec_decoder(source, name), name, sampling, start, end)
    if av is None:
        raise VideoDecodingError(f"{name} is a video, and no decoder is installed: pip install av, or torchcodec")
    if decoder == "torchcodec":
        raise VideoDecodingError(
            f"{name}: torchcodec does not load. Install a version that fits this torch, and FFmpeg's libraries, or "
            "leave decoder at None"
        )
    return _pyav_frames(source, kind, name, sampling, start, end)


def _threads() -> int:
    return min(torch.get_num_threads(), MAX_THREADS)


# --- torchcodec


@functools.cache
def _torchcodec_module() -> Any:
    """`torchcodec.decoders`, or None where it is not installed, or FFmpeg's libraries do not fit it."""
    try:
        from torchcodec import decoders
    except (ImportError, OSError, RuntimeError):
        return None
    return decoders


def _torchcodec_decoder(source: Any, name: str) -> Any:
    if not isinstance(source, Path):
        source.seek(0)
    try:
        return _torchcodec_module().VideoDecoder(
            f"file:{source}" if isinstance(source, Path) else source,
            dimension_order="NHWC",
            num_ffmpeg_threads=_threads(),
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise VideoDecodingError(f"{name} cannot be read as a video: {first_line(error)}") from error


def decoder_frames(
    video: Any, name: str, sampling: FrameSampling, start: float, end: float | None
) -> tuple[float, Frames]:
    """As `video_frames`, of a `VideoDecoder` of torchcodec."""
    begin = video.metadata.begin_stream_seconds
    check_size(video.metadata.width, video.metadata.height, name)
    span = span_of(start, end, video.metadata.end_stream_seconds - begin, name)
    aspect = getattr(video.metadata, "pixel_aspect_ratio", None)  # of the pixels before they are turned upright
    if aspect and round(getattr(video.metadata, "rotation", None) or 0) % 180:
        aspect = 1 / aspect

    def sampled() -> Frames:
        last = None
        for time in sampling.times(span.duration):
            try:
                frame = video.get_frame_played_at(begin + span.start + time + NUDGE)
            except (RuntimeError, ValueError, IndexError) as error:
                raise VideoDecodingError(f"{name} cannot be decoded: {first_line(error)}") from error
            if frame.pts_seconds != last:
                last = frame.pts_seconds
                pixels = frame.data if frame.data.shape[-1] == 3 else frame.data.permute(1, 2, 0)
                pixels = with_square_pixels(pixels, aspect, name)
                yield max(last - begin - span.start, 0.0), pixels

    return span.duration, sampled()


# --- PyAV


def _pyav_frames(
    source: Any, kind: str, name: str, sampling: FrameSampling, start: float, end: float | None
) -> tuple[float, Frames]:
    def opened() -> Any:
        if not isinstance(source, Path):
            source.seek(0)
        file = f"file:{source}" if isinstance(source, Path) else source
        return av.open(file, format=kind, options={"max_pixels": str(MAX_PIXELS)}, metadata_errors="replace")

    try:
        container = opened()
        stream = _video_stream(container, name)
        first, last, keyframe = extent_of(container, stream, name)
        base = float(stream.time_base)
    except (av.FFmpegError, ValueError) as error:
        raise _failure(error, name, "cannot be read as a video") from error
    span = span_of(start, end, (last - first) * base, name)
    times = sampling.times(span.duration)
    targets = sorted({first + math.floor((span.start + time + NUDGE) / base) for time in times})

    def sampled() -> Frames:
        ready = [container] if is_indexed(container) else []  # it can go back
        given = None  # pts of the last frame, which the second way may come upon again
        try:
            for decode in (_by_shortcuts, _one_by_one):  # the second finds what the first left in `targets`
                with ready.pop() if ready else opened() as video:
                    stream = _video_stream(video, name)
                    try:
                        for frame in decode(video, stream, _codec(stream), targets, keyframe):
                            if frame.is_corrupt:
                                raise VideoDecodingError(
                                    f"{name} is damaged at {(frame.pts - first) * base:g} seconds"
                                )
                            if given is not None and frame.pts <= given:
                                continue
                            given = frame.pts
                            yield max((frame.pts - first) * base - span.start, 0.0), _rgb(frame, stream, name)
                    except (LostError, av.FFmpegError):
                        if decode is _one_by_one:
                            raise
                if not targets:
                    return
        except (av.FFmpegError, LostError, ValueError) as error:
            raise _failure(error, name, "cannot be decoded") from error

    return span.duration, sampled()


def _failure(error: Exception, name: str, what: str) -> VideoDecodingError:
    if isinstance(error, VideoDecodingError):
        return error
    return VideoDecodingError(f"{name} {what}: {first_line(error)}. It may be damaged or cut short: fetch it again")


def _video_stream(container: Any, name: str) -> Any:
    """The best video stream; its size is within the limits."""
    streams = [one for one in container.streams.video if not one.disposition & av.stream.Disposition.attached_pic]
    best = container.streams.best("video")
    if not streams:
        kinds = ", ".join(sorted({one.type for one in container.streams})) or "no stream"
        raise VideoDecodingError(f"{name} has no video stream, only: {kinds}")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoDecodingError(f"{name} is in a codec that this FFmpeg does not know")
    check_size(stream.codec_context.width, stream.codec_context.height, name, _within_memory(stream.codec_context)[0])
    return stream


def _codec(stream: Any) -> Any:
    """The decoder, not yet opened; one that knows alpha where the stream says that it has it."""
    codec = stream.codec_context
    knows_alpha = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(codec.name)
    if stream.metadata.get("alpha_mode") == "1" and knows_alpha in av.codecs_available:
        codec = av.CodecContext.create(knows_alpha, "r")
    max_pixels, threads = _within_memory(stream.codec_context)
    codec.options = {"max_pixels": str(max_pixels), "err_detect": "explode"}
    codec.thread_type, codec.thread_count = "AUTO", threads
    return codec


def _within_memory(codec: Any) -> tuple[int, int]:
    """The most pixels that a frame may have, and how many threads a decoder may have at the declared size."""
    bits = 12 if codec.pix_fmt is None else av.VideoFormat(codec.pix_fmt).padded_bits_per_pixel
    num_held = _HELD_FRAMES.get(codec.name, 4)
    total = MAX_DECODER_BYTES * 8 // bits  # pixels of all frames
    spare = total // max(codec.width * codec.height, 1) - num_held
    return min(MAX_PIXELS, total // num_held), max(1, min(spare + 1, torch.get_num_threads(), MAX_THREADS))


def _frames(container: Any, stream: Any, codec: Any, keyframe: int | None) -> Iterator[Any]:
    """All frames in the order of showing, which is the decoder's, with rising pts.

    A frame without a pts, or with one that is not later than the one before, begins where that one ends: program
    streams have a pts for some frames alone.
    """
    waiting: deque[int] = deque()  # times, in the order of decoding, of an unordered stream
    before = None
    for packet in packets_from(container, stream, keyframe):
        if is_unordered(stream) and packet.size:
            waiting.append(packet.dts)
        for frame in codec.decode(packet):
            if is_unordered(stream):
                frame.pts = waiting.popleft() if waiting else None
            elif before is not None and (frame.pts is None or frame.pts <= before.pts):
                frame.pts = before.pts + (before.duration or 1)
            if frame.pts is None:
                raise LostError("a frame has no time")
            yield frame
            before = frame


def _one_by_one(container: Any, stream: Any, codec: Any, targets: list[int], keyframe: int | None) -> Iterator[Any]:
    """The frame shown at each of the rising `targets`, which are taken off as they are found; decodes everything."""
    shown = None
    for frame in _frames(container, stream, codec, keyframe):
        if shown is not None and targets and targets[0] < frame.pts:
            del targets[: bisect.bisect_left(targets, frame.pts)]
            yield shown
        if not targets:
            return
        shown = frame
    if shown is None:
        raise LostError("no frame comes out")
    targets.clear()
    yield shown


def _by_shortcuts(container: Any, stream: Any, codec: Any, targets: list[int], keyframe: int | None) -> Iterator[Any]:
    """As `_one_by_one`, from one keyframe to the next that pays, without the frames that no other one needs.

    The packets tell which frames are shown at the targets. After the last of them before a keyframe that lies ahead,
    the decoder gives what it still holds and begins anew there.

    Raises:
        LostError: a packet has no time of its own, a jump went wrong, or a frame did not come.
        av.FFmpegError: the decoder refuses a packet; after a jump into an open GOP of H.264 it misses references.
    """
    if is_unordered(stream):
        raise LostError("no packet has a time of its own")
    droppable = codec.name in _DROPPABLE
    waiting: dict[int, int] = {}  # pts of a frame in the decoder -> how many targets it is for
    ahead = list(targets)  # targets whose packet was not met yet

    def reached_frames(frames: list[Any]) -> Iterator[Any]:
        for frame in frames:
            if frame.pts in waiting:
                if frame.pts != min(waiting) or (ahead and ahead[0] < frame.pts):
                    raise LostError("a frame did not come")
                del targets[: waiting.pop(frame.pts)]
                yield frame

    delay = 0
    while ahead:
        for packet, following in with_following(packets_from_keyframe(container, stream, ahead[0], keyframe)):
            low, high = bisect.bisect_left(ahead, packet.pts), bisect.bisect_left(ahead, following)
            if is_shown := low < high and not packet.is_discard:
                waiting[packet.pts] = high - low
                del ahead[low:high]
            if droppable:
                codec.skip_frame = "DEFAULT" if is_shown else "NONREF"
            yield from reached_frames(codec.decode(packet))
            if packet.is_keyframe and packet.dts is not None:
                delay = packet.pts - packet.dts  # mp4's index counts in dts
            if is_shown and (not ahead or keyframe_before(container, stream, ahead[0] - delay) > packet.pts):
                break
        else:
            if ahead:
                raise LostError("the packets end before the last target")
        yield from reached_frames(codec.decode(None))
        if waiting:
            raise LostError("a frame did not come")
        codec.flush_buffers()


def _rgb(frame: Any, stream: Any, name: str) -> torch.Tensor:
    """`(H, W, 3)` uint8, upright and of square pixels."""
    check_size(frame.width, frame.height, name)
    has_alpha = frame.format.name.startswith(_ALPHA)
    channels = 4 if has_alpha else 3
    rgb = frame.reformat(format="rgba" if has_alpha else "rgb24", threads=1)
    plane = rgb.planes[0]
    pixels = torch.frombuffer(plane, dtype=torch.uint8).view(rgb.height, plane.line_size)
    pixels = pixels[:, : rgb.width * channels].unflatten(1, (rgb.width, channels))
    pixels = on_background(pixels) if has_alpha else pixels
    return _upright(with_square_pixels(pixels, stream.sample_aspect_ratio, name), frame)


def _upright(pixels: torch.Tensor, frame: Any) -> torch.Tensor:
    """Turned and mirrored as the display matrix says: (x, y) is shown at (a x + c y, b x + d y)."""
    # `frame.side_data` is a cycle, which would hold the frame until the garbage collector runs
    for data in SideDataContainer(frame):  # type: ignore[call-arg]
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            flips = []
            if abs(b) > abs(a):
                pixels, a, d = pixels.transpose(0, 1), c, b
            if a < 0:
                flips.append(1)
            if d < 0:
                flips.append(0)
            pixels = pixels.flip(flips)
    return pixels
