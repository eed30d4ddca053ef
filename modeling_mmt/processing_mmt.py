"""Captions, and clips as videos, pictures or ragged feature sequences, to padded batches."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BatchFeature, FeatureExtractionMixin, ProcessorMixin

from .configuration_mmt import MMTConfig  # noqa: F401  as below
from .dual_encoder_mmt import FAMILIES, caption_rule
from .efficientnet_lite_mmt import EfficientNetLiteModel  # noqa: F401  older loaders copy direct imports alone
from .frames_mmt import FrameSampling
from .freezing_mmt import keep_in_eval  # noqa: F401  as above
from .image_processing_mmt import PixelSettings, in_steps
from .inputs_mmt import checked_clip, clean_caption
from .picture_formats_mmt import PICTURE_SUFFIXES  # noqa: F401  as above
from .pictures_mmt import picture_frames  # noqa: F401  as above
from .sentence_encoder_mmt import load_pretrained  # noqa: F401  as above
from .video_decoding_mmt import clip_frames
from .video_packets_mmt import LostError  # noqa: F401  as above
from .video_streams_mmt import video_frames  # noqa: F401  as above
from .vision_configuration_mmt import vision_encoder_config, vision_width
from .vision_encoders_mmt import pixels_name, set_frames_per_step, vision_half

TEXT_OPTIONS = ("padding", "truncation", "max_length")
MODEL_OPTIONS = ("dtype", "torch_dtype", "attn_implementation", "device_map", "quantization_config")


class MMTVideoFeatureExtractor(FeatureExtractionMixin):
    """Clips to one padded batch with its mask: from ragged feature sequences, or from videos and pictures.

    Args:
        feature_dim: width `D_v` of a step, all streams concatenated.
        max_video_length: longest clip in steps; a longer one is sampled down to it at even distances.
        pixels: `PixelSettings` (or their fields) of each vision encoder of the model; `None` if it has none.
        sampling: `FrameSampling` (or its fields): which frames of a video are decoded; `None` is its default, times
            the frames of a step.
        max_side: frames are shrunk while decoding so that no side is longer, which bounds memory.
        extractors: what made the features that the model was trained on, stream by stream, as the package's
            `data/extractors.py` writes and compares it; `None`: not recorded.
        kwargs: what an older or newer `preprocessor_config` carries; kept as attributes.

    Raises:
        ValueError: a setting is outside its range; or a video encoder's frames do not divide the longest step's.
    """

    def __init__(
        self,
        feature_dim: int = 1024,
        max_video_length: int = 512,
        pixels: Sequence[PixelSettings | Mapping[str, Any]] | None = None,
        sampling: FrameSampling | Mapping[str, Any] | None = None,
        max_side: int = 1920,
        extractors: list[dict[str, Any]] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.feature_dim = feature_dim
        self.max_video_length = max_video_length
        self.pixels: Any = None  # plain values, as they are saved
        self.sampling: Any = None
        if pixels is not None:
            settings = [
                encoder if isinstance(encoder, PixelSettings) else PixelSettings(**encoder) for encoder in pixels
            ]
            self.pixels = [{name: _plain(value) for name, value in asdict(encoder).items()} for encoder in settings]
            if sampling is None:
                sampling = FrameSampling(num_frames=(FrameSampling().num_frames or 1) * self.frames_per_step)
            elif not isinstance(sampling, FrameSampling):
                sampling = FrameSampling(**sampling)
            self.sampling = asdict(sampling)
            for encoder in settings:
                if self.frames_per_step % (encoder.frames_per_step or 1):
                    raise ValueError(
                        f"frames_per_step is {encoder.frames_per_step} of one vision encoder and "
                        f"{self.frames_per_step} of another; the smaller must divide the larger"
                    )
        self.max_side = max_side
        self.extractors = extractors

    @property
    def frames_per_step(self) -> int:
        """Frames of one step: those of the vision encoder that takes the most."""
        return max(settings["frames_per_step"] or 1 for settings in self.pixels)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that clips are made to."""
        if self.pixels is None:
            return ["video_features", "video_mask"]
        return [*(pixels_name(number) for number in range(len(self.pixels))), "video_mask"]

    def decode(self, sources: Sequence[Any], return_tensors: str | None = "pt") -> BatchFeature:
        """Videos and pictures to pixels.

        Args:
            sources: whatever `read_clip` reads: a path, bytes, an array of frames, a list of pictures, a picture.
            return_tensors: only `"pt"`.

        Returns:
            `pixel_values` `(B, F, 3, height, width)` float32, or `(B, F, T, 3, height, width)` for a video encoder,
            padded with zeros; `pixel_values_1`, ... for more encoders; `video_mask` `(B, F)` long, 1 = real.

        Raises:
            ValueError: no clips, or one that cannot be read (`VideoDecodingError`, which names the file).
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        if len(sources) == 0:
            raise ValueError("videos is empty; give at least one clip")
        return self.collate([self.read(source) for source in sources])

    def read(self, source: Any, candidates: int = 1) -> list[torch.Tensor]:
        """One clip's frames at each vision encoder's size: what is worth keeping of it.

        Args:
            source: whatever `read_clip` reads.
            candidates: frames to read in the place of each one that is sampled, for those who choose among them.

        Returns:
            `(F, 3, height, width)` uint8 for each vision encoder.

        Raises:
            ValueError: it cannot be read (`VideoDecodingError`, which names the file).
        """
        while isinstance(source, list) and len(source) == 1 and isinstance(source[0], list):
            source = source[0]  # sentence-transformers puts a list of frames into another list
        dense = {name: value and value * candidates for name, value in self.sampling.items()}
        experts = [PixelSettings(**settings) for settings in self.pixels]
        _, frames = clip_frames(source, FrameSampling(**dense), max_side=self.max_side)
        sized = [
            [expert.resized(frame.permute(2, 0, 1)[None]).contiguous() for expert in experts] for _, frame in frames
        ]
        return [torch.cat(of_expert) for of_expert in zip(*sized, strict=True)]

    def collate(self, clips: Sequence[Sequence[torch.Tensor]]) -> BatchFeature:
        """What `read` gave for each clip to what `decode` returns."""
        experts = [PixelSettings(**settings) for settings in self.pixels]
        batch: dict[str, torch.Tensor] = {}
        mask = torch.zeros(0)
        for number, settings in enumerate(experts):
            frames_per_step = settings.frames_per_step or 1
            each = self.frames_per_step // frames_per_step
            steps = [self._steps(clip[number])[:, each // 2 :: each] for clip in clips]  # the middle of each part
            if number == 0:
                mask = torch.zeros(len(clips), max(map(len, steps)), dtype=torch.long)
            height, width = (max(clip.shape[axis] for clip in steps) for axis in (-2, -1))
            empty = 0.0 if settings.max_patches is None else math.nan  # the encoder tells smaller pictures by it
            pixels = torch.full((*mask.shape, frames_per_step, 3, height, width), empty)
            for row, clip in enumerate(steps):
                mask[row, : len(clip)] = 1
                pixels[row, : len(clip), ..., : clip.shape[-2], : clip.shape[-1]] = settings.normalized(clip)
            batch[pixels_name(number)] = pixels if settings.frames_per_step else pixels.squeeze(2)
        return BatchFeature({**batch, "video_mask": mask})

    def _steps(self, frames: torch.Tensor) -> torch.Tensor:
        """`(F, 3, H, W)` frames to `(steps, T, 3, H, W)`; the last frame is repeated to fill the last step."""
        steps = in_steps(frames, self.frames_per_step)
        return steps[self._even_steps(len(steps))]

    def _even_steps(self, length: int) -> Any:
        """Which steps of a clip of this length stay."""
        if length <= self.max_video_length:
            return slice(None)
        return torch.linspace(0, length - 1, self.max_video_length).round().long()

    def __call__(self, video_features: Sequence[Any], return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Check, shorten and pad.

        Args:
            video_features: one `(F_i, D_v)` array, tensor or nested list for each clip.
            return_tensors: only `"pt"`.
            kwargs: ignored; a processor hands every part all keywords.

        Returns:
            `video_features` `(B, F, D_v)` float32, padded with zeros, and `video_mask` `(B, F)` long, 1 = real.

        Raises:
            ValueError: no clips; or as `checked_clip`, which names the clip (`ItemError`).
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}; only 'pt' is supported")
        if len(video_features) == 0:
            raise ValueError("video_features is empty; give at least one clip")
        clips = [checked_clip(clip, self.feature_dim, index) for index, clip in enumerate(video_features)]
        clips = [clip[self._even_steps(len(clip))] for clip in clips]
        longest = max(len(clip) for clip in clips)
        batch = torch.zeros(len(clips), longest, self.feature_dim)
        mask = torch.zeros(len(clips), longest, dtype=torch.long)
        for row, clip in enumerate(clips):
            batch[row, : len(clip)] = clip
            mask[row, : len(clip)] = 1
        return BatchFeature({"video_features": batch, "video_mask": mask})


class MMTProcessor(ProcessorMixin):
    """Captions and clips to what `MMTModel` takes; saved and loaded beside the model.

    Args:
        feature_extractor: pads the clips.
        tokenizer: of the text encoder.
        text_prefix: put before every caption; what the encoder was trained with (`"query: "` for the e5 family).
        max_text_length: longest caption in tokens, special ones included; longer ones are cut.
        text_padding: `"longest"` of a batch, or `"max_length"` for encoders that read their padding (SigLIP).
        clean_text: whether white space is normalised (a tab is an unknown token to some tokenizers) and padding stands
            on the right; else captions go to the tokenizer as they are, and it pads by its own rule.
    """

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        text_prefix: str = "",
        max_text_length: int = 64,
        text_padding: str = "longest",
        clean_text: bool = True,
    ):
        self.text_prefix = text_prefix
        self.text_padding = text_padding
        self.clean_text = clean_text
        super().__init__(feature_extractor, tokenizer)
        self.max_text_length = max_text_length

    @property
    def max_text_length(self) -> int:
        """The tokenizer's `model_max_length`, so that whoever reads or sets it there means the limit that counts."""
        return self.tokenizer.model_max_length

    @max_text_length.setter
    def max_text_length(self, value: int):
        self.tokenizer.model_max_length = value

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As `ProcessorMixin.from_pretrained`; `model_max_length`, a tokenizer's name of it, is `max_text_length`.

        The model's options, which `pipeline` hands every part, are left out: a tokenizer would keep and save them.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in MODEL_OPTIONS}
        if "model_max_length" in kwargs:
            kwargs["max_text_length"] = kwargs.pop("model_max_length")
        return super().from_pretrained(*args, **kwargs)

    @property
    def padding_side(self) -> str:
        """`"right"`, so that the model's first output token is a real one; else the tokenizer's own."""
        return "right" if self.clean_text else self.tokenizer.padding_side

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds."""
        return super().to_dict() | {"max_text_length": self.max_text_length}

    @classmethod
    def from_encoders(
        cls,
        text_model: str,
        vision_model: str | Sequence[str],
        *,
        revision: str | None = None,
        vision_revision: str | None = None,
        cache_dir=None,
        frames_per_step: int | None = None,
        image_size: int | None = None,
        max_video_length: int = 512,
        sampling: FrameSampling | None = None,
        **options,
    ) -> "MMTProcessor":
        """The processor of `MMTModel.from_encoders`, with the same arguments.

        Args:
            text_model: whose tokenizer is taken.
            vision_model: one or several, whose size, crop, mean and standard deviation are taken.
            revision: of the text encoder.
            vision_revision: of the vision encoders.
            cache_dir: where downloads are kept.
            frames_per_step: of video encoders, where it shall not be their own.
            image_size: side of the frames in pixels, where it shall not be their own (`PixelSettings.at`).
            max_video_length: the model's.
            sampling: which frames of a video are decoded.
            options: `text_prefix`, `max_text_length`.
        """
        hub = {"revision": vision_revision, "cache_dir": cache_dir}
        pixels, width = [], 0
        for name in [vision_model] if isinstance(vision_model, str) else vision_model:
            config = vision_half(AutoConfig.from_pretrained(name, **hub))
            own = set_frames_per_step(config, frames_per_step)
            settings = PixelSettings.from_pretrained(name, frames_per_step=own, **hub)
            pixels.append(settings if image_size is None else settings.at(image_size))
            width += vision_width(vision_encoder_config(config)) or 0
        tokenizer = AutoTokenizer.from_pretrained(text_model, revision=revision, cache_dir=cache_dir)
        return cls(MMTVideoFeatureExtractor(width, max_video_length, pixels, sampling), tokenizer, **options)

    @classmethod
    def from_dual_encoder(
        cls,
        name: str,
        vision_model: str | None = None,
        *,
        revision: str | None = None,
        vision_revision: str | None = None,
        cache_dir=None,
        max_video_length: int = 512,
        sampling: FrameSampling | None = None,
        **options,
    ) -> "MMTProcessor":
        """The processor of `MMTModel.from_dual_encoder`, with the same arguments: the original's tokens and pixels.

        Args:
            name: of the dual encoder, or of the text model that shares `vision_model`'s space.
            vision_model: the dual encoder whose vision half is taken.
            revision: of `name`.
            vision_revision: of `vision_model`.
            cache_dir: where downloads are kept.
            max_video_length: the model's.
            sampling: which frames of a video are decoded.
            options: of the processor, where they shall not be the original's.
        """
        text_hub = {"revision": revision, "cache_dir": cache_dir}
        vision_hub = text_hub if vision_model is None else {"revision": vision_revision, "cache_dir": cache_dir}
        pictures = name if vision_model is None else vision_model
        config = AutoConfig.from_pretrained(pictures, **vision_hub)
        image_width = vision_width(vision_encoder_config(config)) if config.model_type in FAMILIES else None
        width = image_width or config.projection_dim
        pixels = replace(PixelSettings.from_pretrained(pictures, **vision_hub), resize_by="pillow")
        tokenizer, padding, longest = caption_rule(name, **text_hub)
        rule: dict[str, Any] = {"max_text_length": longest, "text_padding": padding, "clean_text": False}
        return cls(
            MMTVideoFeatureExtractor(width, max_video_length, [pixels], sampling), tokenizer, **(rule | options)
        )

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        video_features: Sequence[Any] | None = None,
        *,
        videos: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Tokenize captions, read or pad clips, or both.

        Args:
            text: one caption or a list.
            video_features: one `(F_i, D_v)` array a clip.
            videos: of a model with vision encoders, one path, `bytes`, `(F, H, W, 3)` uint8 array or list of pictures
                a clip (see `read_clip`); without them, the name that sentence-transformers has for `video_features`.
            images: pictures, or without vision encoders one feature vector `(D_v,)` or `(1, D_v)` a picture; each is a
                clip of one step.
            kwargs: `padding`, `truncation` and `max_length` of the tokenizer, flat or as `text_kwargs`, and
                `return_tensors`, only `"pt"`, flat or in `common_kwargs`. Others are ignored, so that pipelines may
                pass their own.

        Returns:
            `input_ids`, `attention_mask` `(B, L)` long for text; `video_features` `(B, F, D_v)`, named
            `input_features` where they came as `videos` or `images`, or `pixel_values` `(B, F, 3, height, width)`
            (with T frames a step, `(B, F, T, 3, height, width)`), and `video_mask` `(B, F)` for clips.

        Raises:
            ValueError: neither is given, or clips under two names, or an option twice; a caption is not a string or is
                empty.
        """
        clips = [values for values in (video_features, videos, images) if values is not None]
        if len(clips) > 1:
            raise ValueError("clips are given under two names; choose video_features, videos or images")
        if text is None and not clips:
            raise ValueError("give text, video_features, or both")
        of_text, of_all = kwargs.get("text_kwargs") or {}, kwargs.get("common_kwargs") or {}
        options = {name: value for name, value in {**kwargs, **of_text}.items() if name in TEXT_OPTIONS}
        twice = [name for name in options if name in kwargs and name in of_text]
        if twice:
            raise ValueError(f"{twice[0]} is given both as a keyword and in text_kwargs; give it once")
        return_tensors = kwargs.get("return_tensors", of_all.get("return_tensors", "pt"))
        batch: dict[str, torch.Tensor] = {}
        if text is not None:
            batch.update(self.tokenize([text] if isinstance(text, str) else text, **options))
        sources = videos if images is None else images
        if sources is not None and self.feature_extractor.pixels is not None:
            if isinstance(sources, str | bytes | os.PathLike):
                sources = [sources]
            batch.update(self.feature_extractor.decode(sources, return_tensors=return_tensors))
            return BatchFeature(batch)
        if images is not None:
            clips = [[image[None] if getattr(image, "ndim", 2) == 1 else image for image in images]]
        for values in clips:
            batch.update(self.feature_extractor(values, return_tensors=return_tensors))
        if sources is not None:  # sentence-transformers' trainer drops what has none of the names that it knows
            batch["input_features"] = batch.pop("video_features")
        return BatchFeature(batch)

    def tokenize(self, captions: Sequence[str], **options) -> Mapping[str, torch.Tensor]:
        """Captions to padded `input_ids` and `attention_mask`, `(B, L)` long; `options` go to the tokenizer."""
        if len(captions) == 0:
            raise ValueError("text is an empty list; give at least one caption")
        rule = {"padding": self.text_padding, "max_length": self.max_text_length}
        options = {"truncation": True, **rule, **options}
        if self.text_padding == "max_length":
            options |= rule  # what the encoder reads is not the caller's choice
        if self.clean_text:
            options["padding_side"] = self.padding_side
        cleaned = [clean_caption(caption, index) for index, caption in enumerate(captions)]
        texts = [self.text_prefix + text for text in (cleaned if self.clean_text else captions)]
        tokens = self.tokenizer(texts, return_tensors="pt", **options)
        if "attention_mask" not in tokens:  # the encoder reads its padding
            tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
        return tokens

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that `__call__` makes."""
        return ["input_ids", "attention_mask", *self.feature_extractor.model_input_names]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
