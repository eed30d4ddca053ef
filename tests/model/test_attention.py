"""`attn_implementation` reaches every encoder of a model, and says where it cannot."""

import pytest
import torch
from tiny_vision import fields, vision_model

from modeling_mmt import MMTConfig, MMTModel


def attention_of(model):
    experts = [expert.encoder for expert in model.video_model.vision_experts]
    return [part.config._attn_implementation for part in (model, model.text_model.encoder, *experts)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A checkpoint with two vision encoders."""
    path = tmp_path_factory.mktemp("two-encoders")
    vision_model("vit", "videomae").save_pretrained(path)
    return path


WAYS = [
    ("eager", ["eager"] * 4),
    ("sdpa", ["sdpa"] * 4),
    ({"text_config": "eager"}, ["sdpa", "eager", "sdpa", "sdpa"]),
    ({"vision_config": "eager"}, ["sdpa", "sdpa", "eager", "sdpa"]),
    ({"vision_config_1": "eager"}, ["sdpa", "sdpa", "sdpa", "eager"]),
    ({"": "eager", "vision_config": "sdpa"}, ["eager", "sdpa", "sdpa", "sdpa"]),
]


@pytest.mark.parametrize(("given", "wanted"), WAYS)
def test_attention_reaches_the_encoders_that_it_is_asked_for(path, given, wanted):
    assert attention_of(MMTModel.from_pretrained(path, attn_implementation=given)) == wanted
    model = MMTModel.from_pretrained(path)
    model.set_attn_implementation(given)
    assert attention_of(model) == wanted


def test_every_attention_gives_the_same_embedding(path):
    pixels = {"pixel_values": torch.randn(2, 3, 3, 16, 16), "pixel_values_1": torch.randn(2, 3, 4, 3, 16, 16)}
    eager, sdpa = (MMTModel.from_pretrained(path, attn_implementation=kind) for kind in ("eager", "sdpa"))
    found, wanted = (model.get_video_features(**pixels).pooler_output for model in (eager, sdpa))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["convnext", "resnet", "timesformer", "efficientnet_lite"])
def test_an_encoder_without_that_attention_keeps_its_own(name, tmp_path, caplog):
    vision_model(name).save_pretrained(tmp_path)
    model = MMTModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert attention_of(model) == ["sdpa", "sdpa", "eager"]
    assert f"encoder {name} has no 'sdpa' attention; it uses eager" in caplog.text


def test_the_encoders_are_sub_configurations_by_their_places():
    config = MMTConfig(vision_config=[fields("vit"), fields("videomae")])
    assert list(config.sub_configs) == ["text_config", "vision_config", "vision_config_1"]
    assert [encoder.model_type for encoder in config.vision_configs] == ["vit", "videomae"]
    assert config.vision_config is config.vision_configs[0] and config.vision_config.hidden_size == 16
    again = MMTConfig.from_dict(config.to_dict())
    assert [encoder.to_dict() for encoder in again.vision_configs] == [e.to_dict() for e in config.vision_configs]
    assert again.to_dict() == config.to_dict()
    assert MMTConfig().vision_configs == [] and list(MMTConfig.sub_configs) == ["text_config", "vision_config"]
