"""`transformers.Trainer` on the collator's batches: the local loss as it is, the exact one by `MMTTrainer`.

`torchrun` starts this very file on two processes. SGD without clipping: after a step, weights are equal if and only if
gradients are.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import build_model, build_processor, build_rows
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments

import modeling_mmt.modeling_mmt
from modeling_mmt import MMTModel
from modeling_mmt.data.collator import ClipDataset, MMTDataCollator
from modeling_mmt.loss_mmt import objectives
from modeling_mmt.training.trainer import MMTTrainer

ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZE, NUM_STEPS = 8, 3
PAIRS = {"languages": ["en", "de"], "languages_per_clip": 2}
SCENARIOS = {  # model, collator
    "nce": ({"learn_logit_scale": True}, {}),
    "pairs": ({}, PAIRS),
    "sigmoid": ({"loss_type": "sigmoid", "learn_logit_scale": True, "logit_bias_init_value": -1.0}, {}),
    "text alone": ({}, PAIRS | {"with_video": False}),
}


class Draws(torch.utils.data.Dataset):
    """Row i with its first epoch's draw, so that its caption and noise do not depend on who collates it."""

    def __init__(self):
        self.clips = ClipDataset(build_rows(24))

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, row):
        return self.clips[0, 0, row]


def train(kind, folder, world_size, model, collator, data=None, **arguments):
    options = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": BATCH_SIZE // world_size,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    trainer = kind(
        model=build_model(sharpness=1, **model).train(),
        args=TrainingArguments(output_dir=str(folder), **(options | arguments)),
        train_dataset=data or Draws(),
        eval_dataset=data or Draws(),
        data_collator=MMTDataCollator(build_processor(), noise_probability=0.3, **collator),
    )
    trainer.train()
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def learned(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def run_scenarios(folder, world_size):
    found = {}
    for name, (model, collator) in SCENARIOS.items():
        trainer = train(MMTTrainer, folder, world_size, model, collator)
        assert trainer.args.world_size == world_size
        assert isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel) == (world_size > 1)
        found[name] = losses(trainer)
        if trainer.is_world_process_zero():
            save_file(learned(trainer), Path(folder) / f"{name}.safetensors")
    local = train(Trainer, folder, world_size, *SCENARIOS["nce"])
    return {"world_size": world_size, "losses": found, "local": losses(local)}


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(two)]
    env = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    whole = run_scenarios(one, 1)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-5000:]
    return (whole, one), (json.loads((two / "result.json").read_text()), two)


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_have_the_losses_and_weights_of_one_with_the_whole_batch(one_and_two, name):
    (one, one_folder), (two, two_folder) = one_and_two
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert len(one["losses"][name]) == NUM_STEPS
    assert two["losses"][name] == pytest.approx(one["losses"][name], rel=1e-4)
    found, wanted = (load_file(folder / f"{name}.safetensors") for folder in (two_folder, one_folder))
    before = dict(build_model(sharpness=1, **SCENARIOS[name][0]).named_parameters())
    moved = [key for key in wanted if not torch.equal(wanted[key], before[key])]
    assert len(moved) > 20
    for key in wanted:  # by tensor: single elements that hardly moved differ by the order of float32 sums
        moved_by = (wanted[key] - before[key].detach()).norm()
        rounding = 2e-6 * wanted[key].numel() ** 0.5
        assert (found[key] - wanted[key]).norm() <= 1e-3 * moved_by + rounding, key
    assert ("logit_scale" in moved) == SCENARIOS[name][0].get("learn_logit_scale", False)
    assert ("logit_bias" in moved) == (name == "sigmoid")


def test_processes_that_the_trainer_does_not_know_of_are_refused(tmp_path, monkeypatch):
    """As `torchrun` on CPUs without use_cpu makes them: each would train by itself, and say nothing."""
    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(dist, name, lambda *_, value=value: value)
    trainer = MMTTrainer(build_model(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"))
    with pytest.raises(ValueError, match="2 processes were started, and Trainer knows of 1.*use_cpu=True"):
        trainer.compute_loss(trainer.model, {})


def test_a_plain_trainer_has_the_local_loss(one_and_two):
    (one, _), (two, _) = one_and_two
    assert one["local"] == pytest.approx(one["losses"]["nce"], rel=1e-5)  # one process: the batch is the whole
    assert all(local < 0.95 * exact for local, exact in zip(two["local"], two["losses"]["nce"], strict=True))


def test_the_plain_trainer_shuffles_rows_evaluates_and_saves_a_model(tmp_path):
    trainer = train(
        Trainer,
        tmp_path,
        1,
        {},
        {},
        data=ClipDataset(build_rows(24)),
        max_steps=9,
        optim="adamw_torch",
        learning_rate=0.01,
    )
    assert sum(losses(trainer)[-3:]) < sum(losses(trainer)[:3])
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(tmp_path / "model")
    reloaded = dict(MMTModel.from_pretrained(tmp_path / "model").named_parameters())
    assert all(torch.equal(reloaded[name], parameter) for name, parameter in learned(trainer).items())


def test_a_batchs_objectives_are_computed_once(monkeypatch, tmp_path):
    computed = []

    def counted(*args):
        computed.append(1)
        return objectives(*args)

    monkeypatch.setattr(modeling_mmt.modeling_mmt, "objectives", counted)
    trainer = train(MMTTrainer, tmp_path, 1, {}, {})
    assert len(losses(trainer)) == NUM_STEPS == len(computed)


def test_accumulated_batches_are_averaged(tmp_path):
    whole = [train(MMTTrainer, tmp_path, 1, {}, {}, max_steps=n) for n in (1,)]
    halves = train(
        MMTTrainer, tmp_path, 1, {}, {}, max_steps=1, gradient_accumulation_steps=2, per_device_train_batch_size=4
    )
    assert losses(halves)[0] < losses(whole[0])[0]  # fewer negatives
    assert losses(halves)[0] > 0.5 * losses(whole[0])[0]  # a mean, not a sum


def test_the_override_is_at_most_20_lines():
    assert len(inspect.getsource(MMTTrainer.compute_loss).splitlines()) <= 20
    assert [name for name in vars(MMTTrainer) if callable(getattr(MMTTrainer, name))] == ["compute_loss"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = run_scenarios(sys.argv[1], int(os.environ["WORLD_SIZE"]))
    assert dist.get_backend() == "gloo"
    if dist.get_rank() == 0:
        (Path(sys.argv[1]) / "result.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
