"""Training checkpoints: exact, whole, and refused with a reason."""

import contextlib
import json
import os
import resource
import subprocess
from functools import partial

import pytest
import torch
from safetensors import SafetensorError
from transformers import get_scheduler

from modeling_mmt.data.weights import CheckpointError
from modeling_mmt.training.checkpointing import (
    last_checkpoint,
    load_checkpoint,
    load_trainable_state,
    prune_checkpoints,
    read_state,
    save_checkpoint,
    trainable_state,
)

IDENTITY = {"recipe": {"learning_rate": 1e-2, "languages": ("en", "de")}, "seed": 0, "world_size": 1}
PROGRESS = {"best": {"validation_mrr": 12.5}, "curve": [0.1 + 0.2, 1e-17], "seconds": 3.25}


class Run:
    """A model with dropout, AdamW with two groups, a warm-up and a cosine: everything that has a state."""

    def __init__(self, make_model, make_batch, seed=0, fused=True):
        torch.manual_seed(99)
        self.model = make_model(seed=seed, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train()
        learning = [p for p in self.model.parameters() if p.requires_grad]
        groups = [{"params": learning[:5], "lr": 1e-3}, {"params": learning[5:]}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, fused=fused)
        self.scheduler = get_scheduler("cosine", self.optimizer, 3, 20)
        self.batch = make_batch()

    def train(self, steps):
        losses = []
        for _ in range(steps):
            loss = self.model(**self.batch, return_loss=True).loss
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def save(self, folder, step, identity=IDENTITY, progress=PROGRESS):
        return save_checkpoint(folder, step, self.model, self.optimizer, self.scheduler, identity, progress)

    def load(self, path, identity=IDENTITY):
        return load_checkpoint(path, self.model, self.optimizer, self.scheduler, identity)

    def states(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.fixture
def make_run(make_model, make_batch):
    return lambda seed=0, fused=True: Run(make_model, make_batch, seed, fused)


@pytest.fixture
def saved(make_run, tmp_path):
    run = make_run()
    run.train(1)
    return run, run.save(tmp_path, 1)


def with_other_weights(make_run):
    """A new run whose learning weights differ: loading must replace every one."""
    resumed = make_run()
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    return resumed


def test_a_resumed_run_has_bit_for_bit_the_losses_of_the_uninterrupted_one(make_run, tmp_path):
    run = make_run()
    torch.manual_seed(3)
    run.train(4)
    path = run.save(tmp_path, 4)
    wanted = run.train(4)
    assert len(set(wanted)) == 4
    resumed = with_other_weights(make_run)
    resumed.train(1)
    torch.manual_seed(1234)
    assert resumed.load(path) == (4, PROGRESS)
    assert resumed.train(4) == wanted
    for name, value in run.states().items():
        assert torch.equal(resumed.states()[name], value), name
    assert resumed.scheduler.get_last_lr() == run.scheduler.get_last_lr()


def test_a_run_that_was_interrupted_before_the_optimizer_was_fused_ends_as_it_would_have(make_run, tmp_path):
    run = make_run(fused=None)
    torch.manual_seed(3)
    run.train(4)
    path = run.save(tmp_path, 4)
    wanted = run.train(4)
    resumed = make_run()
    resumed.load(path)
    assert [group["fused"] for group in resumed.optimizer.param_groups] == [None, None]
    assert resumed.train(4) == wanted


def test_saving_changes_nothing_in_the_run(make_run, tmp_path):
    losses = []
    for saves in (False, True):
        run = make_run()
        torch.manual_seed(3)
        losses.append([])
        for step in range(4):
            losses[-1] += run.train(1)
            if saves:
                run.save(tmp_path, step)
    assert losses[0] == losses[1]


def test_an_optimizer_that_has_not_stepped_can_be_saved(make_run, tmp_path):
    run = make_run()
    path = run.save(tmp_path, 0)
    torch.manual_seed(5)
    wanted = run.train(2)
    resumed = with_other_weights(make_run)
    resumed.load(path)
    torch.manual_seed(5)
    assert resumed.train(2) == wanted


def test_a_checkpoint_holds_what_learns_and_not_what_is_frozen(saved):
    run, path = saved
    assert sorted(p.name for p in path.iterdir()) == [
        "optimizer.safetensors",
        "rng-0.safetensors",
        "state.json",
        "trainable.safetensors",
    ]
    assert path.name == "step-00000001"
    state = trainable_state(run.model)
    assert state.keys() == {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert not any(value.requires_grad for value in state.values())
    assert (path / "trainable.safetensors").stat().st_size < 1.2 * sum(v.nbytes for v in state.values()) + 10_000


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors", "rng-0.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_file_is_refused_by_name_before_anything_is_loaded(saved, make_run, name, damage):
    _, path = saved
    data = (path / name).read_bytes()
    if damage == "missing":
        (path / name).unlink()
    else:
        (path / name).write_bytes(data[:-8] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    other = make_run(seed=0)
    before = other.states()
    with pytest.raises(CheckpointError, match=f"{name}.*delete the folder"):
        other.load(path)
    assert all(torch.equal(other.states()[key], value) for key, value in before.items())


@pytest.mark.parametrize("text", [None, "", "{", '{"step": 1}', "null", "[]", b"\xff\xfe\x00"])
def test_a_damaged_state_file_is_refused_by_name(saved, text):
    _, path = saved
    if text is None:
        (path / "state.json").unlink()
    else:
        (path / "state.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match="state.json.*delete the folder"):
        read_state(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed = 0, this run has 1"),
        ({"world_size": 2}, "world_size = 1, this run has 2"),
        ({"fingerprint": "abc"}, "fingerprint = None, this run has 'abc'"),
        ({"recipe": {"learning_rate": 2e-2}}, "recipe"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(saved, make_run, change, words):
    _, path = saved
    other = make_run()
    before = other.states()
    with pytest.raises(CheckpointError, match=words):
        other.load(path, IDENTITY | change)
    with pytest.raises(CheckpointError, match="seed = 0, this run has None"):
        other.load(path, {key: value for key, value in IDENTITY.items() if key != "seed"})
    assert all(torch.equal(other.states()[key], value) for key, value in before.items())


def test_weights_of_another_model_are_refused_by_name(make_model):
    model = make_model()
    state = trainable_state(model)
    lacking = {name: value for name, value in state.items() if name != "text_projection.output.weight"}
    with pytest.raises(CheckpointError, match=r"here: lacks \['text_projection.output.weight'\]"):
        load_trainable_state(model, lacking, source="here")
    with pytest.raises(CheckpointError, match="stranger"):
        load_trainable_state(model, state | {"stranger": torch.zeros(1)})
    with pytest.raises(
        CheckpointError, match=r"text_projection.output.weight is \(1, 24\), the model's is \(10, 24\)"
    ):
        load_trainable_state(model, state | {"text_projection.output.weight": torch.zeros(1, 24)})
    with pytest.raises(CheckpointError, match="holds"):
        load_trainable_state(make_model(freeze_text_layers=3), state)


@pytest.mark.parametrize("when", ["files", "state", "rename"])
def test_a_save_that_is_killed_leaves_the_last_checkpoint_as_it_was(make_run, tmp_path, monkeypatch, when):
    run = make_run()
    run.train(1)
    first = run.save(tmp_path, 1)

    def killed(*_, **__):
        raise KeyboardInterrupt

    target = {
        "files": "modeling_mmt.training.checkpointing.trainable_state",
        "state": "modeling_mmt.training.checkpointing.json.dumps",
        "rename": "modeling_mmt.training.checkpointing.os.replace",
    }[when]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, killed)
        run.save(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 2  # something half-written is there
    assert last_checkpoint(tmp_path) == first
    assert read_state(first)["step"] == 1
    second = run.save(tmp_path, 2)
    assert last_checkpoint(tmp_path) == second
    assert read_state(second)["step"] == 2
    assert sorted(tmp_path.iterdir()) == [first, second]


@pytest.fixture(params=["no space left", "file size limit"])
def full_disk(request, tmp_path):
    """A folder that takes a first checkpoint and no second one, truly: the system refuses to write."""
    if request.param == "no space left":
        folder = tmp_path / "small"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting a tmpfs needs a privilege that this machine does not give")
        hog = folder / "hog"

        def fill():
            with contextlib.suppress(OSError), open(hog, "wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

        yield folder, fill, hog.unlink
        subprocess.run(["umount", folder], check=True)
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        give_back = partial(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        yield tmp_path, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2000, before[1])), give_back
        give_back()


def test_a_full_disk_loses_no_checkpoint_and_the_run_can_save_again(make_run, full_disk):
    folder, fill, free = full_disk
    run = make_run()
    run.train(1)
    first = run.save(folder, 1)
    fill()
    run.train(1)
    with pytest.raises((OSError, SafetensorError), match="(?i)space|large"):
        run.save(folder, 2)
    assert last_checkpoint(folder) == first
    assert read_state(first)["step"] == 1
    resumed = with_other_weights(make_run)
    assert resumed.load(first) == (1, PROGRESS)
    free()
    second = run.save(folder, 2)
    assert read_state(second)["step"] == 2
    assert not list(folder.glob("*.partial"))


def test_a_run_without_checkpoints_has_no_last_one(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "step-00000003.partial").mkdir()
    (tmp_path / "step-notes").mkdir()
    assert last_checkpoint(tmp_path) is None


def test_saving_a_step_twice_keeps_the_first(saved, tmp_path):
    run, path = saved
    before = (path / "state.json").read_bytes()
    run.train(1)
    assert run.save(tmp_path, 1) == path
    assert (path / "state.json").read_bytes() == before


def test_pruning_keeps_the_newest_the_best_and_nothing_half_written(tmp_path):
    for step in (2, 10, 30, 100):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "state.json").write_text("{}")
    (tmp_path / "step-00000200.partial").mkdir()
    (tmp_path / "best.safetensors").write_text("")
    prune_checkpoints(tmp_path, keep_last=2, keep=tmp_path / "step-00000002")
    names = ["best.safetensors", "step-00000002", "step-00000030", "step-00000100"]
    assert sorted(os.listdir(tmp_path)) == names
    prune_checkpoints(tmp_path, keep_last=5)
    assert sorted(os.listdir(tmp_path)) == names
    prune_checkpoints(tmp_path, keep_last=0)
    assert os.listdir(tmp_path) == ["best.safetensors"]


def test_two_processes_write_one_checkpoint_with_a_random_state_each(make_run, tmp_path):
    """The calls of rank 1 happen where its process would be: before rank 0 passes the barrier that waits for it."""
    run = make_run()
    run.train(1)
    torch.manual_seed(7)
    waits = []

    def barrier():
        waits.append(1)
        if len(waits) == 2:  # rank 0 has written its files: rank 1 writes too
            torch.manual_seed(8)
            save_checkpoint(tmp_path, 1, run.model, run.optimizer, run.scheduler, IDENTITY, PROGRESS, rank=1)

    path = save_checkpoint(
        tmp_path, 1, run.model, run.optimizer, run.scheduler, IDENTITY, PROGRESS, rank=0, barrier=barrier
    )
    assert {"rng-0.safetensors", "rng-1.safetensors"} <= json.loads((path / "state.json").read_text())["files"].keys()
    for rank, seed in ((0, 7), (1, 8)):
        torch.manual_seed(0)
        load_checkpoint(path, run.model, run.optimizer, run.scheduler, IDENTITY, rank=rank)
        found = torch.rand(3)
        torch.manual_seed(seed)
        assert torch.equal(found, torch.rand(3))
    assert len(waits) == 3
