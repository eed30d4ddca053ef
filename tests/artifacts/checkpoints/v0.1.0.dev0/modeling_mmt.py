"""Multilingual Multimodal Transformer: two towers, each an encoder's states under a transformer-pooling (TP) head.

Paper: arXiv 2103.08849 (NAACL 2021), section 3. Letters in shapes: B batch, L tokens, F video steps, D_v width of a
step, H width of the TP heads, P width of the joint space.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple, logging

from .configuration_mmt import MMTConfig
from .loss_mmt import LOSSES, objectives, positive_mask
from .pooling_mmt import MMTBranchOutput, MMTProjection, MMTTransformerPooling, never_empty

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
        inter_loss: `()` float: L(X, V), plus L(Y, V) where each clip comes with two languages.
        intra_loss: `()` float: L(X, X^m) + L(V, V^m) (+ L(Y, Y^m)).
        cross_loss: `()` float: L(X|V, Y|V).
        text_loss: `()` float: L(X, Y), only where there is no video at all.
        noised_text_embeds: `(B, P)` float, unit norm, of x^m; this and the rest come with `return_loss`, where the
            batch has the view.
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
    """`text_embeds` `(B, P)`, projected and not normalised (as CLIP's), and `last_hidden_state` `(B, L, H)`."""

    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


@dataclass
class MMTVideoModelOutput(ModelOutput):
    """`video_embeds` `(B, P)`, projected and not normalised (as CLIP's), and `last_hidden_state` `(B, F, H)`."""

    video_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


def encoder_layers(encoder: PreTrainedModel) -> nn.ModuleList:
    """The stack of transformer layers inside any Hugging Face encoder.

    Raises:
        ValueError: no module list is as long as the encoder's configuration says.
    """
    depth = encoder.config.num_hidden_layers
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(
        f"text_config.model_type {encoder.config.model_type!r}: no stack of {depth} layers found in "
        f"{type(encoder).__name__}; use an encoder whose layers are one ModuleList"
    )


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

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, which would leave frozen layers learning and missing weights random.

        Raises:
            ValueError: the checkpoint lacks a weight. Who asks for `output_loading_info` is told there instead.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if info["missing_keys"] and not output_loading_info:
            raise ValueError(
                f"{args[0] if args else cls.__name__}: the checkpoint lacks {sorted(info['missing_keys'])[:3]}, which "
                f"{cls.__name__} needs; it is torn, or of another model: download or save it again"
            )
        model.freeze()
        return (model, info) if output_loading_info else model

    def freeze(self):
        """Exclude from learning what the configuration says: the encoder's lower layers, a fixed temperature.

        The frozen layers are put in eval mode, where `MMTTextModel.train` keeps them.
        """
        for module in self.modules():
            if isinstance(module, MMTTextModel):
                for frozen in module.frozen_modules():
                    frozen.requires_grad_(False).eval()
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
        elif isinstance(module, MMTBranchOutput) and self.config.residual_init == "zero":
            init.zeros_(module.weight)
        elif isinstance(module, MMTModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)


class MMTTextModel(MMTPreTrainedModel):
    """Text tower: a multilingual encoder, frozen below a layer, and its TP head (paper section 3.1)."""

    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ["text"]

    def __init__(self, config: MMTConfig):
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.text_config)
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None  # the TP head pools
        self.pooling = MMTTransformerPooling(config, config.text_config.hidden_size, config.text_input_dropout_prob)
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
            words = self.encoder.get_input_embeddings()
            frozen += [child for child in self.encoder.children() if any(m is words for m in child.modules())]
        return frozen

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether the whole encoder is frozen, what follows its last layer included."""
        depth = self.config.text_config.num_hidden_layers
        return self.config.freeze_text_embeddings and self.config.freeze_text_layers == depth

    def train(self, mode: bool = True):
        """As `nn.Module.train`, but frozen modules stay in eval mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
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
                return self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
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
        model_type = self.config.text_config.model_type
        if not self.is_encoder_frozen and model_type not in RESUMABLE_ENCODERS:
            raise ValueError(
                f"text_config.model_type {model_type!r} cannot be entered at layer {self.config.freeze_text_layers}; "
                f"freeze every layer, or use one of {', '.join(RESUMABLE_ENCODERS)}"
            )

    def encode(self, input_ids=None, attention_mask=None, text_states=None, **kwargs) -> torch.Tensor:
        """Tokens `(B, L)`, or `text_states` kept from `frozen_states`, to the TP head's input `(B, L, H_text)`."""
        if text_states is None:
            mask = never_empty(attention_mask).long()
            states = self.encoder(input_ids=input_ids, attention_mask=mask, **kwargs).last_hidden_state
        else:
            self.check_frozen_states()
            states = text_states.to(self.dtype)
            if not self.is_encoder_frozen:
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
        attention_mask = _default_mask(attention_mask, input_ids if text_states is None else text_states)
        states = self.encode(input_ids, attention_mask, text_states, **kwargs)
        hidden, pooled = self.pooling(states, attention_mask, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


class MMTVideoModel(MMTPreTrainedModel):
    """Video tower: frozen backbone features in, TP head on top (paper section 3.1)."""

    base_model_prefix = "video_model"
    main_input_name = "video_features"
    input_modalities = ["video"]

    def __init__(self, config: MMTConfig):
        super().__init__(config)
        self.pooling = MMTTransformerPooling(
            config, config.video_feature_dim, config.video_input_dropout_prob, config.max_video_length
        )
        self.post_init()

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
    def forward(self, video_features=None, video_mask=None, **kwargs) -> BaseModelOutputWithPooling:
        """Encode clips.

        Args:
            video_features: `(B, F, D_v)` float, one row a step, the streams concatenated, not normalised.
            video_mask: `(B, F)`, 1 = real step; `None` is all ones.
            kwargs: passed to the attention function.

        Returns:
            `last_hidden_state` `(B, F, H)` and `pooler_output` `(B, H)`.
        """
        hidden, pooled = self.pooling(self.encode(video_features), _default_mask(video_mask, video_features), **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def _default_mask(mask, sequence) -> torch.Tensor:
    if mask is None:
        return torch.ones(sequence.shape[:2], dtype=torch.long, device=sequence.device)
    if mask.shape != sequence.shape[:2]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {tuple(sequence.shape[:2])}, as its sequence")
    return mask


def pool_and_project(tower, projection: MMTProjection, states, mask, *context, **kwargs):
    """A tower's input states to its contextual states `(B, N, H)` and the joint-space embedding `(B, P)`."""
    hidden, pooled = tower.pooling(states, mask, *context, **kwargs)
    return hidden, projection(pooled, states, mask)


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
        self.text_projection = MMTProjection(config, config.text_config.hidden_size)
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
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # its report names the pooler, which is not used; what matters is checked below
        try:
            encoder, info = AutoModel.from_pretrained(
                text_model, config=model.config.text_config, output_loading_info=True, dtype=torch.float32, **hub
            )
        finally:
            logging.set_verbosity(verbosity)
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise ValueError(f"{text_model}: the checkpoint lacks {missing[:5]}, which the encoder needs")
        weights = {key: value for key, value in encoder.state_dict().items() if not key.startswith("pooler.")}
        model.text_model.encoder.load_state_dict(weights)
        return model

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
        mask = _default_mask(attention_mask, input_ids if text_states is None else text_states)
        states = self.text_model.encode(input_ids, mask, text_states, **kwargs)
        hidden, embeds = pool_and_project(self.text_model, self.text_projection, states, mask, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=embeds)

    @can_return_tuple
    def get_video_features(self, video_features=None, video_mask=None, **kwargs):
        """Backbone features in; the projected, un-normalised embedding `(B, P)` in `pooler_output`.

        Args:
            video_features: `(B, F, D_v)` float.
            video_mask: `(B, F)`, 1 = real step.
            kwargs: passed on to the tower.
        """
        states, mask = self.video_model.encode(video_features), _default_mask(video_mask, video_features)
        hidden, embeds = pool_and_project(self.video_model, self.video_projection, states, mask, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=embeds)

    def embed(self, batch: Mapping[str, torch.Tensor | None], **kwargs) -> dict[str, torch.Tensor]:
        """Every unit-norm embedding `(B, P)` that the objectives need, by the name that `loss_mmt.objectives` knows.

        With two languages and the video, that includes `c_{x|v}` = TP_x(query = e_x, key = value = [e_x ; e_v]) and
        `c_{y|v}` (paper section 3.2). Differs: with several TP layers, the queries' own part of the keys is each
        layer's states, the video's part stays `e_v`.

        Args:
            batch: what `forward` takes, as the collator makes it; the views that are absent are not computed.
            kwargs: passed on to the attention functions.
        """
        embeds: dict[str, torch.Tensor] = {}
        video: tuple[torch.Tensor, ...] = ()
        is_paired = batch.get("paired_input_ids") is not None or batch.get("paired_text_states") is not None
        for prefix in ("", "noised_"):
            features = batch.get(f"{prefix}video_features")
            if features is not None:
                states, mask = self.video_model.encode(features), _default_mask(batch.get("video_mask"), features)
                _, projected = pool_and_project(self.video_model, self.video_projection, states, mask, **kwargs)
                embeds[f"{prefix}video_embeds"] = unit_norm(projected)
                video = video or (self.video_model.pooling.embed(states), mask)
        for prefix in ("", "noised_", "paired_", "noised_paired_"):
            ids, kept = batch.get(f"{prefix}input_ids"), batch.get(f"{prefix}text_states")
            if ids is None and kept is None:
                continue
            given = batch.get("paired_attention_mask" if "paired" in prefix else "attention_mask")
            mask = _default_mask(given, ids if kept is None else kept)
            states = self.text_model.encode(ids, mask, kept, **kwargs)
            _, projected = pool_and_project(self.text_model, self.text_projection, states, mask, **kwargs)
            embeds[f"{prefix}text_embeds"] = unit_norm(projected)
            if is_paired and video and "noised" not in prefix and self.config.cross_weight:
                _, projected = pool_and_project(self.text_model, self.text_projection, states, mask, *video, **kwargs)
                embeds[f"conditional_{prefix}text_embeds"] = unit_norm(projected)
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
            positive_ids: `(B, K)` long; rows that share an id in a column are mutual positives. `None`: the diagonal.
            contrastive_loss: called as `contrastive_loss(loss_type, a, b, scale, positive_ids, logit_bias)` in place
                of the dense loss; `streaming_loss.contrastive_loss` needs no `(B, B)` matrix and has the same value.
        """
        config, scalars = self.config, {name: embeds.get(name, value) for name, value in self.loss_scalars().items()}
        scale = scalars.pop("logit_scale")
        weights = {"inter": config.inter_weight, "intra": config.intra_weight, "cross": config.cross_weight}
        if contrastive_loss is not None:
            loss_fn, positives = partial(contrastive_loss, config.loss_type, **scalars), positive_ids
        else:
            loss_fn, positives = partial(LOSSES[config.loss_type], **scalars), None
            if positive_ids is not None:
                positives = positive_mask(positive_ids)
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
        return_loss: bool | None = None,
        **kwargs,
    ) -> MMTOutput:
        """Embed both modalities, compare them and, with `return_loss`, evaluate the objectives.

        Args:
            input_ids: `(B_text, L)` long, captions x.
            video_features: `(B_video, F, D_v)` float.
            attention_mask: `(B_text, L)`, 1 = token.
            video_mask: `(B_video, F)`, 1 = real step.
            positive_ids: `(B, K)` long; rows that share an id in a column (clip, caption) are no negatives of each
                other. `None`: only the diagonal is positive.
            noised_input_ids: `(B, L)` long, x^m; shares `attention_mask`.
            noised_video_features: `(B, F, D_v)`, v^m; shares `video_mask`.
            paired_input_ids: `(B, L_y)` long, captions y of the same clips in a second language.
            paired_attention_mask: `(B, L_y)`.
            noised_paired_input_ids: `(B, L_y)`, y^m.
            text_states: `(B, L, H_text)`: kept output of the frozen layers in place of `input_ids`.
            noised_text_states: the same for x^m.
            paired_text_states: the same for y.
            noised_paired_text_states: the same for y^m.
            return_loss: whether to evaluate the objectives over this (local) batch.
            kwargs: passed to the attention functions.

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
            "video_features": video_features,
            "video_mask": video_mask,
            "noised_video_features": noised_video_features,
        }
        embeds = self.embed(batch, **kwargs)
        if "text_embeds" not in embeds or not ("video_embeds" in embeds or "paired_text_embeds" in embeds):
            raise ValueError(
                "forward needs captions and videos (or two languages); for one modality call get_*_features"
            )
        text_embeds, video_embeds = embeds["text_embeds"], embeds.get("video_embeds")
        losses = self.compute_objectives(embeds, positive_ids) if return_loss else {}
        logits = None if video_embeds is None else self.logit_scale.exp() * text_embeds @ video_embeds.T
        return MMTOutput(
            loss=losses.pop("loss", None),
            logits_per_text=logits,
            logits_per_video=None if logits is None else logits.T,
            **(embeds if return_loss else {"text_embeds": text_embeds, "video_embeds": video_embeds}),
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
        self.text_projection = MMTProjection(config, config.text_config.hidden_size)
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
        mask = _default_mask(attention_mask, input_ids)
        states = self.text_model.encode(input_ids, mask, **kwargs)
        hidden, embeds = pool_and_project(self.text_model, self.text_projection, states, mask, **kwargs)
        return MMTTextModelOutput(text_embeds=embeds, last_hidden_state=hidden)


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
    def forward(self, video_features=None, video_mask=None, **kwargs) -> MMTVideoModelOutput:
        """`(B, F, D_v)` features to `video_embeds` `(B, P)`, not normalised."""
        states, mask = self.video_model.encode(video_features), _default_mask(video_mask, video_features)
        hidden, embeds = pool_and_project(self.video_model, self.video_projection, states, mask, **kwargs)
        return MMTVideoModelOutput(video_embeds=embeds, last_hidden_state=hidden)
