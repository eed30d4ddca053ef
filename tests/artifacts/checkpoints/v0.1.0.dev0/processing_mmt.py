"""Captions and ragged feature sequences to padded batches."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature, FeatureExtractionMixin, ProcessorMixin


class MMTVideoFeatureExtractor(FeatureExtractionMixin):
    """Ragged feature sequences to one padded batch with its mask.

    Args:
        feature_dim: width `D_v` of a step, all streams concatenated.
        max_video_length: longest clip in steps; a longer one is sampled down to it at even distances.
        kwargs: what an older or newer `preprocessor_config` carries; kept as attributes.
    """

    model_input_names = ["video_features", "video_mask"]

    def __init__(self, feature_dim: int = 1024, max_video_length: int = 512, **kwargs):
        super().__init__(**kwargs)
        self.feature_dim = feature_dim
        self.max_video_length = max_video_length

    def __call__(self, video_features: Sequence[Any], return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Check, shorten and pad.

        Args:
            video_features: one `(F_i, D_v)` array, tensor or nested list for each clip.
            return_tensors: only `"pt"`.
            kwargs: ignored; a processor hands every part all keywords.

        Returns:
            `video_features` `(B, F, D_v)` float32, padded with zeros, and `video_mask` `(B, F)` long, 1 = real.

        Raises:
            ValueError: no clips, an empty clip, a wrong width, or a value that is not finite; names the clip.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        if len(video_features) == 0:
            raise ValueError("video_features is empty; give at least one clip")
        clips = [self._check(index, clip) for index, clip in enumerate(video_features)]
        longest = max(len(clip) for clip in clips)
        batch = torch.zeros(len(clips), longest, self.feature_dim)
        mask = torch.zeros(len(clips), longest, dtype=torch.long)
        for row, clip in enumerate(clips):
            batch[row, : len(clip)] = clip
            mask[row, : len(clip)] = 1
        return BatchFeature({"video_features": batch, "video_mask": mask})

    def _check(self, index: int, clip: Any) -> torch.Tensor:
        try:
            clip = torch.as_tensor(clip, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"clip {index} is no array of (steps, {self.feature_dim}) numbers: {error}") from error
        if clip.dim() != 2 or clip.shape[1] != self.feature_dim:
            raise ValueError(f"clip {index} has shape {tuple(clip.shape)}; expected (steps, {self.feature_dim})")
        if len(clip) == 0:
            raise ValueError(f"clip {index} has no steps; leave clips without features out")
        if not torch.isfinite(clip).all():
            raise ValueError(f"clip {index} holds a NaN or an infinity; extract its features again")
        if len(clip) > self.max_video_length:
            steps = torch.linspace(0, len(clip) - 1, self.max_video_length).round().long()
            clip = clip[steps]
        return clip


class MMTProcessor(ProcessorMixin):
    """Captions and clips to what `MMTModel` takes; saved and loaded beside the model.

    Args:
        feature_extractor: pads the clips.
        tokenizer: of the text encoder.
        text_prefix: put before every caption; what the encoder was trained with (`"query: "` for the e5 family).
        max_text_length: longest caption in tokens, special ones included; longer ones are cut.
    """

    def __init__(self, feature_extractor=None, tokenizer=None, text_prefix: str = "", max_text_length: int = 64):
        self.text_prefix = text_prefix
        self.max_text_length = max_text_length
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        video_features: Sequence[Any] | None = None,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Tokenize captions, pad clips, or both.

        Args:
            text: one caption or a list; white space is normalised (a tab is an unknown token to some tokenizers).
            video_features: one `(F_i, D_v)` array a clip.
            return_tensors: only `"pt"`.
            kwargs: ignored, so that pipelines may pass their own.

        Returns:
            `input_ids`, `attention_mask` `(B, L)` long for text; `video_features` `(B, F, D_v)`, `video_mask` `(B, F)`
            for clips.

        Raises:
            ValueError: neither is given, or a caption is not a string or is empty.
        """
        if text is None and video_features is None:
            raise ValueError("give text, video_features, or both")
        batch: dict[str, torch.Tensor] = {}
        if text is not None:
            batch.update(self.tokenize([text] if isinstance(text, str) else text))
        if video_features is not None:
            batch.update(self.feature_extractor(video_features, return_tensors=return_tensors))
        return BatchFeature(batch)

    def tokenize(self, captions: Sequence[str]) -> Mapping[str, torch.Tensor]:
        """Captions to padded `input_ids` and `attention_mask`, `(B, L)` long."""
        if len(captions) == 0:
            raise ValueError("text is an empty list; give at least one caption")
        return self.tokenizer(
            [self.text_prefix + clean_caption(caption, index) for index, caption in enumerate(captions)],
            padding=True,
            padding_side="right",  # the model's "first" output token is a real one
            truncation=True,
            max_length=self.max_text_length,
            return_tensors="pt",
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that `__call__` makes."""
        return ["input_ids", "attention_mask", *self.feature_extractor.model_input_names]


def clean_caption(caption: str, index: int = 0) -> str:
    """Collapse white space and drop control characters; joiners stay, without which some scripts read differently.

    Raises:
        ValueError: not a string, or nothing left; names the caption's position.
    """
    if not isinstance(caption, str):
        raise ValueError(f"caption {index} is {type(caption).__name__} {caption!r}; expected a string")
    cleaned = " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in caption).split())
    if not cleaned:
        raise ValueError(f"caption {index} is empty: {caption!r}")
    return cleaned
