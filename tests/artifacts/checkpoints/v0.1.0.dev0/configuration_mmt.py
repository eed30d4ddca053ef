"""Configuration of the Multilingual Multimodal Transformer (MMT).

The defaults are the paper's own setting (arXiv 2103.08849, section 4): the first 12 layers of XLM-R-large, layers
below the 9th frozen, two 512-wide 3D-CNN streams per second of video, transformer pooling of 2 layers and 4 heads,
D = 1024, temperature 0.1. What the paper does not say (feed-forward width, activation, dropout, positions, norm
placement) takes BERT's values.
"""

import difflib
import math
from copy import deepcopy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN

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

# A config.json may come from anywhere: what it asks for is bounded before a model is built from it.
MAX_LAYERS, MAX_SIZE, MAX_PARAMETERS = 1024, 2**20, 2**34  # 2**34 float32 parameters are 64 GiB
# Keys of a config.json that belong to transformers; any other that is no field here is a mistake, or a newer version's.
TRANSFORMERS_KEYS = (
    {"auto_map", "model_type", "name_or_path", "num_labels", "torch_dtype", "transformers_weights"}
    | {"output_attentions", "attn_implementation", "experts_implementation", "per_layer_config"}
    | set(GenerationConfig().to_dict())
    | set(PreTrainedConfig().to_dict())
)


@strict
class MMTConfig(PreTrainedConfig):
    """Architecture and objectives of an `MMTModel`.

    Args:
        text_config: configuration of the text encoder, any that `AutoModel` builds; `None` is XLM-R-large's.
        video_feature_dims: width of each frozen feature stream ("expert"); a step is their concatenation, `D_v` wide.
        text_output_layer: the encoder layer whose output the text head reads; `None` is the last. The encoder is cut
            there, so a checkpoint holds no layer that is never used.
        freeze_text_layers: how many layers, counted from the bottom, are frozen and stay in eval mode.
        freeze_text_embeddings: whether the encoder's embeddings are frozen too.
        hidden_size: width `H` of both transformer pooling (TP) heads.
        num_hidden_layers: layers of each TP head; 0 pools the states as they come.
        num_attention_heads: attention heads of each TP layer.
        intermediate_size: feed-forward width of a TP layer.
        hidden_act: feed-forward activation.
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
        cross_weight: weight of the conditional L(X|V, Y|V); counts where a clip comes with two languages.
        initializer_range: standard deviation of the heads' initial weights.

    Raises:
        ValueError: a value is outside its set or range; the message names the field, the value and what is allowed.
    """

    model_type = "mmt"
    sub_configs = {"text_config": AutoConfig}

    text_config: Any = None  # a dict or a PreTrainedConfig when given, a PreTrainedConfig ever after
    video_feature_dims: list[int] | tuple[int, ...] = (512, 512)
    text_output_layer: int | None = 12
    freeze_text_layers: int = 9
    freeze_text_embeddings: bool = True
    hidden_size: int = 1024
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
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
        self._check()
        if self.text_output_layer is not None:
            text.num_hidden_layers = self.text_output_layer
        self.video_feature_dims = list(self.video_feature_dims)
        super().__post_init__(**kwargs)

    @property
    def video_feature_dim(self) -> int:
        """`D_v`: the width of one step, all streams together."""
        return sum(self.video_feature_dims)

    @staticmethod
    def _check_keys(keys):
        for key in keys:
            if key not in TRANSFORMERS_KEYS and not key.startswith("_"):
                near = difflib.get_close_matches(key, MMTConfig.__dataclass_fields__, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "a newer version of this package may know it"
                raise ValueError(f"MMTConfig has no field {key!r}; {hint}")

    def _check_sizes(self):
        text, width, inner = self.text_config, self.hidden_size, self.intermediate_size
        sizes = {}
        for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"):
            sizes[name] = size = getattr(text, name, 0) or 0
            longest = MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE * 16
            if not isinstance(size, int) or not 0 <= size <= longest:
                raise ValueError(f"text_config.{name} is {size!r}; allowed: a whole number up to {longest}")
        text_width = sizes["hidden_size"]
        layer = 4 * text_width**2 + 2 * text_width * sizes["intermediate_size"]
        parameters = sizes["num_hidden_layers"] * layer
        parameters += (sizes["vocab_size"] + sizes["max_position_embeddings"]) * text_width
        parameters += 2 * self.num_hidden_layers * (4 * width**2 + 2 * width * inner)
        parameters += (
            self.video_feature_dim + text_width + 2 * (self.projection_hidden_dim or self.projection_dim)
        ) * width
        parameters += self.max_video_length * width
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"MMTConfig: its sizes make a model of about {parameters:.1e} parameters; at most "
                f"{MAX_PARAMETERS:.1e} are built: mend hidden_size, intermediate_size, the numbers of layers, or text_config"
            )

    def _check(self):
        self._check_sizes()
        num_text_layers = self.text_config.num_hidden_layers
        if self.text_output_layer is not None:
            self._require(
                "text_output_layer", 1 <= self.text_output_layer <= num_text_layers, f"1 to {num_text_layers}"
            )
            num_text_layers = self.text_output_layer
        self._require("freeze_text_layers", 0 <= self.freeze_text_layers <= num_text_layers, f"0 to {num_text_layers}")
        dims = self.video_feature_dims
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
            longest = MAX_LAYERS if name == "num_hidden_layers" else MAX_SIZE
            self._require(name, 0 < getattr(self, name) <= longest, f"1 to {longest}")
        self._require("num_hidden_layers", 0 <= self.num_hidden_layers <= 2**20, "0 to 1048576")
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
        for name in ("inter_weight", "intra_weight", "cross_weight"):
            self._require(name, getattr(self, name) >= 0, "0 or more")

    def _require(self, name: str, holds: bool, allowed: str):
        if not holds:
            raise ValueError(f"MMTConfig.{name} is {getattr(self, name)!r}; allowed: {allowed}")
