"""PEFT's LoRA inside frozen layers learns and drops out, while the layers around it stay as they are."""

import pytest
import torch
from tiny_vision import SIDE, vision_model
from torch import nn

peft = pytest.importorskip("peft", reason="an optional peer: extra `plugins`")

TEXT, VISION = r".*text_model\.encoder\..*\.query", r".*experts\.0\.encoder\..*\.q_proj"


def with_lora(model, target, dropout=0.5):
    """LoRA whose second factor is no longer zero, so that what it drops is seen."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=16, lora_dropout=dropout, target_modules=target, init_lora_weights=False)
    return peft.get_peft_model(model, config)


def batch():
    ids = torch.arange(4, 14).view(2, 5)
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 3, SIDE, SIDE)}


@pytest.mark.parametrize("target", [TEXT, VISION], ids=["text", "vision"])
def test_lora_in_frozen_layers_drops_out_in_training_alone(target):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = vision_model("clip_vision_model", freeze_text_layers=3, **dropout)
    model = with_lora(model, target).train()
    adapted = [module for module in model.modules() if hasattr(module, "base_layer")]
    assert len(adapted) == 3  # one a layer
    assert all(module.lora_dropout["default"].training and not module.base_layer.training for module in adapted)
    frozen = [model.base_model.model.text_model.encoder, model.base_model.model.video_model.vision_model.experts[0]]
    around = [part for module in frozen for part in module.modules() if isinstance(part, nn.LayerNorm)]
    assert around and not any(part.training for part in around)
    given, name = batch(), "text_embeds" if target == TEXT else "video_embeds"
    assert (model(**given)[name] - model(**given)[name]).abs().max() > 1e-3
    model.eval()
    assert not any(module.lora_dropout["default"].training for module in adapted)
    assert torch.equal(model(**given)[name], model(**given)[name])


@pytest.mark.parametrize("target", [TEXT, VISION], ids=["text", "vision"])
def test_lora_in_frozen_layers_gets_gradients(target):
    model = with_lora(vision_model("clip_vision_model", freeze_text_layers=3), target).train()
    model(**batch(), return_loss=True).loss.backward()
    learning = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert len(learning) == 6 and all(parameter.grad.norm() > 0 for parameter in learning)


def test_states_of_layers_that_hold_an_adapter_are_not_kept():
    model = with_lora(vision_model("clip_vision_model", freeze_text_layers=3), TEXT)
    ids = torch.arange(4, 14).view(2, 5)
    with pytest.raises(ValueError, match="an adapter learns inside the frozen layers"):
        model.base_model.model.text_model.frozen_states(ids, torch.ones_like(ids))
