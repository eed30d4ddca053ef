"""Queries by picture, by video or by a moment of a video, read and encoded as `mmt index` does."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from modeling_mmt.data.errors import InputError
from modeling_mmt.search.media_encoder import MediaEncoder, load_encoders, own_encoders, recorded_encoders
from modeling_mmt.search.media_windows import (
    Chunk,
    MediaReader,
    Plan,
    Planned,
    Read,
    WindowRule,
    chunks_of,
    with_defaults,
)


def embed_media(
    model: Any,
    processor: Any,
    file: str | Path,
    at: float | None = None,
    settings: Mapping[str, Any] | None = None,
    index: Any = None,
) -> torch.Tensor:
    """What a file shows, as a query.

    Args:
        model: an `MMTModel`.
        processor: its processor.
        file: a picture, an animation or a video.
        at: the middle of the part that is meant, in seconds from the first frame; None means all of it.
        settings: of an index's manifest: frames a second, seconds of a window, and encoders of a model from features.
        index: that is searched, whose checkpoint says whose features it takes where `settings` do not.

    Returns:
        `(1, P)` float32, unit norm.

    Raises:
        FileNotFoundError: no such file.
        InputError: `at` lies outside the file, or nothing says whose features the model takes.
        VideoDecodingError: the file is neither a picture nor a video.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a picture or a video")
    chosen = with_defaults(settings or {})
    encoders = own_encoders(model, processor) or load_encoders(
        chosen.get("encoders") or recorded_encoders(processor, index.model, index.revision), model.device
    )
    encoder, rate = MediaEncoder(model, processor, encoders), chosen["frames_per_second"]
    reader = MediaReader([one.prepare for one in encoders], rate, WindowRule(chosen["window"], chosen["stride"]))
    planned = cast(Planned, reader(Plan(str(path))))
    calls = chunks_of(str(path), planned, rate, encoder.frames_per_step)
    if at is not None:
        calls = [_about(str(path), planned, at, chosen["window"], rate)]
    chunks = ((None, cast(Chunk, reader(call))) for call in calls)
    features = np.concatenate([features for _, features in encoder.features(chunks)])
    return encoder.embed(features, [], rate / encoder.frames_per_step)


def _about(path: str, planned: Planned, at: float, window: float, rate: float) -> Read:
    """The call that reads the frames of a window's length about a time."""
    if planned.duration is None:
        raise InputError(f"{path} is a picture, and --at is a time in a video; leave --at out")
    if not 0 <= at <= planned.duration:
        raise InputError(f"--at {at:g} is outside {path}, which lasts {planned.duration:g} seconds")
    first = max(0, floor((at - window / 2) * rate + 0.5))
    stop = min(planned.num_frames, max(first + 1, ceil((at + window / 2) * rate - 0.5)))
    first = min(first, stop - 1)
    return Read(path, first, stop - first, stop == planned.num_frames, ())
