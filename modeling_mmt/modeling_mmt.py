"""Multilingual Multimodal Transformer: two towers, each an encoder's states under a transformer-pooling (TP) head.

Paper: arXiv 2103.08849 (NAACL 2021), section 3. Letters in shapes: B batch, L tokens, F video steps, D_v width of a
step, H width of the TP heads, P width of the joint space.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_mmt import MMTConfig
from .dual_encoder_mmt import PretrainedDualEncoder, features_of, leave_half_out, load_dual_encoder
from .efficientnet_lite_mmt import EfficientNetLiteModel  # noqa: F401  older loaders copy direct imports alone
from .freezing_mmt import embedding_modules, encoder_layers, keep_in_eval, learns
from .inputs_mmt import ItemError  # noqa: F401  as above
from .loss_mmt import CAPTIONS, LOSSES, objectives, positive_mask
from .pipeline_mmt import MMTSearchPipeline  # noqa: F401  its code must travel with this module's
from .pooling_mmt import (
    MMTAttention,
    MMTBranchOutput,
    MMTLayer,
    MMTProjection,
    MMTTransformerPooling,
    masked_mean,
    never_empty,
)
from .sentence_encoder_mmt import load_pretrained
from .vision_configuration_mmt import numbered  # noqa: F401  as above
from .vision_encoders_mmt import MMTVisionEncoder, MMTVisionModel, build_encoder, pixels_name

NAMED_PIXELS = 8  # vision encoders of a model that sentence-transformers loads
RESUMABLE_ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert")


@dataclass
class MMTOutput(ModelOutput):
    """What `MMTModel` returns.

    Args:
        loss: `()` float, nats: the weighted sum of the objectives below; `None` without `return_loss`.
        logits_per_text: `(B_text, B_video)` float: `logit_scale.exp() * text_embeds @ video_embeds.T`.
        logits_per_video: `(B_video, B_text)` float: the transpose.
        text_embeds: `(B_text, P)` float, unit norm.
        video_embeds: `(B_video, P)` float, unit norm.
        inter_loss: `()` float: L(X, V), plus L(Y, V) where each clip comes with two languages, and so on.
        intra_loss: `()` float: L(X, X^m) + L(V, V^m) (+ L(Y, Y^m)).
        cross_loss: `()` float: L(X|V, Y|V).
        text_loss: `()` float: L(X, Y), where there is no video at all or `text_weight` is above 0.
        noised_text_embeds: `(B, P)` float, unit norm, of x^m; this and the rest with `return_loss`, if in the batch.
        noised_video_embeds: of v^m.
        paired_text_embeds: of y.
        noised_paired_text_embeds: of y^m.
        conditional_text_embeds: `c_{x|v}`.
        conditional_paired_text_embeds: `c_{y|v}`.
    """

    loss: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    logits_per_video: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    inter_loss: torch.Tensor | None = None
    intra_loss: torch.Tensor | None = None
    cross_loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    noised_text_embeds: torch.Tensor | None = None
    noised_video_embeds: torch.Tensor | None = None
    paired_text_embeds: torch.Tensor | None = None
    noised_paired_text_embeds: torch.Tensor | None = None
    conditional_text_embeds: torch.Tensor | None = None
    conditional_paired_text_embeds: torch.Tensor | None = None


@dataclass
class MMTTextModelOutput(ModelOutput):
    """`text_embeds` `(B, P)`, projected and not normalised (as CLIP's), and `last_hidden_state` `(B, L, H)`.

    `hidden_states` and `attentions` are the TP head's, for `output_hidden_states` and `output_attentions`.
    """

    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MMTVideoModelOutput(ModelOutput):
    """`video_embeds` `(B, P)`, projected and not normalised (as CLIP's), and `last_hidden_state` `(B, F, H)`.

    `hidden_states` and `attentions` are the TP head's, for `output_hidden_states` and `output_attentions`.
    """

    video_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MMTPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation for every MMT class."""

    config: MMTConfig
    config_class = MMTConfig
    base_model_prefix = "mmt"
    input_modalities = ["text", "video"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["MMTLayer"]
    _can_record_outputs = {"hidden_states": MMTLayer, "attentions": MMTAttention}

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, which would train frozen layers, draw lost weights and open pickles.

        Raises:
            ValueError: the checkpoint lacks a weight, or holds one of a layer that `config.json` does not count. Who
                asks for `output_loading_info` finds it there instead.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **{"use_safetensors": True, **kwargs})
        model, info = loaded
        for kind, verb, use in (("missing_keys", "lacks", "needs"), ("unexpected_keys", "holds", "has no place for")):
            if info[kind] and not output_loading_info:
                raise ValueError(
                    f"{args[0] if args else cls.__name__}: the checkpoint {verb} {sorted(info[kind])[:3]}, which "
                    f"{cls.__name__} {use}; it or config.json is torn or another's: download or save it again"
                )
        model.freeze()
        return (model, info) if output_loading_info else model

    def freeze(self):
        """Exclude from learning what the configuration says: the encoders' lower layers, a fixed temperature.

        The frozen layers are put in eval mode, where `MMTTextModel.train` and `MMTVisionModel.train` keep them.
        """
        for module in self.modules():
            if isinstance(module, MMTTextModel):
                for frozen in module.frozen_modules():
                    frozen.requires_grad_(False).eval()
            elif isinstance(module, MMTVisionModel):
                module.freeze()
            elif isinstance(module, MMTModel):
                module.logit_scale.requires_grad_(self.config.learn_logit_scale)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, MMTTransformerPooling):
            init.zeros_(module.input_mean)
            init.ones_(module.input_std)
            if module.cls_embedding is not None:
                init.normal_(module.cls_embedding, std=self.config.initializer_range)
            if module.position_embeddings is not None and self.config.dual_encoder is not None:
                init.zeros_(module.position_embeddings.weight)
        elif isinstance(module, MMTBranchOutput) and self.config.residual_init == "zero":
            init.zeros_(module.weight)
        elif isinstance(module, MMTModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)


class MMTTower(MMTPreTrainedModel):
    """What both towers share: a TP head `pooling` on top of the states that `encode` makes."""

    pooling: MMTTransformerPooling

    @capture_outputs(tie_last_hidden_states=False)
    def pool(self, states: torch.Tensor, mask: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The TP head on `states` `(B, N, D)` with `mask` `(B, N)`.

        The keywords `output_hidden_states` and `output_attentions` (eager attention only) ask for the head's inner
        states: the input and each layer's output `(B, N, H)`, and each layer's weights `(B, heads, N, N)`. Here, and
        not in `forward`, so that the encoder below keeps its own to itself.

        Returns:
            `last_hidden_state` `(B, N, H)` and `pooler_output` `(B, H)`.
        """
        hidden, pooled = self.pooling(states, mask, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def pool_and_project(self, projection: MMTProjection, states: torch.Tensor, mask: torch.Tensor, **kwargs):
        """As `pool`, with the joint-space embedding `(B, P)` for `pooler_output`."""
        outputs = self.pool(states, mask, return_dict=True, **kwargs)
        outputs.pooler_output = projection(outputs.pooler_output, states, mask)
        return outputs


class MMTTextModel(MMTTower):
    """Text tower: a multilingual encoder, frozen below a layer, and its TP head (paper section 3.1).

    With `dual_encoder` the head reads one state a caption: the vector that the encoder pools itself.
    """

    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ["text"]

    def __init__(self, config: MMTConfig):
        super().__init__(config)
        self.encoder = build_encoder(config.text_config)
        self.encoder_pooling = "tokens" if config.dual_encoder is None else config.dual_encoder["text_pooling"]
        if self.encoder_pooling == "features":
            leave_half_out(self.encoder, "text")
        elif self.encoder_pooling != "pooler" and getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # the TP head pools
        self.pooling = MMTTransformerPooling(config, "text")
        self.post_init()
        self.freeze()

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's word embeddings."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the encoder's word embeddings."""
        self.encoder.set_input_embeddings(value)

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that never learn and never drop out."""
        if self.is_encoder_frozen:
            return [self.encoder]
        frozen = list(encoder_layers(self.encoder)[: self.config.freeze_text_layers])
        if self.config.freeze_text_embeddings:
            frozen += embedding_modules(self.encoder)
        return frozen

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether the whole encoder is frozen, what follows its last layer included."""
        depth = self.config.num_text_layers
        return self.config.freeze_text_embeddings and self.config.freeze_text_layers == depth

    def train(self, mode: bool = True):
        """As `nn.Module.train`, but frozen modules stay in eval mode."""
        super().train(mode)
        for module in self.frozen_modules():
            keep_in_eval(module, mode)
        return self

    def frozen_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What the frozen layers say: `(B, L)` tokens to the states `(B, L, H_text)` that the first learning one sees.

        A pure function of the tokens, so its value can be kept: see `layer_cache.py`.

        Raises:
            ValueError: the embeddings or no layer is frozen, or the encoder cannot be entered at a layer.
        """
        self.check_frozen_states()
        with torch.no_grad():
            mask = never_empty(attention_mask).long()
            if self.is_encoder_frozen:
                states = self.encoder_states(input_ids, mask)
                return states if self.encoder_pooling == "tokens" else states.expand(-1, mask.shape[1], -1)
            # Not the whole encoder: the learning layers would cost time and, in train mode, draw dropout's randomness.
            states = self.encoder.embeddings(input_ids=input_ids)
            return self._run_layers(states, mask, slice(self.config.freeze_text_layers))

    def check_frozen_states(self):
        """Raise `ValueError`, naming the field, where the frozen layers' output could change or be entered wrongly."""
        if not self.config.freeze_text_embeddings:
            raise ValueError(
                "freeze_text_embeddings is false: the states change as the embeddings learn; do not cache"
            )
        if self.config.freeze_text_layers == 0:
            raise ValueError("freeze_text_layers is 0: no layer is frozen, there is nothing to cache")
        if any(learns(module) for module in self.frozen_modules()):
            raise ValueError("an adapter learns inside the frozen layers: their states change; do not cache")
        model_type = self.config.text_config.model_type
        is_resumable = self.encoder_pooling == "tokens" and model_type in RESUMABLE_ENCODERS
        if not self.is_encoder_frozen and not is_resumable:
            raise ValueError(
                f"text_config.model_type {model_type!r} cannot be entered at layer {self.config.freeze_text_layers}; "
                f"freeze every layer, or use one of {', '.join(RESUMABLE_ENCODERS)}"
            )

    def encoder_states(self, input_ids: torch.Tensor, mask: torch.Tensor, **kwargs) -> torch.Tensor:
        """Tokens `(B, L)` to the encoder's output: their states `(B, L, H_text)`, or one pooled vector `(B, 1, D)`."""
        inputs = {"input_ids": input_ids, "attention_mask": mask, **kwargs}
        if self.encoder_pooling == "features":
            return features_of(self.encoder.get_text_features(**inputs)).unsqueeze(1)
        output = self.encoder(**inputs)
        if self.encoder_pooling == "pooler":
            return output.pooler_output.to(output.last_hidden_state.dtype).unsqueeze(1)  # TIPSv2's divides in float32
        states = output.last_hidden_state
        if self.encoder_pooling == "mean":
            return masked_mean(states, mask).unsqueeze(1)
        return states[:, :1] if self.encoder_pooling == "first" else states

    def read(self, input_ids=None, attention_mask=None, text_states=None, **kwargs):
        """Captions to the TP head's input `(B, L, H_text)` and its mask `(B, L)`; of a dual encoder, L is 1."""
        mask = _default_mask(attention_mask, input_ids if text_states is None else text_states)
        states = self.encode(input_ids, mask, text_states, **kwargs)
        return states, mask if self.encoder_pooling == "tokens" else mask.new_ones(states.shape[:2])

    def encode(self, input_ids=None, attention_mask=None, text_states=None, **kwargs) -> torch.Tensor:
        """Tokens `(B, L)`, or `text_states` kept from `frozen_states`, to the TP head's input `(B, L, H_text)`."""
        if text_states is None:
            states = self.encoder_states(input_ids, never_empty(attention_mask).long(), **kwargs)
        else:
            self.check_frozen_states()
            states = text_states.to(self.dtype)
            if self.encoder_pooling != "tokens":
                states = states[:, :1]
            elif not self.is_encoder_frozen:
                learning = slice(self.config.freeze_text_layers, None)
                states = self._run_layers(states, never_empty(attention_mask), learning)
        return self.pooling.standardize(states)

    def _run_layers(self, states: torch.Tensor, mask: torch.Tensor, layers: slice) -> torch.Tensor:
        config = self.config.text_config
        attention_mask = create_bidirectional_mask(config=config, inputs_embeds=states, attention_mask=mask)
        for layer in encoder_layers(self.encoder)[layers]:
            output = layer(states, attention_mask)
            states = output[0] if isinstance(output, tuple) else output
        return states

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, text_states=None, **kwargs) -> BaseModelOutputWithPooling:
        """Encode captions.

        Args:
            input_ids: `(B, L)` long.
            attention_mask: `(B, L)`, 1 = token; `None` is all ones.
            text_states: `(B, L, H_text)` float from `frozen_states`, in place of `input_ids`.
            kwargs: passed to the attention functions.

        Returns:
            `last_hidden_state` `(B, L, H)` and `pooler_output` `(B, H)`.
        """
        states, mask = self.read(input_ids, attention_mask, text_states, **kwargs)
        return self.pool(states, mask, return_dict=True, **kwargs)


class MMTVideoModel(MMTTower):
    """Video tower: features of a backbone in, TP head on top (paper section 3.1).

    With `vision_config` the backbone is part of it, as `vision_model`, and pixels may come in place of features.
    """

    base_model_prefix = "video_model"
    main_input_name = "video_features"
    input_modalities = ["video"]

    def __init__(self, config: MMTConfig):
        super().__init__(config)
        self.vision_model = None
        if config.vision_config is not None:
            self.vision_model = MMTVisionModel(
                config.vision_configs, config.vision_pooling, config.learn_vision_layers, config.vision_batch_size
            )
        self.pooling = MMTTransformerPooling(config, "video")
        self.post_init()
        self.freeze()

    def read(
        self,
        video_features: torch.Tensor | None,
        video_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | None = None,
        more_pixels: Mapping[str, torch.Tensor | None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips, as features or as pixels, to the TP head's input `(B, F, D_v)` and its mask `(B, F)`.

        Args:
            video_features: `(B, F, D_v)`, or `None` with pixels.
            video_mask: `(B, F)`, 1 = real step; `None` is all ones.
            pixel_values: `(B, F, 3, H, W)` for the first vision encoder, or `(B, F, T, 3, H, W)`.
            more_pixels: has `pixel_values_1` for the second encoder, and so on.

        Raises:
            ValueError: both or neither are given, the model has no vision encoder, or a shape does not fit.
        """
        if (video_features is None) == (pixel_values is None):
            raise ValueError("give either video_features or pixel_values")
        if video_features is not None:
            return self.encode(video_features), _default_mask(video_mask, video_features)
        return self.encode(self.features(pixel_values, video_mask, more_pixels)), _default_mask(
            video_mask, pixel_values
        )

    @property
    def vision_experts(self) -> list[MMTVisionEncoder]:
        """The vision encoders; none where features come from elsewhere."""
        return [] if self.vision_model is None else self.vision_model.encoders()

    def features(
        self,
        pixel_values: Any,
        video_mask: torch.Tensor | None = None,
        more_pixels: Mapping[str, torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """Pixels, as `read` takes them, to the features `(B, F, D_v)` that would have been extracted beforehand."""
        if self.vision_model is None:
            raise ValueError(
                "pixel_values are given, but the model has no vision encoder (vision_config is null): give "
                "video_features of the extractor that its card names, or build it with MMTModel.from_encoders"
            )
        pixels = [pixel_values]
        for number in range(1, len(self.config.vision_configs)):
            values = (more_pixels or {}).get(pixels_name(number))
            if values is None:
                raise ValueError(
                    f"{pixels_name(number)} is missing: vision_config has a further encoder, which needs it"
                )
            pixels.append(values)
        if pixel_values.shape[1] > self.config.max_video_length:
            raise ValueError(
                f"pixel_values has {pixel_values.shape[1]} steps; max_video_length is "
                f"{self.config.max_video_length}: sample or cut the clip"
            )
        return self.vision_model(pixels, never_empty(_default_mask(video_mask, pixel_values)))

    def encode(self, video_features: torch.Tensor) -> torch.Tensor:
        """`(B, F, D_v)` features to the TP head's input, of the same shape.

        Raises:
            ValueError: not `(B, F, D_v)`, or longer than `max_video_length`.
        """
        shape, width, longest = (
            tuple(video_features.shape),
            self.config.video_feature_dim,
            self.config.max_video_length,
        )
        if len(shape) != 3 or shape[2] != width:
            raise ValueError(
                f"video_features has shape {shape}; expected (batch, steps, {width}), see video_feature_dims"
            )
        if shape[1] > longest:
            raise ValueError(
                f"video_features has {shape[1]} steps; max_video_length is {longest}: sample or cut the clip"
            )
        return self.pooling.standardize(video_features.to(self.dtype))

    @can_return_tuple
    def forward(self, video_features=None, video_mask=None, pixel_values=None, **kwargs) -> BaseModelOutputWithPooling:
        """Encode clips.

        Args:
            video_features: `(B, F, D_v)` float, one row a step, the streams concatenated, not normalised.
            video_mask: `(B, F)`, 1 = real step; `None` is all ones.
            pixel_values: `(B, F, 3, H, W)` float in place of features, or `(B, F, T, 3, H, W)` of a video encoder.
            kwargs: `pixel_values_1`, ... of more vision encoders; others are passed to the attention function.

        Returns:
            `last_hidden_state` `(B, F, H)` and `pooler_output` `(B, H)`.
        """
        states, mask = self.read(video_features, video_mask, pixel_values, _take_inputs(kwargs))
        return self.pool(states, mask, return_dict=True, **kwargs)


def _take_inputs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Takes `pixel_values_1`, `paired_2_input_ids`, ... out of `kwargs`; what is left goes to the attention."""
    taken = ("pixel_values_", "noised_pixel_values", "paired_", "noised_paired_")
    return {name: kwargs.pop(name) for name in list(kwargs) if name.startswith(taken)}


def _names_pixels(method: Callable) -> Callable:
    """Puts `pixel_values_1`, ... into a signature: sentence-transformers gives a method only what that names."""
    signature = inspect.signature(method)
    *named, kwargs = signature.parameters.values()
    more = [named[-1].replace(name=pixels_name(number)) for number in range(1, NAMED_PIXELS)]
    method.__signature__ = signature.replace(parameters=[*named, *more, kwargs])  # type: ignore[attr-defined]
    return method


def _default_mask(mask, sequence) -> torch.Tensor:
    if mask is None:
        return torch.ones(sequence.shape[:2], dtype=torch.long, device=sequence.device)
    if mask.shape != sequence.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {tuple(sequence.shape[:2])}, as its sequence")
    return mask


def unit_norm(embeds: torch.Tensor) -> torch.Tensor:
    """`(B, P)` to unit L2 norm; a zero row stays finite."""
    return nn.functional.normalize(embeds, dim=-1)


class MMTModel(MMTPreTrainedModel):
    """The dual encoder: text in any language and video in one space, compared by cosine (paper section 3)."""

    main_input_name = "input_ids"

    def __init__(self, config: MMTConfig):
        super().__init__(config)
        self.text_model = MMTTextModel(config)
        self.video_model = MMTVideoModel(config)
        self.text_projection = MMTProjection(config, config.text_feature_dim)
        self.video_projection = MMTProjection(config, config.video_feature_dim)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))
        self.logit_bias = nn.Parameter(torch.tensor(0.0)) if config.loss_type == "sigmoid" else None
        self.post_init()
        self.freeze()

    @classmethod
    def from_text_encoder(
        cls, text_model: str, *, revision: str | None = None, cache_dir=None, **config
    ) -> "MMTModel":
        """A model whose text encoder is pretrained and whose heads are new.

        Args:
            text_model: name on the Hub, or a folder, of any encoder that `AutoModel` loads.
            revision: tag, branch or commit of it.
            cache_dir: where downloads are kept.
            config: fields of `MMTConfig`.

        Raises:
            ValueError: the pretrained weights lack a tensor that the encoder needs.
        """
        hub = {"revision": revision, "cache_dir": cache_dir}
        text_config = AutoConfig.from_pretrained(text_model, **hub).to_dict()
        text_config.pop("_name_or_path", None)  # a folder of this machine says nothing on another
        model = cls(MMTConfig(text_config=text_config, **config))
        encoder, info = load_pretrained(text_model, config=model.config.text_config, **hub)
        missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
        if missing:
            raise ValueError(f"{text_model}: the checkpoint lacks {missing[:5]}, which the encoder needs")
        weights = {key: value for key, value in encoder.state_dict().items() if not key.startswith("pooler.")}
        model.text_model.encoder.load_state_dict(weights)
        return model

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
        **config,
    ) -> "MMTModel":
        """A model from pixels whose text and vision encoders are pretrained and whose heads are new.

        Args:
            text_model: as `from_text_encoder`'s.
            vision_model: name on the Hub, or a folder, of any vision encoder that `AutoModel` loads; several are
                experts side by side.
            revision: tag, branch or commit of the text encoder.
            vision_revision: of the vision encoder, or of each of them.
            cache_dir: where downloads are kept.
            frames_per_step: of video encoders, where it shall not be their own.
            config: fields of `MMTConfig`.

        Raises:
            ValueError: pretrained weights lack a tensor that an encoder needs.
        """
        names = [vision_model] if isinstance(vision_model, str) else list(vision_model)
        experts = [
            MMTVisionEncoder.from_pretrained(
                name,
                revision=vision_revision,
                cache_dir=cache_dir,
                pooling=config.get("vision_pooling", "pooler"),
                frames_per_step=frames_per_step,
            )
            for name in names
        ]
        config["vision_config"] = [expert.config for expert in experts]
        model = cls.from_text_encoder(text_model, revision=revision, cache_dir=cache_dir, **config)
        for own, pretrained in zip(model.video_model.vision_experts, experts, strict=True):
            own.load_state_dict(pretrained.state_dict())
        return model

    @classmethod
    def from_dual_encoder(
        cls,
        name: str,
        vision_model: str | None = None,
        *,
        revision: str | None = None,
        vision_revision: str | None = None,
        cache_dir=None,
        unit_steps: bool = True,
        **config,
    ) -> "MMTModel":
        """A model that starts as an aligned encoder of text and pictures, in eval mode.

        Before it learns anything, the embedding of a caption is the original's, and that of a clip the mean of its
        frames' ("meanP" of CLIP4Clip, arXiv 2104.08860, section 3.3). The encoders are frozen and the heads learn,
        unless `freeze_text_layers`, `freeze_text_embeddings` and `learn_vision_layers` say otherwise.

        Args:
            name: name on the Hub, or a folder, of a dual encoder: CLIP, SigLIP, ... (`dual_encoder_mmt.FAMILIES`), or
                any that `AutoModel` loads with `get_text_features` and `get_image_features`. With `vision_model`, a
                sentence-transformers text model that shares its space.
            vision_model: the dual encoder whose vision half is then taken.
            revision: tag, branch or commit of `name`.
            vision_revision: of `vision_model`.
            cache_dir: where downloads are kept.
            unit_steps: whether frames' embeddings are normalised before their mean is taken.
            config: fields of `MMTConfig`.

        Raises:
            ValueError: it is no dual encoder, cannot be taken apart or lacks a weight; says which.
        """
        source = load_dual_encoder(name, vision_model, revision, vision_revision, cache_dir)
        return cls.from_towers(source, unit_steps=unit_steps, **config)

    @classmethod
    def from_towers(cls, source: PretrainedDualEncoder, *, unit_steps: bool = True, **config) -> "MMTModel":
        """As `from_dual_encoder`, from one that is loaded; in eval mode.

        Args:
            source: both towers; either may be changed before.
            unit_steps: whether frames' embeddings are normalised before their mean is taken.
            config: fields of `MMTConfig`.
        """
        model = cls(MMTConfig(**(source.config_fields(unit_steps) | config)))
        (expert,) = model.video_model.vision_experts
        source.text.copy_to(model.text_model.encoder, model.text_model.pooling.input_projection)
        source.vision.copy_to(expert.encoder, model.video_model.pooling.input_projection)
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the text encoder's word embeddings."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(self, input_ids=None, attention_mask=None, text_states=None, **kwargs):
        """Captions in; the projected, un-normalised embedding `(B, P)` in `pooler_output` (CLIP's v5 convention).

        Args:
            input_ids: `(B, L)` long.
            attention_mask: `(B, L)`, 1 = token.
            text_states: `(B, L, H_text)` from `text_model.frozen_states`, in place of `input_ids`.
            kwargs: passed on to the tower.
        """
        states, mask = self.text_model.read(input_ids, attention_mask, text_states, **kwargs)
        return self.text_model.pool_and_project(self.text_projection, states, mask, **kwargs)

    @_names_pixels
    @can_return_tuple
    def get_video_features(
        self, video_features=None, video_mask=None, pixel_values=None, input_features=None, **kwargs
    ):
        """Clips in; the projected, un-normalised embedding `(B, P)` in `pooler_output`.

        Args:
            video_features: `(B, F, D_v)` float.
            video_mask: `(B, F)`, 1 = real step.
            pixel_values: `(B, F, 3, H, W)` float in place of features, or `(B, F, T, 3, H, W)` of a video encoder.
            input_features: another name of `video_features`, by which sentence-transformers' trainer knows an input.
            kwargs: `pixel_values_1`, ... of more vision encoders; others are passed on to the tower.
        """
        video_features = input_features if video_features is None else video_features
        states, mask = self.video_model.read(video_features, video_mask, pixel_values, _take_inputs(kwargs))
        return self.video_model.pool_and_project(self.video_projection, states, mask, **kwargs)

    def embed(self, batch: Mapping[str, torch.Tensor | None], **kwargs) -> dict[str, torch.Tensor]:
        """Every unit-norm embedding `(B, P)` that the objectives need, by the name that `loss_mmt.objectives` knows.

        With two languages or more and the video, that includes `c_{x|v}` = TP_x(query = e_x, key = value =
        [e_x ; e_v]) and `c_{y|v}` (paper section 3.2). Differs: with several TP layers, the queries' own part of the
        keys is each layer's states, the video's part stays `e_v`.

        Args:
            batch: what `forward` takes, as the collator makes it; the views that are absent are not computed.
            kwargs: passed on to the attention functions.
        """
        embeds: dict[str, torch.Tensor] = {}
        video: tuple[torch.Tensor, ...] = ()
        is_paired = batch.get("paired_input_ids") is not None or batch.get("paired_text_states") is not None
        for prefix in ("", "noised_"):
            features, pixels = batch.get(f"{prefix}video_features"), batch.get(f"{prefix}pixel_values")
            if features is not None or pixels is not None:
                experts = range(1, len(self.video_model.vision_experts))
                more = {pixels_name(number): batch.get(f"{prefix}{pixels_name(number)}") for number in experts}
                states, mask = self.video_model.read(features, batch.get("video_mask"), pixels, more)
                projected = self.video_model.pool_and_project(self.video_projection, states, mask, **kwargs)
                embeds[f"{prefix}video_embeds"] = unit_norm(projected.pooler_output)
                video = video or (self.video_model.pooling.embed(states), mask)
        for caption, prefix in ((caption, f"{noise}{caption}") for caption in CAPTIONS for noise in ("", "noised_")):
            ids, text_states = batch.get(f"{prefix}input_ids"), batch.get(f"{prefix}text_states")
            if ids is None and text_states is None:
                continue
            attention_mask = batch.get(f"{caption}attention_mask")
            states, mask = self.text_model.read(ids, attention_mask, text_states, **kwargs)
            projected = self.text_model.pool_and_project(self.text_projection, states, mask, **kwargs)
            embeds[f"{prefix}text_embeds"] = unit_norm(projected.pooler_output)
            if is_paired and video and "noised" not in prefix and self.config.cross_weight:
                _, pooled = self.text_model.pooling(states, mask, *video, **kwargs)
                embeds[f"conditional_{prefix}text_embeds"] = unit_norm(self.text_projection(pooled, states, mask))
        return embeds

    @torch.no_grad()
    def set_input_statistics(self, tower: str, states: torch.Tensor):
        """Standardize a tower's inputs by the statistics of `states`.

        Args:
            tower: `"text"` or `"video"`.
            states: `(M, D)` float: tokens' states, or video steps, of the training data; at least two rows.
        """
        towers: dict[str, MMTTextModel | MMTVideoModel] = {"text": self.text_model, "video": self.video_model}
        pooling = towers[tower].pooling
        pooling.input_mean.copy_(states.mean(dim=0))
        pooling.input_std.copy_(states.std(dim=0) + 1e-6)

    def loss_scalars(self) -> dict[str, torch.Tensor]:
        """What the losses need beside embeddings: `logit_scale` `()`, 1 over temperature, and the sigmoid's bias."""
        scalars = {"logit_scale": self.logit_scale.exp()}
        return scalars if self.logit_bias is None else {**scalars, "logit_bias": self.logit_bias}

    def compute_objectives(
        self,
        embeds: Mapping[str, torch.Tensor],
        positive_ids: torch.Tensor | None = None,
        contrastive_loss: Callable[..., torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The objectives over a whole batch of embeddings, and `"loss"`, their weighted sum.

        Args:
            embeds: from `embed`, or gathered over processes; with `loss_scalars` if they went another way (through the
                forward of a data-parallel wrapper).
            positive_ids: `(B, K)` long, as `loss_mmt.positive_mask` takes them. `None`: the diagonal alone.
            contrastive_loss: called as `contrastive_loss(loss_type, a, b, scale, positive_ids, logit_bias)` in place
                of the dense loss; `streaming_loss.contrastive_loss` needs no `(B, B)` matrix and has the same value.
        """
        config, scalars = self.config, {name: embeds.get(name, value) for name, value in self.loss_scalars().items()}
        scale = scalars.pop("logit_scale")
        weights = {"inter": config.inter_weight, "intra": config.intra_weight, "cross": config.cross_weight}
        weights |= {"text": config.text_weight} if "video_embeds" in embeds else {}
        if contrastive_loss is not None:
            loss_fn, positives = partial(contrastive_loss, config.loss_type, **scalars), positive_ids
        else:
            loss_fn = partial(LOSSES[config.loss_type], **scalars)
            positives = None if positive_ids is None else positive_mask(positive_ids)
        return objectives(embeds, scale, positives, loss_fn, weights)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None,
        positive_ids: torch.Tensor | None = None,
        noised_input_ids: torch.Tensor | None = None,
        noised_video_features: torch.Tensor | None = None,
        paired_input_ids: torch.Tensor | None = None,
        paired_attention_mask: torch.Tensor | None = None,
        noised_paired_input_ids: torch.Tensor | None = None,
        text_states: torch.Tensor | None = None,
        noised_text_states: torch.Tensor | None = None,
        paired_text_states: torch.Tensor | None = None,
        noised_paired_text_states: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs,
    ) -> MMTOutput:
        """Embed both modalities, compare them and, with `return_loss`, evaluate the objectives.

        Args:
            input_ids: `(B_text, L)` long, captions x.
            video_features: `(B_video, F, D_v)` float.
            attention_mask: `(B_text, L)`, 1 = token.
            video_mask: `(B_video, F)`, 1 = real step.
            positive_ids: `(B, K)` long: the clip's id, then hashes of its captions; rows of one clip, and rows with an
                equal caption, are no negatives of each other. `None`: only the diagonal is positive.
            noised_input_ids: `(B, L)` long, x^m; shares `attention_mask`.
            noised_video_features: `(B, F, D_v)`, v^m; shares `video_mask`.
            paired_input_ids: `(B, L_y)` long, captions y of the same clips in a second language.
            paired_attention_mask: `(B, L_y)`.
            noised_paired_input_ids: `(B, L_y)`, y^m.
            text_states: `(B, L, H_text)`: kept output of the frozen layers in place of `input_ids`.
            noised_text_states: the same for x^m.
            paired_text_states: the same for y.
            noised_paired_text_states: the same for y^m.
            pixel_values: `(B_video, F, 3, H, W)` float in place of `video_features`, or `(B_video, F, T, 3, H, W)` of
                a video encoder.
            input_features: another name of `video_features`.
            return_loss: whether to evaluate the objectives over this (local) batch.
            kwargs: `pixel_values_1`, ..., `paired_2_input_ids`, ... (`loss_mmt.CAPTIONS`); others go to the attention.

        Raises:
            ValueError: a shape does not fit, or no text, or neither video nor a second language.
        """
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "text_states": text_states,
            "noised_input_ids": noised_input_ids,
            "noised_text_states": noised_text_states,
            "paired_input_ids": paired_input_ids,
            "paired_attention_mask": paired_attention_mask,
            "paired_text_states": paired_text_states,
            "noised_paired_input_ids": noised_paired_input_ids,
            "noised_paired_text_states": noised_paired_text_states,
            "video_features": input_features if video_features is None else video_features,
            "video_mask": video_mask,
            "noised_video_features": noised_video_features,
            "pixel_values": pixel_values,
            **_take_inputs(kwargs),
        }
        embeds = self.embed(batch, **kwargs)
        if "text_embeds" not in embeds or not ("video_embeds" in embeds or "paired_text_embeds" in embeds):
            raise ValueError(
                "forward needs captions and videos (or two languages); for one modality call get_*_features"
            )
        text_embeds, video_embeds = embeds["text_embeds"], embeds.get("video_embeds")
        losses = self.compute_objectives(embeds, positive_ids) if return_loss else {}
        logits = None if video_embeds is None else self.logit_scale.exp() * text_embeds @ video_embeds.T
        shown = MMTOutput.__dataclass_fields__ if return_loss else ("text_embeds", "video_embeds")
        return MMTOutput(
            loss=losses.pop("loss", None),
            logits_per_text=logits,
            logits_per_video=None if logits is None else logits.T,
            **{name: value for name, value in embeds.items() if name in shown},
            **{f"{name}_loss": value for name, value in losses.items()},
        )


class MMTTextModelWithProjection(MMTPreTrainedModel):
    """The text half of an `MMTModel`, from the same checkpoint: index queries without the video tower."""

    base_model_prefix = "mmt"
    main_input_name = "input_ids"
    input_modalities = ["text"]
    _keys_to_ignore_on_load_unexpected = [r"^video_model\.", r"^video_projection\.", r"^logit_scale$", r"^logit_bias$"]

    def __init__(self, config: MMTConfig):
        super().__init__(config)
        self.text_model = MMTTextModel(config)
        self.text_projection = MMTProjection(config, config.text_feature_dim)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's word embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the encoder's word embeddings."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, **kwargs) -> MMTTextModelOutput:
        """`(B, L)` tokens to `text_embeds` `(B, P)`, not normalised."""
        states, mask = self.text_model.read(input_ids, attention_mask, **kwargs)
        outputs = self.text_model.pool_and_project(self.text_projection, states, mask, **kwargs)
        return MMTTextModelOutput(
            text_embeds=outputs.pooler_output,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MMTVideoModelWithProjection(MMTPreTrainedModel):
    """The video half of an `MMTModel`, from the same checkpoint: index clips without the text tower."""

    base_model_prefix = "mmt"
    main_input_name = "video_features"
    input_modalities = ["video"]
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_scale$", r"^logit_bias$"]

    def __init__(self, config: MMTConfig):
        super().__init__(config)
        self.video_model = MMTVideoModel(config)
        self.video_projection = MMTProjection(config, config.video_feature_dim)
        self.post_init()

    @can_return_tuple
    def forward(
        self, video_features=None, video_mask=None, pixel_values=None, input_features=None, **kwargs
    ) -> MMTVideoModelOutput:
        """`(B, F, D_v)` features, or pixels as `MMTModel` takes them, to `video_embeds` `(B, P)`, not normalised."""
        video_features = input_features if video_features is None else video_features
        states, mask = self.video_model.read(video_features, video_mask, pixel_values, _take_inputs(kwargs))
        outputs = self.video_model.pool_and_project(self.video_projection, states, mask, **kwargs)
        return MMTVideoModelOutput(
            video_embeds=outputs.pooler_output,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
