"""A model of several encoders has one precision: the one that it is loaded in, whatever its parts were saved in."""

import pytest
import torch
from conftest import build_text_config, build_tokenizer
from tiny_vision import VIT, clip, save_checkpoint, save_encoders
from transformers import AutoModel, BertConfig, CLIPVisionConfig, CLIPVisionModel

from modeling_mmt import (
    MMTConfig,
    MMTModel,
    MMTProcessor,
    MMTTextModelWithProjection,
    MMTVideoModelWithProjection,
)

HALVES = [torch.bfloat16, torch.float16]
TINY = {"text_output_layer": None, "freeze_text_layers": 2, "hidden_size": 24, "intermediate_size": 20}
TINY |= {"projection_dim": 10, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("half")
    return save_checkpoint(save_encoders(path), path / "mmt-pixels")


def dtypes(model):
    return {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}


def batch_of(path):
    return MMTProcessor.from_pretrained(path)(text=["red dog", "home"], videos=[clip(3), clip(2, seed=1)])


def assert_embeds_as_cast(model, path, dtype):
    """Whatever the way to half precision, the embeddings are those of the float32 model, cast."""
    batch = batch_of(path)
    with torch.no_grad():
        found, wanted = model.eval()(**batch), MMTModel.from_pretrained(path).to(dtype).eval()(**batch)
    for name in ("text_embeds", "video_embeds"):
        assert found[name].dtype == dtype
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_from_pixels_loads_in_half_precision(checkpoint, dtype):
    model = MMTModel.from_pretrained(checkpoint, dtype=dtype)
    assert dtypes(model) == {dtype}
    assert_embeds_as_cast(model, checkpoint, dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_from_pixels_that_was_saved_in_half_loads_in_half(checkpoint, tmp_path, dtype):
    MMTModel.from_pretrained(checkpoint).to(dtype).save_pretrained(tmp_path)
    for given in ("auto", None):  # `None` is transformers' own "auto"
        model = MMTModel.from_pretrained(tmp_path, dtype=given)
        assert dtypes(model) == {dtype}
        assert_embeds_as_cast(model, checkpoint, dtype)
    assert dtypes(MMTModel.from_pretrained(tmp_path, dtype=torch.float32)) == {torch.float32}
    assert dtypes(MMTVideoModelWithProjection.from_pretrained(tmp_path)) == {dtype}
    assert dtypes(MMTTextModelWithProjection.from_pretrained(tmp_path, dtype=torch.float32)) == {torch.float32}


def test_a_model_built_from_the_configuration_of_one_saved_in_half_has_one_precision(checkpoint, tmp_path):
    MMTModel.from_pretrained(checkpoint).to(torch.bfloat16).save_pretrained(tmp_path)
    config = MMTConfig.from_pretrained(tmp_path)
    assert dtypes(MMTModel(config)) == {torch.float32}
    assert dtypes(AutoModel.from_config(config, dtype=torch.bfloat16)) == {torch.bfloat16}


def test_encoders_published_in_half_precision_are_trained_in_full(tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(BertConfig(**build_text_config())).half().save_pretrained(tmp_path / "text")
    build_tokenizer().save_pretrained(tmp_path / "text")
    CLIPVisionModel(CLIPVisionConfig(**VIT)).half().save_pretrained(tmp_path / "vision")
    text, vision = str(tmp_path / "text"), str(tmp_path / "vision")
    assert dtypes(MMTModel.from_text_encoder(text, video_feature_dims=[8], **TINY)) == {torch.float32}
    model = MMTModel.from_encoders(text, vision, **TINY)
    assert dtypes(model) == {torch.float32}
    assert model.dtype == torch.float32 and '"float16"' not in model.config.to_json_string()
