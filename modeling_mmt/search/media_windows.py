"""Windows of media files; worker processes read each frame once, a chunk at a time.

A video's frames are taken at (k + 0.5) / rate for each whole k while that is inside the video, whatever its windows;
a chunk is a run of them, so that a film of any length takes the memory of `CHUNK_FRAMES`. Which frames these are does
not depend on how the film is cut into chunks.
"""

import io
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import file_sha256
from modeling_mmt.extraction.encoders import MAX_SIDE, StepPreparation
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.video_decoding_mmt import clip_frames

CHUNK_FRAMES = 256
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 160, 80
SHOT_RATE, SHOT_SIDE, SHORTEST_SHOT = 12.0, 256, 0.6  # frames a second, pixels, seconds
SHORTEST_STRIDE = 0.1  # seconds
DEFAULTS = {"shots": False, "frames_per_second": 2.0}
WINDOW, SHOT, STRIDE = 4.0, 8.0, 4.0  # seconds: of a window, of a shot that stays whole, between two at most
MAX_FRAMES = 2**31  # of a video: at 2 a second, 34 years

Span = tuple[float, float]


@dataclass(frozen=True)
class WindowRule:
    """How a video is cut into windows: at a fixed distance, or at its shot changes, long shots at that distance.

    Args:
        window: seconds of a window.
        stride: seconds from one window's start to the next one's.
        shots: whether windows end at shot changes, which PySceneDetect finds.

    Raises:
        InputError: not 0.1 <= stride <= window.
    """

    window: float
    stride: float
    shots: bool = False

    def __post_init__(self) -> None:
        if not SHORTEST_STRIDE <= self.stride <= self.window < math.inf:
            raise InputError(
                f"window is {self.window:g} and stride {self.stride:g}; give "
                f"{SHORTEST_STRIDE:g} <= stride <= window, in seconds"
            )

    def spans(self, duration: float, cuts: Sequence[float] = ()) -> list[Span]:
        """The windows of a video, each `(start, end)` in seconds, rounded to milliseconds; at least one.

        Windows begin every `stride` seconds; the last one is the first that reaches the end.

        Args:
            duration: of the video.
            cuts: rising times of shot changes inside it.
        """
        bounds = [0.0, *(cut for cut in cuts if 0 < cut < duration), duration]
        spans = []
        for start, end in pairwise(bounds):
            count = 1 + max(0, math.ceil((end - start - self.window) / self.stride - 1e-9))
            starts = [start + number * self.stride for number in range(count)]
            spans += [(round(begin, 3), round(min(begin + self.window, end), 3)) for begin in starts]
        return spans


