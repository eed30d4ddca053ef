"""What a recipe may say: each value that is not allowed is one line, with file, field, value and remedy."""

import json
import math
import re
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml
from pydantic import ValidationError
from tiny_corpus import write_recipe
from transformers import SchedulerType, get_scheduler

from modeling_mmt.recipes import FOLDER, bundled_recipes
from modeling_mmt.training.recipe import NEED_MORE, RecipeError, Source, StageArguments
from modeling_mmt.training.recipe_reading import PARTS, field_path, field_type, load_recipe, required
from modeling_mmt.training.stage_folders import stages

BAD = {
    "": {"seed": [-1, 2**32, 0.5], "mixed_precision": ["fp8", "fp16", False, None], "log_steps": [0]}
    | {"clip_memory": [-1.0], "card": [None, 3], "work_dir": [None, 3], "cache_frozen_layers": [None, "maybe"]},
    "data.": {"dataset": ["", 3, None], "languages": [[], ["en", "en"], "en"], "text_column": [""]},
    "model.": {"max_text_length": [0], "image_size": [-8], "num_frames": [0], "config": [None, [1]]}
    | {"text_prefix": [None, 3], "text_model": ["", 3], "standardize_inputs": [None]}
    | {"learning": ["none", 3, True, {"last_layers": 0}, {"last_layers": True}, {"layers": 2}, {}]},
    # A clip without others in its batch has no negatives: the loss is 0, whatever is learned.
    "finetuning.": {"sources": [[], {}], "num_train_epochs": [0, -1, 1.5], "train_batch_size": [0, 1]}
    | {"micro_batch_tokens": [0], "activation_memory": [-1.0], "gradient_accumulation_steps": [0]}
    | {"learning_rate": [-0.1], "text_learning_rate": [-0.1], "vision_learning_rate": [-0.1], "weight_decay": [-0.1]}
    | {"learn_vision_layers": [-1], "adam_beta2": [1.0], "warmup_ratio": [2.0], "lr_scheduler_type": ["cosinus", None]}
    | {"max_grad_norm": [-1.0], "average_with_start": [2.0], "evaluations": [-1], "save_steps": [0]}
    | {"interpolation": [0.5, None]},
    "finetuning.sources[0].": {"languages": [[], ["en", "de", "en"]], "languages_per_clip": [0, 10]}
    | {"max_keywords": [0], "keyword_pool_size": [-1], "noise_probability": [1.5], "noise_pool_size": [-1]}
    | {"weight": [-1.0], "features": [["a store without its dataset"]], "revision": ["v1.0"], "augmentation": [3]}
    | {"clip_seconds": [[1.0], [3.0, 2.0]], "named_share": [0.0, 1.5], "exclude_languages": [["en"]]},
    "finetuning.sources[0].augmentation.": {"scale": [-0.1, 1.0], "temporal_jitter": [0]},
}


def changed(corpus, folder, field, value):
    """A recipe's path, with a value put at a field's path."""
    changes = {field.replace("[0]", ".0"): value}
    if field.startswith("alignment."):
        changes = {"alignment": {"sources": [{"languages": ["de"]}], field.rpartition(".")[2]: value}}
    if ".augmentation." in field:
        changes = {"finetuning.sources.0.augmentation": {field.rpartition(".")[2]: value}}
    return write_recipe(corpus, folder, changes)


def shown(value):
    return json.dumps(value, ensure_ascii=False, default=str)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(place + name, value, id=f"{place}{name}-{value}")
        for place, bad in BAD.items()
        for name, values in bad.items()
        for value in values
    ],
)
def test_a_value_that_is_not_allowed_is_one_line_with_file_field_and_value(corpus, tmp_path, field, value):
    recipe = changed(corpus, tmp_path, field, value)
    with pytest.raises(RecipeError) as refusal:
        load_recipe([recipe])
    message = str(refusal.value)
    assert message.startswith(f"{recipe}: {field} is ") and "\n" not in message
    assert message.split(" is ", 1)[1].startswith((shown(value), str(value), repr(value)))


