"""Frames of a video, an animation, a folder of pictures or one picture, at the times that are asked for.

`read_clip` decodes with torchcodec where it loads, else with PyAV, whose wheel brings FFmpeg; pictures and animations
(GIF, WebP, APNG) are read by Pillow. Its code travels with a checkpoint, and none of the three is needed until a
source asks for it.

Which frame: the one shown at the sampled time, whatever the frame rate does: pts <= time < next pts. A video is
sampled while it is decoded, and no frame is kept that was not asked for, so memory does not grow with its length.
PyAV's path jumps to a keyframe where the container's index has one on the way, leaves out the work for frames that no
other frame needs, and takes the frame whose pts is the right one; where such a shortcut does not find it, everything
is decoded from the start.

What a frame is: 8-bit RGB, upright (rotation and mirroring of the display matrix, EXIF orientation), alpha composited
on `BACKGROUND`, grey as three equal channels; HDR is not tone-mapped, interlaced fields are not separated. The two
decoders give equal bytes for 8-bit video, and differ by up to 3 of 255 where 10 bits are rounded to 8 (measured with
torchcodec 0.12 on FFmpeg 5.1 beside PyAV 18.1). torchcodec knows no alpha and no mirroring, misses frames of MPEG-TS,
takes wrong ones of AVI with B-frames and of H.264 with intra refresh, and hides damage that PyAV reports: where both
are there it is chosen for mp4 and mov without alpha alone.

Files are told by their first bytes, not by their names, and only formats that hold their own frames are opened: no
playlist or script, however it is called, makes FFmpeg read another file or an address.
"""

import bisect
import functools
import io
import math
import re
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]
try:
    from PIL import Image, ImageOps
except ImportError:
    Image = None  # type: ignore[assignment]

BACKGROUND = (255, 255, 255)
"""What transparent pixels are shown on."""
MAX_SIDE = 16_384
MAX_PIXELS = 2**26
"""Of one frame: 8192 x 8192. An 8K video has half of it."""
MAX_PICTURE_BYTES = 2**28
MAX_ANIMATION_PIXELS = 2**33
"""Of an animation: its frames times their pixels, each of which must be decoded to know how long it lasts."""
MAX_THREADS = 8
"""A decoder uses as many threads as torch does (one in a worker of a DataLoader), and at most these."""
NUDGE = 1e-6
"""Seconds. A time so little before a frame's pts counts as its time: both are rounded."""
REORDER_DEPTH = 32
"""Packets to look ahead; no codec lets more than 16 frames wait for an earlier one."""

_DROPPABLE = {"h264", "mpeg4", "mpeg2video", "mpeg1video"}  # codecs that mark frames which no other frame needs
_INDEXED = ("mov", "matroska")  # formats whose index can be relied on
_ALPHA = ("yuva", "rgba", "argb", "bgra", "abgr", "gbrap", "ya8", "ya16", "pal8")
_PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
_ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")
_SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
_MOV_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"uuid"}
_SIGNATURES = {  # FFmpeg's name of the format that a file begins as
    b"\x1aE\xdf\xa3": "matroska",
    b"FLV": "flv",
    b"OggS": "ogg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
    b"DKIF": "ivf",
    b"YUV4MPEG2": "yuv4mpegpipe",
    b"\x06\x0e\x2b\x34": "mxf",
}


class VideoDecodingError(ValueError):
    """A source cannot be read as a clip; says which one, what is wrong, and what to do."""


class Clip(NamedTuple):
    """Frames of one source.

    Attributes:
        frames: `(F, 3, H, W)` uint8 RGB, upright; F is at least 1.
        timestamps: `(F,)` float64, rising: seconds from the clip's start to when each frame began to be shown (0 for
            one that was on when the clip starts). Where the source has no times, the frames' numbers.
        duration: seconds; None where the source has no times (pictures, lists and arrays of frames).
    """

    frames: torch.Tensor
    timestamps: torch.Tensor
    duration: float | None


