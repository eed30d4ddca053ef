"""The transformer-pooling (TP) head and the projection to the joint space (paper section 3.1).

Letters in shapes: B batch, N positions of a sequence (tokens or steps), H width of the head, P of the joint space.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_mmt import MMTConfig


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Softmax attention in plain matrix products; `(B, heads, N, d)` in, `(B, N, heads, d)` and the weights out."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MMTBranchOutput(nn.Linear):
    """The last map of a residual branch; zero at first where the configuration's `residual_init` is `"zero"`.

    A class of its own because `PreTrainedModel` initialises only modules that hold parameters themselves.
    """


class MMTAttention(nn.Module):
    """Multi-head attention; keys and values may come from a longer sequence than the queries."""

    def __init__(self, config: MMTConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = MMTBranchOutput(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor, attention_mask, **kwargs):
        """`hidden` `(B, N, H)` looks at `memory` `(B, M, H)`.

        Returns:
            `(B, N, H)`, and the weights `(B, heads, N, M)` where the attention function has them (eager), else None.
        """
        split = (hidden.shape[0], -1, self.config.num_attention_heads, self.head_dim)
        query = self.q_proj(hidden).view(split).transpose(1, 2)  # (B, heads, N, d)
        key = self.k_proj(memory).view(split).transpose(1, 2)
        value = self.v_proj(memory).view(split).transpose(1, 2)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        output, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return self.out_proj(output.reshape(*hidden.shape)), weights


class MMTLayer(GradientCheckpointingLayer):
    """One TP layer: attention over its own states and, where given, a context; then a feed-forward map."""

    def __init__(self, config: MMTConfig):
        super().__init__()
        self.pre_norm = config.norm_placement == "pre"
        self.attention = MMTAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = MMTBranchOutput(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: torch.Tensor, attention_mask=None, context: torch.Tensor | None = None, **kwargs):
        """`(B, N, H)` to `(B, N, H)`; `context` `(B, M, H)` is appended to keys and values, not to queries."""
        if self.pre_norm:
            hidden = hidden + self._attend(self.attention_norm(hidden), attention_mask, context, **kwargs)
            return hidden + self._feed_forward(self.output_norm(hidden))
        hidden = self.attention_norm(hidden + self._attend(hidden, attention_mask, context, **kwargs))
        return self.output_norm(hidden + self._feed_forward(hidden))

    def _attend(self, hidden, attention_mask, context, **kwargs):
        memory = hidden if context is None else torch.cat([hidden, context], dim=1)
        output, _ = self.attention(hidden, memory, attention_mask, **kwargs)
        return self.dropout(output)

    def _feed_forward(self, hidden):
        return self.dropout(self.fc2(self.activation(self.fc1(hidden))))


class MMTTransformerPooling(nn.Module):
    """TP head (paper section 3.1): a sequence of states in, contextual states and one pooled vector out.

    Differs: the paper does not say how states of another width enter; a linear map does it here. A video's states
    carry no position, so they get learned ones; a text encoder's states already carry theirs.

    Over a dual encoder, the linear map is the encoder's own projection, the positions start at zero, and no norm
    follows the layers: with `residual_init` `"zero"` the head starts as the mean of the encoder's embeddings.

    Args:
        config: of the model.
        tower: `"text"` or `"video"`.
    """

    def __init__(self, config: MMTConfig, tower: str):
        super().__init__()
        self.config = config
        is_text = tower == "text"
        input_dim = config.text_feature_dim if is_text else config.video_feature_dim
        num_positions = 0 if is_text else config.max_video_length
        input_dropout = config.text_input_dropout_prob if is_text else config.video_input_dropout_prob
        projection = "affine" if input_dim != config.hidden_size else None
        if config.dual_encoder is not None:
            projection = config.dual_encoder["text_projection" if is_text else "vision_projection"]
            if projection is None and input_dim != config.hidden_size:
                raise ValueError(
                    f"MMTConfig.hidden_size is {config.hidden_size}; allowed: {input_dim}, the width of the {tower} "
                    "encoder, which dual_encoder gives no projection"
                )
        self.input_mean: torch.Tensor
        self.input_std: torch.Tensor
        self.register_buffer("input_mean", torch.zeros(input_dim))
        self.register_buffer("input_std", torch.ones(input_dim))
        self.language_directions: torch.Tensor | None
        directions = (
            torch.zeros(config.language_directions, input_dim) if is_text and config.language_directions else None
        )
        self.register_buffer("language_directions", directions)
        self.input_projection = (
            None if projection is None else nn.Linear(input_dim, config.hidden_size, bias=projection == "affine")
        )
        self.is_unit_step = config.dual_encoder is not None and config.dual_encoder["unit_steps"]
        self.position_embeddings = nn.Embedding(num_positions, config.hidden_size) if num_positions else None
        self.cls_embedding = nn.Parameter(torch.zeros(config.hidden_size)) if config.pooling == "cls" else None
        self.input_dropout = nn.Dropout(input_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(MMTLayer(config) for _ in range(config.num_hidden_layers))
        has_norm = config.norm_placement == "pre" and config.dual_encoder is None
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if has_norm else None

    @torch.no_grad()
    def set_language_directions(self, means: torch.Tensor):
        """Take out of the states, before all else, the directions in which languages' means differ most.

        With one direction fewer than there are languages, all of their means become one.

        Args:
            means: `(languages, input_dim)` float, each language's mean text state, of training text; at least one row
                more than the configuration's `language_directions`.

        Raises:
            ValueError: the configuration takes none out, or there are too few languages.

        Source: Xie et al. 2022 (LSAR, arXiv 2401.05792), after Yang et al. 2021 (LIR, arXiv 2109.04727). Differs: LIR
            takes each language's own principal components out and must know a query's language; here, as in LSAR, one
            subspace is taken out of all texts: the leading directions of the centred means. It is taken out of the
            states that the heads read, and not of finished embeddings.
        """
        directions = self.language_directions
        if directions is None or len(means) <= len(directions):
            raise ValueError(
                f"language_directions is {self.config.language_directions}, and there are the means of {len(means)} "
                f"languages; choose 1 to {len(means) - 1}"
            )
        centred = (means - means.mean(dim=0)).double()
        directions.copy_(torch.linalg.svd(centred, full_matrices=False).Vh[: len(directions)])

    def standardize(self, states: torch.Tensor) -> torch.Tensor:
        """States `(B, N, input_dim)` by the mean and standard deviation that training measured (0 and 1 untrained).

        Of a text's, the directions that tell languages apart are taken out first, where the model has measured them.
        Input dropout takes a dimension away from all positions of a sequence at once, so that a mean over positions
        loses it too.
        """
        if (directions := self.language_directions) is not None:
            states = states - states @ directions.T @ directions
        states = (states - self.input_mean) / self.input_std
        return states * self.input_dropout(torch.ones_like(states[:, :1]))

    def embed(self, states: torch.Tensor) -> torch.Tensor:
        """Standardized states `(B, N, input_dim)` to the sequence `e` that the layers see, `(B, N, H)`."""
        hidden = states if self.input_projection is None else self.input_projection(states)
        if self.is_unit_step:
            hidden = nn.functional.normalize(hidden, dim=-1)
        if self.position_embeddings is not None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)
            hidden = hidden + self.position_embeddings(positions)
        return hidden

    def forward(self, states, mask, context=None, context_mask=None, **kwargs):
        """Contextualise and pool.

        Args:
            states: `(B, N, input_dim)`, from `standardize`.
            mask: `(B, N)` bool or long, 1 = real; a row of zeros counts as all real, so that the output is finite.
            context: `(B, M, H)`, more keys and values, from the other head's `embed`: the video, in the conditional
                objective.
            context_mask: `(B, M)`.
            kwargs: passed to the attention function.

        Returns:
            Contextual states `(B, N, H)` and the pooled vector `(B, H)`.
        """
        mask = never_empty(mask)
        hidden = self.dropout(self.embed(states))
        if self.cls_embedding is not None:
            batch_size = hidden.shape[0]  # len() would be a constant in an exported program
            hidden = torch.cat([self.cls_embedding.expand(batch_size, 1, -1), hidden], dim=1)
            mask = torch.cat([mask.new_ones(batch_size, 1), mask], dim=1)
        memory, memory_mask = hidden, mask
        if context is not None:
            memory = torch.cat([hidden, context], dim=1)
            memory_mask = torch.cat([mask, never_empty(context_mask)], dim=1)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=memory_mask, encoder_hidden_states=memory
        )
        for layer in self.layers:
            hidden = layer(hidden, attention_mask, context, **kwargs)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        if self.config.pooling == "mean":
            pooled = masked_mean(hidden, mask)
        else:  # "first" and "cls" both read position 0
            pooled = hidden[:, 0]
        if self.cls_embedding is not None:
            hidden = hidden[:, 1:]
        return hidden, pooled


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`(B, N, D)` to `(B, D)`: the mean over positions whose `mask` `(B, N)` is 1."""
    weights = never_empty(mask).unsqueeze(-1).to(states.dtype)  # (B, N, 1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def never_empty(mask: torch.Tensor) -> torch.Tensor:
    """`(B, N)` mask to bool; a row without any 1 becomes all ones (attention over nothing has no value)."""
    mask = mask.bool()
    return mask | ~mask.any(dim=1, keepdim=True)