@pytest.mark.parametrize("place", [place for place in PARTS if not place.endswith("augmentation.")])
@pytest.mark.parametrize("value", [None, True, math.nan, math.inf, "many", [1]], ids=str)
def test_what_is_no_number_is_refused_wherever_a_number_belongs(corpus, tmp_path, place, value):
    hints = get_type_hints(required(field_type(field_path(place))))
    numbers = {name: hint for name, hint in hints.items() if required(hint) in (int, float)}
    assert numbers or place == "data."
    for name, hint in numbers.items():
        recipe = changed(corpus, tmp_path, place + name, value)
        if value is None and required(hint) is not hint:
            continue
        with pytest.raises(RecipeError, match=re.escape(f"{place}{name} is {shown(value)}; ")):
            load_recipe([recipe])


def test_frozen_states_are_kept_of_captions_that_come_again():
    assert Source().draws_from_pools
    for fresh in ({"noise_pool_size": 0}, {"max_keywords": 2, "keyword_pool_size": 0}, {"clip_seconds": [4.0, 32.0]}):
        assert not Source(**fresh).draws_from_pools


def test_a_schedule_that_is_accepted_needs_no_more_than_the_number_of_steps():
    """The others fail when their stage begins, or at its first step."""
    parameter = torch.nn.Parameter(torch.ones(1))
    for kind in SchedulerType:
        if kind.value in NEED_MORE:
            with pytest.raises(ValidationError, match="lr_scheduler_type\n  Input should be 'linear'"):
                StageArguments(sources=[Source()], lr_scheduler_type=kind.value)
            continue
        StageArguments(sources=[Source()], lr_scheduler_type=kind.value)
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        scheduler = get_scheduler(kind.value, optimizer, 1, 3)
        for _ in range(3):
            optimizer.step()
            scheduler.step()


