"""What a recipe may say: each value that is not allowed is one line, with file, field, value and remedy."""

import math

import pytest
import torch
from tiny_corpus import write_recipe
from transformers import SchedulerType, get_scheduler

from modeling_mmt.training.recipe import (
    NEED_MORE,
    DataArguments,
    ModelArguments,
    Recipe,
    RecipeError,
    Source,
    StageArguments,
)
from modeling_mmt.training.recipe_reading import parse_recipe

BAD_SOURCES = [
    ("languages", []),
    ("languages", ["en", "de", "en"]),
    ("languages_per_clip", 0),
    ("languages_per_clip", 3),
    ("max_keywords", 0),
    ("keyword_pool_size", -1),
    ("noise_probability", 1.5),
    ("noise_probability", math.nan),
    ("noise_pool_size", -1),
    ("weight", -1.0),
    ("weight", math.inf),
    ("features", ["a store without its dataset"]),
    ("revision", "v1.0"),
    ("clip_seconds", [1.0]),
    ("clip_seconds", [3.0, 2.0]),
    ("clip_seconds", [0.0, 2.0]),
]
BAD_STAGES = [
    ("sources", []),
    ("num_train_epochs", 0),
    ("num_train_epochs", -1),
    ("train_batch_size", 0),
    ("micro_batch_tokens", 0),
    ("activation_memory", -1.0),
    ("gradient_accumulation_steps", 0),
    ("learning_rate", -0.1),
    ("learning_rate", math.nan),
    ("learning_rate", math.inf),
    ("text_learning_rate", -0.1),
    ("vision_learning_rate", -0.1),
    ("vision_learning_rate", math.nan),
    ("learn_vision_layers", -1),
    ("weight_decay", -0.1),
    ("adam_beta2", 1.0),
    ("warmup_ratio", 2.0),
    ("lr_scheduler_type", "cosinus"),
    ("max_grad_norm", -1.0),
    ("freeze", [""]),
    ("average_with_start", 2.0),
    ("evaluations", -1),
    ("save_steps", 0),
]
BAD_RECIPES = [
    ("seed", -1),
    ("seed", 2**32),
    ("mixed_precision", "fp8"),
    ("mixed_precision", "fp16"),
    ("log_steps", 0),
    ("clip_memory", -1.0),
    ("clip_memory", math.nan),
]
BAD_MODELS = [("max_text_length", 0), ("image_size", -8), ("num_frames", 0), ("config", None)]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(Source, *bad) for bad in BAD_SOURCES]
    + [(StageArguments, *bad) for bad in BAD_STAGES]
    + [(Recipe, *bad) for bad in BAD_RECIPES]
    + [(ModelArguments, *bad) for bad in BAD_MODELS]
    + [(DataArguments, "languages", []), (DataArguments, "languages", ["en", "en"])],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(kind, field, value):
    stage = StageArguments(sources=[Source()])
    rest = {Recipe: {"data": DataArguments("d"), "model": ModelArguments(), "finetuning": stage}}
    rest |= {StageArguments: {"sources": [Source()]}, DataArguments: {"dataset": "d"}}
    kind(**rest.get(kind, {}))
    with pytest.raises(RecipeError) as refusal:
        kind(**rest.get(kind, {}) | {field: value})
    assert str(refusal.value).startswith(f"{field} is {value!r}; allowed: ")


def test_frozen_states_are_kept_of_captions_that_come_again():
    assert Source().draws_from_pools
    for fresh in ({"noise_pool_size": 0}, {"max_keywords": 2, "keyword_pool_size": 0}, {"clip_seconds": [4.0, 32.0]}):
        assert not Source(**fresh).draws_from_pools


def test_a_schedule_that_is_accepted_needs_no_more_than_the_number_of_steps():
    """The others fail when their stage begins, or at its first step."""
    parameter = torch.nn.Parameter(torch.ones(1))
    for kind in SchedulerType:
        if kind.value in NEED_MORE:
            with pytest.raises(RecipeError, match="lr_scheduler_type is"):
                StageArguments(sources=[Source()], lr_scheduler_type=kind.value)
            continue
        StageArguments(sources=[Source()], lr_scheduler_type=kind.value)
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        scheduler = get_scheduler(kind.value, optimizer, 1, 3)
        for _ in range(3):
            optimizer.step()
            scheduler.step()


