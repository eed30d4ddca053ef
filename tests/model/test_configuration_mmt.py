"""The configuration: the paper's defaults, nested encoder, checks that name the field."""

import json
import math

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_mmt import MMTConfig


def test_the_defaults_are_the_paper_s_setting():
    config = MMTConfig()
    text = config.text_config
    assert (text.model_type, text.hidden_size, text.num_hidden_layers) == ("xlm-roberta", 1024, 12)
    assert (text.num_attention_heads, text.intermediate_size, text.vocab_size) == (16, 4096, 250002)
    assert (config.text_output_layer, config.freeze_text_layers, config.freeze_text_embeddings) == (12, 9, True)
    assert config.video_feature_dims == [512, 512]
    assert config.video_feature_dim == 1024
    assert (config.num_hidden_layers, config.num_attention_heads, config.projection_dim) == (2, 4, 1024)
    assert (config.pooling, config.loss_type, config.learn_logit_scale) == ("first", "nce", False)
    assert math.exp(config.logit_scale_init_value) == pytest.approx(1 / 0.1)
    assert (config.inter_weight, config.intra_weight, config.cross_weight) == (1, 1, 1)


def test_a_configuration_survives_json(make_config, make_text_config, tmp_path):
    text = make_text_config("xlm-roberta", layer_norm_eps=1e-4)
    config = make_config(text, text_output_layer=2, pooling="mean", norm_placement="pre", projection_hidden_dim=7)
    config.save_pretrained(tmp_path)
    loaded = MMTConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert type(loaded.text_config) is type(config.text_config)
    assert (loaded.text_config.layer_norm_eps, loaded.text_config.num_hidden_layers) == (1e-4, 2)
    assert (loaded.pooling, loaded.norm_placement, loaded.projection_hidden_dim) == ("mean", "pre", 7)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["model_type"] == "xlm-roberta"


def test_auto_config_knows_the_model_type(make_config, tmp_path):
    make_config().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MMTConfig


def test_a_nested_configuration_may_be_an_object_and_is_left_alone(make_config, make_text_config):
    text = AutoConfig.for_model(**make_text_config())
    config = make_config(text, text_output_layer=2)
    assert config.text_config.num_hidden_layers == 2
    assert text.num_hidden_layers == 3


def test_the_encoder_is_cut_at_the_output_layer(make_config):
    assert make_config(text_output_layer=None).text_config.num_hidden_layers == 3
    assert make_config(text_output_layer=2, freeze_text_layers=1).text_config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_output_layer", 0),
        ("text_output_layer", 4),
        ("freeze_text_layers", -1),
        ("freeze_text_layers", 4),
        ("video_feature_dims", []),
        ("video_feature_dims", [3, 0]),
        ("hidden_size", 0),
        ("hidden_size", 26),
        ("hidden_size", "24"),
        ("num_hidden_layers", -1),
        ("num_attention_heads", 0),
        ("intermediate_size", -4),
        ("max_video_length", 0),
        ("projection_dim", 0),
        ("projection_hidden_dim", 0),
        ("projection_hidden_dim", -4),
        ("layer_norm_eps", -1.0),
        ("layer_norm_eps", 0.0),
        ("layer_norm_eps", math.nan),
        ("initializer_range", -0.1),
        ("initializer_range", math.inf),
        ("logit_scale_init_value", math.nan),
        ("logit_scale_init_value", math.inf),
        ("logit_scale_init_value", 100),
        ("logit_bias_init_value", -math.inf),
        ("inter_weight", math.nan),
        ("intra_weight", math.inf),
        ("hidden_dropout_prob", 1.0),
        ("attention_probs_dropout_prob", -0.1),
        ("projection_dropout_prob", 1.5),
        ("inter_weight", -1),
        ("intra_weight", -0.5),
        ("cross_weight", -2),
        ("pooling", "last"),
        ("norm_placement", "sandwich"),
        ("residual_init", "ones"),
        ("loss_type", "triplet"),
        ("learn_logit_scale", "yes"),
        ("hidden_act", "gelo"),
    ],
)
def test_a_bad_value_names_its_field_and_itself(make_config, field, value):
    with pytest.raises((ValueError, StrictDataclassError), match=field) as error:
        make_config(**{field: value})
    assert str(value) in str(error.value)


def test_objectives_that_all_weigh_nothing_are_refused_and_any_one_alone_is_not(make_config):
    weights = dict.fromkeys(("inter_weight", "intra_weight", "cross_weight"), 0.0)
    with pytest.raises(ValueError, match="inter_weight is 0.0; allowed: above 0, where the others are 0"):
        make_config(**weights)
    for name in weights:
        assert getattr(make_config(**weights | {name: 0.5}), name) == 0.5


def test_a_nested_configuration_without_a_model_type_is_refused(make_config):
    with pytest.raises(ValueError, match="text_config.*model_type"):
        make_config({"hidden_size": 16})


def test_frozen_layers_are_counted_within_the_cut_encoder(make_config):
    with pytest.raises(ValueError, match="freeze_text_layers is 3; allowed: 0 to 2"):
        make_config(text_output_layer=2, freeze_text_layers=3)


FOREIGN = {
    "quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
    "unsloth_version": "2026.11.1",
    "unsloth_fixed": True,
    "transformers.js_config": {"dtype": "q8", "use_external_data_format": False},
    "custom_pipelines": {"clip-scoring": {"impl": "scoring.ScoringPipeline", "pt": ["AutoModel"], "type": "text"}},
    "adapter_config": {"r": 8},
}


@pytest.mark.parametrize("key", FOREIGN)
def test_what_other_tools_write_loads_and_is_kept(make_config, tmp_path, key):
    config = make_config()
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: FOREIGN[key]}))
    loaded = MMTConfig.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())[key] == FOREIGN[key]
    again = MMTConfig.from_pretrained(tmp_path / "again").to_dict()
    assert again.pop(key) == FOREIGN[key] and again == config.to_dict()


def test_a_key_of_no_known_tool_is_named(make_config, caplog):
    make_config(unsloth_version="2026.11.1")
    assert "MMTConfig has no field 'unsloth_version'; it is kept unused" in caplog.text


@pytest.mark.parametrize(
    ("given", "meant"),
    [("los_type", "loss_type"), ("freeze_layers", "freeze_text_layers"), ("vison_config", "vision_config")],
)
def test_a_misspelt_field_is_still_an_error(make_config, given, meant):
    with pytest.raises(ValueError, match=f"no field '{given}'; did you mean '{meant}'"):
        make_config(**{given: 1})


def test_a_pipeline_that_others_registered_stands_beside_ours(make_config):
    config = make_config(custom_pipelines=FOREIGN["custom_pipelines"])
    assert set(config.custom_pipelines) == {"clip-scoring", "text-to-video-retrieval"}
    config.custom_pipelines["clip-scoring"].clear()  # `pipeline` writes into what it reads
    assert config.custom_pipelines["clip-scoring"] == FOREIGN["custom_pipelines"]["clip-scoring"]
