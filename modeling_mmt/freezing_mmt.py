"""What frozen layers do in training: nothing drops out or learns in them, save adapters that were put there later."""

from torch import nn


def keep_in_eval(frozen: nn.Module, mode: bool):
    """Frozen layers to eval mode; the adapters inside them, which learn (PEFT's LoRA), to the model's own `mode`."""
    frozen.eval()
    for layer in frozen.modules():
        if hasattr(layer, "base_layer"):  # PEFT's name for what an adapter wraps
            layer.training = mode
            for name, part in layer.named_children():
                if name != "base_layer":
                    part.train(mode)


def learns(module: nn.Module) -> bool:
    """Whether a gradient is wanted of anything in it."""
    return any(parameter.requires_grad for parameter in module.parameters())
