"""Frames to feature vectors outside a model: a frozen encoder, and what reads the frames for it in other processes.

The vectors are those that a model with `vision_config` makes of the same pixels: the same encoder, sizes and cuts.

Which frames those are differs in one thing. With `frames_per_second`, a frame that is shown at several of the sampling
times is repeated here, so that row n of a store is second n / rate of the clip, as windows need it; the processor
gives a model such a frame once. Of a video that holds still, or is slower than the rate, a store has more steps than
the model sees.
"""

import bisect
import hashlib
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from modeling_mmt.data.files import file_sha256
from modeling_mmt.extraction.packaged_encoders import resolve_encoder
from modeling_mmt.extraction.video_backbones import load_backbone
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.video_decoding_mmt import FrameSampling, clip_frames
from modeling_mmt.video_streams_mmt import NUDGE
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder

MAX_SIDE = 1920  # of a frame before it is resized, as the processor's


class StepEncoder:
    """A frozen encoder of videos' pixels, as a model with `vision_config` has it inside: the features are the same.

    Args:
        model: `(B, 3, S, S)` normalised pixels, or `(B, T, 3, S, S)`, to `(B, D_v)`.
        settings: how its pixels are made.
        revision: which weights these are.
        device: where it runs.
    """

    def __init__(
        self, model: torch.nn.Module, settings: PixelSettings, revision: str, device: str | torch.device = "cpu"
    ):
        self.model, self.device = model.eval().requires_grad_(False).to(device), torch.device(device)
        if settings.frames_per_step is None:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as convolutions like it
        self.settings, self.prepare, self.revision = settings, StepPreparation(settings), revision
        self.image_size, self.frames_per_step = settings.height, settings.frames_per_step or 1

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `(B, 3, S, S)`, or `(B, T, 3, S, S)`, to `(B, D_v)` float32."""
        steps = self.settings.normalized(torch.from_numpy(pixels).to(self.device))
        if steps.ndim == 4:
            steps = steps.contiguous(memory_format=torch.channels_last)
        return self.model(steps).float().cpu().numpy()


def load_encoder(
    name: str, image_size: int | None = None, device: str | torch.device = "cpu", crop: bool = True
) -> StepEncoder:
    """The encoder of a name or folder, or the published network of a weight file that ends in `.pth`.

    Args:
        name: of a packaged encoder or on the Hub; a folder, or the file.
        image_size: side in pixels of its frames; None means its own.
        device: where it runs.
        crop: whether a frame is resized and cut as the encoder's own processor does it; else the whole frame is
            resized to the square.
    """
    model: torch.nn.Module
    if name.endswith(".pth"):
        model = load_backbone(name)
        own: Any = {"height": model.image_size, "width": model.image_size, "resize": model.image_size}
        settings = PixelSettings(
            **own, mean=model.mean, std=model.std, resample="bilinear", frames_per_step=model.frames_per_step
        )
        revision = f"sha256:{file_sha256(name)}"
    else:
        path = resolve_encoder(name)
        model = MMTVisionEncoder.from_pretrained(path)
        settings = PixelSettings.from_pretrained(path, frames_per_step=model.frames_per_step)
        revision = encoder_revision(path, model.encoder)
    settings = settings if image_size is None else settings.at(image_size)
    if not crop:
        settings = replace(settings, resize=(settings.height, settings.width))
    return StepEncoder(model, settings, revision, device)


def encoder_revision(path: str, model: PreTrainedModel) -> str:
    """The Hub commit that the weights came from, or a folder's weights' SHA-256."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return commit
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")):
        digest.update(bytes.fromhex(file_sha256(file)))
    return f"sha256:{digest.hexdigest()}"


class StepPreparation:
    """Frames as an encoder's own processor resizes and cuts them; normalised they are later, where it runs.

    Args:
        settings: of the encoder.
    """

    def __init__(self, settings: PixelSettings):
        self.settings = settings

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """`(F, 3, H, W)` uint8 to `(F, 3, S, S)` uint8."""
        return self.settings.resized(frames)

    def steps(self, pixels: torch.Tensor) -> np.ndarray:
        """`(F, 3, S, S)` to `(F, 3, S, S)`, or `(ceil(F / T), T, 3, S, S)`, the last frame repeated to fill."""
        length = self.settings.frames_per_step
        if length is None:
            return pixels.numpy()
        filled = torch.cat([pixels, pixels[-1:].expand(-len(pixels) % length, -1, -1, -1)])
        return filled.unflatten(0, (-1, length)).numpy()


class VideoReader:
    """Reads videos, animations and pictures; it can be sent to another process.

    Args:
        prepare: makes pixels of frames.
        sampling: which frames.
        decoder: as in `read_clip`.
        unpack: makes what `read_clip` understands of a video's `source`, where it is something else.
    """

    def __init__(
        self,
        prepare: StepPreparation,
        sampling: FrameSampling,
        decoder: str | None = None,
        unpack: Callable[[Any], Any] | None = None,
    ):
        self.prepare, self.sampling, self.decoder, self.unpack = prepare, sampling, decoder, unpack

    def __call__(self, video: Any) -> np.ndarray:
        """The pixels of a video, which has `source`, `start` and `end`, in seconds.

        At a rate, one frame for each of `FrameSampling.times`: the one shown then, again where it still is. With
        `num_frames`, and of what has no times (pictures, lists of frames), each frame once, as `read_clip` gives it.

        Returns:
            `(F, 3, S, S)` uint8, or `(ceil(F / T), T, 3, S, S)` for an encoder of T frames a step.

        Raises:
            VideoDecodingError: it cannot be decoded.
            ValueError: it has too many frames at this rate.
        """
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # a worker is a core's work
        source = video.source if self.unpack is None else self.unpack(video.source)
        duration, frames = clip_frames(
            source, self.sampling, start=video.start, end=video.end, max_side=MAX_SIDE, decoder=self.decoder
        )
        times = None
        if duration is not None and self.sampling.frames_per_second is not None:
            times = self._times(duration, self.sampling.frames_per_second)
        timestamps: list[float] = []
        parts: list[torch.Tensor] = []
        for timestamp, frame in frames:  # one at a time: a long video's do not fit in memory
            timestamps.append(timestamp)
            parts.append(self.prepare(frame.permute(2, 0, 1)[None]).contiguous())  # no view of the frame
        if times is not None:
            parts = [parts[number] for number in shown_at(times, timestamps)]
        return self.prepare.steps(torch.cat(parts))

    def _times(self, duration: float, rate: float) -> list[float]:
        """When the rows' frames are shown, in seconds from the clip's start."""
        if duration * rate > self.sampling.max_frames + 0.5:
            raise ValueError(
                f"{duration:.0f} seconds are {duration * rate:.0f} frames at {rate:g} a second, more than "
                f"--max_frames {self.sampling.max_frames}; raise it, or cut the video by start and end in a list"
            )
        return self.sampling.times(duration)


def shown_at(times: Sequence[float], timestamps: Sequence[float]) -> list[int]:
    """Which frame is shown at each time: the last one that began by then; before the first one, the first.

    Args:
        times: `(N,)` seconds.
        timestamps: `(F,)` rising seconds, when each frame began to be shown.
    """
    return [max(bisect.bisect_right(timestamps, time + NUDGE) - 1, 0) for time in times]
