"""Clips from any source: a video, an animation, a folder of pictures, a picture, or frames in memory.

`read_clip` tells what a source is and takes the frames that `FrameSampling` asks for. Videos go to
`video_streams_mmt`, pictures and animations to `pictures_mmt`. The code travels with a checkpoint,
and PyAV, torchcodec and Pillow are needed only once a source asks for one of them. A frame is 8-bit RGB, upright (a
video's display matrix, a picture's EXIF orientation), on white where it is transparent.

A file's first bytes decide its format, not its name, and only formats that hold their own frames are opened: no
playlist or script, however it is called, makes FFmpeg read another file or an address.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .frames_mmt import Frames, FrameSampling, VideoDecodingError, at_each_time, resized
from .picture_formats_mmt import PICTURE_SUFFIXES
from .pictures_mmt import (
    HEIC_BRANDS,
    is_picture,
    open_picture,
    picture_bytes,
    picture_frames,
    picture_pixels,
)
from .video_streams_mmt import decoder_frames, video_frames

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
            gives it; a dict with "path" or "bytes", as `datasets` gives it undecoded, and with "start" and "end" where
            it is a span of it.
        sampling: how many frames, or how often.
        start: seconds from the first frame at which the clip begins.
        end: seconds from the first frame at which it ends; None means where the video ends.
        max_side: pixels; a frame whose longer side is longer is shrunk to it, as soon as it is decoded. None means as
            it is.
        decoder: "pyav" or "torchcodec" for videos; None takes PyAV where it is installed, else torchcodec.

    Raises:
        VideoDecodingError: the source cannot be read, is damaged or beyond the limits of these modules, or holds no
            frame between `start` and `end`.
        ValueError: an argument has no meaning.
    """
    duration, sampled = clip_frames(source, sampling, start=start, end=end, max_side=max_side, decoder=decoder)
    timestamps, frames = map(list, zip(*sampled, strict=True))
    return Clip(_stacked(frames).permute(0, 3, 1, 2), torch.tensor(timestamps, dtype=torch.float64), duration)


def _stacked(frames: list[Any]) -> torch.Tensor:
    """As `torch.stack`, but each frame is let go as it is copied, so that memory holds all of them once."""
    stack = torch.empty(len(frames), *frames[0].shape, dtype=torch.uint8)
    for number in range(len(frames)):
        stack[number], frames[number] = frames[number], None
    return stack


def clip_frames(
    source: Any,
    sampling: FrameSampling,
    *,
    start: float = 0.0,
    end: float | None = None,
    max_side: int | None = None,
    decoder: str | None = None,
    repeat_held: bool = False,
) -> tuple[float | None, Frames]:
    """As `read_clip`, one frame at a time: for clips that are too long to lie in memory.

    Args:
        source: as in `read_clip`, like the arguments that are not named here.
        sampling: which frames.
        start: seconds.
        end: seconds.
        max_side: pixels.
        decoder: of videos.
        repeat_held: a frame that is shown at several of the times is given again at each of them (the same tensor), so
            that there are as many frames as times; else once. A source without times has nothing to repeat.

    Returns:
        duration: seconds, or None, before anything is decoded.
        frames: the timestamp of each, and its `(H, W, 3)` uint8, as it is decoded; at least one.

    Raises:
        VideoDecodingError: as `read_clip`, at once or on the way.
        ValueError: an argument has no meaning.
    """
    if isinstance(source, Mapping):
        start = start if source.get("start") is None else source["start"]
        end = end if source.get("end") is None else source["end"]
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"start is {start} and end is {end}: give 0 <= start < end, in seconds")
    if max_side is not None and max_side < 1:
        raise ValueError(f"max_side is {max_side}: give a number of pixels, or None")
    if decoder not in (None, "torchcodec", "pyav"):
        raise ValueError(f"decoder is {decoder!r}: give 'torchcodec', 'pyav' or None")
    name = _name(source)
    duration, sampled = _open(source, name, sampling, start, end, decoder)

    def of_one_size() -> Frames:
        first = None
        for timestamp, frame in sampled:
            frame = _shrunk(frame, max_side)
            first = frame.shape if first is None else first
            if frame.shape != first:
                raise VideoDecodingError(
                    f"{name}: the frame at {timestamp:g} has {frame.shape[1]} x {frame.shape[0]} pixels, the first "
                    f"one {first[1]} x {first[0]}; frames of one clip must have one size"
                )
            yield timestamp, frame
        if first is None:
            raise VideoDecodingError(f"{name} holds no frame")

    if repeat_held and duration is not None:
        return duration, at_each_time(of_one_size(), sampling.times(duration))
    return duration, of_one_size()


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview | io.BytesIO):
        return "<bytes>"
    return str(getattr(source, "name", None) or getattr(source, "filename", None) or f"<{type(source).__name__}>")


