"""Configuration of the Multilingual Multimodal Transformer (MMT).

The defaults are the paper's own setting (arXiv 2103.08849, section 4): the first 12 layers of XLM-R-large, layers
below the 9th frozen, two 512-wide 3D-CNN streams per second of video, transformer pooling of 2 layers and 4 heads,
D = 1024, temperature 0.1. What the paper does not say (feed-forward width, activation, dropout, positions, norm
placement) takes BERT's values.
"""

import difflib
import json
import math
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

from .dual_encoder_mmt import DualEncoder, text_width
from .efficientnet_lite_mmt import EfficientNetLiteConfig
from .sentence_encoder_mmt import load_pretrained  # noqa: F401  older loaders copy direct imports alone
from .vision_configuration_mmt import (
    MAX_LAYERS,
    MAX_SIZE,
    PROVENANCE,
    numbered,
    vision_encoder_config,
    vision_parameters,
    vision_width,
)

# A checkpoint with this encoder loads in a process that has these files and no package.
AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig, exist_ok=True)

logger = logging.get_logger(__name__)

XLM_ROBERTA_LARGE = {
    "model_type": "xlm-roberta",
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

MAX_PARAMETERS = 2**34  # float32, they are 64 GiB: what a config.json asks for is bounded before a model is built
MAX_LOGIT_SCALE = 80  # exp(80) is finite in float32
# Keys of a config.json that are transformers' own. Another that is no field here is a mistake where it looks like one
# (difflib's ratio), and else some other tool's.
MISSPELT = 0.75
TRANSFORMERS_KEYS = (
    {
        "auto_map",
        "custom_pipelines",
        "quantization_config",
        "model_type",
        "name_or_path",
        "num_labels",
        "torch_dtype",
        "transformers_weights",
    }
    | {"output_attentions", "attn_implementation", "experts_implementation", "per_layer_config", "tie_word_embeddings"}
    | set(GenerationConfig().to_dict())
    | set(PreTrainedConfig().to_dict())
)

# Our own task of `pipeline`, whose code is stored beside the model's.
CUSTOM_PIPELINES = {
    "text-to-video-retrieval": {"impl": "pipeline_mmt.MMTSearchPipeline", "pt": ["AutoModel"], "type": "multimodal"},
}

# How sentence-transformers 6 loads a checkpoint with its own modules alone: `encode(["a dog"])` for captions,
# `encode([{"video": features}])` for clips `(F, D_v)`, `encode([{"image": features}])` for pictures `(D_v,)`, clips of
# one step; files, frames and pictures in their place where the model has vision encoders; unit-norm out.
_CLIP_PARAMS = {"method": "get_video_features", "method_output_name": "pooler_output"}
SENTENCE_TRANSFORMERS_FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Normalize",
            "type": "sentence_transformers.base.modules.normalize.Normalize",
        },
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "video": _CLIP_PARAMS,
            "image": _CLIP_PARAMS,
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "requirements": {"sentence-transformers": ">=6.0"},
    },
    "1_Normalize/config.json": {"module_input_name": "sentence_embedding"},
}


class _SubConfigs:
    """The encoders' configurations by name, where transformers looks for whom to tell `dtype` and attention."""

    def __get__(self, config, owner=None) -> dict[str, type]:
        names = {} if config is None else vars(config)
        vision = [name for name in names if name.startswith("vision_config_")]
        return dict.fromkeys(["text_config", "vision_config", *vision], AutoConfig)


