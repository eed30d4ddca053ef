"""Killed at any step, a run resumes as if nothing had been: real processes, killed with SIGKILL.

The data are `tiny_corpus.py`'s; dropout and noise are on; the curve of a stage holds the loss of every step.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_corpus import write_recipe
from train_process import FSDP2, ROOT, Group

from modeling_mmt.commands import train
from modeling_mmt.data.weights import CheckpointError
from modeling_mmt.training.checkpointing import last_checkpoint
from modeling_mmt.training.recipe_reading import load_recipe
from modeling_mmt.training.run import open_run
from modeling_mmt.training.signals import STOPPED, StopSignals
from modeling_mmt.training.stage_folders import stages

STEPS = 10  # of each stage: 40 clips, batches of 8, two epochs
EVERY_STEP = {
    "pretraining.save_steps": 3,
    "pretraining.evaluations": STEPS,
    "finetuning.save_steps": 3,
    "finetuning.evaluations": STEPS,
    "finetuning.average_with_start": 0.5,
    "model.config.learn_logit_scale": True,
    "model.config.video_input_dropout_prob": 0.3,
    "finetuning.lr_scheduler_type": "cosine",
}


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """What comes out of the run that nobody stops, by the number of processes; run once for each."""
    found = {}

    def run(world_size):
        if world_size not in found:
            recipe = write_recipe(corpus, tmp_path_factory.mktemp("whole"), EVERY_STEP)
            found[world_size] = finish([recipe], world_size)
        return found[world_size]

    return run


def finish(argv, world_size=1, env=None):
    """Run to the end; what came out, the seconds aside."""
    with Group(argv, world_size, env) as group:
        codes = group.join()
    assert codes == [0] * world_size, Path(f"{argv[0]}.0.log").read_text()[-3000:]
    return outcome(argv[0])


def outcome(recipe):
    folder = Path(recipe).with_suffix("")
    metrics = json.loads((folder / "metrics.json").read_text())
    for stage in ("pretraining", "finetuning"):
        metrics[stage].pop("seconds")
    return metrics, load_file(folder / "model.safetensors")


def assert_same(found, wanted):
    for stage in ("pretraining", "finetuning"):
        assert [point["step"] for point in found[0][stage]["curve"]] == list(range(1, STEPS + 1))
        assert found[0][stage] == wanted[0][stage]
    assert found[0] == wanted[0]
    assert found[1].keys() == wanted[1].keys()
    differing = [name for name in wanted[1] if not torch.equal(found[1][name], wanted[1][name])]
    assert differing == []


def random_kills(seed):
    """Two steps of each stage, each past the one before."""
    draw = random.Random(seed)
    return [(stage, step) for stage in ("pretraining", "finetuning") for step in sorted(draw.sample(range(1, 11), 2))]


@pytest.mark.parametrize(
    ("world_size", "seed"),
    [(1, 0), (2, 1), *(pytest.param(w, s, marks=pytest.mark.slow) for w in (1, 2) for s in (2, 3))],
)
def test_a_run_killed_at_random_steps_has_the_losses_and_weights_of_the_uninterrupted_one(
    corpus, uninterrupted, tmp_path, world_size, seed
):
    recipe = write_recipe(corpus, tmp_path / "killed", EVERY_STEP)
    for stage, step in random_kills(seed):
        with Group([recipe], world_size) as group:
            group.wait_for(stage, step)
            group.kill()
            assert [process.exitcode for process in group.processes] == [-signal.SIGKILL] * world_size
    assert_same(finish([recipe], world_size), uninterrupted(world_size))
    assert list((tmp_path / "killed" / "stages").glob("*/step-*")) == []  # finished stages keep none


@pytest.mark.slow
def test_a_killed_fsdp2_run_resumes_from_whole_checkpoints(corpus, tmp_path):
    wanted = finish([write_recipe(corpus, tmp_path / "whole", EVERY_STEP)], 2, FSDP2)
    recipe = write_recipe(corpus, tmp_path / "killed", EVERY_STEP)
    for stage, step in random_kills(4):
        with Group([recipe], 2, FSDP2) as group:
            group.wait_for(stage, step)
            group.kill()
    found = finish([recipe], 2, FSDP2)
    for stage in ("pretraining", "finetuning"):  # the same to rounding, not to the bit as under DDP
        curves = [torch.tensor([list(p.values()) for p in run[0][stage]["curve"]]) for run in (found, wanted)]
        torch.testing.assert_close(*curves, rtol=1e-5, atol=0)
    for name, value in wanted[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_exits_with_75(corpus, uninterrupted, tmp_path, told):
    recipe = write_recipe(corpus, tmp_path / "stopped", EVERY_STEP | {"pretraining.save_steps": 1000})
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen([sys.executable, "train.py", recipe], cwd=ROOT, env=env, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not list((tmp_path / "stopped").glob("stages/*/best.safetensors")):  # the first step's
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-3000:]
            time.sleep(0.002)
        process.send_signal(told)
        assert process.wait(60) == STOPPED == 75
    (checkpoint,) = (tmp_path / "stopped").glob("stages/*/step-*")
    assert 1 <= json.loads((checkpoint / "state.json").read_text())["step"]
    assert_same(finish([recipe]), uninterrupted(1))


def test_a_second_ctrl_c_interrupts_at_once_and_afterwards_signals_are_whose_they_were():
    def handlers():
        return {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    before = handlers()
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        assert all(handlers()[number] != handler for number, handler in before.items())
        signal.raise_signal(signal.SIGINT)
        assert signals.requested
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C did not interrupt")
    assert handlers() == before


def test_a_run_in_another_thread_leaves_signals_alone():
    seen = []

    def run():
        with StopSignals():  # only the main thread may set a handler: signal.signal would raise
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_all_processes_stop_after_the_same_step_though_one_alone_is_told(corpus, tmp_path):
    recipe = write_recipe(corpus, tmp_path, EVERY_STEP | {"pretraining.save_steps": 1000})
    with Group([recipe], 2) as group:
        group.wait_for("pretraining", 2)
        group.kill(signal.SIGTERM, ranks=[1])
        assert group.join() == [75, 75]
    (checkpoint,) = tmp_path.glob("stages/*/step-*")
    assert {path.name for path in checkpoint.glob("rng-*")} == {"rng-0.safetensors", "rng-1.safetensors"}


def stop_after_a_step(recipe):
    """What a signal during the first step does."""
    parsed = load_recipe([recipe])
    with open_run(parsed) as run:
        run.signals.requested = True
        with pytest.raises(SystemExit) as stop:
            run.pretrain()
    assert stop.value.code == STOPPED == 75


@pytest.fixture
def stopped(corpus, tmp_path):
    """A recipe whose pre-training was stopped after its first step, and the checkpoint."""
    recipe = write_recipe(corpus, tmp_path, EVERY_STEP)
    stop_after_a_step(recipe)
    (folder,) = tmp_path.glob("stages/pretraining-*[0-9a-f]")
    return recipe, last_checkpoint(folder)


def test_a_stopped_run_leaves_what_its_frozen_layers_said(corpus, tmp_path):
    recipe = write_recipe(corpus, tmp_path, EVERY_STEP | {"frozen_states_dir": str(tmp_path / "frozen")})
    stop_after_a_step(recipe)
    assert list(tmp_path.glob("frozen/*/states-*.safetensors"))


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors", "rng-0.safetensors", "state.json"])
def test_a_torn_checkpoint_is_refused_by_name(stopped, name):
    recipe, checkpoint = stopped
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{name}.*torn.*delete the folder"):
        train.main([recipe])


def test_another_recipe_never_takes_up_a_checkpoint(stopped, tmp_path):
    recipe, checkpoint = stopped
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    other = ["--pretraining.learning_rate", "0.02", "--finetuning", "null", "--output_dir", str(tmp_path / "other")]
    metrics = train.main([recipe, *other])
    assert [point["step"] for point in metrics["pretraining"]["curve"]] == list(range(1, STEPS + 1))
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_a_checkpoint_put_into_another_recipes_folder_is_refused_by_what_differs(stopped, tmp_path):
    recipe, checkpoint = stopped
    other = [recipe, "--seed", "1"]
    parsed = load_recipe(other)
    read = json.loads((checkpoint / "state.json").read_text())["identity"]["contents"]
    ((_, _, folder, _), _) = stages(parsed, lambda stage: read)
    folder.mkdir()
    checkpoint.rename(folder / checkpoint.name)
    with pytest.raises(CheckpointError, match="saved with .*seed"):
        train.main(other)


def test_a_checkpoint_of_other_frozen_weights_is_refused(corpus, stopped, tmp_path):
    recipe, checkpoint = stopped
    state = json.loads((checkpoint / "state.json").read_text())
    assert len(state["identity"]["frozen"]) == 32
    state["identity"]["frozen"] = "0" * 32
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="saved with frozen"):
        train.main([recipe])


def test_a_checkpoint_of_another_number_of_processes_is_refused(corpus, stopped):
    recipe, _ = stopped
    with Group([recipe], 2) as group:
        assert group.join() == [1, 1]
    assert "saved with world_size = 1" in Path(f"{recipe}.0.log").read_text()
