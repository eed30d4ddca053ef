"""Several captions of a clip a step, a share of the clips' names, languages' directions: through `mmt train`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from safetensors.torch import load_file
from tiny_corpus import SPLITS, WITHOUT_DROPOUT, write_recipe
from train_process import Group
from transformers import AutoTokenizer

from modeling_mmt import MMTModel
from modeling_mmt.commands import train
from modeling_mmt.data.captions import seeded_share
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.corpora import Corpora
from modeling_mmt.training.recipe import RecipeError
from modeling_mmt.training.recipe_reading import load_recipe
from modeling_mmt.training.run import mean_states, open_run

LANGUAGES = ["en", "de", "no"]
THREE = {"text_column": "caption", "languages": LANGUAGES, "languages_per_clip": 3, "noise_probability": 0.2}
THREE |= {"noise_pool_size": 2, "other_text_columns": ["keywords"], "max_keywords": 2}
FIRST_STEP = {"pretraining": None, "finetuning.sources": [THREE], "finetuning.evaluations": 10}
FIRST_STEP |= WITHOUT_DROPOUT | {"model.config.text_weight": 0.5}


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps one precision for a whole process."""
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


@pytest.fixture(scope="module")
def three(corpus, tmp_path_factory):
    """The corpus with a third language, which has the English words the other way round."""
    root = tmp_path_factory.mktemp("three")
    for name in ("encoder", "colours", "animals"):
        shutil.copytree(corpus / name, root / name)
    for split in SPLITS:
        (path,) = (corpus / "corpus" / "data").glob(f"{split}-*.parquet")
        rows = Dataset.from_parquet(str(path), cache_dir=str(root / "cache")).to_list()
        for row in rows:
            row["caption_no"] = " ".join(reversed(row["caption_en"].split()))
            row["keywords_no"] = row["keywords_en"][::-1]
        (root / "corpus" / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(str(root / "corpus" / "data" / path.name))
    return root


@pytest.fixture
def run(three, tmp_path):
    def run(changes, name="model"):
        return train.main([write_recipe(three, tmp_path, changes, name)])

    return run


def losses(metrics):
    return torch.tensor([point["loss"] for point in metrics["finetuning"]["curve"]])


def run_data(recipe):
    parsed = load_recipe([recipe])
    return RunData(Corpora(parsed), None, None, None), parsed


def test_three_captions_a_clip_have_the_losses_of_the_whole_batch_without_cache_and_in_micro_batches(run, tmp_path):
    whole = losses(run(FIRST_STEP | {"finetuning.micro_batch_tokens": None, "cache_frozen_layers": False}, "whole"))
    for name, changes in {
        "cached": {"finetuning.micro_batch_tokens": None},
        "micro": {"finetuning.micro_batch_tokens": 24},
        "twice": {"finetuning.micro_batch_tokens": 16, "finetuning.activation_memory": 0.0},
    }.items():
        changes |= {"work_dir": str(tmp_path / f"stages of {name}")}  # the cache is no part of a stage's name
        found = losses(run(FIRST_STEP | changes, name))
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3, msg=lambda text, of=name: f"{of}: {text}")


def test_three_captions_a_clip_in_two_processes_have_the_losses_of_one(run, three, tmp_path):
    changes = FIRST_STEP | {"finetuning.train_batch_size": 11, "model.config.cross_weight": 0.0}
    changes |= {"finetuning.micro_batch_tokens": 24}
    one = run(changes)
    recipe = write_recipe(three, tmp_path / "two", changes)
    with Group([recipe], 2, None) as group:
        assert group.join() == [0, 0], Path(f"{recipe}.0.log").read_text()[-5000:]
    two = json.loads((tmp_path / "two" / "recipe" / "metrics.json").read_text())
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-4, atol=1e-4)


def test_the_text_objective_stands_beside_the_clips_in_one_source(run):
    with_text, without = (
        losses(run(FIRST_STEP | {"model.config.text_weight": weight}, f"weight-{weight}"))[0] for weight in (0.5, 0.0)
    )
    assert with_text > without + 0.5


