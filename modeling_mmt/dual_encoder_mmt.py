"""Aligned dual encoders of text and pictures (CLIP, SigLIP, ...) to start a model from: what differs by family.

A tower of such a model is an encoder that pools its own output, and a projection to the joint space or none.
`MMTModel` takes both halves: a caption is then a sequence of one state, its sentence vector, and a clip one of its
frames' vectors; a TP head's input projection is the original's, and its layers start as the identity. A clip's
embedding is then the normalised mean of its frames' normalised embeddings ("meanP" of CLIP4Clip, arXiv 2104.08860,
section 3.3).

What cannot be taken apart is kept whole in each tower and read through `get_text_features` and `get_image_features`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .sentence_encoder_mmt import load_pretrained, load_sentence_encoder, sentence_modules, sentence_options

logger = logging.get_logger(__name__)

TEXT_POOLINGS = ("pooler", "first", "mean", "features")
PROJECTIONS = (None, "linear", "affine")
LONGEST_CAPTION = 512  # tokens, where neither tokenizer nor encoder sets a bound


@dataclass(frozen=True)
class Family:
    """How the models of one `model_type` read captions.

    Args:
        text_pooling: `"pooler"`: the text half's own `pooler_output`; `"first"`: its first token's last state.
        padding: `"max_length"` where the text half reads its padding, so that it must be what training had.
        max_length: longest caption in tokens; `None`: what tokenizer and encoder allow.
    """

    text_pooling: str = "pooler"
    padding: str = "longest"
    max_length: int | None = None


FAMILIES = {
    "clip": Family(),  # EOS token
    "metaclip_2": Family(),  # EOS token, by its id
    "siglip": Family(padding="max_length"),  # last position, a linear head; no projection
    "siglip2": Family(padding="max_length"),
    "chinese_clip": Family(text_pooling="first"),
    "altclip": Family(text_pooling="first"),
    "align": Family(text_pooling="first", max_length=64),  # the text projection has a bias, pictures have none
    "vision-text-dual-encoder": Family(),
    "aimv2": Family(),
    "tipsv2": Family(),  # mean over the real tokens; no projections
}
REFUSED = {
    "xclip": "its text embedding depends on the video that it is compared with (prompts conditioned on the video), so "
    "a caption alone has none"
}
# The children of a whole model that each tower leaves out, by the start of their names.
OTHER_HALF = {"text": ("vis", "image"), "vision": ("text",)}
SCALARS = ("logit_scale", "logit_bias", "temperature")
# Encoders whose first position has the number after the padding token's.
OFFSET_POSITIONS = ("altclip_text_model", "camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")


@dataclass(frozen=True)
class DualEncoder:
    """What `MMTConfig.dual_encoder` says: how the encoders' vectors become points of their own joint space.

    Args:
        text_pooling: a caption's vector: `"pooler"`, the encoder's own; `"first"`, its first token's state; `"mean"`,
            over the real tokens; `"features"`, the `get_text_features` of a whole model.
        text_projection: `"linear"`, `"affine"` (with a bias), or `None` where there is none.
        vision_projection: the same of a picture's vector.
        unit_steps: whether an embedding is normalised before the mean over frames is taken.

    Raises:
        ValueError: a value is outside its set; names the field.
    """

    text_pooling: str
    text_projection: str | None = None
    vision_projection: str | None = None
    unit_steps: bool = True

    def __post_init__(self):
        """Sets of values."""
        allowed = {
            "text_pooling": TEXT_POOLINGS,
            "text_projection": PROJECTIONS,
            "vision_projection": PROJECTIONS,
            "unit_steps": (False, True),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"MMTConfig.dual_encoder.{name} is {getattr(self, name)!r}; "
                    f"allowed: {', '.join(map(repr, values))}"
                )

    @classmethod
    def from_fields(cls, fields: Any) -> "DualEncoder":
        """From itself, or from what a `config.json` has in its place."""
        if isinstance(fields, cls):
            return fields
        unknown = sorted(set(fields) - set(cls.__dataclass_fields__)) if isinstance(fields, Mapping) else ["?"]
        if unknown or "text_pooling" not in fields:
            raise ValueError(
                f"MMTConfig.dual_encoder is {fields!r:.100}; allowed: {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**fields)


@dataclass
class Tower:
    """One half of a pretrained dual encoder: `projection(pooled vector of encoder)` is its embedding."""

    encoder: Any  # a PreTrainedModel
    pooling: str
    projection: nn.Linear | None = None

    @property
    def width(self) -> int | None:
        """Numbers of the vector that the encoder pools, where a projection tells."""
        return None if self.projection is None else self.projection.in_features

    @property
    def projection_kind(self) -> str | None:
        """As `DualEncoder` names it."""
        if self.projection is None:
            return None
        return "linear" if self.projection.bias is None else "affine"

    def copy_to(self, encoder: nn.Module, projection: nn.Linear | None):
        """Write the pretrained weights into an `encoder` that has the same parts or fewer, and a `projection`."""
        weights = self.encoder.state_dict()
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
        if projection is not None and self.projection is not None:
            projection.load_state_dict(self.projection.state_dict())


@dataclass
class PretrainedDualEncoder:
    """Both towers, and what its loss compared with.

    Args:
        text: of captions.
        vision: of pictures.
        width: of the joint space.
        logit_scale: natural log of 1 / temperature; `None` where the model has none.
        logit_bias: of the sigmoid loss; `None` where the model has none.
    """

    text: Tower
    vision: Tower
    width: int
    logit_scale: float | None
    logit_bias: float | None

    def config_fields(self, unit_steps: bool) -> dict[str, Any]:
        """Fields of an `MMTConfig` whose model starts as this one; encoders frozen, two TP layers a head."""
        facts = DualEncoder(
            self.text.pooling, self.text.projection_kind, self.vision.projection_kind, unit_steps=unit_steps
        )
        fields = {
            "text_config": _fields(self.text.encoder.config),
            "vision_config": _fields(self.vision.encoder.config),
            "vision_pooling": self.vision.pooling,
            "video_feature_dims": [self.vision.width or self.width],
            "dual_encoder": asdict(facts),
            "text_output_layer": None,
            "freeze_text_layers": self.text.encoder.config.get_text_config().num_hidden_layers,
            "hidden_size": self.width,
            "projection_dim": self.width,
            "intermediate_size": 4 * self.width,
            "num_attention_heads": math.gcd(self.width, 8),
            "norm_placement": "pre",
            "residual_init": "zero",
            "pooling": "mean",
            "loss_type": "symmetric_softmax" if self.logit_bias is None else "sigmoid",
        }
        if self.logit_scale is not None:
            fields["logit_scale_init_value"] = self.logit_scale
        if self.logit_bias is not None:
            fields["logit_bias_init_value"] = self.logit_bias
        return fields


def load_dual_encoder(
    name: str, vision_model: str | None = None, revision=None, vision_revision=None, cache_dir=None
) -> PretrainedDualEncoder:
    """A pretrained dual encoder in float32, from safetensors alone.

    Args:
        name: name on the Hub, or a folder; with `vision_model`, of a sentence-transformers text model.
        vision_model: the dual encoder whose space that text model shares, and whose vision half is taken.
        revision: tag, branch or commit of `name`.
        vision_revision: of `vision_model`.
        cache_dir: where downloads are kept.

    Raises:
        ValueError: it is no dual encoder, lacks weights, or the two do not share a space.
    """
    text_hub = {"revision": revision, "cache_dir": cache_dir}
    modules = sentence_modules(name, text_hub)
    if vision_model is None:
        if modules is not None:
            raise ValueError(
                f"{name} has a modules.json: it is a sentence-transformers model, of text alone; give vision_model, "
                "the dual encoder whose space it shares"
            )
        return _whole(name, text_hub)
    if modules is None:
        raise ValueError(
            f"{name} has no modules.json, so it is not a sentence-transformers text model; leave vision_model "
            f"{vision_model!r} out, or take new heads with MMTModel.from_encoders"
        )
    pair = _whole(vision_model, {"revision": vision_revision, "cache_dir": cache_dir})
    pair.text = Tower(*load_sentence_encoder(name, modules, text_hub))
    width = _out_width(pair.text)
    if width != pair.width:
        raise ValueError(
            f"{name} makes vectors of {width} numbers, {vision_model} of {pair.width}: they do not share a space"
        )
    return pair


def caption_rule(name: str, *, revision: str | None = None, cache_dir=None) -> tuple[Any, str, int]:
    """A dual encoder's tokenizer, its padding (`"longest"` or `"max_length"`), and its longest caption in tokens."""
    hub = {"revision": revision, "cache_dir": cache_dir}
    modules = sentence_modules(name, hub)
    subfolder = "" if modules is None else modules[0]["path"]
    config = AutoConfig.from_pretrained(name, subfolder=subfolder, **hub)
    tokenizer = AutoTokenizer.from_pretrained(name, subfolder=subfolder, **hub)
    family, text = FAMILIES.get(config.model_type, Family()), config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or LONGEST_CAPTION
    if text.model_type in OFFSET_POSITIONS:
        positions -= text.pad_token_id + 1
    own = family.max_length if modules is None else sentence_options(name, modules, hub).get("max_seq_length")
    return tokenizer, family.padding, min(own or positions, positions, tokenizer.model_max_length)


