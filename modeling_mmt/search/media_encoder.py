"""Encodes frames of media files to embeddings of windows.

A checkpoint has its vision encoders inside, or was trained from features; then it says whose those were, and the same
encoders are loaded. Either way a step is encoded once, whatever windows it lies in, and what comes out for a file
depends on that file alone: steps go through an encoder in batches of one size (`encode_clips`), windows through the
model a file at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_mmt import MMTConfig, MMTModel, MMTProcessor, MMTVideoFeatureExtractor
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.feature_store import MANIFEST
from modeling_mmt.evaluation.checkpoint_recipe import recipe_file, searched_data
from modeling_mmt.evaluation.embedding import embed_videos
from modeling_mmt.extraction.encoders import StepEncoder, load_encoder
from modeling_mmt.extraction.shards import encode_clips
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.search.media_windows import Chunk, Span, steps_of
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder

OWN = "the model's own"


class MediaEncoder:
    """Encoders and the model behind them.

    Args:
        model: an `MMTModel`.
        processor: its processor.
        encoders: whose features, side by side, are a step of the model's.
        batch_size: steps that go through an encoder together.

    Raises:
        InputError: their steps are of different numbers of frames.
    """

    def __init__(self, model: Any, processor: Any, encoders: Sequence[StepEncoder], batch_size: int = 16):
        self.model, self.processor, self.encoders, self.batch_size = model, processor, encoders, batch_size
        lengths = {encoder.frames_per_step for encoder in encoders}
        if len(lengths) > 1:
            raise InputError(
                f"the checkpoint's encoders take {sorted(lengths)} frames a step; an index needs one number for all"
            )
        (self.frames_per_step,) = lengths

    def to(self, device: str | torch.device) -> None:
        """Run on this device from now on."""
        self.model.to(device)
        for encoder in self.encoders:
            encoder.to(device)

    def features(self, chunks: Iterable[tuple[Any, Chunk]]) -> Iterator[tuple[Any, np.ndarray]]:
        """`(S, D_v)` float32 of each chunk, with its key, in order."""
        streams = [
            encode_clips(
                ((key, chunk.pixels[number]) for key, chunk in stream),
                encoder.encode_batches,
                self.batch_size,
            )
            for number, (encoder, stream) in enumerate(
                zip(self.encoders, tee(chunks, len(self.encoders)), strict=True)
            )
        ]
        for parts in zip(*streams, strict=True):
            yield parts[0][0], np.concatenate([features for _, features in parts], axis=1)

    def embed(self, features: np.ndarray, spans: Sequence[Span], rate: float) -> torch.Tensor:
        """`(W, P)` unit vectors of a file's windows, or of the whole where there are none.

        Args:
            features: `(S, D_v)` of the file's steps.
            spans: windows, in seconds.
            rate: steps a second.
        """
        clips = [features[steps_of(span, rate, len(features))] for span in spans] or [features]
        return embed_videos(self.model, self.processor, clips)


def own_encoders(model: Any, processor: Any) -> list[StepEncoder]:
    """The vision encoders inside a model, as encoders of steps; none where it has none."""
    if model.config.vision_config is None:
        return []
    settings = [PixelSettings(**pixels) for pixels in processor.feature_extractor.pixels]
    experts = model.video_model.vision_experts
    return [StepEncoder(expert, pixels, OWN, model.device) for expert, pixels in zip(experts, settings, strict=True)]


def with_encoders(model: MMTModel, processor: MMTProcessor, encoders: Sequence[StepEncoder]) -> MMTModel:
    """A model of features that has the encoders of these inside; from then on its processor prepares pixels.

    Args:
        model: has no vision encoder; its weights are copied.
        processor: its, which is changed.
        encoders: of the streams that it was trained on, in order.

    Raises:
        InputError: one is no encoder that a model can have inside.
    """
    experts = [encoder.model for encoder in encoders if isinstance(encoder.model, MMTVisionEncoder)]
    if len(experts) < len(encoders):
        raise InputError(
            "a model trained on features of a .pth file cannot have that network inside; keep it as it is"
        )
    fields = model.config.to_dict() | {"vision_config": [expert.config.to_dict() for expert in experts]}
    whole = MMTModel(MMTConfig(**fields))
    for own, expert in zip(whole.video_model.vision_experts, experts, strict=True):
        own.load_state_dict(expert.state_dict())
    whole.load_state_dict({**whole.state_dict(), **model.state_dict()})
    recorded = processor.feature_extractor.extractors
    processor.feature_extractor = MMTVideoFeatureExtractor(
        model.config.video_feature_dim, model.config.max_video_length, [encoder.settings for encoder in encoders]
    )
    processor.feature_extractor.extractors = recorded
    return whole.eval()


def recorded_encoders(processor: Any, checkpoint: str, revision: str | None) -> list[dict[str, Any]]:
    """Whose features a checkpoint was trained on: of each stream `name`, `revision`, `image_size` and `crop`.

    The processor says it; of a checkpoint whose processor does not, the feature stores that its recipe names.

    Raises:
        InputError: neither does.
    """
    streams = getattr(processor.feature_extractor, "extractors", None) or _streams_of_stores(checkpoint, revision)
    if not all(isinstance(stream, dict) and isinstance(stream.get("extractor"), str) for stream in streams or [None]):
        raise InputError(
            f"{checkpoint} was trained on features and does not say of which encoder; name it with --encoder and "
            "--image_size"
        )
    return [
        {
            "name": stream["extractor"],
            "revision": stream.get("revision"),
            "image_size": stream.get("image_size"),
            # film strips, which have no clock, were resized whole; videos were cut as the encoder's own processor does
            "crop": any(stream.get(name) for name in ("num_frames", "frames_per_second")),
        }
        for stream in streams
    ]


def _streams_of_stores(checkpoint: str, revision: str | None) -> list[dict[str, Any]]:
    """The same of the stores that a checkpoint's recipe names, where they are on this machine."""
    recipe = recipe_file(checkpoint, revision)
    stores = [Path(folder) / MANIFEST for folder in searched_data(recipe)["features"]] if recipe else []
    if not all(store.is_file() for store in stores):
        return []
    manifests = [json.loads(store.read_text(encoding="utf-8")) for store in stores]
    return [{**(manifest.get("source") or {}), **manifest} for manifest in manifests]


def load_encoders(recorded: Sequence[dict[str, Any]], device: str | torch.device) -> list[StepEncoder]:
    """The encoders that a checkpoint's features come from.

    Raises:
        InputError: one is of another revision than was recorded.
    """
    encoders = []
    for one in recorded:
        encoder = load_encoder(one["name"], one["image_size"], device, one["crop"])
        if one["revision"] not in (None, encoder.revision):
            raise InputError(
                f"encoder {one['name']} is of revision {encoder.revision}, and the checkpoint's features are of "
                f"{one['revision']}; get that one, and name its folder with --encoder"
            )
        encoders.append(encoder)
    return encoders
