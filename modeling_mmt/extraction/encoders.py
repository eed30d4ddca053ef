"""Frozen encoders that turn frames into features, and readers that prepare the frames in other processes.

The vectors are those that a model with `vision_config` makes of the same pixels: the same encoder, sizes and cuts.

Which frames those are differs in one thing, `repeat_held` of `clip_frames`. With `frames_per_second`, a frame that is
shown at several of the sampling times is repeated here, so that row n of a store is second n / rate of the clip, as
windows need it; the processor gives a model such a frame once. Of a video that holds still, or is slower than the
rate, a store has more steps than the model sees.
"""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from modeling_mmt.data.files import file_sha256
from modeling_mmt.extraction.packaged_encoders import resolve_encoder
from modeling_mmt.extraction.streams import MOST_STREAMS, in_streams
from modeling_mmt.extraction.video_backbones import load_backbone
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.image_processing_mmt import PixelSettings, in_steps
from modeling_mmt.video_decoding_mmt import clip_frames
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
        self.model = model.eval().requires_grad_(False)
        self.to(device)
        if settings.frames_per_step is None:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as convolutions like it
        self.settings, self.prepare, self.revision = settings, StepPreparation(settings), revision
        self.image_size, self.frames_per_step = settings.height, settings.frames_per_step or 1

    def to(self, device: str | torch.device) -> None:
        """Run on this device from now on."""
        self.model, self.device = self.model.to(device), torch.device(device)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `(B, 3, S, S)`, or `(B, T, 3, S, S)`, to `(B, D_v)` float32."""
        steps = self.settings.normalized(torch.from_numpy(pixels).to(self.device))
        if steps.ndim == 4:
            steps = steps.contiguous(memory_format=torch.channels_last)
        return self.model(steps).float().cpu().numpy()

    def encode_batches(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """As `encode`, of each; on the CPU as many side by side as there are threads, up to `MOST_STREAMS`."""
        num_streams = min(MOST_STREAMS, torch.get_num_threads()) if self.device.type == "cpu" else 1
        return in_streams(self.encode, batches, num_streams)


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
        return (pixels if length is None else in_steps(pixels, length)).numpy()


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
        rate = self.sampling.frames_per_second
        duration, frames = clip_frames(
            source,
            self.sampling,
            start=video.start,
            end=video.end,
            max_side=MAX_SIDE,
            decoder=self.decoder,
            repeat_held=rate is not None,
        )
        if duration is not None and rate is not None and duration * rate > self.sampling.max_frames + 0.5:
            raise ValueError(
                f"{duration:.0f} seconds are {duration * rate:.0f} frames at {rate:g} a second, more than "
                f"--max_frames {self.sampling.max_frames}; raise it, or cut the video by start and end in a list"
            )
        return self.prepare.steps(torch.cat(list(self._prepared(frame for _, frame in frames))))

    def _prepared(self, frames: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Of each `(H, W, 3)`; one at a time, since a long video's do not fit in memory, and a repeated one once."""
        previous, pixels = None, torch.empty(0)
        for frame in frames:
            if frame is not previous:
                previous, pixels = frame, self.prepare(frame.permute(2, 0, 1)[None]).contiguous()  # no view of it
            yield pixels
