"""When frames are taken from a clip: the rules that all readers of videos and pictures share.

A frame is 8-bit RGB, upright, on `BACKGROUND` where it is transparent, and no larger than `MAX_SIDE` and `MAX_PIXELS`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

BACKGROUND = (255, 255, 255)
"""What transparent pixels are shown on."""
MAX_SIDE = 16_384
MAX_PIXELS = 2**26
"""Of one frame: 8192 x 8192. An 8K video has half of it."""
BAND_PIXELS = 2**20
"""What is worked on at a time, where the work needs many times the memory of the pixels."""
NUDGE = 1e-6
"""Seconds. A time so little before a frame's pts counts as its time: both are rounded."""

Frames = Iterator[tuple[float, torch.Tensor]]
"""Seconds from the clip's start to when a frame began to be shown, and its `(H, W, 3)` uint8."""


class VideoDecodingError(ValueError):
    """A source cannot be read as a clip; says which one, what is wrong, and what to do."""


@dataclass(frozen=True)
class FrameSampling:
    """At which times frames are taken; plain values, which a processor saves in its config.

    Attributes:
        num_frames: a fixed number, at the centres of that many equal parts of the clip.
        frames_per_second: or one frame at (k + 0.5) / frames_per_second for each whole k while that is inside the
            clip. Exactly one of the two is set.
        max_frames: with `frames_per_second`, the most frames; a longer clip gets that many, spread evenly.

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


class Span(NamedTuple):
    """The part of a video that is the clip, in seconds from the video's first frame."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


def span_of(start: float, end: float | None, duration: float, name: str) -> Span:
    """The part of a video of `duration` seconds that is the clip.

    Raises:
        VideoDecodingError: the video ends before `start`.
    """
    if start > 0 and start >= duration:
        raise VideoDecodingError(f"{name} lasts {duration:g} seconds, so there is nothing at {start:g}")
    return Span(start, duration if end is None else min(end, duration))


def at_each_time(frames: Frames, times: Sequence[float]) -> Frames:
    """The frame that is shown at each of the rising `times`: the last one that began by then, else the first one.

    Args:
        frames: rising, and at least one.
        times: seconds from the clip's start.
    """
    timestamp, frame = next(frames)
    following = next(frames, None)
    for time in times:
        while following is not None and following[0] <= time + NUDGE:
            (timestamp, frame), following = following, next(frames, None)
        yield timestamp, frame


def check_size(width: int, height: int, name: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses frames beyond the limits.

    Raises:
        VideoDecodingError: they are.
    """
    if max(width, height) > MAX_SIDE or width * height > max_pixels:
        raise VideoDecodingError(
            f"{name} declares frames of {width} x {height} pixels; the limits are {MAX_SIDE} a side and {max_pixels} "
            "in all. Shrink it first"
        )


def resized(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`(H, W, 3)` uint8 to `(height, width, 3)`, by bilinear interpolation with antialiasing."""
    pixels = torch.nn.functional.interpolate(
        frame.permute(2, 0, 1)[None], (height, width), mode="bilinear", antialias=True
    )
    return pixels[0].permute(1, 2, 0)


def with_square_pixels(frame: torch.Tensor, aspect: float | None, name: str) -> torch.Tensor:
    """A frame as it is shown where each pixel is `aspect` times as wide as it is high.

    As in browsers (HTML, "natural width and height"), the side that is too short grows. None and 0 mean unknown.

    Raises:
        VideoDecodingError: it grows beyond the limits.
    """
    if not aspect or aspect == 1:
        return frame
    height, width = frame.shape[:2]
    shown = (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)
    check_size(shown[1], shown[0], name)
    return resized(frame, *shown)


def on_background(pixels: torch.Tensor) -> torch.Tensor:
    """`(H, W, 4)` uint8 RGBA to `(H, W, 3)` on `BACKGROUND`, rounded; a band at a time, since it is done in float."""
    shown = torch.empty(*pixels.shape[:2], 3, dtype=torch.uint8)
    rows = max(1, BAND_PIXELS // pixels.shape[1])
    for band, source in zip(shown.split(rows), pixels.split(rows), strict=True):
        alpha = source[..., 3:].float() / 255
        band.copy_((source[..., :3] * alpha + torch.tensor(BACKGROUND) * (1 - alpha)).round())
    return shown


def first_line(error: BaseException) -> str:
    """What an error of a decoder says, or else its kind."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return (text or type(error).__name__).splitlines()[0]
