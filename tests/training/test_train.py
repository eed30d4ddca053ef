"""`train.py` end to end on `tiny_corpus.py`, in this process; the last tests start it under `torchrun`."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_corpus import SPLITS, WITHOUT_DROPOUT, write_recipe, write_split
from train_process import FSDP2, ROOT, Group
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from modeling_mmt import MMTModel, MMTProcessor, MMTVideoFeatureExtractor
from modeling_mmt.commands import train
from modeling_mmt.data.checks import search_problems
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.files import file_sha256
from modeling_mmt.data.reading import load_split
from modeling_mmt.data.weights import CheckpointError
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos
from modeling_mmt.evaluation.evaluate import EvalSpec, evaluate, open_checkpoint, open_corpus
from modeling_mmt.evaluation.ranks import ranks_by_language
from modeling_mmt.hub.publish import PublishError, publish
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.corpora import Corpora
from modeling_mmt.training.recipe import RecipeError
from modeling_mmt.training.recipe_reading import load_recipe
from modeling_mmt.training.run import RESULTS
from modeling_mmt.training.stage import load_weights, machine
from modeling_mmt.training.stage_folders import stages

FILE = str(ROOT / "setup.py")  # where a folder should be
CHANCE = 100 / SPLITS["test"]
ONLY_PRETRAINING = {"finetuning": None}
PAIRS = {
    "text_column": "caption",
    "languages": ["en", "de"],
    "languages_per_clip": 2,
    "noise_probability": 0.2,
    "noise_pool_size": 2,
}
SECOND_SOURCE = {"text_column": "caption", "languages": ["en"], "noise_probability": 0.2, "weight": 0.5}


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps one precision for a whole process."""
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


@pytest.fixture
def run(corpus, tmp_path):
    """Train with changes to the recipe; runs of one test share their stages' folder."""

    def run(changes=None, name="model", *options):
        return train.main([write_recipe(corpus, tmp_path, changes, name), *options])

    return run


