"""Captions, clips and pictures as embeddings, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from modeling_mmt.evaluation.processes import Group, in_turn, parts_of_all, share
from modeling_mmt.inputs_mmt import ItemError

_LOCK = Lock()
_MODES: dict[Any, Any] = {}  # model -> how many threads embed with it, and its modules' modes before the first


def embed_texts(
    model: Any,
    processor: Any,
    texts: Sequence[str],
    batch_size: int = 64,
    progress: str | None = None,
    group: Group = None,
) -> torch.Tensor:
    """Unit-norm embeddings of captions, computed shortest first so that batches hold little padding.

    Args:
        model: has `get_text_features(**inputs).pooler_output`, `(B, P)` not normalised.
        processor: `processor(text=list_of_captions, return_tensors="pt")` gives the model's inputs, padded.
        texts: captions.
        batch_size: captions at a time.
        progress: label of a progress bar; None shows none.
        group: processes that share the batches, which are those of one process; None: this one alone.

    Returns:
        `(len(texts), P)` float32 on the CPU, in the order given, on every process. The model is put in eval mode and
        back.

    Raises:
        TypeError: `texts` is one text, whose characters would be taken for captions.
        ValueError: nothing to embed, or an embedding that is not finite.
        ItemError: a caption that the processor refuses, by its place in `texts`.
        PeerError: another process of the group could not embed its share.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts is one text, {texts[:50]!r}; give a list of texts: [{texts[:50]!r}]")

    def embed(chosen: Sequence[int]) -> Any:
        inputs = processor(text=[texts[i] for i in chosen], return_tensors="pt")
        return model.get_text_features(**_on_device(inputs, model))

    return _embed("texts", _text_lengths(texts), batch_size, progress, model, embed, group=group)


def texts_embedded_here(texts: Sequence[str], group: Group, batch_size: int = 64) -> list[str]:
    """The captions that `embed_texts`, called with these arguments, embeds in this process."""
    return [texts[i] for chosen in share(_batches(_text_lengths(texts), batch_size), group) for i in chosen]


def _text_lengths(texts: Sequence[str]) -> list[int]:
    return [len(text.encode()) for text in texts]  # bytes follow tokens more closely across scripts than characters


def embed_videos(
    model: Any,
    processor: Any,
    videos: Sequence[Any],
    batch_size: int = 64,
    progress: str | None = None,
    ids: Sequence[str] | None = None,
    group: Group = None,
) -> torch.Tensor:
    """Unit-norm embeddings of clips; features are computed shortest first.

    Args:
        model: has `get_video_features(**inputs).pooler_output`, `(B, P)` not normalised.
        processor: gives the model's inputs, padded, of `processor(video_features=list_of_clips, return_tensors="pt")`
            where clips are features, else of `processor(videos=list_of_clips, return_tensors="pt")`.
        videos: clips, each `(F_i, D_v)` float; or, for a model with vision encoders, whatever its processor reads as
            `videos`: paths, bytes, frames, pictures. They are asked for when it is their turn.
        batch_size: clips at a time.
        progress: label of a progress bar; None shows none.
        ids: of the clips, by which an error names one; None: by their positions.
        group: as `embed_texts`'.

    Returns:
        `(len(videos), P)` float32 on the CPU, in the order given.

    Raises:
        ValueError: as `embed_texts`; or clips are no features, and the model has no vision encoder.
    """
    are_features = len(videos) > 0 and _are_features(videos[0])
    if len(videos) and not are_features and getattr(processor, "feature_extractor", None) is not None:
        if getattr(processor.feature_extractor, "pixels", None) is None:
            raise ValueError(
                f"videos are given as {type(videos[0]).__name__}, but the model has no vision encoder: extract their "
                "features (mmt extract), or train from pixels (model.vision_model in a recipe)"
            )
    name = "video_features" if are_features else "videos"
    lengths = [len(clip) for clip in videos] if are_features else [1] * len(videos)

    def embed(chosen: Sequence[int]) -> Any:
        inputs = processor(**{name: [videos[i] for i in chosen]}, return_tensors="pt")
        return model.get_video_features(**_on_device(inputs, model))

    return _embed(name, lengths, batch_size, progress, model, embed, ids, group)