def leave_half_out(encoder: PreTrainedModel, half: str):
    """Take out of a whole dual encoder what its `half` tower (`"text"` or `"vision"`) does not use."""
    for name, _ in list(encoder.named_children()):
        if name.startswith(OTHER_HALF[half]):
            setattr(encoder, name, None)


def features_of(output: Any) -> torch.Tensor:
    """The embedding `(N, P)` in what `get_text_features` and `get_image_features` return."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _whole(name: str, hub: Mapping[str, Any]) -> PretrainedDualEncoder:
    model_type = AutoConfig.from_pretrained(name, **hub).model_type
    if model_type in REFUSED:
        raise ValueError(f"{name}: {model_type} cannot be imported: {REFUSED[model_type]}")
    model: Any
    model, info = load_pretrained(name, use_safetensors=True, **hub)
    family = FAMILIES.get(model_type)
    unused: tuple[str, ...] = SCALARS
    if family is None:
        _check_methods(name, model)
        text, vision = Tower(model, "features"), Tower(model, "features")
        width = _features_width(name, model)
    else:
        text = Tower(model.text_model, family.text_pooling, getattr(model, "text_projection", None))
        vision = Tower(model.vision_model, "pooler", getattr(model, "visual_projection", None))
        width = _out_width(text)
        unused += () if text.pooling == "pooler" else ("text_model.pooler.",)
    missing = [key for key in info["missing_keys"] if not key.startswith(unused)]
    if missing:
        raise ValueError(f"{name}: the checkpoint lacks {missing[:5]}, which its two towers need")
    if "logit_bias" in info["unexpected_keys"]:
        logger.warning("%s: it has a logit_bias, which %s does not know; it is left out", name, type(model).__name__)
    scale, bias, temperature = (_scalar(model, key, info["missing_keys"]) for key in SCALARS)
    if temperature is not None:
        scale = -math.log(temperature)
    return PretrainedDualEncoder(text, vision, width, scale, bias)


def _scalar(model: PreTrainedModel, name: str, missing: list[str]) -> float | None:
    """A number that the loss has; where the checkpoint lacks it, the configuration's; `None` where the model does."""
    if name in missing:
        return getattr(model.config, f"{name}_init_value", None)
    value = getattr(model, name, None)
    return None if value is None else float(value.detach())


