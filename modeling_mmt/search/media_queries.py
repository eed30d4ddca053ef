"""A picture, a video or a moment of one as a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_mmt.data.errors import InputError
from modeling_mmt.evaluation.embedding import embed_images, embed_videos
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.video_decoding_mmt import clip_frames, kind_of_file

SECONDS = 8.0  # of a video about the moment that is asked for


def embed_media(
    model: Any, processor: Any, file: str | Path, at: float | None = None, seconds: float = SECONDS
) -> torch.Tensor:
    """What a file shows, as a query.

    Args:
        model: with a vision encoder.
        processor: its processor.
        file: a picture, an animation or a video.
        at: the middle of the part that is meant, in seconds from the first frame; None means all of it.
        seconds: how long that part is.

    Returns:
        `(1, P)` float32, unit norm.

    Raises:
        FileNotFoundError: no such file.
        InputError: the model has no vision encoder, or `at` is negative.
        VideoDecodingError: the file is no picture and no video, or ends before that.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a picture or a video")
    if model.config.vision_config is None:
        raise InputError(
            f"{path}: the checkpoint has no vision encoder to look at it with; search by text, or take a checkpoint "
            "that was trained from pixels"
        )
    if at is None:
        is_picture = kind_of_file(path) == "picture"
        return (embed_images if is_picture else embed_videos)(model, processor, [str(path)])
    if at < 0:
        raise InputError(f"at is {at}: give seconds from the first frame of {path}")
    extractor, start = processor.feature_extractor, max(0.0, at - seconds / 2)
    sampling = FrameSampling(**extractor.sampling)
    _, frames = clip_frames(path, sampling, start=start, end=at + seconds / 2, max_side=extractor.max_side)
    return embed_videos(model, processor, [np.stack([frame.numpy() for _, frame in frames])])