@dataclass(frozen=True)
class FrameSampling:
    """At which times frames are taken; plain values, which a processor saves in its config.

    Attributes:
        num_frames: a fixed number, at the centres of so many equal parts of the clip.
        frames_per_second: or one frame at (k + 0.5) / frames_per_second for each whole k while that is inside the
            clip. Exactly one of the two is set.
        max_frames: with `frames_per_second`, the most frames; a longer clip gets so many as `num_frames`.

    A frame that is shown at several of the times is taken once. A clip shorter than half a period gives the frame at
    its middle. Lists and arrays of frames have no times: `num_frames` spreads over their numbers in the same way, and
    `frames_per_second` takes them all, up to `max_frames`.

    Raises:
        ValueError: both or none of the two are set, or a value is not positive.
    """

    num_frames: int | None = 8
    frames_per_second: float | None = None
    max_frames: int = 512

    def __post_init__(self) -> None:
        if (self.num_frames is None) == (self.frames_per_second is None):
            raise ValueError(
                f"num_frames is {self.num_frames} and frames_per_second is {self.frames_per_second}: set exactly one, "
                "and the other to None"
            )
        for name in ("num_frames", "frames_per_second", "max_frames"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}: give a positive number")

    def times(self, duration: float) -> list[float]:
        """Seconds from the start of a clip that lasts `duration` seconds, rising."""
        count = self.num_frames
        if self.frames_per_second is not None:
            count = math.ceil(min(duration * self.frames_per_second, 1e12) - 0.5 - 1e-9)
            if 1 <= count <= self.max_frames:
                return [(k + 0.5) / self.frames_per_second for k in range(count)]
            count = min(max(count, 1), self.max_frames)
        assert count is not None
        return [duration * (k + 0.5) / count for k in range(count)]

    def numbers(self, count: int) -> list[int]:
        """Which of `count` frames without times, rising."""
        if self.num_frames is None and count <= self.max_frames:
            return list(range(count))
        wanted = self.num_frames or self.max_frames
        return sorted({int(count * (2 * k + 1) // (2 * wanted)) for k in range(wanted)})


class _Span(NamedTuple):
    """The part of a video that is the clip, in seconds from the video's first frame."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        return self.end - self.start


_Frames = Iterator[tuple[float, torch.Tensor]]  # seconds from the source's first frame, and `(H, W, 3)` uint8


def read_clip(
    source: Any,
    sampling: FrameSampling,
    *,
    start: float = 0.0,
    end: float | None = None,
    max_side: int | None = None,
    decoder: str | None = None,
) -> Clip:
    """Decode the frames of a source that are shown at the sampled times.

    Args:
        source: path of a video, animation, picture or folder of frames (sorted by name, numbers by value); bytes or a
            binary file of such a file; a Pillow image; a list of frames (Pillow images, paths, `(H, W, 3)` arrays); an
            array or tensor `(F, H, W, 3)` or `(F, 3, H, W)` uint8; torchcodec's VideoDecoder, as `datasets.Video`
            gives it; a dict with "path" or "bytes", as `datasets` gives it undecoded.
        sampling: how many frames, or how often.
        start: seconds from the first frame at which the clip begins.
        end: seconds from the first frame at which it ends; None means where the video ends.
        max_side: pixels; a frame whose longer side is longer is shrunk to it, as soon as it is decoded. None means as
            it is.
        decoder: "torchcodec" or "pyav" for videos; None takes torchcodec where it loads, else PyAV.

    Raises:
        VideoDecodingError: the source cannot be read, is damaged or beyond the limits of this module, or holds no
            frame between `start` and `end`.
        ValueError: an argument has no meaning.
    """
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"start is {start} and end is {end}: give 0 <= start < end, in seconds")
    if max_side is not None and max_side < 1:
        raise ValueError(f"max_side is {max_side}: give a number of pixels, or None")
    if decoder not in (None, "torchcodec", "pyav"):
        raise ValueError(f"decoder is {decoder!r}: give 'torchcodec', 'pyav' or None")
    if isinstance(source, Mapping):
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    name = _name(source)
    frames: list[torch.Tensor] = []
    timestamps: list[float] = []
    duration, sampled = _open(source, name, sampling, start, end, decoder)
    for timestamp, frame in sampled:
        frame = _shrunk(frame, max_side)
        if frames and frame.shape != frames[0].shape:
            height, width, _ = frames[0].shape
            raise VideoDecodingError(
                f"{name}: the frame at {timestamp:g} has {frame.shape[1]} x {frame.shape[0]} pixels, the first one "
                f"{width} x {height}; frames of one clip must have one size"
            )
        frames.append(frame)
        timestamps.append(timestamp)
    if not frames:
        raise VideoDecodingError(f"{name} holds no frame")
    stack = torch.stack(frames).permute(0, 3, 1, 2)
    return Clip(stack, torch.tensor(timestamps, dtype=torch.float64), duration)


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview | io.BytesIO):
        return "<bytes>"
    return str(getattr(source, "name", None) or getattr(source, "filename", None) or f"<{type(source).__name__}>")


def _open(
    source: Any, name: str, sampling: FrameSampling, start: float, end: float | None, decoder: str | None
) -> tuple[float | None, _Frames]:
    """The duration of the clip, and its sampled frames as they are decoded."""
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return None, _listed(_folder(path), name, sampling)
        if not path.is_file():
            raise VideoDecodingError(f"{name}: no such file")
        with path.open("rb") as file:
            kind = _kind(file.read(512), name)
            source = path
            if kind == "picture":
                source = io.BytesIO(_picture_bytes(file, name))
    elif hasattr(source, "read"):
        source.seek(0)
        kind = _kind(source.read(512), name)
        if kind == "picture":
            source = io.BytesIO(_picture_bytes(source, name))
    elif Image is not None and isinstance(source, Image.Image):
        return _pictures(source, name, sampling, start, end)
    elif isinstance(source, list | tuple):
        return None, _listed(source, name, sampling)
    elif hasattr(source, "get_frame_played_at"):
        return _torchcodec(source, name, sampling, start, end)
    elif hasattr(source, "shape"):
        return None, _listed(_array(source, name), name, sampling)
    else:
        raise VideoDecodingError(f"{name} is neither a file, bytes, a picture, nor frames")

    if kind == "picture":
        return _pictures(_pillow(source, name), name, sampling, start, end)
    suits = decoder == "torchcodec" or av is None or kind == "mov"
    module = _torchcodec_module() if decoder != "pyav" and suits else None
    if module is None and decoder == "torchcodec":
        raise VideoDecodingError(
            f"{name}: torchcodec does not load. Install a version that fits this torch, and FFmpeg's libraries, or "
            "leave decoder at None"
        )
    if module is not None:
        if not isinstance(source, Path):
            source.seek(0)
        try:
            video = module.VideoDecoder(
                f"file:{source}" if isinstance(source, Path) else source,
                dimension_order="NHWC",
                num_ffmpeg_threads=_threads(),
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise VideoDecodingError(f"{name} cannot be read as a video: {_first_line(error)}") from error
        has_alpha = str(getattr(video.metadata, "pixel_format", "")).startswith(_ALPHA)
        if decoder == "torchcodec" or av is None or not has_alpha:
            return _torchcodec(video, name, sampling, start, end)
    if av is None:
        raise VideoDecodingError(f"{name} is a video, and no decoder is installed: pip install av, or torchcodec")
    return _pyav(source, kind, name, sampling, start, end)


# --- what a file is


def _kind(head: bytes, name: str) -> str:
    """Either "picture" or FFmpeg's name of the video format, by a file's first bytes."""
    if not head:
        raise VideoDecodingError(f"{name} is empty")
    if (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1", b"heic"))
        or re.match(rb"P[1-6]\s", head)
    ):
        return "picture"
    if head[4:8] in _MOV_BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[0:1] == head[188:189] == b"G" or head[4:5] == head[196:197] == b"G":
        return "mpegts"
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    raise VideoDecodingError(
        f"{name} is no video or picture that is read here: it begins with {head[:8]!r}. Convert it to mp4 or webm"
    )


def _check_size(width: int, height: int, name: str) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise VideoDecodingError(
            f"{name} declares frames of {width} x {height} pixels; the limits are {MAX_SIDE} a side and {MAX_PIXELS} "
            "in all. Shrink it first"
        )


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or error).strip()
    return (text or type(error).__name__).splitlines()[0]


def _threads() -> int:
    return min(torch.get_num_threads(), MAX_THREADS)


def _span(start: float, end: float | None, duration: float, name: str) -> _Span:
    if start > 0 and start >= duration:
        raise VideoDecodingError(f"{name} lasts {duration:g} seconds: nothing at {start:g}")
    return _Span(start, duration if end is None else min(end, duration))


def _shrunk(frame: torch.Tensor, max_side: int | None) -> torch.Tensor:
    """`(H, W, 3)` uint8 with the longer side at most `max_side`, by bilinear interpolation with antialiasing."""
    height, width, _ = frame.shape
    if max_side is None or max(height, width) <= max_side:
        return frame
    scale = max_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shrunk = torch.nn.functional.interpolate(frame.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)
    return shrunk[0].permute(1, 2, 0)


def _on_background(pixels: torch.Tensor) -> torch.Tensor:
    """`(H, W, 4)` uint8 RGBA to `(H, W, 3)` on `BACKGROUND`, rounded."""
    alpha = pixels[..., 3:].float() / 255
    return (pixels[..., :3] * alpha + torch.tensor(BACKGROUND) * (1 - alpha)).round().to(torch.uint8)


# --- pictures, animations, lists


def _folder(path: Path) -> list[Path]:
    def natural(entry: Path) -> list[Any]:
        parts = re.split(r"(\d+)", entry.name.casefold())
        return [int(part) if number % 2 else part for number, part in enumerate(parts)]

    frames = [
        entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES and not entry.name.startswith(".")
    ]
    if not frames:
        raise VideoDecodingError(f"{path} is a folder without a picture ({', '.join(sorted(_SUFFIXES))})")
    return sorted(frames, key=natural)


def _array(source: Any, name: str) -> torch.Tensor:
    frames = (
        torch.tensor(source) if hasattr(source, "flags") and not source.flags.writeable else torch.as_tensor(source)
    )
    if frames.ndim == 4 and frames.shape[-1] != 3 and frames.shape[1] == 3:
        frames = frames.permute(0, 2, 3, 1)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or not frames.numel():
        raise VideoDecodingError(
            f"{name} of {frames.dtype} has the shape {tuple(frames.shape)}: give uint8 frames as (F, H, W, 3) or "
            "(F, 3, H, W)"
        )
    return frames.cpu()


def _listed(frames: Sequence[Any] | torch.Tensor, name: str, sampling: FrameSampling) -> _Frames:
    """Those of a list of frames that are sampled; the others are not opened."""
    if len(frames) == 0:
        raise VideoDecodingError(f"{name} holds no frame: the list is empty")
    for number in sampling.numbers(len(frames)):
        frame = frames[number]
        if isinstance(frame, str | Path):
            with open(frame, "rb") as file:
                if _kind(file.read(512), str(frame)) != "picture":
                    raise VideoDecodingError(f"{frame} is not a picture: a list of frames holds pictures")
                frame = _pillow(io.BytesIO(_picture_bytes(file, str(frame))), str(frame))
        if Image is not None and isinstance(frame, Image.Image):
            yield float(number), _pixels(frame, name)
        else:
            yield float(number), _array(frame[None], name)[0]


def _picture_bytes(file: Any, name: str) -> bytes:
    file.seek(0)
    content = file.read(MAX_PICTURE_BYTES + 1)
    if len(content) > MAX_PICTURE_BYTES:
        raise VideoDecodingError(f"{name} is a picture of more than {MAX_PICTURE_BYTES} bytes. Shrink it first")
    return content


def _pillow(file: io.BytesIO, name: str) -> Any:
    if Image is None:
        raise VideoDecodingError(f"{name} is a picture, and Pillow is not installed: pip install pillow")
    Image.init()
    try:
        return Image.open(file, formats=[one for one in _PICTURES if one in Image.OPEN])  # AVIF: from Pillow 11.3
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoDecodingError(f"{name} cannot be read as a picture: {_first_line(error)}") from error


def _pixels(image: Any, name: str) -> torch.Tensor:
    """`(H, W, 3)` uint8 of the frame that a Pillow image is at."""
    _check_size(image.width, image.height, name)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
            image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        has_alpha = image.has_transparency_data
        image = image.convert("RGBA" if has_alpha else "RGB")
        width, height = image.size
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, -1)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise VideoDecodingError(f"{name} cannot be decoded: {_first_line(error)}") from error
    return _on_background(pixels) if has_alpha else pixels


def _pictures(
    image: Any, name: str, sampling: FrameSampling, start: float, end: float | None
) -> tuple[float | None, _Frames]:
    """A picture, or an animation by the times that its frames are shown for."""
    _check_size(image.width, image.height, name)
    first = int(bool(image.info.get("default_image")))  # of an APNG: what is shown where APNG is not understood
    count = getattr(image, "n_frames", 1) if image.format in _ANIMATIONS else 1
    if count - first < 2:
        return None, iter([(0.0, _pixels(image, name))])
    if count * image.width * image.height > MAX_ANIMATION_PIXELS:
        raise VideoDecodingError(
            f"{name} declares {count} frames of {image.width} x {image.height} pixels; the limit is "
            f"{MAX_ANIMATION_PIXELS} in all. Convert it to mp4 or webm"
        )
    begins, now = [], 0.0
    for number in range(first, count):
        _go_to(image, number, name)
        begins.append(now)
        now += (image.info.get("duration") or 100) / 1000  # browsers give a frame without a duration 100 ms
    span = _span(start, end, now, name)
    times = [span.start + time for time in sampling.times(span.duration)]
    numbers = sorted({bisect.bisect_right(begins, time + NUDGE) - 1 for time in times})

    def sampled() -> _Frames:
        for number in range(numbers[-1] + 1):
            _go_to(image, first + number, name)
            if number in numbers:
                yield max(begins[number] - span.start, 0.0), _pixels(image, name)

    return span.duration, sampled()


def _go_to(image: Any, number: int, name: str) -> None:
    try:
        image.seek(number)
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise VideoDecodingError(f"{name}, frame {number}: cannot be decoded: {_first_line(error)}") from error


# --- torchcodec


@functools.cache
def _torchcodec_module() -> Any:
    """`torchcodec.decoders`, or None where it is not installed, or FFmpeg's libraries do not fit it."""
    try:
        from torchcodec import decoders
    except (ImportError, OSError, RuntimeError):
        return None
    return decoders


def _torchcodec(
    video: Any, name: str, sampling: FrameSampling, start: float, end: float | None
) -> tuple[float, _Frames]:
    begin = video.metadata.begin_stream_seconds
    _check_size(video.metadata.width, video.metadata.height, name)
    span = _span(start, end, video.metadata.end_stream_seconds - begin, name)

    def sampled() -> _Frames:
        last = None
        for time in sampling.times(span.duration):
            try:
                frame = video.get_frame_played_at(begin + span.start + time + NUDGE)
            except (RuntimeError, ValueError, IndexError) as error:
                raise VideoDecodingError(f"{name} cannot be decoded: {_first_line(error)}") from error
            if frame.pts_seconds != last:
                last = frame.pts_seconds
                pixels = frame.data if frame.data.shape[-1] == 3 else frame.data.permute(1, 2, 0)
                yield max(last - begin - span.start, 0.0), pixels

    return span.duration, sampled()


# --- PyAV


class _LostError(Exception):
    """A shortcut did not lead to the frame."""


def _pyav(
    source: Any, kind: str, name: str, sampling: FrameSampling, start: float, end: float | None
) -> tuple[float, _Frames]:
    def opened() -> Any:
        if not isinstance(source, Path):
            source.seek(0)
        file = f"file:{source}" if isinstance(source, Path) else source
        return av.open(file, format=kind, options={"max_pixels": str(MAX_PIXELS)}, metadata_errors="replace")

    try:
        container = opened()
        stream = _video_stream(container, name)
        first, last = _extent(container, stream, name)
        base = float(stream.time_base)
    except (av.FFmpegError, ValueError) as error:
        raise _failure(error, name, "cannot be read as a video") from error
    span = _span(start, end, (last - first) * base, name)
    times = sampling.times(span.duration)
    targets = sorted({first + math.floor((span.start + time + NUDGE) / base) for time in times})

    def sampled() -> _Frames:
        ready = [container] if _is_indexed(container) else []  # it can go back
        try:
            for way in (_by_shortcuts, _one_by_one):  # the second finds what the first left in `targets`
                with ready.pop() if ready else opened() as video:
                    stream = _video_stream(video, name)
                    try:
                        for frame in way(video, stream, _codec(stream), targets):
                            if frame.is_corrupt:
                                raise VideoDecodingError(
                                    f"{name} is damaged at {(frame.pts - first) * base:g} seconds"
                                )
                            yield max((frame.pts - first) * base - span.start, 0.0), _rgb(frame, name)
                    except (_LostError, av.FFmpegError):
                        if way is _one_by_one:
                            raise
                if not targets:
                    return
        except (av.FFmpegError, _LostError, ValueError) as error:
            raise _failure(error, name, "cannot be decoded") from error

    return span.duration, sampled()


def _failure(error: Exception, name: str, what: str) -> VideoDecodingError:
    if isinstance(error, VideoDecodingError):
        return error
    return VideoDecodingError(f"{name} {what}: {_first_line(error)}. It may be damaged or cut short: fetch it again")


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
    _check_size(stream.codec_context.width, stream.codec_context.height, name)
    return stream


def _codec(stream: Any) -> Any:
    """The decoder, not yet opened; one that knows alpha where the stream says that it has it."""
    codec = stream.codec_context
    knows_alpha = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(codec.name)
    if stream.metadata.get("alpha_mode") == "1" and knows_alpha in av.codecs_available:
        codec = av.CodecContext.create(knows_alpha, "r")
    codec.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
    codec.thread_type, codec.thread_count = "AUTO", _threads()
    return codec


def _extent(container: Any, stream: Any, name: str) -> tuple[int, int]:
    """The pts of the first frame, and where the last one ends, from the packets; of those at both ends if indexed."""
    index = stream.index_entries
    if len(index) and container.size > 0 and index[-1].pos + index[-1].size > container.size:
        raise VideoDecodingError(f"{name} is cut short: its index goes on beyond its {container.size} bytes")
    packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
    stamps = [packet.pts for packet in islice(packets, REORDER_DEPTH) if packet.pts is not None]
    if not stamps:
        raise VideoDecodingError(f"{name} holds no frame with a time")
    first, last, last_of_all = min(stamps), max(stamps), 0.0
    if _is_indexed(container):
        container.seek(2**62, stream=stream)
    for packet in container.demux():
        if packet.size and packet.pts is not None and not packet.is_discard:
            until = packet.pts + (packet.duration or 0)
            last_of_all = max(last_of_all, until * float(packet.time_base))
            if packet.stream_index == stream.index:
                last = max(last, until)
    declared = (container.duration or 0) / 1e6 + min(container.start_time or 0, 0) / 1e6
    if container.format.name.startswith((*_INDEXED, "avi")) and last_of_all + 0.5 < declared:
        raise VideoDecodingError(f"{name} is cut short: it ends at {last_of_all:g} of {declared:g} seconds")
    return first, last


def _is_indexed(container: Any) -> bool:
    return container.format.name.startswith(_INDEXED)


def _one_by_one(container: Any, stream: Any, codec: Any, targets: list[int]) -> Iterator[Any]:
    """The frame shown at each of the rising `targets`, which are taken off as they are found; decodes everything."""
    shown = None
    for packet in container.demux(stream):
        for frame in codec.decode(packet):
            if frame.pts is None:
                raise _LostError("a frame has no time")
            if shown is not None and targets and targets[0] < frame.pts:
                del targets[: bisect.bisect_left(targets, frame.pts)]
                yield shown
            if not targets:
                return
            shown = frame
    if shown is None:
        raise _LostError("no frame comes out")
    targets.clear()
    yield shown


def _by_shortcuts(container: Any, stream: Any, codec: Any, targets: list[int]) -> Iterator[Any]:
    """As `_one_by_one`, from one keyframe to the next that pays, without the frames that no other one needs.

    The packets tell which frames are shown at the targets. After the last of them before a keyframe that lies ahead,
    the decoder gives what it still holds and begins anew there.

    Raises:
        _LostError: a packet has no time, a jump went wrong, or a frame did not come.
        av.FFmpegError: the decoder refuses a packet; after a jump into an open GOP of H.264 it misses references.
    """
    droppable = codec.name in _DROPPABLE
    waiting: dict[int, int] = {}  # pts of a frame in the decoder -> how many targets it is for
    ahead = list(targets)  # targets whose packet was not met yet

    def found(frames: list[Any]) -> Iterator[Any]:
        for frame in frames:
            if frame.pts in waiting:
                if frame.pts != min(waiting) or (ahead and ahead[0] < frame.pts):
                    raise _LostError("a frame did not come")
                del targets[: waiting.pop(frame.pts)]
                yield frame

    delay = 0
    while ahead:
        for packet, following in _with_following(_from_keyframe(container, stream, ahead[0])):
            low, high = bisect.bisect_left(ahead, packet.pts), bisect.bisect_left(ahead, following)
            if is_shown := low < high and not packet.is_discard:
                waiting[packet.pts] = high - low
                del ahead[low:high]
            if droppable:
                codec.skip_frame = "DEFAULT" if is_shown else "NONREF"
            yield from found(codec.decode(packet))
            if packet.is_keyframe and packet.dts is not None:
                delay = packet.pts - packet.dts  # mp4's index counts in dts
            if is_shown and (not ahead or _keyframe(container, stream, ahead[0] - delay) > packet.pts):
                break
        else:
            if ahead:
                raise _LostError("the packets end before the last target")
        yield from found(codec.decode(None))
        if waiting:
            raise _LostError("a frame did not come")
        codec.flush_buffers()


def _keyframe(container: Any, stream: Any, target: int) -> float:
    """When the index has the last keyframe that is not later than the target; -inf where there is none."""
    number = stream.index_entries.search_timestamp(target) if _is_indexed(container) else -1
    return -math.inf if number < 0 else stream.index_entries[number].timestamp


def _from_keyframe(container: Any, stream: Any, target: int) -> Iterator[Any]:
    """Packets from a keyframe that is not later than the target; from the beginning where there is no index."""
    if not _is_indexed(container):
        return container.demux(stream)
    before = target
    for _ in range(4):
        container.seek(before, stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        if first.size and first.pts is not None and first.is_keyframe and first.pts <= target:
            return chain([first], packets)
        before = min(stamp for stamp in (before, first.pts, first.dts) if stamp is not None) - 1
    raise _LostError("no keyframe before the target")


def _with_following(packets: Iterator[Any]) -> Iterator[tuple[Any, float]]:
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
        if packet.pts is None:
            raise _LostError("a packet has no time")
        if not packet.is_discard:
            bisect.insort(stamps, packet.pts)
        window.append(packet)
        if len(window) > REORDER_DEPTH:
            yield oldest()
    while window:
        yield oldest()


def _rgb(frame: Any, name: str) -> torch.Tensor:
    """`(H, W, 3)` uint8, upright."""
    _check_size(frame.width, frame.height, name)
    has_alpha = frame.format.name.startswith(_ALPHA)
    channels = 4 if has_alpha else 3
    rgb = frame.reformat(format="rgba" if has_alpha else "rgb24", threads=1)
    plane = rgb.planes[0]
    pixels = torch.frombuffer(plane, dtype=torch.uint8).view(rgb.height, plane.line_size)
    pixels = pixels[:, : rgb.width * channels].unflatten(1, (rgb.width, channels))
    return _upright(_on_background(pixels) if has_alpha else pixels, frame)


def _upright(pixels: torch.Tensor, frame: Any) -> torch.Tensor:
    """Turned and mirrored as the display matrix says: (x, y) is shown at (a x + c y, b x + d y)."""
    for data in frame.side_data:
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