def _open(
    source: Any, name: str, sampling: FrameSampling, start: float, end: float | None, decoder: str | None
) -> tuple[float | None, Frames]:
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
                source = io.BytesIO(picture_bytes(file, name))
    elif hasattr(source, "read"):
        source.seek(0)
        kind = _kind(source.read(512), name)
        if kind == "picture":
            source = io.BytesIO(picture_bytes(source, name))
    elif is_picture(source):
        return picture_frames(source, name, sampling, start, end)
    elif isinstance(source, list | tuple):
        return None, _listed(source, name, sampling)
    elif hasattr(source, "get_frame_played_at"):
        return decoder_frames(source, name, sampling, start, end)
    elif hasattr(source, "shape"):
        return None, _listed(_array(source, name), name, sampling)
    else:
        raise VideoDecodingError(f"{name} is neither a file, bytes, a picture, nor frames")

    if kind == "picture":
        return picture_frames(open_picture(source, name), name, sampling, start, end)
    return video_frames(source, kind, name, sampling, start, end, decoder)


# --- what a file is


def kind_of_file(path: Path) -> str:
    """Either "picture" (animations are pictures too), or FFmpeg's name of the video format, by a file's first bytes.

    Raises:
        VideoDecodingError: it is neither.
    """
    with path.open("rb") as file:
        return _kind(file.read(512), str(path))


def _kind(head: bytes, name: str) -> str:
    """Either "picture" or FFmpeg's name of the video format, by a file's first bytes."""
    if not head:
        raise VideoDecodingError(f"{name} is empty")
    if (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", *HEIC_BRANDS))
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
        f"{name} is not a supported video or picture: it begins with {head[:8]!r}. Convert it to mp4 or webm"
    )


def _shrunk(frame: torch.Tensor, max_side: int | None) -> torch.Tensor:
    """`(H, W, 3)` uint8 with the longer side at most `max_side`, by bilinear interpolation with antialiasing."""
    height, width, _ = frame.shape
    if max_side is None or max(height, width) <= max_side:
        return frame
    scale = max_side / max(height, width)
    return resized(frame, max(1, round(height * scale)), max(1, round(width * scale)))


# --- pictures, animations, lists


def _folder(path: Path) -> list[Path]:
    def natural(entry: Path) -> list[Any]:
        parts = re.split(r"(\d+)", entry.name.casefold())
        return [int(part) if number % 2 else part for number, part in enumerate(parts)]

    frames = [
        entry
        for entry in path.iterdir()
        if entry.suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".")
    ]
    if not frames:
        raise VideoDecodingError(f"{path} is a folder without a picture ({', '.join(sorted(PICTURE_SUFFIXES))})")
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


def _listed(frames: Sequence[Any] | torch.Tensor, name: str, sampling: FrameSampling) -> Frames:
    """Those of a list of frames that are sampled; the others are not opened."""
    if len(frames) == 0:
        raise VideoDecodingError(f"{name} holds no frame: the list is empty")
    for number in sampling.numbers(len(frames)):
        frame = frames[number]
        if isinstance(frame, str | Path):
            with open(frame, "rb") as file:
                if _kind(file.read(512), str(frame)) != "picture":
                    raise VideoDecodingError(f"{frame} is not a picture: a list of frames holds pictures")
                frame = open_picture(io.BytesIO(picture_bytes(file, str(frame))), str(frame))
        if is_picture(frame):
            yield float(number), picture_pixels(frame, name)
        else:
            yield float(number), _array(frame[None], name)[0]