@strict
class MMTConfig(PreTrainedConfig):
    """Architecture and objectives of an `MMTModel`.

    Args:
        text_config: configuration of the text encoder, any that `AutoModel` builds; `None` is XLM-R-large's.
        video_feature_dims: width of each feature stream ("expert"); a step is their concatenation, `D_v` wide. With
            `vision_config` it follows from the encoders.
        vision_config: `None` where features were extracted beforehand; else the vision encoder that makes them from
            pixels, any that `AutoModel` builds, or a list of several: `vision_config` is the first's ever after,
            `vision_config_1` the second's, and so on, all of them `vision_configs`. `config.json` has the list.
        vision_pooling: `"pooler"`: a vision encoder's own pooled vector, without one the mean over its positions;
            `"mean"`: always the mean; `"features"`: `get_image_features` of a whole dual encoder.
        dual_encoder: `None`, or how the encoders' vectors become points of the joint space that they were pretrained
            in (`DualEncoder`, or its fields; a dict, ever after). The text head then reads one vector a caption, both
            heads work in the joint space, and nothing follows them; see `MMTModel.from_dual_encoder`.
        learn_vision_layers: how many of each vision encoder's last layers learn, with all that follows them; 0 freezes
            the encoders, which then stay in eval mode; `None` trains all of them.
        vision_batch_size: steps that go through a vision encoder at a time; bounds memory, and changes no result.
        text_output_layer: the encoder layer whose output the text head reads; `None` is the last. The encoder is cut
            there, so a checkpoint holds no layer that is never used.
        freeze_text_layers: how many layers, counted from the bottom, are frozen and stay in eval mode.
        freeze_text_embeddings: whether the encoder's embeddings are frozen too.
        hidden_size: width `H` of both transformer pooling (TP) heads.
        num_hidden_layers: layers of each TP head; 0 pools the states as they come.
        num_attention_heads: attention heads of each TP layer.
        intermediate_size: feed-forward width of a TP layer.
        hidden_act: feed-forward activation.
        language_directions: directions that are taken out of the frozen text states, those in which the languages'
            means differ most (`set_language_directions` of the text head); 0, as in the paper, takes none.
        text_input_dropout_prob: dropout of whole dimensions of the text head's input, the same for all positions.
        video_input_dropout_prob: the same for the video head's input.
        hidden_dropout_prob: dropout after each TP sub-layer and on the TP head's input.
        attention_probs_dropout_prob: dropout on TP attention weights.
        layer_norm_eps: epsilon of every LayerNorm of the TP heads.
        norm_placement: `"post"` normalises after each residual sum (BERT's way), `"pre"` before each sub-layer.
        residual_init: `"normal"`, or `"zero"`: each residual branch starts at zero, so a pre-norm head starts as the
            identity and mean pooling starts as the encoder's own sentence vector.
        pooling: the head's sentence vector: `"first"` output token (the paper's), `"mean"` over real positions, or
            `"cls"`, a learned vector put before the sequence.
        max_video_length: longest video in steps; the table of learned positions has this many rows.
        projection_dim: width `P` of the joint space.
        projection_hidden_dim: width of a GELU hidden layer before the joint space; `None` is one linear map.
        projection_dropout_prob: dropout on the projection's input and hidden layer.
        projection_skip: whether a linear map of the mean input state is added to the projection (ours, not the
            paper's; with `residual_init` `"zero"` the TP branch then starts at nothing).
        loss_type: `"nce"`, `"multi_positive"`, `"symmetric_softmax"` or `"sigmoid"`; see `loss_mmt.py`.
        logit_scale_init_value: natural log of 1 / temperature; ln(1 / 0.1) in the paper.
        learn_logit_scale: whether the temperature is trained; fixed in the paper.
        logit_bias_init_value: initial bias of the sigmoid loss's logits (SigLIP's value); used by that loss alone.
        inter_weight: weight of L(X, V).
        intra_weight: weight of L(X, X^m) + L(V, V^m); 0 skips the noised copies.
        cross_weight: weight of the conditional L(X|V, Y|V); counts where a clip comes with two languages or more.
        text_weight: weight of L(X, Y) beside clips, where these come with two languages or more (ours, not the
            paper's). Where there are no clips it is the loss, at weight 1.
        initializer_range: standard deviation of the heads' initial weights.

    Raises:
        ValueError: a value is outside its set or range; the message names the field, the value and what is allowed.
    """

    model_type = "mmt"
    sub_configs = _SubConfigs()

    text_config: Any = None  # a dict or a PreTrainedConfig when given, a PreTrainedConfig ever after
    video_feature_dims: list[int] | tuple[int, ...] = (512, 512)
    vision_config: Any = None  # a dict, a PreTrainedConfig or a list when given, a PreTrainedConfig ever after
    vision_pooling: Literal["pooler", "mean", "features"] = "pooler"
    dual_encoder: Any = None  # a `DualEncoder` or a dict when given, a dict ever after
    learn_vision_layers: int | None = 0
    vision_batch_size: int = 64
    text_output_layer: int | None = 12
    freeze_text_layers: int = 9
    freeze_text_embeddings: bool = True
    hidden_size: int = 1024
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    language_directions: int = 0
    text_input_dropout_prob: float | int = 0.0
    video_input_dropout_prob: float | int = 0.0
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-5
    norm_placement: Literal["post", "pre"] = "post"
    residual_init: Literal["normal", "zero"] = "normal"
    pooling: Literal["first", "mean", "cls"] = "first"
    max_video_length: int = 512
    projection_dim: int = 1024
    projection_hidden_dim: int | None = None
    projection_dropout_prob: float | int = 0.0
    projection_skip: bool = False
    loss_type: Literal["nce", "multi_positive", "symmetric_softmax", "sigmoid"] = "nce"
    logit_scale_init_value: float | int = math.log(1 / 0.1)
    learn_logit_scale: bool = False
    logit_bias_init_value: float | int = -10.0
    inter_weight: float | int = 1.0
    intra_weight: float | int = 1.0
    cross_weight: float | int = 1.0
    text_weight: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        """Build the nested text configuration and cut it at `text_output_layer`."""
        text = XLM_ROBERTA_LARGE if self.text_config is None else self.text_config
        self._check_keys(kwargs)
        if isinstance(text, dict):
            if "model_type" not in text:
                raise ValueError("text_config: no `model_type`; give the encoder's own config.json as a dict")
            text = AutoConfig.for_model(**text)
        if not isinstance(text, PreTrainedConfig):
            raise ValueError(f"text_config is {type(text).__name__}; give the encoder's own config.json as a dict")
        self.text_config = text = deepcopy(text)  # cut below; the caller's own stays whole
        if self.dual_encoder is not None:
            self.dual_encoder = asdict(DualEncoder.from_fields(self.dual_encoder))
        self._take_vision()
        self._check()
        if self.text_output_layer is not None:
            text.get_text_config().num_hidden_layers = self.text_output_layer
        self.video_feature_dims = list(self.video_feature_dims)
        super().__post_init__(**kwargs)

    def _take_vision(self):
        vision = self.vision_config
        if vision is None:
            return
        encoders = list(vision) if isinstance(vision, list | tuple) else [vision]
        if not 0 < len(encoders) <= MAX_LAYERS:
            raise ValueError("vision_config is an empty list; None is for features that were extracted beforehand")
        for number, encoder in enumerate(encoders):
            setattr(
                self,
                numbered("vision_config", number),
                vision_encoder_config(encoder, self.vision_pooling == "features"),
            )
        widths = [vision_width(encoder) for encoder in self.vision_configs]
        is_default = tuple(self.video_feature_dims) == MMTConfig.__dataclass_fields__["video_feature_dims"].default
        if None in widths:
            unknown = self.vision_configs[widths.index(None)].model_type
            if is_default:
                raise ValueError(f"vision_config: {unknown} does not say its width; give video_feature_dims")
        elif is_default:
            self.video_feature_dims = widths
        if [width or dim for width, dim in zip(widths, self.video_feature_dims)] != list(self.video_feature_dims):  # noqa: B905  the lengths are compared too
            raise ValueError(
                f"MMTConfig.video_feature_dims is {list(self.video_feature_dims)}; the encoders of vision_config "
                f"make {widths}: leave it out"
            )

    @property
    def vision_configs(self) -> list[PreTrainedConfig]:
        """Of every vision encoder, in order; empty where features come from elsewhere."""
        configs = [getattr(self, name) for name in self.sub_configs if name.startswith("vision_config")]
        return [config for config in configs if config is not None]

    def to_dict(self) -> dict[str, Any]:
        """As `PreTrainedConfig.to_dict`, with `vision_config` the list of all encoders' without their provenance."""
        fields = super().to_dict()
        vision = [fields.pop(name) for name in self.sub_configs if name.startswith("vision_config")]
        encoders = [{k: v for k, v in encoder.items() if k not in PROVENANCE} for encoder in vision if encoder]
        return fields | {"vision_config": encoders or None}

    @property
    def custom_pipelines(self) -> dict[str, Any]:
        """Ours, and those that others registered; a copy each time, because `pipeline` writes into what it reads."""
        return deepcopy(vars(self).get("custom_pipelines", {}) | CUSTOM_PIPELINES)

    @custom_pipelines.setter
    def custom_pipelines(self, pipelines: Mapping[str, Any]):
        others = {task: deepcopy(info) for task, info in pipelines.items() if task not in CUSTOM_PIPELINES}
        vars(self).update({"custom_pipelines": others} if others else {})

    @property
    def video_feature_dim(self) -> int:
        """`D_v`: the width of one step, all streams together."""
        return sum(self.video_feature_dims)

    @property
    def text_feature_dim(self) -> int:
        """The width of what the text head reads: of a token's state, or of a dual encoder's sentence vector."""
        pooling = "tokens" if self.dual_encoder is None else self.dual_encoder["text_pooling"]
        return self.projection_dim if pooling == "features" else text_width(self.text_config, pooling)

    @property
    def num_text_layers(self) -> int:
        """Layers of the text encoder."""
        return self.text_config.get_text_config().num_hidden_layers

    @staticmethod
    def _check_keys(keys):
        for key in keys:
            if key in TRANSFORMERS_KEYS or key.startswith("_"):
                continue
            near = difflib.get_close_matches(key, MMTConfig.__dataclass_fields__, n=1, cutoff=MISSPELT)
            if near:
                raise ValueError(f"MMTConfig has no field {key!r}; did you mean {near[0]!r}?")
            logger.warning(
                f"MMTConfig has no field {key!r}; it is kept unused, as another tool's or a newer version's"
            )

    def _check_text_sizes(self) -> dict[str, int]:
        sizes = {}
        for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"):
            sizes[name] = size = getattr(self.text_config.get_text_config(), name, None) or 0
            longest = MAX_LAYERS if name == "num_hidden_layers" else 16 * MAX_SIZE
            if not isinstance(size, int) or not 0 <= size <= longest:
                raise ValueError(f"text_config.{name} is {size!r}; allowed: a whole number up to {longest}")
        return sizes

    def _check_parameters(self, text: dict[str, int]):
        width, text_width = self.hidden_size, text["hidden_size"]
        projection = self.projection_hidden_dim or self.projection_dim
        parameters = (
            text["num_hidden_layers"] * text_width * (4 * text_width + 2 * text["intermediate_size"])
            + (text["vocab_size"] + text["max_position_embeddings"]) * text_width
            + 2 * self.num_hidden_layers * width * (4 * width + 2 * self.intermediate_size)
            + sum(vision_parameters(encoder) for encoder in self.vision_configs)
            + (self.video_feature_dim + text_width + self.max_video_length + 2 * projection) * width
        )
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"MMTConfig: its sizes make a model of about {parameters:.1e} parameters; at most "
                f"{MAX_PARAMETERS:.1e} are built: correct the widths, the numbers of layers, or text_config"
            )

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """As `PreTrainedConfig.save_pretrained`; beside a whole `MMTModel` go sentence-transformers' own files.

        A file of theirs that is already there stays: it holds the user's settings for sentence-transformers.
        """
        if self.architectures == ["MMTModel"]:
            for name, content in SENTENCE_TRANSFORMERS_FILES.items():
                path = Path(save_directory, name)
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _check(self):
        text_sizes = self._check_text_sizes()
        num_text_layers = self.num_text_layers
        if self.text_output_layer is not None:
            self._require(
                "text_output_layer", 1 <= self.text_output_layer <= num_text_layers, f"1 to {num_text_layers}"
            )
            num_text_layers = self.text_output_layer
        self._require("freeze_text_layers", 0 <= self.freeze_text_layers <= num_text_layers, f"0 to {num_text_layers}")
        if self.language_directions:
            width = self.text_feature_dim
            self._require("language_directions", 0 < self.language_directions < width, f"0 to {width - 1}")
            is_frozen = self.freeze_text_embeddings and self.freeze_text_layers == num_text_layers
            self._require("language_directions", is_frozen, "0, where not every layer of the text encoder is frozen")
        dims = self.video_feature_dims
        layers = self.learn_vision_layers
        self._require("learn_vision_layers", layers is None or 0 <= layers <= MAX_LAYERS, f"None or 0 to {MAX_LAYERS}")
        self._require("vision_batch_size", 0 < self.vision_batch_size <= MAX_SIZE, f"1 to {MAX_SIZE}")
        self._require(
            "video_feature_dims",
            0 < len(dims) <= 1024 and 0 < min(dims) <= sum(dims) <= MAX_SIZE,
            "one positive width for each stream",
        )
        for name in (
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "max_video_length",
            "projection_dim",
        ):
            self._require(name, 0 < getattr(self, name) <= MAX_SIZE, f"1 to {MAX_SIZE}")
        inner = self.projection_hidden_dim
        self._require("projection_hidden_dim", inner is None or 0 < inner <= MAX_SIZE, f"None or 1 to {MAX_SIZE}")
        self._require("num_hidden_layers", 0 <= self.num_hidden_layers <= MAX_LAYERS, f"0 to {MAX_LAYERS}")
        self._require(
            "hidden_size", self.hidden_size % self.num_attention_heads == 0, "a multiple of num_attention_heads"
        )
        self._require("hidden_act", self.hidden_act in ACT2FN, f"one of {', '.join(sorted(ACT2FN))}")
        for name in (
            "text_input_dropout_prob",
            "video_input_dropout_prob",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "projection_dropout_prob",
        ):
            self._require(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        weights = ("inter_weight", "intra_weight", "cross_weight")
        for name in (*weights, "text_weight"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more, and finite")
        self._require("inter_weight", any(getattr(self, name) for name in weights), "above 0, where the others are 0")
        for name in ("logit_scale_init_value", "logit_bias_init_value"):
            self._require(
                name, abs(getattr(self, name)) <= MAX_LOGIT_SCALE, f"-{MAX_LOGIT_SCALE} to {MAX_LOGIT_SCALE}"
            )
        if self.dual_encoder is not None:
            self._check_dual_encoder()
        self._require("layer_norm_eps", 0 < self.layer_norm_eps < math.inf, "above 0, and finite")
        self._require("initializer_range", 0 <= self.initializer_range < math.inf, "0 or more, and finite")
        self._check_parameters(text_sizes)

    def _check_dual_encoder(self):
        self._require("hidden_size", self.hidden_size == self.projection_dim, "projection_dim, with dual_encoder")
        wanted = {"norm_placement": "pre", "pooling": "mean", "projection_hidden_dim": None, "projection_skip": False}
        for name, value in wanted.items():
            self._require(name, getattr(self, name) == value, f"{value!r}, with dual_encoder")

    def _require(self, name: str, holds: bool, allowed: str):
        if not holds:
            raise ValueError(f"MMTConfig.{name} is {getattr(self, name)!r}; allowed: {allowed}")