def with_defaults(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """An index's settings, completed: the best fixed windows of film9's validation films, and the best of shots."""
    settings = {**DEFAULTS, **chosen}
    settings.setdefault("window", SHOT if settings["shots"] else WINDOW)
    settings.setdefault("stride", min(STRIDE, settings["window"]))
    return settings


class Plan(NamedTuple):
    """A call: what is in a file?"""

    path: str


class Planned(NamedTuple):
    """The answer: content; seconds, None of a picture; frames at the rate; windows, none of a picture."""

    sha256: str
    duration: float | None
    num_frames: int
    spans: list[Span]


class Read(NamedTuple):
    """A call: `num_frames` of a file from `first` on, to its end where `is_last`; thumbnails of some of them."""

    path: str
    first: int
    num_frames: int
    is_last: bool
    thumbnails: tuple[int, ...]


class Chunk(NamedTuple):
    """The answer: for each encoder uint8 `(S, 3, H, W)` or `(S, T, 3, H, W)`, and JPEGs by the frame's number."""

    pixels: list[np.ndarray]
    thumbnails: dict[int, bytes]


class MediaReader:
    """Answers `Plan` and `Read`; it can be sent to another process.

    Args:
        prepare: of each encoder.
        rate: frames a second.
        rule: windows.
    """

    def __init__(self, prepare: Sequence[StepPreparation], rate: float, rule: WindowRule):
        self.prepare, self.rate, self.rule = list(prepare), rate, rule
        if rule.shots:
            _scene_detector()  # now, not in a worker
        self.sampling = FrameSampling(num_frames=None, frames_per_second=rate, max_frames=MAX_FRAMES)

    def __call__(self, call: Plan | Read) -> Planned | Chunk:
        """The answer.

        Raises:
            VideoDecodingError: it cannot be decoded.
            OSError: it cannot be read.
        """
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # a worker is a core's work
        return self._plan(call.path) if isinstance(call, Plan) else self._read(call)

    def _plan(self, path: str) -> Planned:
        sha256 = file_sha256(path)
        duration, _ = clip_frames(path, self.sampling, max_side=MAX_SIDE)
        if duration is None:
            return Planned(sha256, None, 1, [])
        cuts = shot_changes(path) if self.rule.shots else []
        return Planned(sha256, duration, len(self.sampling.times(duration)), self.rule.spans(duration, cuts))

    def _read(self, call: Read) -> Chunk:
        start, end = call.first / self.rate, None if call.is_last else (call.first + call.num_frames) / self.rate
        _, frames = clip_frames(call.path, self.sampling, start=start, end=end, max_side=MAX_SIDE, repeat_held=True)
        pixels: list[list[torch.Tensor]] = [[] for _ in self.prepare]
        thumbnails, previous = {}, None
        for number, (_, frame) in enumerate(frames, start=call.first):
            if number in call.thumbnails:
                thumbnails[number] = thumbnail(frame)
            for prepare, prepared in zip(self.prepare, pixels, strict=True):
                is_held = frame is previous
                prepared.append(
                    prepared[-1] if is_held else prepare(frame.permute(2, 0, 1)[None]).contiguous()  # no view of it
                )
            previous = frame
        steps = [prepare.steps(torch.cat(of)) for prepare, of in zip(self.prepare, pixels, strict=True)]
        return Chunk(steps, thumbnails)


def chunks_of(path: str, planned: Planned, rate: float, frames_per_step: int) -> list[Read]:
    """The calls that read a file, in order; their steps, side by side, are the file's."""
    size = max(1, CHUNK_FRAMES // frames_per_step) * frames_per_step
    wanted = sorted({middle_frame(span, rate, planned.num_frames) for span in planned.spans} or {0})
    calls = []
    for first in range(0, planned.num_frames, size):
        count = min(size, planned.num_frames - first)
        inside = tuple(number for number in wanted if first <= number < first + count)
        calls.append(Read(path, first, count, first + count == planned.num_frames, inside))
    return calls


def middle_frame(span: Span, rate: float, num_frames: int) -> int:
    """The frame whose period has a window's middle in it."""
    return min(int((span[0] + span[1]) / 2 * rate), num_frames - 1)


def steps_of(span: Span, rate: float, num_steps: int) -> slice:
    """The steps of a video whose middles lie in a window; at least one, the nearest.

    Args:
        span: the window.
        rate: steps a second.
        num_steps: of the video.
    """
    first = math.ceil(span[0] * rate - 0.5 - 1e-6)
    stop = math.ceil(span[1] * rate - 0.5 - 1e-6)
    first = min(max(first, 0), num_steps - 1)
    return slice(first, min(max(stop, first + 1), num_steps))


def thumbnail(frame: torch.Tensor) -> bytes:
    """JPEG of a `(H, W, 3)` uint8 frame, no side longer than `THUMBNAIL_SIDE`."""
    picture = Image.fromarray(frame.numpy())
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=THUMBNAIL_QUALITY)
    return stream.getvalue()


def clip_id(file: str, span: Span) -> str:
    """The `video_id` of a window, such as `kitchen/kettle.mp4#8.0-16.0`; a picture's is its file's path."""
    return f"{file}#{span[0]}-{span[1]}"


def shot_changes(path: str) -> list[float]:
    """Seconds from the first frame of each shot change of a video: PySceneDetect's content detector on our frames.

    It looks `SHOT_RATE` times a second, so that a cut is known to within half a period; shots are at least
    `SHORTEST_SHOT` seconds long.

    Raises:
        ImportError: PySceneDetect is not installed.
        VideoDecodingError: the file cannot be decoded.
    """
    ContentDetector, FrameTimecode = _scene_detector()  # noqa: N806
    detector = ContentDetector(min_scene_len=round(SHORTEST_SHOT * SHOT_RATE))
    sampling = FrameSampling(num_frames=None, frames_per_second=SHOT_RATE, max_frames=MAX_FRAMES)
    _, frames = clip_frames(path, sampling, max_side=SHOT_SIDE, repeat_held=True)
    cuts = []
    for number, (_, frame) in enumerate(frames):
        cuts += detector.process_frame(
            FrameTimecode(number, SHOT_RATE), np.ascontiguousarray(frame.numpy()[..., ::-1])
        )
    return [cut.frame_num / SHOT_RATE for cut in cuts]


def _scene_detector() -> tuple[Any, Any]:
    """What PySceneDetect offers.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from scenedetect import ContentDetector, FrameTimecode
    except ImportError as error:
        raise ImportError("--shots needs PySceneDetect: pip install modeling_mmt[shots]") from error
    return ContentDetector, FrameTimecode