def test_a_share_of_the_names_leaves_pretraining_as_it_is_and_fine_tunes_on_those_clips(three, tmp_path, run):
    short = {
        f"{stage}.{key}": 1 for stage in ("pretraining", "finetuning") for key in ("num_train_epochs", "evaluations")
    }
    shares = (0.25, 0.5, 1.0)
    seen, finished = {}, {}
    for share in shares:
        changes = short | {"finetuning.sources.0.named_share": share}
        metrics = run(changes, f"share-{share}")
        finished[share] = metrics["pretraining"]
        data, recipe = run_data(write_recipe(three, tmp_path, changes, f"share-{share}"))
        seen[share] = {
            row["video_id"] for row in data.training_clips(recipe.finetuning.sources[0], recipe.finetuning).rows
        }
        assert metrics["finetuning"]["steps"] == int(40 * share) // 8
    assert finished[0.25] == finished[0.5] == finished[1.0]  # one stage, run once
    assert len(list((tmp_path / "stages").glob("pretraining-*/result.json"))) == 1
    assert len(list((tmp_path / "stages").glob("finetuning-*/result.json"))) == 3
    ids = [f"clip-{number}" for number in range(40)]
    for share in shares:
        named = seeded_share(ids, share, 0)
        assert seen[share] == {video_id for video_id, is_named in zip(ids, named, strict=True) if is_named}
    assert seen[0.25] < seen[0.5] < seen[1.0]


def test_clips_without_their_name_are_learned_from_by_their_keywords(three, tmp_path):
    source = {"text_column": "caption", "other_text_columns": ["keywords"], "named_share": 0.25, "max_keywords": 1}
    changes = {"pretraining": None, "finetuning.sources": [source | {"noise_probability": 0.0}]}
    data, recipe = run_data(write_recipe(three, tmp_path, changes))
    rows = data.training_clips(recipe.finetuning.sources[0], recipe.finetuning).rows
    assert len(rows) == 40
    assert sum(value is not None for value in rows["caption_en"][:]) == 10
    assert all(rows["keywords_en"][:])


def test_a_batch_larger_than_the_named_clips_is_refused_before_training(run):
    with pytest.raises(RecipeError, match="train_batch_size: batch_size is 8; the corpus has 4 rows"):
        run({"finetuning.sources.0.named_share": 0.1})


def test_the_directions_in_which_languages_differ_are_those_of_the_training_texts(run, three, tmp_path):
    """Measured here by a plain loop over every text of each language; two languages of three are left one."""
    changes = {"pretraining": None, "finetuning.num_train_epochs": 1, "finetuning.evaluations": 1}
    changes |= {"data.languages": LANGUAGES, "model.config.freeze_text_layers": 2}
    changes |= {"model.config.language_directions": 2, "model.statistics_text_column": "keywords"}
    run(changes)
    directions = load_file(tmp_path / "model" / "model.safetensors")["text_model.pooling.language_directions"]
    (path,) = (three / "corpus" / "data").glob("train-*.parquet")
    rows = Dataset.from_parquet(str(path), cache_dir=str(three / "cache")).to_list()
    model = MMTModel.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    means = []
    for language in LANGUAGES:
        texts = [text for row in rows for text in row[f"keywords_{language}"]]
        with torch.no_grad():
            states = [
                model.text_model.encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(dim=1)
                for text in texts
            ]
        means.append(torch.cat(states).mean(dim=0))
    torch.testing.assert_close(directions @ directions.T, torch.eye(2), rtol=0, atol=1e-5)
    left = torch.stack(means) - torch.stack(means) @ directions.T @ directions
    assert (means[0] - means[1]).norm() > 0.1
    torch.testing.assert_close(left, left[:1].expand_as(left), rtol=0, atol=1e-4)


def test_mean_states_are_those_of_each_text_alone(three, tmp_path):
    recipe = load_recipe([write_recipe(three, tmp_path, {"model.standardize_inputs": False})])
    texts = ["red dog", "blue", "green whale"]
    with open_run(recipe) as run:
        found = mean_states(run.data, "text", texts)
        alone = torch.cat([mean_states(run.data, "text", [text]) for text in texts])
    torch.testing.assert_close(found, alone)