def losses(metrics, stage="pretraining"):
    return torch.tensor([point["loss"] for point in metrics[stage]["curve"]])


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run long enough to learn: its metrics, and the folder of the model."""
    folder = tmp_path_factory.mktemp("trained")
    longer = {f"{s}.{k}": 20 for s in ("pretraining", "finetuning") for k in ("num_train_epochs", "train_batch_size")}
    tracker = {"report_to": "tensorboard", "log_steps": 5, "frozen_states_dir": str(folder / "frozen")}
    metrics = train.main([write_recipe(corpus, folder, longer | tracker, "model")])
    return metrics, folder


# What is not done


def test_noised_copies_that_no_loss_reads_are_not_made(run):
    """At weight 0 of the intra-modal loss a run is the run without noise, to the bit."""
    changes = ONLY_PRETRAINING | {"model.config.intra_weight": 0.0}
    noised = run(changes | {"pretraining.sources.0.noise_probability": 0.2})
    plain = run(changes | {"pretraining.sources.0.noise_probability": 0.0}, "plain")
    assert torch.equal(losses(noised), losses(plain))


@pytest.mark.parametrize("memory", [None, 0.0])
def test_a_micro_batch_goes_to_the_device_once_though_it_is_encoded_twice(run, monkeypatch, memory):
    calls = Counter()

    def counted(name):
        method = getattr(RunData, name)

        def call(self, chunk, source):
            calls[name] += 1
            return method(self, chunk, source)

        return call

    for name in ("to_device", "inputs"):
        monkeypatch.setattr(RunData, name, counted(name))
    run(ONLY_PRETRAINING | {"pretraining.activation_memory": memory, "pretraining.micro_batch_tokens": 16})
    assert calls["to_device"] > 10
    assert calls["inputs"] == calls["to_device"] * (1 if memory is None else 2)


def test_a_tokenizer_without_a_mask_token_is_named_before_training(run, corpus, tmp_path):
    encoder = shutil.copytree(corpus / "encoder", tmp_path / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(encoder)
    changes = ONLY_PRETRAINING | {"model.text_model": str(encoder)}
    with pytest.raises(RecipeError, match=r"^pretraining.sources\[0\]: noise_probability is 0.2, .*no mask token"):
        run(changes)
    assert not list(tmp_path.glob("stages/*/*"))
    assert run(changes | {"pretraining.sources.0.noise_probability": 0.0})["pretraining"]["steps"] == 10


# What comes out


def test_losses_fall_and_unseen_clips_are_found(trained):
    metrics, _ = trained
    for stage in ("pretraining", "finetuning"):
        assert losses(metrics, stage)[-1] < 0.7 * losses(metrics, stage)[0]
        assert metrics[stage]["steps"] == 40
    for split in ("validation", "test"):
        assert metrics["figures"][split]["all"]["t2v"]["en"]["R@1"] > 3 * CHANCE
        assert metrics["figures"][split]["all"]["v2t"]["en"]["MRR"] > 50


def test_the_metrics_are_whole_and_on_disk(trained):
    metrics, folder = trained
    assert json.loads((folder / "model" / "metrics.json").read_text()) == metrics
    assert metrics["n_clips"] == SPLITS["test"]
    assert metrics["figures"].keys() == {"validation", "test", "validation_keywords"}
    for parts in metrics["figures"].values():
        assert parts.keys() == {"all", "without_is_flag"}
        for part in parts.values():
            assert part.keys() == {"t2v", "v2t"}
            for languages in part.values():
                assert languages.keys() == {"en", "de"}
                for figures in languages.values():
                    assert {"R@1", "R@5", "R@10", "MedR", "MRR"} <= figures.keys()
                    assert all(math.isfinite(value) for value in figures.values())
    best = max(point["validation_mrr"] for point in metrics["finetuning"]["curve"])
    assert metrics["finetuning"]["best"]["validation_mrr"] == best
    assert metrics["figures"]["validation"]["all"]["t2v"]["en"]["MRR"] == pytest.approx(best)


def test_the_model_on_disk_finds_what_was_found(trained, corpus):
    _, folder = trained
    model = AutoModel.from_pretrained(folder / "model").eval()
    processor = AutoProcessor.from_pretrained(folder / "model")
    rows = load_split(str(corpus / "corpus"), None, "test", [])
    stores = [FeatureStore(corpus / name) for name in ("colours", "animals")]
    clips = [torch.cat([torch.tensor(store[key]) for store in stores], dim=1) for key in rows["video_id"]]
    texts = {lang: embed_texts(model, processor, rows[f"caption_{lang}"][:]) for lang in ("en", "de")}
    found = ranks_by_language(texts, embed_videos(model, processor, clips), {k: list(range(12)) for k in texts})
    ranked = json.loads((folder / "model" / "ranks.json").read_text())["test"]["all"]
    assert {way: {lang: list(r) for lang, r in of.items()} for way, of in found.items()} == ranked


def test_the_card_has_the_figures_and_the_recipe_runs_again(trained):
    metrics, folder = trained
    card = (folder / "model" / "README.md").read_text()
    assert f"| R@1 | {metrics['figures']['test']['all']['t2v']['en']['R@1']:.1f} |" in card
    recipe = load_recipe([str(folder / "model" / "recipe.json")])
    wanted = load_recipe([str(folder / "model.yaml")])
    assert recipe == wanted
    cores = f"{os.cpu_count()} CPU cores"
    for stage in ("pretraining", "finetuning"):
        assert cores in metrics[stage]["machine"]
    assert card.count(cores) == 1  # both stages on one machine


def test_the_tracker_has_every_objective_of_both_stages(trained):
    _, folder = trained
    events = EventAccumulator(str(next((folder / "model").rglob("events.*")).parent)).Reload()
    tags = {f"{stage}/{key}" for stage in ("pretraining", "finetuning") for key in ("loss", "inter", "intra")}
    assert tags <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("finetuning/loss")] == list(range(5, 41, 5))


def test_frozen_states_are_kept_between_runs(trained):
    _, folder = trained
    assert list((folder / "frozen").glob("*/states-*.safetensors"))


# What must not change the result


@pytest.mark.parametrize("frozen_layers", [1, 2])
def test_the_cache_of_frozen_layers_changes_no_loss(run, tmp_path, frozen_layers):
    changes = {"model.config.freeze_text_layers": frozen_layers, "pretraining.evaluations": 5}
    cached = run(changes)
    plain = run(changes | {"cache_frozen_layers": False, "work_dir": str(tmp_path / "elsewhere")})
    for stage in ("pretraining", "finetuning"):
        torch.testing.assert_close(losses(cached, stage), losses(plain, stage), rtol=1e-4, atol=1e-4)


def test_features_in_the_dataset_are_as_good_as_in_stores(run, corpus):
    stores = run(ONLY_PRETRAINING)
    in_dataset = {"data.dataset": str(corpus / "corpus_with_features"), "data.features": []}
    columns = run(ONLY_PRETRAINING | in_dataset | {"model.config.video_feature_dims": [12]})
    torch.testing.assert_close(losses(columns), losses(stores), rtol=1e-3, atol=1e-3)  # half precision in both


def test_a_second_source_of_weight_zero_changes_nothing_and_of_any_other_does(run):
    changes = ONLY_PRETRAINING | WITHOUT_DROPOUT
    alone = run(changes)["pretraining"]["curve"]

    def with_second(weight):
        recipe_sources = [yaml.safe_load(PRETRAINING_SOURCE), SECOND_SOURCE | {"weight": weight}]
        return run(changes | {"pretraining.sources": recipe_sources})["pretraining"]["curve"]

    assert with_second(0.0) == alone
    mixed = with_second(0.5)
    assert all(both["loss"] > 1.2 * one["loss"] for both, one in zip(mixed[:3], alone[:3], strict=True))


PRETRAINING_SOURCE = """
{text_column: keywords, languages: [en, de], max_keywords: 2, keyword_pool_size: 2, noise_probability: 0.2,
 noise_pool_size: 2}