def _are_features(clip: Any) -> bool:
    """Whether a clip is `(F, D_v)` numbers: an array, or rows of them; an array of frames has more axes."""
    if hasattr(clip, "ndim"):
        return clip.ndim < 3
    while isinstance(clip, list | tuple) and clip:
        clip = clip[0]
    return isinstance(clip, int | float | np.number) or getattr(clip, "ndim", 3) < 2


def embed_images(
    model: Any, processor: Any, images: Sequence[Any], batch_size: int = 64, progress: str | None = None
) -> torch.Tensor:
    """Unit-norm embeddings of pictures, each a clip of one step.

    Args:
        model: as `embed_videos`'.
        processor: `processor(images=list_of_pictures, return_tensors="pt")` gives the model's inputs.
        images: what the processor reads: of a model with vision encoders paths, bytes or Pillow pictures, else one
            feature vector `(D_v,)` a picture.
        batch_size: pictures at a time.
        progress: label of a progress bar; None shows none.

    Returns:
        `(len(images), P)` float32 on the CPU, in the order given.

    Raises:
        ValueError: as `embed_texts`, or a picture that cannot be read.
    """

    def embed(chosen: Sequence[int]) -> Any:
        inputs = processor(images=[images[i] for i in chosen], return_tensors="pt")
        return model.get_video_features(**_on_device(inputs, model))

    return _embed("images", [1] * len(images), batch_size, progress, model, embed)


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Put a model in eval mode, and every module of it back in its own mode once no thread is in here with it."""
    with _LOCK:
        if model not in _MODES:
            modules = list(model.modules()) if isinstance(model, torch.nn.Module) else [model]
            _MODES[model] = [0, [(module, module.training) for module in modules]]
            model.eval()
        _MODES[model][0] += 1
    try:
        yield
    finally:
        with _LOCK:
            _MODES[model][0] -= 1
            if not _MODES[model][0]:
                for module, mode in _MODES.pop(model)[1]:
                    module.training = mode


def _on_device(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    return {name: value.to(model.device) for name, value in inputs.items()}


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The places of the items of each batch, shortest first."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _embed(
    name: str,
    lengths: Sequence[int],
    batch_size: int,
    progress: str | None,
    model: Any,
    features_of: Callable[[Sequence[int]], Any],
    ids: Sequence[str] | None = None,
    group: Group = None,
) -> torch.Tensor:
    if not lengths:
        raise ValueError(f"{name} is empty: nothing to embed")
    batches = _batches(lengths, batch_size)

    def embed_share() -> list[torch.Tensor]:
        """`(B, P)` of each of this process's batches."""
        own: Any = share(batches, group)
        if progress is not None:
            from tqdm.auto import tqdm  # only here: ranking does not need it

            own = tqdm(own, desc=progress, unit="batch")
        parts = []
        with in_eval_mode(model), torch.inference_mode():
            for chosen in own:
                try:
                    pooled = features_of(chosen).pooler_output  # (B, P)
                except ItemError as error:  # which knows places in the batch alone
                    item = chosen[error.name]
                    raise error.named(item if ids is None else repr(ids[item])) from None
                parts.append(F.normalize(pooled.float(), dim=-1).cpu())
        return parts

    embeds = torch.cat(in_turn(parts_of_all(embed_share, group)))
    order = [item for chosen in batches for item in chosen]
    finite = embeds.isfinite().all(dim=1)
    if not finite.all():
        item = order[int(finite.int().argmin())]
        shown = f"{name}[{item}]" if ids is None else f"clip {ids[item]!r}"
        raise ValueError(f"{shown} has an embedding that is not finite; check its features and the model's weights")
    restored = torch.empty_like(embeds)
    restored[torch.tensor(order)] = embeds
    return restored
