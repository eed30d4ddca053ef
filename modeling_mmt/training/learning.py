"""Which parts of the encoders are trained: only the heads, adapters (LoRA), the last layers, or everything.

`model.learning` of a recipe says it once for both encoders and all stages. LoRA (arXiv 2106.09685) adds to each linear
map of the encoders, which stay as they are, a product of two thin matrices, of which the second starts at zero; when
the model is saved, the products are added to the maps, so that the checkpoint is the plain one.
"""

from typing import Any

from torch import nn

from modeling_mmt import MMTModel
from modeling_mmt.freezing_mmt import has_adapters
from modeling_mmt.training.recipe import RecipeError, learning_layers

LORA_RANK, LORA_ALPHA = 8, 16


def apply_learning(model: MMTModel, learning: Any):
    """Freeze a model's encoders as a recipe's `model.learning` says; `None` leaves its configuration's word.

    Args:
        model: changed in place, its configuration too.
        learning: `"heads"`, `"lora"`, `"all"`, or `{"last_layers": N}`.

    Raises:
        RecipeError: the text encoder has fewer layers than are to learn, or does not say what lies below them; or peft
            is not installed.
    """
    if learning is None:
        return
    config, depth = model.config, model.config.num_text_layers
    number = learning_layers(learning)
    if number is not None and number > depth:
        raise RecipeError(
            f"model.learning is {learning}, and the text encoder has {depth} layers; name at most {depth}"
        )
    config.freeze_text_layers = 0 if number is None else depth - number
    config.freeze_text_embeddings = number is not None
    try:
        release(model)
    except NotImplementedError as error:
        kind = config.text_config.model_type
        raise RecipeError(
            f"model.learning is {learning}, and {kind} does not separate its word embeddings from its layers; "
            "choose heads, lora or all"
        ) from error
    if learning == "lora":
        for encoder in encoders(model):
            add_adapters(encoder)


def encoders(model: MMTModel) -> list[nn.Module]:
    """The text encoder and the vision encoders."""
    return [model.text_model.encoder, *(expert.encoder for expert in model.video_model.vision_experts)]


def add_adapters(encoder: nn.Module):
    """Put LoRA around the linear maps of an encoder; one without any, such as a convolutional network, stays frozen.

    Raises:
        RecipeError: peft is not installed.
    """
    names = [name for name, module in encoder.named_modules() if type(module) is nn.Linear]
    if not names:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError("model.learning is lora, which needs peft: pip install 'modeling_mmt[plugins]'") from error
    inject_adapter_in_model(LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=names), encoder)


def merge_adapters(model: MMTModel):
    """Add the adapters' products to the maps that they are around, and take them away, where there are any."""
    for encoder in encoders(model):
        for name, layer in list(encoder.named_modules()):
            if hasattr(layer, "base_layer"):
                layer.merge(safe_merge=True)
                parent, _, attribute = name.rpartition(".")
                setattr(encoder.get_submodule(parent), attribute, layer.get_base_layer())


def release(model: MMTModel):
    """Let all parameters learn but those that the model's configuration freezes, and what adapters are around."""
    model.requires_grad_(True)
    model.freeze()
    for encoder in encoders(model):
        if has_adapters(encoder):
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_("lora_" in name)
