"""What earlier releases wrote loads today, and gives the embeddings that it gave then; what is torn does not load."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import make_checkpoint
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from make_checkpoint import CHECKPOINTS, SUMS, current_version, inputs, sums
from safetensors.torch import load_file, save_file

from modeling_mmt import MMTConfig, MMTModel, MMTProcessor
from modeling_mmt.data.weights import CheckpointError
from modeling_mmt.evaluation.evaluate import open_checkpoint

RELEASES = sorted(path.name for path in CHECKPOINTS.iterdir() if path.is_dir())


def test_this_release_has_its_checkpoint():
    assert f"v{current_version()}" in RELEASES, "run tests/make_checkpoint.py"


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_s_checkpoint_gives_the_embeddings_that_it_gave(release):
    folder = CHECKPOINTS / release
    expected = load_file(folder / "expected.safetensors")
    model, processor = MMTModel.from_pretrained(folder).eval(), MMTProcessor.from_pretrained(folder)
    batch = inputs(processor)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    with torch.inference_mode():
        output = model(**batch)
    for name in ("text_embeds", "video_embeds"):
        torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=0)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2**20


def test_no_file_of_a_kept_checkpoint_has_changed():
    assert [line for release in RELEASES for line in sums(CHECKPOINTS / release)] == SUMS.read_text(
        "utf-8"
    ).splitlines()


def test_a_kept_checkpoint_is_not_written_again():
    with pytest.raises(SystemExit, match="is there: what a release wrote stays"):
        make_checkpoint.main()


@pytest.mark.parametrize("release", RELEASES)
def test_the_code_that_a_release_published_still_runs_without_the_package(release, tmp_path):
    folder = shutil.copytree(CHECKPOINTS / release, tmp_path / "model")  # the loader writes beside what it imports
    batch = inputs(MMTProcessor.from_pretrained(folder))
    save_file({key: value.contiguous() for key, value in batch.items()}, tmp_path / "inputs.safetensors")
    code = (
        "import sys, torch; from safetensors.torch import load_file\n"
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "output = model(**load_file(sys.argv[2]))\n"
        "assert 'modeling_mmt' not in sys.modules\n"
        "expected = load_file(sys.argv[1] + '/expected.safetensors')\n"
        "print(max((output[name] - expected[name]).abs().max().item() for name in ('text_embeds', 'video_embeds')))"
    )
    modules = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    call = [sys.executable, "-I", "-c", code, str(folder), str(tmp_path / "inputs.safetensors")]
    done = subprocess.run(call, env=modules, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) <= 1e-5


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(CHECKPOINTS / f"v{current_version()}", tmp_path / "model"))


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["text_projection", "video_model.pooling", "text_model.encoder.embeddings", "logit"])
def test_a_missing_weight_is_an_error_and_never_a_random_one(folder, name):
    def drop(weights):
        del weights[next(key for key in sorted(weights) if key.startswith(name))]

    rewrite(folder, drop)
    with pytest.raises(ValueError, match=f"lacks \\['{name}"):
        MMTModel.from_pretrained(folder)
    _, info = MMTModel.from_pretrained(folder, output_loading_info=True)  # who asks is told
    assert len(info["missing_keys"]) == 1


def test_weights_of_more_layers_than_the_config_counts_are_refused_and_not_left_out(folder):
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    spoil(folder, {"num_hidden_layers": layers - 1})
    with pytest.raises(CheckpointError, match=f"layers.{layers - 1}.*has no place for"):
        open_checkpoint(str(folder))
    _, info = MMTModel.from_pretrained(folder, output_loading_info=True)  # who asks is told
    assert info["unexpected_keys"]


def test_damaged_weights_are_refused_by_file_and_tensor(folder):
    path = folder / "model.safetensors"
    rewrite(folder, lambda weights: weights["text_projection.output.weight"].view(-1)[3:4].fill_(torch.inf))
    with pytest.raises(
        CheckpointError, match=f"{folder}: text_projection.output.weight holds NaN or infinity; .*again"
    ):
        open_checkpoint(str(folder))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=f"{path}: torn .*download or save the checkpoint again"):
        open_checkpoint(str(folder))


def test_a_weight_of_another_shape_is_an_error(folder):
    rewrite(folder, lambda weights: weights.update({"text_projection.output.weight": torch.zeros(3, 3)}))
    name = next(key for key in load_file(folder / "model.safetensors") if key.startswith("video_model"))
    rewrite(folder, lambda weights: weights.update({name: torch.zeros(3, 3, 3)}))
    with pytest.raises(RuntimeError):
        MMTModel.from_pretrained(folder)


HUGE = [
    {"num_hidden_layers": 10**6},
    {"hidden_size": 2**20, "num_attention_heads": 1},
    {"hidden_size": 10**12, "num_attention_heads": 1},
    {"intermediate_size": 10**15},
    {"projection_dim": 10**9},
    {"projection_hidden_dim": 10**12},
    {"max_video_length": 2**40},
    {"video_feature_dims": [2**40]},
    {"video_feature_dims": [1] * 10**5},
    {"text_config.num_hidden_layers": 10**6},
    {"text_config.hidden_size": 10**9},
    {"text_config.intermediate_size": 10**12},
    {"text_config.vocab_size": 10**12},
    {"text_config.max_position_embeddings": 10**12},
    {"hidden_size": 2**17, "num_attention_heads": 1, "intermediate_size": 2**18, "num_hidden_layers": 100},
]
WRONG = [
    {"hidden_size": "24"},
    {"hidden_size": [24]},
    {"hidden_size": None},
    {"num_hidden_layers": -1},
    {"pooling": "eval"},
    {"hidden_act": {"gelu": 1}},
    {"hidden_dropout_prob": "0.1"},
    {"video_feature_dims": "8"},
    {"text_config": [1, 2]},
    {"text_config": "xlm-roberta"},
    {"text_config.model_type": "no_such_model"},
    {"text_config.num_hidden_layers": "2"},
    {"text_config.vocab_size": -5},
]
UNKNOWN = [{"hiden_size": 24}]


def spoil(folder, changes):
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("changes", HUGE + WRONG + UNKNOWN, ids=str)
def test_a_malicious_config_is_refused_before_memory_is_taken(folder, changes):
    spoil(folder, changes)
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, TypeError, StrictDataclassError)) as refused:
            MMTModel.from_pretrained(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * 2**20
    assert len(str(refused.value)) > 20


def test_an_unknown_key_names_the_field_that_may_be_meant(folder):
    spoil(folder, {"hiden_size": 24})
    with pytest.raises(ValueError, match="did you mean 'hidden_size'"):
        MMTConfig.from_pretrained(folder)


def test_the_largest_config_that_passes_is_refused_by_its_weights_within_a_memory_limit(folder):
    spoil(folder, {"hidden_size": 2**14, "intermediate_size": 2**16})
    code = (
        "import resource, sys; from modeling_mmt import MMTModel\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, used + 2**31))\n"
        "MMTModel.from_pretrained(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 1 and "ignore_mismatched_sizes" in done.stderr, done.stderr[-2000:]


def test_every_config_that_transformers_writes_is_known(folder):
    config = MMTConfig.from_pretrained(folder, output_hidden_states=True)
    config.use_cache = False
    config.id2label = {0: "a", 1: "b"}
    config.save_pretrained(folder)
    MMTConfig.from_pretrained(folder)