class MMTProjection(nn.Module):
    """From a tower's pooled vector to the joint space: a linear map, two around a GELU, or with `dual_encoder` none.

    Differs from the paper with `projection_skip`: a linear map of the mean input state is added, so that a head starts
    as a linear probe of its encoder and the TP branch learns what such a probe cannot.
    """

    def __init__(self, config: MMTConfig, input_dim: int):
        super().__init__()
        self.hidden = None
        if config.projection_hidden_dim is not None:
            dropout = nn.Dropout(config.projection_dropout_prob)
            hidden = nn.Linear(config.hidden_size, config.projection_hidden_dim)
            self.hidden = nn.Sequential(dropout, hidden, nn.GELU(), dropout)
        linear = MMTBranchOutput if config.projection_skip else nn.Linear
        self.output: nn.Module = nn.Identity()
        if config.dual_encoder is None:
            self.output = linear(config.projection_hidden_dim or config.hidden_size, config.projection_dim, bias=False)
        self.skip = nn.Linear(input_dim, config.projection_dim) if config.projection_skip else None

    def forward(self, pooled: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`pooled` `(B, H)` and the head's input `states` `(B, N, input_dim)` with its mask to `(B, P)`."""
        embeds = self.output(pooled if self.hidden is None else self.hidden(pooled))
        return embeds if self.skip is None else embeds + self.skip(masked_mean(states, mask))