def test_the_text_encoders_configuration_is_not_told_twice():
    with pytest.raises(
        RecipeError, match="model.config has 'text_config', which model.text_model already sets; leave it out"
    ):
        load_recipe(["emoji9/none_en", "--model.config", '{"text_config": {}}'])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.config.freeze_text_layers", "3"], "'freeze_text_layers', which model.learning already sets"),
        (["--finetuning.learn_vision_layers", "2"], "learn_vision_layers is 2, which model.learning 'lora' already"),
        (["--finetuning.average_with_start", "0.5"], "lora.*no mix of products; set average_with_start to 0"),
        (["--finetuning.interpolation", "[0, 1]"], "lora.*no mix of products; set .* interpolation to "),
    ],
)
def test_what_learns_is_not_told_twice(options, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(["emoji9/pixels_frozen", "--model.config", "{}", "--model.learning", "lora", *options])


@pytest.mark.parametrize(
    ("text", "value"), [("lora", "lora"), ("{last_layers: 2}", {"last_layers": 2}), ("null", None), ("heads", "heads")]
)
def test_what_learns_is_a_word_or_a_number_of_layers(text, value):
    assert load_recipe(["emoji9/none_en", "--model.config", "{}", "--model.learning", text]).model.learning == value


@pytest.mark.parametrize("option", [("average_with_start", "0.5"), ("evaluations", "0")])
def test_interpolation_chooses_on_validation_in_place_of_a_fixed_share(option):
    name, value = option
    with pytest.raises(RecipeError, match="interpolation is .*chooses on validation in place of average_with_start"):
        load_recipe(["emoji9/none_en", "--finetuning.interpolation", "[0, 1]", f"--finetuning.{name}", value])


def test_a_field_that_is_new_changes_the_name_of_a_stage_only_where_it_is_given():
    def folder(*options):
        return [path.name for _, _, path, _ in stages(load_recipe(["emoji9/none_en", *options]), lambda stage: {})]

    plain = folder()
    assert folder("--model.learning", "null", "--finetuning.interpolation", "[]") == plain
    assert folder("--finetuning.interpolation", "[0, 1]") != plain
    assert folder("--model.config", "{}") != folder("--model.config", "{}", "--model.learning", "heads")


def test_captions_of_several_languages_need_as_many():
    assert Source(languages=["en", "de"], languages_per_clip=2).languages_per_clip == 2
    with pytest.raises(ValidationError, match="languages_per_clip 2; name 2 or more"):
        Source(languages=["en"], languages_per_clip=2)
    assert Source(languages=list("abcdefghi"), languages_per_clip=9).languages_per_clip == 9
    with pytest.raises(ValidationError, match="languages_per_clip 9; name 9 or more"):
        Source(languages=list("abcdefgh"), languages_per_clip=9)


def test_a_share_of_names_is_of_a_source_that_draws_them():
    source = {"text_column": "keywords", "named_share": 0.5}
    with pytest.raises(RecipeError, match=r"finetuning.sources\[0\].named_share is 0.5, but it does not draw name"):
        load_recipe(["emoji9/none_en", "--finetuning.sources", json.dumps([source])])
    with pytest.raises(RecipeError, match="named_share is 0.5, which does not go with clip_seconds"):
        load_recipe(["emoji9/none_en", "--finetuning.sources", json.dumps([source | {"clip_seconds": [1.0, 2.0]}])])


def test_languages_differ_in_one_direction_fewer_than_they_are():
    config = "--model.config.language_directions"
    assert load_recipe(["emoji9/none_en", config, "8"]).model.config["language_directions"] == 8
    with pytest.raises(RecipeError, match="language_directions is 9, and data.languages has 9; give at most 8"):
        load_recipe(["emoji9/none_en", config, "9"])


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_shares_may_be_none_or_all(extreme):
    stage = StageArguments([Source(noise_probability=extreme)], warmup_ratio=extreme, average_with_start=extreme)
    assert stage.warmup_ratio == extreme


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"sed": 1}, [], "sed is not a field of Recipe; did you mean seed?"),
        ({"data.langauges": ["en"]}, [], "data.langauges is not a field of DataArguments; did you mean languages?"),
        (
            {"finetuning.sources.0.languagess": ["en"]},
            [],
            "finetuning.sources[0].languagess is not a field of Source; did you mean languages or exclude_languages?",
        ),
        (
            {"model.config.hiden_size": 8},
            [],
            "model.config.hiden_size is not a field of MMTConfig; did you mean hidden_size or hidden_act?",
        ),
        ({"finetuning": 3}, [], "finetuning is 3; give fields with values"),
        ({"finetuning.sources": [3]}, [], "finetuning.sources[0] is 3; give fields with values"),
        ({"data": {}}, [], "data.dataset is missing; it has no default"),
        (
            {},
            ["--finetuning.learning_rat", "1"],
            "finetuning.learning_rat is not a field of StageArguments; "
            "did you mean learning_rate or text_learning_rate?",
        ),
        ({}, ["--mdel.config", "{}"], "mdel is not a field of Recipe; did you mean model?"),
        (
            {"finetuning.learning_rate": "fast"},
            [],
            'finetuning.learning_rate is "fast"; input should be a valid number, unable to parse string as a number',
        ),
        (
            {},
            ["--finetuning.text_learning_rate", "x"],
            'finetuning.text_learning_rate is "x"; input should be a valid number, unable to parse string as a number',
        ),
        (
            {"finetuning.sources.0.noise_probability": 1.5},
            [],
            "finetuning.sources[0].noise_probability is 1.5; input should be less than or equal to 1",
        ),
        (
            {},
            ["--pretraining.evaluations", "-1"],
            "pretraining.evaluations is -1; input should be greater than or equal to 0",
        ),
        (
            {},
            ["--finetuning.sources[0].languages", "[en, en]"],
            'finetuning.sources[0].languages is ["en", "en"]; name each language once',
        ),
        ({}, ["--finetuning.sources[7].weight", "1"], "the recipe has no --finetuning.sources[7].weight"),
        (
            {},
            ["--data.languages", "[en"],
            '--data.languages is "[en"; not YAML: line 1: while parsing a flow sequence '
            "expected ',' or ']', but got '<stream end>'",
        ),
        ({}, ["--seed"], "--seed has no value"),
        ({"model.config": None}, [], "model.config is null; input should be a valid dictionary"),
        (
            {"model.config.video_feature_dims": [12]},
            [],
            "model.config has 'video_feature_dims', which data.features already sets; leave it out",
        ),
        (
            {"pretraining": None},
            ["--finetuning", "null"],
            "finetuning, pretraining and alignment are all null; give one stage, or more",
        ),
    ],
    ids=lambda value: None if isinstance(value, (dict, list)) else value.split(" ")[0],
)
def test_an_error_is_one_line_with_the_recipes_path_or_the_command_line_the_field_and_the_remedy(
    corpus, tmp_path, changes, options, message
):
    recipe = write_recipe(corpus, tmp_path, changes)
    with pytest.raises(RecipeError) as refusal:
        load_recipe([recipe, *options])
    assert str(refusal.value) == f"{'the command line' if options and not changes else recipe}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data: {dataset: [", "not YAML: line 1: "),
        (b"", "empty; give fields with values"),
        (b"[1]", "not a recipe but [1]; give fields with values"),
        (b"seed: 1\nname: \xe9\n", "not UTF-8: invalid continuation byte at byte 14; save it as UTF-8"),
        ("seed: 1".encode("utf-16"), "not UTF-8: invalid start byte at byte 0; save it as UTF-8"),
        (b"a\0b", "not YAML: unacceptable character #x0000"),
        (b"seed: 1\ndata:\n  dataset: a\n  dataset: b\n", "not YAML: line 4: dataset is given twice"),
        (b"data: {dataset: a}\nseed: 1\ndata: {dataset: a}\n", "not YAML: line 3: data is given twice"),
        (b"seed: 1\n---\nseed: 2\n", "not YAML: line 2: expected a single document"),
        (b"seed: !!python/object/apply:os.getcwd []", "not YAML: line 1: could not determine a constructor"),
        (b"seed: " + b"9" * 5000, "not YAML: Exceeds the limit"),
        (b"[" * 5000, "not YAML: maximum recursion depth"),
        (b"3: 4\ndata: {dataset: a}", "[3] is 3; keys should be strings"),
        (b'"a\\nb": 4', "a b is not a field of Recipe; known are"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_a_file_that_is_no_recipe_is_one_line_that_says_where(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"^{re.escape(f'{path}: {message}')}[^\\n]*$"):
        load_recipe([str(path)])


def test_a_path_that_is_not_there_and_a_folder_are_said_with_the_bundled_recipe_that_is_nearest(tmp_path):
    with pytest.raises(
        RecipeError, match="^nowhere.yaml: No such file or directory; give a recipe's path, or a bundled"
    ):
        load_recipe(["nowhere.yaml"])
    with pytest.raises(RecipeError, match="a bundled one such as emoji9/mmp_all$"):
        load_recipe(["emoji9/mmpall"])
    with pytest.raises(RecipeError, match=f"^{tmp_path}: Is a directory; "):
        load_recipe([str(tmp_path)])
    with pytest.raises(RecipeError, match="a.yaml and b.yaml; give one recipe"):
        load_recipe(["a.yaml", "--seed", "1", "b.yaml"])
    with pytest.raises(RecipeError, match="no recipe; give one recipe, such as emoji9/mmp_en"):
        load_recipe([])


# What a recipe and options stand for


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_bundled_recipe_is_what_its_file_says_and_the_defaults_else(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe([name])
    assert load_recipe([f"{name}.yaml"]) == load_recipe([str(FOLDER / f"{name}.yaml")]) == recipe

    def check(said, part):
        for key, value in said.items():
            mine = getattr(part, key)
            if key in ("data", "model", "alignment", "pretraining", "finetuning", "augmentation"):
                check(value, mine)
            elif key == "sources":
                assert len(value) == len(mine)
                for source, built in zip(value, mine, strict=True):
                    check(source, built)
            else:
                assert mine == value
        for field in fields(part):
            if field.name not in said and isinstance(field.default, (int, float, str, type(None))):
                assert getattr(part, field.name) == field.default

    check(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), recipe)


def test_each_bundled_recipe_says_what_it_is_and_a_file_of_its_name_goes_before_it(corpus, tmp_path, monkeypatch):
    assert bundled_recipes()["emoji9/none_en"] == "No pre-training; English names."
    assert all(bundled_recipes().values()) and len(bundled_recipes()) == len(list(FOLDER.glob("*/*.yaml")))
    own = Path(write_recipe(corpus, tmp_path, {"seed": 7}))
    (tmp_path / "emoji9").mkdir()
    own.rename(tmp_path / "emoji9" / "mmp_en.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(["emoji9/mmp_en.yaml"]).seed == 7 and load_recipe(["emoji9/mmp_en"]).seed == 0


def test_options_stand_before_or_after_the_recipe_and_the_last_one_holds():
    after = load_recipe(["emoji9/mmp_en", "--seed", "3", "--finetuning.learning_rate=3e-4", "--dry_run"])
    before = load_recipe(
        ["--dry_run", "--seed=1", "--seed", "3", "--finetuning.learning_rate", "3e-4", "emoji9/mmp_en"]
    )
    assert after == before and (after.seed, after.finetuning.learning_rate, after.dry_run) == (3, 3e-4, True)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("seed", "1_000", 1000),
        ("pretraining.learning_rate", "1", 1.0),
        ("pretraining.learning_rate", "3E-4", 3e-4),
        ("pretraining.learning_rate", ".5", 0.5),
        ("pretraining.micro_batch_tokens", "null", None),
        ("data.languages", "[no, en]", ["no", "en"]),  # Norwegian, not false
        ("data.languages", '["en","de"]', ["en", "de"]),
        ("data.languages+", "ja", ["en", "de", "fr", "cs", "zh", "ru", "vi", "sw", "es", "ja"]),
        ("data.test_split", "null", None),
        ("data.revision", "1e5", "1e5"),  # a commit
        ("data.dataset", "123", "123"),
        ("model.text_prefix", "query: ", "query: "),
        ("model.text_prefix", "null", "null"),
        ("model.text_prefix", "", ""),
        ("model.standardize_inputs", "no", False),
        ("finetuning.interpolation", "[0, 0.5, 1]", [0.0, 0.5, 1.0]),
        ("model.config.logit_scale_init_value", "1e-3", 1e-3),
        ("model.config.text_output_layer", "null", None),
        ("model.config", "{hidden_size: 8}", {"hidden_size": 8}),
        ("card.dataset_name", "3", "3"),
        ("finetuning.sources[1].weight", "2", 2.0),
        ("finetuning.sources.0.languages", "[de]", ["de"]),
        ("pretraining", "null", None),
        ("hub_tag", "1.0", "1.0"),
        ("output_dir", "2024-01-01", "2024-01-01"),
        ("mixed_precision", "no", "no"),
    ],
)
def test_an_option_is_read_as_its_field_wants_it(option, text, value):
    got = asdict(load_recipe(["emoji9/mmp_en", f"--{option}", text]))
    for part in field_path(option):
        got = got[part]
    assert got == value and type(got) is type(value)