"""


def test_a_source_may_have_a_dataset_of_its_own(run, corpus):
    own = SECOND_SOURCE | {"dataset": str(corpus / "corpus_with_features")}
    metrics = run(ONLY_PRETRAINING | {"pretraining.sources": [SECOND_SOURCE, own]})
    assert losses(metrics).isfinite().all()
    stores = own | {"dataset": str(corpus / "corpus"), "features": [str(corpus / s) for s in ("colours", "animals")]}
    again = run(ONLY_PRETRAINING | {"pretraining.sources": [SECOND_SOURCE, stores]})
    torch.testing.assert_close(losses(metrics), losses(again), rtol=1e-3, atol=1e-3)


def test_a_finished_stage_is_not_run_again(run, tmp_path, monkeypatch):
    first = run()
    other = run({"finetuning.learning_rate": 0.02}, "other")
    assert other["pretraining"] == first["pretraining"]
    assert other["finetuning"] != first["finetuning"]
    assert len(list((tmp_path / "stages").glob("pretraining-*/result.json"))) == 1
    monkeypatch.delattr("modeling_mmt.training.stage.open_learner")  # no step can be taken
    assert run(None, "again") == first
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(tmp_path / "again").values(), weights(tmp_path / "model").values(), strict=True)
    )


def change_value(folder, split, column, row=3):
    """Put another text at a place of a split, in a file of the same name."""
    (path,) = folder.glob(f"data/{split}-*.parquet")
    rows = Dataset.from_parquet(str(path), cache_dir=str(folder / "cache")).to_list()
    rows[row][column] = ["blau", "Hund"] if column.startswith("keywords") else "blue whale"
    Dataset.from_list(rows).to_parquet(str(path))


def change_encoder(folder):
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"Whitespace"', '"WhitespaceSplit"'))


def folders(recipe):
    """Where `train.py` would look for each stage."""
    parsed = load_recipe([recipe])
    model = MMTModel.from_text_encoder(parsed.model.text_model, video_feature_dims=[6, 6], **parsed.model.config)
    processor = MMTProcessor(MMTVideoFeatureExtractor(12, 4), AutoTokenizer.from_pretrained(parsed.model.text_model))
    data = RunData(Corpora(parsed), None, model, processor)
    return {name: folder for name, _, folder, _ in stages(parsed, data.contents)}


@pytest.fixture
def data(corpus, tmp_path):
    """A copy of what is read, to be changed; and the recipe of a short run whose fine-tuning reads `own` too."""
    root = tmp_path / "data"
    for name in ("corpus", "encoder", "colours", "animals"):
        shutil.copytree(corpus / name, root / name)
    shutil.copytree(corpus / "corpus_with_features", root / "own")
    changes = {"model.standardize_inputs": False}
    changes |= {"finetuning.sources": [SECOND_SOURCE, SECOND_SOURCE | {"dataset": str(root / "own")}]}
    for stage in ("pretraining", "finetuning"):
        changes |= {f"{stage}.num_train_epochs": 1, f"{stage}.evaluations": 1}
    return root, write_recipe(root, tmp_path, changes)


@pytest.mark.parametrize(
    ("change", "trained_again"),
    [
        (lambda root: None, []),
        (lambda root: (root / "corpus" / "README.md").write_text("A card."), []),
        (lambda root: change_value(root / "corpus", "test", "caption_en"), []),
        (lambda root: change_value(root / "corpus", "train", "caption_de"), []),  # no stage reads it
        (lambda root: change_value(root / "corpus", "train", "caption_en"), ["finetuning"]),
        (lambda root: change_value(root / "corpus", "train", "keywords_de"), ["pretraining", "finetuning"]),
        (lambda root: change_value(root / "corpus", "validation", "caption_en"), ["pretraining", "finetuning"]),
        (lambda root: change_value(root / "own", "train", "caption_en"), ["finetuning"]),
        (lambda root: change_value(root / "own", "train", "video_id"), ["finetuning"]),
        (lambda root: change_encoder(root / "encoder"), ["pretraining", "finetuning"]),
        (lambda root: change_tokenizer(root / "encoder"), ["pretraining", "finetuning"]),
    ],
    ids="nothing card test unread captions keywords validation own own_id encoder tokenizer".split(),
)
def test_a_stage_is_another_where_what_it_reads_changed_under_the_same_path(data, change, trained_again):
    root, recipe = data
    before = folders(recipe)
    change(root)
    after = folders(recipe)
    assert [name for name in before if before[name] != after[name]] == trained_again


def test_a_changed_caption_trains_its_stage_again_and_what_was_not_changed_is_reused(data, tmp_path):
    root, recipe = data
    first = train.main([recipe])
    assert {path.parent for path in (tmp_path / "stages").glob("*/result.json")} == set(folders(recipe).values())
    change_value(root / "corpus", "train", "caption_en")
    second = train.main([recipe])
    assert second["pretraining"] == first["pretraining"]
    assert second["finetuning"]["seconds"] != first["finetuning"]["seconds"]
    assert len(list((tmp_path / "stages").glob("finetuning-*/result.json"))) == 2


# What a stage can be told


def test_frozen_parameters_do_not_learn_in_their_stage(run, tmp_path):
    run(ONLY_PRETRAINING, "before")
    run({"finetuning.freeze": ["text_model", "text_projection"], "finetuning.evaluations": 0}, "after")
    before, after = weights(tmp_path / "before"), weights(tmp_path / "after")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"video_model", "video_projection"}


def test_the_result_is_averaged_with_the_start(run, tmp_path):
    run(ONLY_PRETRAINING, "start")
    run({"finetuning.evaluations": 0}, "end")
    run({"finetuning.evaluations": 0, "finetuning.average_with_start": 0.25}, "between")
    start, end, between = (weights(tmp_path / name) for name in ("start", "end", "between"))
    assert any(not torch.equal(start[name], end[name]) for name in start)
    for name in start:
        torch.testing.assert_close(between[name], 0.25 * start[name] + 0.75 * end[name], rtol=1e-5, atol=1e-6)


def test_accumulated_batches_make_fewer_steps_of_the_same_scale(run):
    halves = {"pretraining.gradient_accumulation_steps": 2, "pretraining.evaluations": 5}
    metrics = run(ONLY_PRETRAINING | halves)
    assert metrics["pretraining"]["steps"] == 5
    plain = run(ONLY_PRETRAINING)
    assert losses(metrics)[0] == pytest.approx(losses(plain)[:2].mean().item(), rel=0.2)
    assert losses(metrics).isfinite().all()


def test_micro_batches_have_the_losses_of_the_whole_batch(run):
    changes = ONLY_PRETRAINING | WITHOUT_DROPOUT | {"model.config.learn_logit_scale": True}
    whole = run(changes | {"pretraining.micro_batch_tokens": None})
    for settings in ({"micro_batch_tokens": 24}, {"micro_batch_tokens": 16, "activation_memory": 0.0}):
        micro = run(changes | {f"pretraining.{name}": value for name, value in settings.items()})
        torch.testing.assert_close(losses(micro), losses(whole), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pool", ["noise_pool_size", "keyword_pool_size"])
def test_frozen_output_is_kept_for_captions_from_pools_and_not_for_those_drawn_afresh(run, tmp_path, pool):
    kept = {}
    for size in (0, 2):
        folder = tmp_path / f"frozen-{size}"
        run(ONLY_PRETRAINING | {f"pretraining.sources.0.{pool}": size, "frozen_states_dir": str(folder)}, f"m{size}")
        kept[size] = sum(len(load_file(shard)["lengths"]) for shard in folder.rglob("*.safetensors"))
    assert 0 < kept[0] < kept[2]  # what validation searches by is kept either way


def test_pairs_of_languages_train_with_the_cross_lingual_objective(run, tmp_path):
    metrics = run(ONLY_PRETRAINING | {"pretraining.sources": [PAIRS], "report_to": "tensorboard", "log_steps": 1})
    assert losses(metrics).isfinite().all()
    events = EventAccumulator(str(next((tmp_path / "model").rglob("events.*")).parent)).Reload()
    assert {f"pretraining/{key}" for key in ("inter", "intra", "cross", "loss")} <= set(events.Tags()["scalars"])


def test_text_alone_is_aligned_without_touching_the_video_tower(run, tmp_path):
    changes = ONLY_PRETRAINING | {"pretraining.num_train_epochs": 6, "pretraining.weight_decay": 0.1}
    changes |= {"pretraining.sources": [PAIRS | {"with_video": False}]}
    metrics = run(changes)
    assert losses(metrics)[-1] < losses(metrics)[0]
    run({"pretraining": None, "finetuning.learning_rate": 0.0}, "untrained")
    before, after = weights(tmp_path / "untrained"), weights(tmp_path / "model")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"text_model", "text_projection"}


def test_a_bf16_run_stays_close_to_full_precision(run):
    full = run(ONLY_PRETRAINING | WITHOUT_DROPOUT)
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    half = run(ONLY_PRETRAINING | WITHOUT_DROPOUT | {"mixed_precision": "bf16"})
    assert not torch.equal(losses(half), losses(full))
    torch.testing.assert_close(losses(half)[:3], losses(full)[:3], rtol=0.05, atol=0.05)


def test_a_run_without_test_split_reports_validation(run):
    metrics = run(ONLY_PRETRAINING | {"data.test_split": None, "data.exclude_column": None})
    assert metrics["figures"].keys() == {"validation", "validation_keywords"}
    assert metrics["figures"]["validation"].keys() == {"all"}


# What is refused


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"finetuning.learning_rat": 0.1}, "learning_rat"),
        ({"finetuning.sources.0.languagess": ["en"]}, "languagess"),
        ({"sed": 1}, "sed"),
        ({"model.config.hiden_size": 8}, "hiden_size"),
    ],
)
def test_an_unknown_field_is_refused_by_name(run, changes, name, capsys):
    with pytest.raises((SystemExit, ValueError)) as refusal:
        run(changes)
    assert name in capsys.readouterr().err + str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("validation", "is_flag", True),
            r"corpus \(validation\): is_flag holds for every clip.*exclude_column to null",
        ),
        (("test", "caption_de", ""), r"corpus \(test\): caption_de is empty; take de out of data.languages"),
        (
            ("test", "caption_de", "  "),
            r"\(test\): 12 texts of caption_de are blank or null.* of clip 'clip-52'",
        ),
        (
            ("validation", "video_id", "twin"),
            r"\(validation\): video_id 'twin' is in 12 rows; give a clip one row",
        ),
        (
            ("train", "caption_en", " \n"),
            r"\(train\): 40 texts of caption_en are blank or null.* of clip 'clip-0'",
        ),
    ],
    ids="excluded empty blank twins blank_in_training".split(),
)
def test_data_that_would_fail_after_hours_are_refused_before_training_and_by_a_dry_run(
    corpus, tmp_path, change, message
):
    split, column, value = change
    shutil.copytree(corpus / "corpus", tmp_path / "data" / "corpus")
    (path,) = (tmp_path / "data").glob(f"corpus/data/{split}-*.parquet")
    rows = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).to_list()
    Dataset.from_list([row | {column: value} for row in rows]).to_parquet(str(path))
    recipe = write_recipe(corpus, tmp_path, {"data.dataset": str(tmp_path / "data" / "corpus")})
    with pytest.raises(RecipeError, match=message):
        train.main([recipe])
    assert list(tmp_path.glob("stages/*")) == []
    assert any(re.search(message, problem) for problem in train.main([recipe, "--dry_run"])["problems"])


def test_a_dataset_without_english_is_refused_by_a_run_and_a_dry_run_where_checkpoints_are_chosen_by_it(
    corpus, tmp_path
):
    for split in SPLITS:
        rows = Dataset.from_parquet(str(next((corpus / "corpus/data").glob(f"{split}-*.parquet")))).to_list()
        texts = [{"caption_sw": row["caption_de"]} for row in rows]
        same = ("video_id", "is_flag")
        swahili = [{name: row[name] for name in same} | text for row, text in zip(rows, texts, strict=True)]
        write_split(tmp_path / "swahili", split, swahili)
    source = {"text_column": "caption", "languages": ["sw"]}
    recipe = write_recipe(
        corpus,
        tmp_path,
        ONLY_PRETRAINING
        | {"data.dataset": str(tmp_path / "swahili"), "data.languages": ["sw"], "data.other_text_columns": []}
        | {"pretraining.sources": [source], "model.standardize_inputs": False},
    )
    message = r"swahili \(validation\): no column caption_en; found video_id, is_flag, caption_sw"
    (problem,) = train.main([recipe, "--dry_run"])["problems"]
    assert re.search(message, problem)
    assert train.command([recipe, "--dry_run"]) == 1
    with pytest.raises(RecipeError, match=message):
        train.main([recipe])
    assert train.command([recipe]) == 2
    with pytest.raises(RecipeError):
        train.command([recipe, "--traceback"])
    without = [recipe, "--pretraining.evaluations", "0", "--pretraining.num_train_epochs", "1"]
    assert train.main([*without, "--dry_run"])["problems"] == []
    assert train.main(without)["figures"]["test"]["all"]["t2v"].keys() == {"sw"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.dataset": "nope/nowhere"}, "nope/nowhere"),
        ({"data.text_column": "captoin"}, r"corpus \(\w+\): no column captoin_en; found .*caption_en"),
        ({"data.features": ["features/none"]}, "features/none"),
        ({"model.text_model": "nope/none"}, "nope/none"),
        ({"model.config.pooling": "frist"}, "Field 'pooling' expected one of .* got frist"),
        ({"model.config.text_output_layer": 99}, "text_output_layer"),
        ({"data.test_split": "tset"}, "tset"),
        ({"model.max_text_length": 2}, "model.max_text_length is 2, and .* tokens are 2: no token is left"),
        ({"report_to": "nope"}, "report_to is 'nope'; installed are: .*tensorboard.*; null for no tracker"),
        ({"output_dir": FILE}, f"output_dir is {FILE}, and {FILE} is a file; name another folder"),
        ({"work_dir": f"{FILE}/stages"}, f"work_dir is {FILE}/stages, and {FILE} is a file"),
        ({"frozen_states_dir": FILE}, f"frozen_states_dir is {FILE}, and"),
        ({"finetuning.train_batch_size": 41}, "finetuning.train_batch_size: batch_size is 41; the corpus has 40 rows"),
        (
            {
                "data.dataset": "corpus_with_cues",
                "data.features": [],
                "model.config.video_feature_dims": [12],
                "finetuning.sources.0.clip_seconds": [1.0, 2.0],
            },
            r"finetuning.sources\[0\]: a source with clip_seconds needs features",
        ),
        ({"finetuning.freeze": ["text_", "video_"]}, "finetuning.freeze is .*which leaves nothing that learns"),
    ],
    ids="dataset column store encoder pooling layer split length tracker output work states batch cues frozen".split(),
)
def test_whatever_is_wrong_with_what_a_recipe_names_is_one_line_before_training(corpus, tmp_path, changes, message):
    if changes.get("data.dataset") == "corpus_with_cues":
        changes = changes | {"data.dataset": add_cues(corpus / "corpus_with_features", tmp_path / "corpus_with_cues")}
    with pytest.raises(RecipeError, match=message) as refused:
        train.main([write_recipe(corpus, tmp_path, changes)])
    assert "\n" not in str(refused.value)
    assert list(tmp_path.glob("stages/*")) == []


def add_cues(corpus, folder):
    """A copy whose captions are cues of one text from second 0 to 1; its path."""
    for split in SPLITS:
        rows = Dataset.from_parquet(str(next(corpus.glob(f"data/{split}-*.parquet"))), cache_dir=str(folder / "cache"))
        write_split(folder, split, [row | {"start_en": [0.0], "end_en": [1.0]} for row in rows])
    return str(folder)


def damaged(folder, name, content):
    """Write into a copy of a folder, or take a file out of it (`None`); text `half` leaves half of it."""
    for path in folder.glob(name):
        if content is None:
            path.unlink()
        else:
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2] if content == "half" else content.encode())


@pytest.mark.parametrize(
    ("field", "folder", "name", "content", "message"),
    [
        (
            "data.dataset",
            "corpus",
            "data/test-*",
            "half",
            "corpus: a file cannot be read .*the dataset again",
        ),
        (
            "model.text_model",
            "encoder",
            "tokenizer.json",
            "{}",
            "encoder: KeyError: .*; check that the file is complete",
        ),
        (
            "model.text_model",
            "encoder",
            "tokenizer_config.json",
            "[]",
            "encoder: AttributeError: .*; check that the file is complete",
        ),
        ("model.text_model", "encoder", "tokenizer*", None, "encoder: its tokenizer has an empty vocabulary"),
        (
            "model.text_model",
            "encoder",
            "config.json",
            '{"model_type": "bert"}',
            "config.json does not fit the weights",
        ),
        (
            "model.text_model",
            "encoder",
            "config.json",
            '{"model_type": "clip"}',
            "encoder: NotImplementedError: .*CLIPModel",
        ),
    ],
    ids="torn_data tokenizer tokenizer_config no_tokenizer other_encoder no_text_encoder".split(),
)
def test_whatever_is_wrong_with_a_file_is_one_line_before_training(
    corpus, tmp_path, field, folder, name, content, message
):
    shutil.copytree(corpus / folder, tmp_path / folder)
    damaged(tmp_path / folder, name, content)
    recipe = write_recipe(corpus, tmp_path, {field: str(tmp_path / folder)})
    with pytest.raises(RecipeError, match=message) as refused:
        train.main([recipe])
    assert "\n" not in str(refused.value) and str(tmp_path / folder) in str(refused.value)
    assert list(tmp_path.glob("stages/*")) == []
    if field == "data.dataset":
        assert any("cannot be read" in problem for problem in train.main([recipe, "--dry_run"])["problems"])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_clip_without_features_is_noticed_before_training(corpus, tmp_path, split):
    rows = Dataset.from_parquet(str(next((corpus / "corpus/data").glob(f"{split}-*.parquet"))))
    lost = rows["video_id"][-1]
    whole = FeatureStore(corpus / "animals")
    kept = ((video_id, whole[video_id]) for video_id in whole if video_id != lost)
    write_feature_store(tmp_path / "animals", kept, extractor="made up", revision="1")
    recipe = write_recipe(corpus, tmp_path, {"data.features": [str(corpus / "colours"), str(tmp_path / "animals")]})
    with pytest.raises(
        RecipeError, match=rf"\({split}\): 1 of {len(rows)} clips are not in .*first '{lost}': extract"
    ):
        train.main([recipe])
    assert list(tmp_path.glob("stages/*")) == []


def test_clips_are_not_left_out_by_a_column_of_texts():
    rows = Dataset.from_dict({"video_id": ["a", "b"], "caption_de": ["x", "y"], "is_flag": ["no", ""]})
    (problem,) = search_problems(rows, "caption", ["de"], "is_flag")
    assert problem == "is_flag, of clips to leave out, is a column of string; give one of true and false"


def test_a_language_whose_texts_are_all_of_excluded_clips_is_refused():
    rows = Dataset.from_dict({"video_id": ["a", "b"], "caption_de": ["x", ""], "is_flag": [True, False]})
    (problem,) = search_problems(rows, "caption", ["de"], "is_flag")
    assert "caption_de is empty but for clips that is_flag leaves out" in problem
    assert list(search_problems(rows, "caption", ["de"])) == []


def test_a_frozen_prefix_that_no_parameter_has_is_refused(run):
    with pytest.raises(
        RecipeError, match="finetuning.freeze: no parameter's name begins with 'txt_model'; did you mean text_model"
    ):
        run({"finetuning.freeze": ["video_", "txt_model"]})


def test_one_flipped_bit_of_a_finished_stage_is_refused_and_not_another_model(corpus, tmp_path):
    changes = {f"pretraining.{key}": 1 for key in ("num_train_epochs", "evaluations")}
    recipe = write_recipe(corpus, tmp_path, ONLY_PRETRAINING | changes)
    train.main([recipe])
    (path,) = tmp_path.glob("stages/*/result.safetensors")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # of a weight's fraction: finite still
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{path}: torn .*; delete {path.parent}, and pretraining is run again"):
        train.main([recipe])
    (path.parent / "result.json").write_text("{}")  # as an earlier version wrote it, or torn
    with pytest.raises(CheckpointError, match="result.json: torn, or of an earlier version .*; delete"):
        train.main([recipe])


def test_a_run_killed_while_it_saves_leaves_no_old_figures_beside_new_weights(corpus, tmp_path, monkeypatch):
    changes = {f"pretraining.{key}": 1 for key in ("num_train_epochs", "evaluations")}
    recipe = write_recipe(corpus, tmp_path, ONLY_PRETRAINING | changes)
    train.main([recipe])
    output = Path(recipe).with_suffix("")
    written = {path.name for path in output.iterdir()}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MMTProcessor, "save_pretrained", killed)  # after the weights
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train.main([recipe])
        raise SystemExit
    assert written - {path.name for path in output.iterdir()} == {*RESULTS}
    with pytest.raises(PublishError, match="no README.md; write a card first"):
        publish(output, "org/name")
    monkeypatch.undo()
    train.main([recipe])
    assert {path.name for path in output.iterdir()} == written


def test_weights_that_changed_after_they_were_noted_are_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    save_file({"a": torch.ones(2)}, path)
    digest = file_sha256(path)
    assert torch.equal(load_weights(path, digest, "mend")["a"], torch.ones(2))
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="best.safetensors: torn .*; mend"):
        load_weights(path, digest, "mend")
    path.unlink()
    with pytest.raises(CheckpointError, match="best.safetensors: torn"):
        load_weights(path, None, "mend")


@pytest.mark.parametrize("damage", ["torn", "nan"])
@pytest.mark.parametrize("name", ["result", "encoder"])
def test_damaged_weights_are_refused_by_file_and_tensor(corpus, tmp_path, name, damage):
    shutil.copytree(corpus / "encoder", tmp_path / "encoder")
    changes = {f"pretraining.{key}": 1 for key in ("num_train_epochs", "evaluations")}
    recipe = write_recipe(
        corpus, tmp_path, ONLY_PRETRAINING | changes | {"model.text_model": str(tmp_path / "encoder")}
    )
    path = tmp_path / "encoder" / "model.safetensors"
    if name == "result":
        train.main([recipe])
        (path,) = tmp_path.glob("stages/*/result.safetensors")
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-8])
        message = f"{path}: torn .*; "
    else:
        tensors = load_file(path)
        key = max(key for key in tensors if not key.startswith("pooler."))  # which is not used
        tensors[key].view(-1)[0] = math.nan
        save_file(tensors, path, metadata={"format": "pt"})
        if name == "result":  # by a stage that went wrong and noted it
            noted = path.with_name("result.json")
            noted.write_text(json.dumps({**json.loads(noted.read_text()), "sha256": file_sha256(path)}))
        message = f"{path if name == 'result' else path.parent}: {key} holds NaN or infinity; "
    remedy = f"delete {path.parent}, and pretraining is run again" if name == "result" else "text"
    with pytest.raises(CheckpointError if name == "result" else RecipeError, match=message + f".*{remedy}"):
        train.main([recipe])


def test_the_command_line_says_in_one_line_what_is_wrong(corpus, tmp_path, capsys):
    recipe = write_recipe(corpus, tmp_path, {"finetuning.learning_rat": 0.1})
    assert train.command([recipe]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == (
        f"train.py: {recipe}: finetuning.learning_rat is not a field of StageArguments; "
        "did you mean learning_rate or text_learning_rate?"
    )
    assert "Traceback" not in error and "usage" not in error


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_machine_is_the_gpu_where_there_is_one():
    assert machine(Accelerator()).startswith(f"1 x {torch.cuda.get_device_name()}, ")


def test_a_missing_column_is_refused_by_name(run):
    with pytest.raises(ValueError, match="no column caption_fr; found .*caption_en"):
        run({"data.languages": ["en", "fr"]})


def test_a_loss_that_is_not_finite_stops_with_the_ids_of_its_clips(run, tmp_path):
    changes = ONLY_PRETRAINING | {"pretraining.learning_rate": 1e30, "pretraining.evaluations": 0}
    with pytest.raises(FloatingPointError, match="pretraining: loss .* at step 1; see .*not_finite-step-1.json"):
        run(changes)
    (path,) = (tmp_path / "stages").glob("*/not_finite-step-1.json")
    record = json.loads(path.read_text())
    (ids,) = record["video_ids"]
    assert len(set(ids)) == 8 and all(video_id.startswith("clip-") for video_id in ids)
    assert not math.isfinite(float(record["loss"])) or not math.isfinite(float(record["gradient_norm"]))


# On two processes


def by_torchrun(recipe):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*launcher, "train.py", recipe]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]


def by_hand(recipe, world_size=2, env=None):
    with Group([recipe], world_size, env) as group:
        assert group.join() == [0] * world_size, Path(f"{recipe}.0.log").read_text()[-5000:]


def fsdp2(recipe):
    by_hand(recipe, env=FSDP2)


def fsdp2_on_four(recipe):
    by_hand(recipe, 4, env=FSDP2)


@pytest.mark.parametrize(
    ("launch", "world_size"),
    [
        (by_hand, 2),
        (fsdp2, 2),
        pytest.param(fsdp2_on_four, 4, marks=pytest.mark.slow),
        pytest.param(by_torchrun, 2, marks=pytest.mark.slow),
    ],
)
def test_several_processes_have_the_losses_of_one(run, corpus, tmp_path, launch, world_size):
    """A text-only stage, then three sources with a learned temperature, in micro-batches and accumulated."""
    changes = WITHOUT_DROPOUT | {
        "model.config.learn_logit_scale": True,
        "model.config.loss_type": "sigmoid",
        "pretraining.sources": [PAIRS | {"with_video": False}],
        "finetuning.sources": [PAIRS, SECOND_SOURCE, PAIRS | {"with_video": False}],
        "finetuning.train_batch_size": 11,  # uneven: 6 and 5, or 3, 3, 3 and 2
        "finetuning.micro_batch_tokens": 24,
        "finetuning.activation_memory": 1e-6,
        "finetuning.gradient_accumulation_steps": 2,
        "finetuning.evaluations": 5,
    }
    one = run(changes)
    launch(write_recipe(corpus, tmp_path / "two", changes))
    two = json.loads((tmp_path / "two" / "recipe" / "metrics.json").read_text())
    assert two["world_size"] == world_size
    for stage in ("pretraining", "finetuning"):
        torch.testing.assert_close(losses(two, stage), losses(one, stage), rtol=1e-4, atol=1e-4)
    found, wanted = weights(tmp_path / "two" / "recipe"), weights(tmp_path / "model")
    far = [name for name in wanted if not torch.allclose(found[name], wanted[name], rtol=1e-2, atol=1e-3)]
    assert [name for name in far if "key" not in name and "k_proj" not in name] == []
    checkpoint = str(tmp_path / "two" / "recipe")  # searched by the processes together, and here by one
    by_one = evaluate(
        *open_checkpoint(checkpoint), open_corpus(EvalSpec.of_checkpoint(checkpoint, split="validation"))
    )
    assert by_one.figures == two["figures"]["validation"]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "ACCELERATE_MIXED_PRECISION",
            "bf16",
            "mixed_precision is no, and accelerate launch set bf16: the recipe",
        ),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "accelerate launch set fp8"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "accelerate launch set gradient_accumulation_steps to 4"),
    ],
)
def test_what_accelerate_launch_is_told_is_never_passed_over(corpus, tmp_path, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=message):
        train.main([write_recipe(corpus, tmp_path, {})])


def test_what_accelerate_launch_says_without_being_told_is_no_order(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    path = write_recipe(corpus, tmp_path, {"mixed_precision": "bf16", "output_dir": FILE})
    with pytest.raises(RecipeError, match="output_dir is"):  # the next thing that is wrong
        train.main([path])
