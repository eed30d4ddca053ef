"""`train.py` and the Hub: the dataset is read at its pin, the result is published, and no token stays anywhere."""

import json
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub import HfApi
from tiny_corpus import write_recipe

from modeling_mmt.commands import train
from modeling_mmt.hub.publish import pinned_snapshot, publish
from modeling_mmt.training.recipe import RecipeError

SHORT = {
    "pretraining": None,
    "finetuning.num_train_epochs": 1,
    "finetuning.evaluations": 1,
    "data.dataset": "org/clips",
    "data.revision": "v1.0",
    "card": {"weights_license": "mit"},
}


@pytest.fixture
def hub(hub, corpus, tmp_path):
    """With the dataset on it."""
    folder = shutil.copytree(corpus / "corpus", tmp_path / "clips")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# clips\n")
    publish(folder, "org/clips", repo_type="dataset", tag="v1.0")
    HfApi().delete_folder("data", "org/clips", repo_type="dataset")  # main has no rows: only the pin does
    yield hub
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def test_a_run_reads_its_pinned_dataset_and_publishes_itself(hub, corpus, tmp_path):
    recipe = write_recipe(corpus, tmp_path, SHORT, "model")
    train.main([recipe, "--push_to_hub", "org/model", "--hub_tag", "v1.0"])
    commits = HfApi().list_repo_commits("org/model")
    assert len(commits) == 2
    there, here = pinned_snapshot("org/model", revision="v1.0"), tmp_path / "model"
    for name in ("model.safetensors", "training_log.jsonl", "metrics.json", "ranks.json", "README.md"):
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    told, kept = (json.loads((folder / "recipe.json").read_text()) for folder in (there, here))
    assert (
        told["data"]["features"]
        == [Path(store).name for store in kept["data"]["features"]]
        != kept["data"]["features"]
    )
    assert told["finetuning"] == kept["finetuning"]
    tellers = [p.name for p in there.rglob("*") if p.is_file() and str(tmp_path.parent).encode() in p.read_bytes()]
    assert tellers == []  # who trains where is nobody's business
    assert not {"push_to_hub", "hub_revision", "hub_tag"} & told.keys() and told["data"]["revision"] == "v1.0"
    (record,) = [json.loads(line) for line in (there / "training_log.jsonl").read_text().splitlines()]
    assert record.keys() == {"stage", "step", "loss", "validation_mrr"}
    assert 'from_pretrained("org/model"' in (there / "README.md").read_text()
    assert (there / ".eval_results" / "org--clips.yaml").is_file()
    holders = [p for p in tmp_path.rglob("*") if p.is_file() and hub.token.encode() in p.read_bytes()]
    assert holders == []


def test_a_failed_upload_after_training_is_one_line_that_says_how_to_try_again(hub, corpus, tmp_path, capsys):
    recipe, folder = write_recipe(corpus, tmp_path, SHORT, "model"), tmp_path / "model"
    hub.faults["commit 500"] = 10
    assert train.command([recipe, "--push_to_hub", "org/model", "--hub_tag", "v1.0"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train.py: org/model: ")
    assert line.endswith(f"the model is whole in {folder}: mmt publish {folder} org/model --revision main --tag v1.0")
    hub.faults.clear()
    publish(folder, "org/model", tag="v1.0")
    assert (pinned_snapshot("org/model", revision="v1.0") / "model.safetensors").is_file()


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_run_that_could_not_publish_fails_before_it_trains(hub, corpus, tmp_path, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RecipeError, match="^push_to_hub: .*[Tt]oken|^push_to_hub: 401") as refused:
        train.main([write_recipe(corpus, tmp_path, SHORT, "model"), "--push_to_hub", "org/model"])
    assert "hf_wrong" not in str(refused.value)
    assert not (tmp_path / "stages").exists() and not (tmp_path / "model").exists()