def test_an_option_of_a_whole_stage_keeps_what_it_does_not_name():
    recipe = load_recipe(["emoji9/mmp_en", "--finetuning", '{"sources": [{"text_column": "name"}]}'])
    assert len(recipe.finetuning.sources) == 1 and recipe.finetuning.num_train_epochs == 20


def test_the_help_has_every_field_with_its_type_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as done:
        load_recipe(["--help"], "What it does.")
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("What it does.\n")
    for place in PARTS:
        for field in fields(required(field_type(field_path(place)))):
            assert re.search(rf"^  --{re.escape(place + field.name)} [^;]+; .+\n {{8}}\S", printed, re.MULTILINE)
    assert "--finetuning.text_learning_rate float or null; null\n        learning rate of the text tower" in printed


def test_the_values_that_name_a_stages_folder_are_what_they_were(tmp_path):
    """The hash is of these values as JSON: 1 in place of 1.0 would train every finished stage again."""
    (tmp_path / "recipe.yaml").write_text(VALUES, encoding="utf-8")
    recipe = load_recipe([str(tmp_path / "recipe.yaml")])
    named = {"data": asdict(recipe.data)}
    for name, stage, _, identity in stages(recipe, lambda stage: None):
        named |= {"model": identity["model"], name: identity["stage"] | {"save_steps": stage.save_steps}}
    assert sha256(json.dumps(named, sort_keys=True).encode()).hexdigest() == VALUES_SHA256


# Every kind of number and text, as YAML has them; the hash is jsonargparse 4.53's, which read recipes before pydantic.
VALUES = """
data: {dataset: corpus, video_column: video, languages: [en, de], test_split: null}
model:
  text_model: encoder
  vision_model: [a, b]
  config: {hidden_size: 16, logit_scale_init_value: 1e-1, projection_skip: true, text_output_layer: null}
pretraining:
  sources:
    - {text_column: keywords, languages: [en, de], languages_per_clip: 2, max_keywords: 3, weight: 1}
    - {augmentation: {scale: 0, translate: 0.1, temporal_jitter: 2}, noise_probability: '5e-2'}
  num_train_epochs: '20'
  learning_rate: 1
  text_learning_rate: 5e-5
  activation_memory: 2
  learn_vision_layers: null
finetuning:
  sources: [{dataset: other, revision: '1', features: [], with_video: false}]
  learning_rate: '3e-4'
  micro_batch_tokens: null
  freeze: [text_model.]
"""
VALUES_SHA256 = "472f54b55fc89cd36c92ed064d9223302cb4c39ee5b469b0e9fb004b23f25cc9"