def test_the_text_encoders_configuration_is_not_told_twice():
    with pytest.raises(RecipeError, match="model.config has 'text_config', which model.text_model says; leave it out"):
        parse_recipe(["modeling_mmt/recipes/emoji9/none_en.yaml", "--model.config", '{"text_config": {}}'])


def test_pairs_need_two_languages():
    assert Source(languages=["en", "de"], languages_per_clip=2).languages_per_clip == 2
    with pytest.raises(RecipeError, match="two different ones or more"):
        Source(languages=["en"], languages_per_clip=2)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_shares_may_be_none_or_all(extreme):
    stage = StageArguments([Source(noise_probability=extreme)], warmup_ratio=extreme, average_with_start=extreme)
    assert stage.warmup_ratio == extreme


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"sed": 1}, [], "sed is no field of Recipe; did you mean seed?"),
        ({"data.langauges": ["en"]}, [], "data.langauges is no field of DataArguments; did you mean languages?"),
        (
            {"finetuning.sources.0.languagess": ["en"]},
            [],
            "finetuning.sources[0].languagess is no field of Source; did you mean languages or languages_per_clip?",
        ),
        (
            {"model.config.hiden_size": 8},
            [],
            "model.config.hiden_size is no field of MMTConfig; did you mean hidden_size or hidden_act?",
        ),
        ({"finetuning": 3}, [], "finetuning is 3; give fields with values"),
        (
            {},
            ["--finetuning.learning_rat", "1"],
            "--finetuning.learning_rat is no field of StageArguments; "
            "did you mean learning_rate or text_learning_rate?",
        ),
        ({}, ["--mdel.config", "{}"], "--mdel is no field of Recipe; did you mean model?"),
        ({"finetuning.learning_rate": "fast"}, [], "finetuning.learning_rate: Expected a float. Got value: fast"),
        (
            {},
            ["--finetuning.text_learning_rate", "x"],
            "finetuning.text_learning_rate: Expected a float. Got value: x",
        ),
        (
            {"finetuning.sources.0.noise_probability": 1.5},
            [],
            "finetuning.sources[0].noise_probability is 1.5; allowed: 0 to 1",
        ),
        ({}, ["--pretraining.evaluations", "-1"], "pretraining.evaluations is -1; allowed: 0 or more"),
        ({"model.config": None}, [], "model.config is None; allowed: fields of MMTConfig with values; {} for none"),
        (
            {"model.config.video_feature_dims": [12]},
            [],
            "model.config.video_feature_dims is [12], and data.features says the streams' widths already; "
            "leave it out",
        ),
        (
            {"pretraining": None},
            ["--finetuning", "null"],
            "finetuning and pretraining are both null; give one stage, or two",
        ),
    ],
    ids=lambda value: None if isinstance(value, (dict, list)) else value.split(" ")[0],
)
def test_an_error_is_one_line_with_the_recipes_path_the_field_and_the_remedy(
    corpus, tmp_path, changes, options, message
):
    recipe = write_recipe(corpus, tmp_path, changes)
    with pytest.raises(RecipeError) as refusal:
        parse_recipe([recipe, *options])
    assert str(refusal.value) == f"{recipe}: {message}"


def test_a_path_that_is_not_there_and_a_file_that_is_no_yaml_are_said(tmp_path):
    with pytest.raises(RecipeError, match="nowhere.yaml: No such file or directory; give a recipe's path"):
        parse_recipe(["nowhere.yaml"])
    (tmp_path / "torn.yaml").write_text("data: {dataset: [")
    with pytest.raises(RecipeError, match="torn.yaml: not YAML: [^\\n]+$"):
        parse_recipe([str(tmp_path / "torn.yaml")])
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(RecipeError, match="it is .1.; give fields with values"):
        parse_recipe([str(tmp_path / "list.yaml")])