def _check_methods(name: str, model: PreTrainedModel):
    lacking = [method for method in ("get_text_features", "get_image_features") if not hasattr(model, method)]
    if lacking:
        raise ValueError(
            f"{name}: {type(model).__name__} has no {' and no '.join(lacking)}, so it is not a dual encoder of text "
            f"and pictures; known are {', '.join(FAMILIES)}"
        )


@torch.no_grad()
def _features_width(name: str, model: PreTrainedModel) -> int:
    """The width of both embeddings, found by a caption and a picture."""
    side = getattr(getattr(model.config, "vision_config", None), "image_size", 224)
    probes = {
        "get_text_features": {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 4)},
        "get_image_features": {"pixel_values": torch.zeros(1, 3, side, side)},
    }
    shapes = {}
    for method, inputs in probes.items():
        try:
            shapes[method] = tuple(features_of(getattr(model, method)(**inputs)).shape)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{name}: {type(model).__name__}.{method} refuses {'/'.join(inputs)}: {reason}"
            ) from error
    distinct = set(shapes.values())
    if len(distinct) != 1 or len(next(iter(distinct))) != 2:
        raise ValueError(f"{name}: {shapes} are not embeddings (1, P) of one space")
    return next(iter(distinct))[1]


def _out_width(text: Tower) -> int:
    return text_width(text.encoder.config, text.pooling) if text.projection is None else text.projection.out_features


def text_width(config: PreTrainedConfig, pooling: str) -> int:
    """The width of the vector that a text encoder pools: SigLIP's and AltCLIP's own heads may change it."""
    head = getattr(config, {"pooler": "projection_size", "first": "project_dim"}.get(pooling, ""), None)
    return head or config.get_text_config().hidden_size


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    fields = config.to_dict()
    fields.pop("_name_or_path", None)  # a folder of this machine says nothing on another
    return fields
