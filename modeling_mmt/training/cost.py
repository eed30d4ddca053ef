"""What pre-training, extraction and search cost on a card: operations, hours, bytes and money.

Operations are those of matrix products, two for a multiplication and an addition (Kaplan et al., 2020, section 2.1;
Chowdhery et al., 2022, appendix B). For one of N positions, a transformer layer of width H and feed-forward width I
takes

    forward = 8 H^2 + 4 H I + 4 N H      projections of attention; feed-forward; scores and their weighted sum

and its backward pass twice that, where it learns; frozen layers have no backward pass. Norms, activations, the
optimizer and the loss are left out: they are bound by memory, and part of what utilisation loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

from transformers import AutoConfig

from modeling_mmt import MMTConfig
from modeling_mmt.configuration_mmt import XLM_ROBERTA_LARGE
from modeling_mmt.extraction.packaged_encoders import resolve_encoder
from modeling_mmt.training.recipe import Recipe, RecipeError, learning_layers

HALF = 2  # bytes of a float16 or bfloat16
FREE_SHARE = 0.9  # of a card's memory, for vectors to search
UTILISATION = 0.35  # Llama 3's report gives 0.38 to 0.43 on 8 to 16 thousand H100s; ours was not measured


class Card(NamedTuple):
    """A card by its data sheet: dense bfloat16 operations a second, bytes of memory, bytes read a second."""

    rate: float
    memory: float
    bandwidth: float


# NVIDIA's data sheets; where they give the rate with sparsity, half of it.
CARDS = {
    "h200": Card(989.5e12, 141e9, 4.8e12),
    "h100": Card(989.5e12, 80e9, 3.35e12),
    "a100": Card(312e12, 80e9, 2.039e12),
    "l4": Card(121e12, 24e9, 0.3e12),
}


def layer_operations(width: int, feed_forward: int, length: int) -> int:
    """Forward operations of a transformer layer over one sequence."""
    return length * (8 * width**2 + 4 * width * feed_forward + 4 * length * width)


def vit_operations(side: int = 224, patch: int = 16, width: int = 768, layers: int = 12) -> int:
    """Forward operations of a vision transformer over a frame: ViT-B/16 by default (Dosovitskiy et al., 2021)."""
    patches = (side // patch) ** 2
    return 2 * patches * 3 * patch**2 * width + layers * layer_operations(width, 4 * width, patches + 1)


def clip_operations(
    config: MMTConfig, learned: int, tokens: int, steps: int, captions: int = 1, copies: int = 1
) -> dict[str, int]:
    """Operations of one clip in a training step, by part.

    Args:
        config: of the model.
        learned: the text encoder's last layers that learn.
        tokens: of a caption.
        steps: of a clip.
        captions: of a clip.
        copies: of each caption and clip that are encoded: 2 with noised ones.
    """
    text = config.text_config.get_text_config()
    layer = layer_operations(text.hidden_size, text.intermediate_size, tokens)
    width = config.hidden_size

    def head(length: int, entering: int) -> int:
        layers = config.num_hidden_layers * layer_operations(width, config.intermediate_size, length)
        return layers + 2 * length * entering * width * (entering != width) + 2 * width * config.projection_dim

    encoder = (text.num_hidden_layers + 2 * learned) * layer
    return {
        "text_encoder": copies * captions * encoder,
        "text_head": 3 * copies * captions * head(tokens, text.hidden_size),
        "video_head": 3 * copies * head(steps, sum(config.video_feature_dims)),
    }


@dataclass(frozen=True)
class Scale:
    """What a recipe does not say.

    Args:
        clips: of the first source's dataset, which is an epoch.
        hours: of video, whose frames are encoded.
        frames_per_second: of them.
        tokens: of a caption; None is the recipe's longest.
        steps: of a clip; None is the mean of the source's `clip_seconds`, a step a second, or 32.
        windows: that are searched; None is `clips`.
        cards: that share the work.
        utilisation: share of the card's rate that is reached.
        price_per_hour: of a card; None: no money.
    """

    clips: int
    hours: float
    frames_per_second: float = 1.0
    tokens: int | None = None
    steps: int | None = None
    windows: int | None = None
    cards: int = 1
    utilisation: float = UTILISATION
    price_per_hour: float | None = None

    def __post_init__(self):
        """Refuse what is no amount.

        Raises:
            RecipeError: names the option.
        """
        for name, value in vars(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise RecipeError(f"--{name} is {value}; give a number above 0")
        if self.utilisation > 1:
            raise RecipeError(f"--utilisation is {self.utilisation}; give at most 1")


def config_of(recipe: Recipe) -> MMTConfig:
    """The configuration of the model that a recipe trains, without its weights.

    Raises:
        RecipeError: it starts from a checkpoint or a dual encoder, reads pixels, or its encoder is not at hand.
    """
    model = recipe.model
    if model.starts_trained or model.vision_model:
        raise RecipeError("mmt cost counts models of features: model.text_model and the heads; name such a recipe")
    if model.text_model == "FacebookAI/xlm-roberta-large":
        return MMTConfig(text_config=XLM_ROBERTA_LARGE, **model.config)
    try:
        name = resolve_encoder(model.text_model, recipe.cache_dir)
        text = AutoConfig.from_pretrained(name, revision=model.text_revision or "main")
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"model.text_model is {model.text_model}, whose config.json is neither here nor on a Hub that answers; "
            "name a folder that holds it in the recipe"
        ) from error
    return MMTConfig(text_config=text, **model.config)


def cost(recipe: Recipe, card_name: str, scale: Scale) -> dict[str, Any]:
    """The plan: assumptions, then hours, bytes and money of extraction, training and search.

    Raises:
        RecipeError: no such card, or as `config_of`.
    """
    if card_name not in CARDS:
        raise RecipeError(f"--card is {card_name}; give one of {', '.join(CARDS)}")
    card, config = CARDS[card_name], config_of(recipe)
    name = next(name for name in ("pretraining", "finetuning") if getattr(recipe, name))
    stage = getattr(recipe, name)
    source = stage.sources[0]
    layers = config.text_config.get_text_config().num_hidden_layers
    learned = layers - config.freeze_text_layers
    if recipe.model.learning == "lora":
        raise RecipeError("model.learning is 'lora', whose adapters mmt cost does not count; give heads or all")
    if recipe.model.learning is not None:
        last = learning_layers(recipe.model.learning)
        learned = layers if last is None else min(last, layers)
    tokens = scale.tokens or recipe.model.max_text_length
    steps = scale.steps or (round(sum(source.clip_seconds) / 2) if source.clip_seconds else 32)
    copies = 2 if config.intra_weight > 0 and source.noise_probability > 0 else 1
    parts = clip_operations(config, learned, tokens, steps, source.languages_per_clip, copies)
    drawn = stage.num_train_epochs * scale.clips
    frames = scale.hours * 3600 * scale.frames_per_second
    windows = scale.windows or scale.clips
    vectors = windows * config.projection_dim * HALF
    assumptions = {
        "card": {"name": card_name, **card._asdict()},
        "cards": scale.cards,
        "utilisation": scale.utilisation,
        "price_per_hour": scale.price_per_hour,
        "stage": name,
        "clips": scale.clips,
        "epochs": stage.num_train_epochs,
        "batch": stage.train_batch_size,
        "captions_a_clip": source.languages_per_clip,
        "copies_with_noise": copies,
        "tokens_a_caption": tokens,
        "steps_a_clip": steps,
        "text_layers": layers,
        "text_layers_that_learn": learned,
        "hours_of_video": scale.hours,
        "frames_per_second": scale.frames_per_second,
        "operations_a_frame": vit_operations(),
        "feature_width": sum(config.video_feature_dims),
        "windows": windows,
    }
    return {
        "assumptions": assumptions,
        "extraction": _work(frames * vit_operations(), card, scale)
        | {"frames": frames, "bytes": frames * sum(config.video_feature_dims) * HALF},
        "training": _work(drawn * sum(parts.values()), card, scale)
        | {
            "clips": drawn,
            "optimizer_steps": drawn // (stage.train_batch_size * stage.gradient_accumulation_steps),
            "operations_a_clip": parts,
            "bytes": drawn * steps * sum(config.video_feature_dims) * HALF,
        },
        "search": {
            "bytes": vectors,
            "cards_to_hold_them": ceil(vectors / (FREE_SHARE * card.memory)),
            "seconds_a_pass": vectors / scale.cards / card.bandwidth,
        },
    }


def _work(operations: float, card: Card, scale: Scale) -> dict[str, float | None]:
    """Hours of the clock, and of all cards, and their price."""
    hours = operations / (card.rate * scale.utilisation) / 3600
    money = None if scale.price_per_hour is None else hours * scale.price_per_hour
    return {"operations": operations, "hours": hours / scale.cards, "card_hours": hours, "money": money}


def lines_of(plan: Mapping[str, Any]) -> list[str]:
    """A plan for people: every assumption, then each part."""

    def shown(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
        if isinstance(value, int) or (isinstance(value, float) and 1000 <= value < 1e12):
            return f"{value:,.0f}"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = []
    for part, values in plan.items():
        lines.append(part)
        lines += [
            f"  {name.replace('_', ' '):24}{shown(value)}" for name, value in values.items() if value is not None
        ]
    return lines
