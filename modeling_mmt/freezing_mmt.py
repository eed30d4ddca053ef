"""Freezing: frozen parts neither learn nor use dropout, except for adapters added later."""

from torch import nn
from transformers import PreTrainedModel


def encoder_layers(encoder: PreTrainedModel) -> nn.ModuleList:
    """The stack of transformer layers inside any Hugging Face encoder.

    Raises:
        ValueError: no module list is as long as the encoder's configuration says.
    """
    depth = encoder.config.get_text_config().num_hidden_layers
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(
        f"text_config.model_type {encoder.config.model_type!r}: no stack of {depth} layers found in "
        f"{type(encoder).__name__}; use an encoder whose layers are one ModuleList"
    )


def embedding_modules(encoder: PreTrainedModel) -> list[nn.Module]:
    """The largest modules inside an encoder that hold its word embeddings and none of its layers."""
    words, layers = encoder.get_input_embeddings(), set(encoder_layers(encoder))

    def inside(module: nn.Module) -> list[nn.Module]:
        parts = set(module.modules())
        if words not in parts:
            return []
        return [part for child in module.children() for part in inside(child)] if parts & layers else [module]

    return inside(encoder)


def keep_in_eval(frozen: nn.Module, mode: bool):
    """Frozen layers to eval mode; the adapters inside them, which learn (PEFT's LoRA), to the model's own `mode`."""
    frozen.eval()
    for layer in frozen.modules():
        if hasattr(layer, "base_layer"):  # PEFT's name for what an adapter wraps
            layer.training = mode
            for name, part in layer.named_children():
                if name != "base_layer":
                    part.train(mode)


def has_adapters(module: nn.Module) -> bool:
    """Whether PEFT has put an adapter anywhere in it."""
    return any(hasattr(layer, "base_layer") for layer in module.modules())


def learns(module: nn.Module) -> bool:
    """Whether a gradient is wanted of anything in it."""
    return any(parameter.requires_grad for parameter in module.parameters())
