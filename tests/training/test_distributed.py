"""Gradients on W processes against one process with the whole batch.

`torchrun` starts this very file on W processes (gloo, CPU). Each process computes the reference as well: the whole
batch, encoded process by process with each process's random numbers, so that dropout can be on. FSDP2 is asked for
as `accelerate launch --use_fsdp` does; Accelerate leaves that aside on CPU, and `sharding.py` does not.
"""

import copy
import gc
import json
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from conftest import VOCABULARY, build_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional

from modeling_mmt.loss_mmt import LOSSES
from modeling_mmt.training.large_batch import gather_embeddings, gather_ids, two_pass_backward
from modeling_mmt.training.micro_batches import micro_batches
from modeling_mmt.training.sharding import average_gradients, clip_grad_norm, copy_to_shard, shard, wants_sharding
from modeling_mmt.training.streaming_loss import contrastive_loss, streaming_loss

TOLERANCE = 1e-5
NOTHING = 1e-12  # norm of a gradient
N = 11  # uneven for W = 2 (6 + 5) and W = 4 (3 + 3 + 3 + 2)


class Towers(nn.Module):
    """Two towers with dropout, a temperature and a bias."""

    def __init__(self):
        super().__init__()
        self.text = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 8))
        self.video = nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.3))
        self.logit_bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, texts=None, videos=None):
        # not the bare parameters: DDP's search for unused ones follows operations
        out = {"logit_scale": self.logit_scale.exp(), "logit_bias": 1 * self.logit_bias}
        if texts is not None:
            out["text_embeds"] = functional.normalize(self.text(texts), dim=1)
        if videos is not None:
            out["video_embeds"] = functional.normalize(self.video(videos), dim=1)
        return out


def batch(n):
    generator = torch.Generator().manual_seed(0)
    texts, videos = torch.randn(n, 12, generator=generator), torch.randn(n, 10, generator=generator)
    ids = torch.stack([torch.arange(n), torch.arange(n) % max(1, n - 2)], dim=1)  # rows 0, 1 repeat in the last two
    return texts, videos, ids


def chunks_of_rank(rows, together):
    """Two chunks of pairs, or two of captions and then one of clips."""
    texts, videos, _ = rows
    if together:
        return [{"texts": t, "videos": v} for t, v in zip(texts.tensor_split(2), videos.tensor_split(2), strict=True)]
    return [{"texts": texts[:1]}, {"texts": texts[1:]}, {"videos": videos}]


def join(outputs):
    """What `two_pass_backward` hands to its loss: rows concatenated, scalars from the first chunk."""
    names = {name for output in outputs for name in output}
    found = {name: [output[name] for output in outputs if name in output] for name in names}
    return {name: parts[0] if parts[0].dim() == 0 else torch.cat(parts) for name, parts in found.items()}


def reference(model, parts, chunks, loss_name, seed):
    """One process: all rows, in the order of the processes, each process's rows with its own random numbers."""
    model = copy.deepcopy(model)
    outputs = []
    for rank, rows in enumerate(parts):
        torch.manual_seed(seed + rank)
        outputs += [model(**chunk) for chunk in chunks(rows)]
    embeds = join(outputs)
    loss = whole_loss(loss_name, embeds, torch.cat([ids for *_, ids in parts]))
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def whole_loss(loss_name, embeds, ids, loss_fn=contrastive_loss):
    bias = {"logit_bias": embeds["logit_bias"]} if loss_name == "sigmoid" else {}
    loss = loss_fn(loss_name, embeds["text_embeds"], embeds["video_embeds"], embeds["logit_scale"], ids, **bias)
    return loss + 0 * embeds["logit_bias"]  # DDP waits for every parameter


def largest_error(loss, model, expected_loss, expected):
    """The largest relative error over loss and gradients; the direction is part of it."""
    errors = [abs(loss / expected_loss - 1).item()]
    for name, parameter in model.named_parameters():
        grad, wanted = parameter.grad, expected[name.removeprefix("module.")]
        if wanted is None:
            assert grad is None, name
            continue
        grad = grad.full_tensor() if isinstance(grad, DTensor) else grad
        if wanted.norm() < NOTHING:  # a key's bias, which softmax does not see: rounding is all there is
            assert grad.norm() < NOTHING, name
            continue
        errors.append(((grad - wanted).norm() / wanted.norm()).item())
    return max(errors)


def ddp(model, find_unused=False):
    model = copy.deepcopy(model)
    if find_unused:
        model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        return model, model.no_sync
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == dist.get_world_size()
    model = accelerator.prepare(model)
    assert dist.get_world_size() == 1 or isinstance(model, nn.parallel.DistributedDataParallel)
    return model, partial(accelerator.no_sync, model)


def fsdp2(model, mesh):
    model = copy.deepcopy(model)
    # fully_shard refuses scalars; the gradients of these two are whole on every process, so they need no exchange
    scalars = {model.logit_scale, model.logit_bias}
    for tower in (model.text, model.video):
        fully_shard(tower, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=scalars)
    assert isinstance(model.text[0].weight, DTensor)
    return model, None


def ways(model, mesh, find_unused=False):
    """The model under each kind of data parallelism."""
    return {"ddp": ddp(model, find_unused), "fsdp2": fsdp2(model, mesh)}


def plain_step(model, parts, loss_name, seed, loss_fn, shares=False):
    """All rows on every process, or each process with its rows and its share of the loss."""
    rank = dist.get_rank()
    texts, videos, ids = parts[rank]
    torch.manual_seed(seed + rank)
    embeds = model(texts, videos)
    if not shares:
        for name in ("text_embeds", "video_embeds"):
            embeds[name] = gather_embeddings(embeds[name])
        ids = gather_ids(ids)
    loss = whole_loss(loss_name, embeds, ids, partial(loss_fn, group=dist.group.WORLD) if shares else loss_fn)
    loss.backward()
    return loss.detach()


def two_pass_step(model, no_sync, parts, chunks, loss_name, seed):
    rank = dist.get_rank()
    torch.manual_seed(seed + rank)

    def loss_fn(embeds):
        gathered = {k: v if v.dim() == 0 else gather_embeddings(v) for k, v in embeds.items()}
        return whole_loss(loss_name, gathered, gather_ids(parts[rank][2]))

    options = {} if no_sync is None else {"no_sync": no_sync}
    return two_pass_backward(lambda chunk: model(**chunk), chunks(parts[rank]), loss_fn, **options)


class Embedder(nn.Module):
    """As train.py's: all that the loss needs comes out of one forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, chunk):
        return {**self.model.embed(chunk), **self.model.loss_scalars()}


def mmt_batch(n):
    """Captions and clips with noised copies, ragged; two rows are of one clip."""
    generator = torch.Generator().manual_seed(2)

    def mask(longest):
        return (torch.arange(longest) < torch.randint(1, longest + 1, (n, 1), generator=generator)).long()

    features = torch.randn(n, 4, 8, generator=generator, dtype=torch.float64)
    ids = torch.randint(5, len(VOCABULARY), (n, 6), generator=generator)
    clips = torch.arange(n)
    clips[1], features[1] = 0, features[0]
    video_mask = mask(4)
    video_mask[1] = video_mask[0]
    batch = {"input_ids": ids, "attention_mask": mask(6), "noised_input_ids": ids.flip(1)}
    return batch | {
        "video_features": features,
        "noised_video_features": features * 0.5,
        "video_mask": video_mask,
        "positive_ids": clips[:, None],
    }


def mmt_errors(world, rank):
    """The model itself, sharded or under DDP, in at least two micro-batches, for each way to spend memory."""
    options = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "learn_logit_scale": True}
    model = build_model(**options).double().train()
    parts = [
        dict(zip(mmt_batch(N), rows, strict=True))
        for rows in zip(*(v.tensor_split(world) for v in mmt_batch(N).values()), strict=True)
    ]
    cuts = [micro_batches(part, at_least=2) for part in parts]
    ids = torch.cat([part["positive_ids"] for part in parts])

    def whole(embeds):
        return model.compute_objectives(embeds, ids, contrastive_loss)["loss"]

    reference_model = copy.deepcopy(model)
    rows = []
    for number, cut in enumerate(cuts):
        torch.manual_seed(500 + number)
        rows.append(cut.restore(join([reference_model.embed(chunk) for chunk in cut.chunks])))
    expected_loss = whole({**join(rows), **reference_model.loss_scalars()})
    expected_loss.backward()
    expected = {name: value.grad for name, value in reference_model.named_parameters()}
    norm = torch.stack([grad.norm() for grad in expected.values() if grad is not None]).norm()

    def loss_fn(embeds):  # as train.py's: each process has its share of it
        shared = partial(streaming_loss, block_size=4, group=dist.group.WORLD)
        return model.compute_objectives(cuts[rank].restore(embeds), parts[rank]["positive_ids"], shared)["loss"]

    def largest(number):
        everyone = torch.tensor(number)
        dist.all_reduce(everyone, dist.ReduceOp.MAX)
        return int(everyone)

    errors = {}
    accelerator = Accelerator(cpu=True)
    assert wants_sharding(accelerator) == (world > 1)
    for budget in (None, 0, 60_000):
        for way in ("ddp", "fsdp2") if world > 1 else ("alone",):
            learner = copy_to_shard(model)
            root = Embedder(learner)
            if way == "fsdp2":
                shard(root, learner)
                assert {isinstance(p, DTensor) for p in learner.parameters()} == {True, False}
                assert isinstance(learner.text_projection.output.weight, DTensor)
                assert not isinstance(learner.logit_scale, DTensor)
            elif way == "ddp":
                root = nn.parallel.DistributedDataParallel(root)
            calls = []
            torch.manual_seed(500 + rank)
            loss = two_pass_backward(
                lambda chunk, root=root, calls=calls: calls.append(1) or root(chunk),
                cuts[rank].chunks,
                loss_fn,
                memory_budget=budget,
                **({"no_sync": root.no_sync} if way == "ddp" else {"agree": largest} if way == "fsdp2" else {}),
            )
            assert len(calls) == {None: 2, 0: 4}.get(budget, len(calls))
            if way == "fsdp2":
                average_gradients(learner)
            name = f"{way}, {budget} bytes, the model"
            errors[name] = largest_error(loss, learner, expected_loss.detach(), expected)
            if way == "fsdp2":
                learning = [p for p in learner.parameters() if p.requires_grad]
                errors[f"{name}, norm"] = abs(clip_grad_norm(learning, norm.item() / 2) / norm - 1).item()
                halved = {k: None if grad is None else grad / 2 for k, grad in expected.items()}
                errors[f"{name}, clipped"] = largest_error(loss, learner, expected_loss.detach(), halved)
    return errors


def uneven_budgets_error(world, rank):
    """Processes that keep different chunks, the last of which may turn out larger than what was known of chunks."""
    generator = torch.Generator().manual_seed(1 + rank)
    chunks = [torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (4, 4, 12)]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)).double()
    wrapped = nn.parallel.DistributedDataParallel(net) if world > 1 else net

    def gradient(budget):
        net.zero_grad()
        two_pass_backward(
            lambda chunk: {"x": wrapped(chunk)},
            chunks,
            lambda embeds: gather_embeddings(embeds["x"]).tanh().sum(dim=1).square().mean(),
            memory_budget=budget,
            **({"no_sync": wrapped.no_sync} if world > 1 else {}),
        )
        return torch.cat([parameter.grad.flatten() for parameter in net.parameters()])

    wanted, largest = gradient(None).clone(), 0.0
    for mine in range(0, 60_000, 3_000):
        for other in (0, 8_000, 14_000, 40_000):
            found = gradient(mine if rank == 0 else other)
            largest = max(largest, ((found - wanted).norm() / wanted.norm()).item())
    return largest


def float64_errors(world, rank):
    """Rows of no unit norm, in float64, each process's share beside the dense loss: differences, not ratios."""
    generator = torch.Generator().manual_seed(3)
    errors = {}
    for name in LOSSES:
        a, b = (torch.randn(N, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        scale, bias = torch.tensor(1.5, dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
        leaves = [leaf.requires_grad_() for leaf in (a, b, scale, *((bias,) if name == "sigmoid" else ()))]
        ids = torch.stack([torch.arange(N) % 7, torch.arange(N) // 2], dim=1)
        dense = contrastive_loss(name, *leaves[:3], ids, *leaves[3:])
        wanted = torch.autograd.grad(dense, leaves)
        start = sum(len(part) for part in torch.arange(N).tensor_split(world)[:rank])
        own = slice(start, start + len(torch.arange(N).tensor_split(world)[rank]))
        shared = [leaf.detach()[own].requires_grad_() if leaf.dim() else leaf for leaf in leaves]
        group = dist.group.WORLD
        loss = streaming_loss(name, *shared[:3], ids[own], *shared[3:], block_size=3, group=group)
        found = torch.autograd.grad(loss, shared)
        wanted = [grad[own] * world if grad.dim() else grad for grad in wanted]  # see `streaming_loss`
        pairs = zip((loss, *found), (dense, *wanted), strict=True)
        far = max((a.detach() - b.detach()).abs().max().item() for a, b in pairs)
        errors[f"{name}, float64"] = far * TOLERANCE / 1e-12  # twelve digits
    return errors


def run_scenarios():
    world, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(0)
    model = Towers()
    whole = batch(N)
    parts = list(zip(*(x.tensor_split(world) for x in whole), strict=True))
    errors = {}

    def whole_chunk(rows):
        return [{"texts": rows[0], "videos": rows[1]}]

    pairs, by_kind = partial(chunks_of_rank, together=True), partial(chunks_of_rank, together=False)
    for name in LOSSES:
        expected = reference(model, parts, whole_chunk, name, seed=100)
        for way, (wrapped, _) in ways(model, mesh).items():
            loss = plain_step(wrapped, parts, name, 100, contrastive_loss)
            errors[f"{way} {name}"] = largest_error(loss, wrapped, *expected)
            for block_size in (2, 4, N):  # tiles that the pairs cross, and one tile
                wrapped.zero_grad()
                shared = partial(streaming_loss, block_size=block_size)
                loss = plain_step(wrapped, parts, name, 100, shared, shares=True)
                errors[f"{way} {name}, shared, tiles of {block_size}"] = largest_error(loss, wrapped, *expected)
        wrapped, _ = ddp(model)
        loss = plain_step(wrapped, parts, name, 100, contrastive_loss, shares=True)
        errors[f"ddp {name}, shared, dense"] = largest_error(loss, wrapped, *expected)
    wrapped, _ = ddp(model)
    loss = plain_step(wrapped, parts, "nce", 100, partial(streaming_loss, block_size=4))
    errors["ddp streaming"] = largest_error(loss, wrapped, *reference(model, parts, whole_chunk, "nce", seed=100))

    expected = reference(model, parts, pairs, "nce", seed=200)
    for way, (wrapped, no_sync) in ways(model, mesh).items():
        loss = two_pass_step(wrapped, no_sync, parts, pairs, "nce", 200)
        errors[f"{way} two passes"] = largest_error(loss, wrapped, *expected)
        for parameter in wrapped.parameters():
            parameter.grad = None
        loss = two_pass_step(wrapped, no_sync, parts, pairs, "nce", 200)
        errors[f"{way} two passes, next step"] = largest_error(loss, wrapped, *expected)
    expected = reference(model, parts, by_kind, "nce", seed=300)
    for way, (wrapped, no_sync) in ways(model, mesh, find_unused=True).items():
        loss = two_pass_step(wrapped, no_sync, parts, by_kind, "nce", 300)
        errors[f"{way} two passes by kind"] = largest_error(loss, wrapped, *expected)

    if world > 1:
        short = batch(5)
        parts = [*zip(*(x.tensor_split(world - 1) for x in short), strict=True), tuple(x[:0] for x in short)]
        expected = reference(model, parts, whole_chunk, "symmetric_softmax", seed=400)
        for shares, loss_fn in ((False, contrastive_loss), (True, partial(streaming_loss, block_size=2))):
            wrapped, _ = ddp(model)
            loss = plain_step(wrapped, parts, "symmetric_softmax", 400, loss_fn, shares)
            errors[f"ddp, a process without rows, shares: {shares}"] = largest_error(loss, wrapped, *expected)
    errors |= float64_errors(world, rank)

    errors["ddp, budgets that differ"] = uneven_budgets_error(world, rank)
    errors |= mmt_errors(world, rank)
    own = torch.arange(N).tensor_split(world)[rank]
    errors["gathered ids"] = float((gather_ids(own) != torch.arange(N)).sum())
    half = own.to(torch.bfloat16)[:, None].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a deprecated collective would warn
        everything = gather_embeddings(half)
        (everything * everything.detach()).sum().backward()
    assert half.grad.dtype == torch.bfloat16
    errors["gathered rows' gradient"] = float((half.grad[:, 0] != world * own).sum())
    return errors


def main(path):
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)  # the process group, as train.py makes it
    if not dist.is_initialized():  # Accelerate makes none for one process
        dist.init_process_group("gloo")
    assert dist.get_backend() == "gloo" and accelerator.num_processes == dist.get_world_size()
    errors = run_scenarios()
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, errors)
    if dist.get_rank() == 0:
        worst = {name: max(errors[name] for errors in everyone) for name in errors}
        Path(path).write_text(json.dumps({"world_size": dist.get_world_size(), "errors": worst}))
    gc.collect()  # models that still hold a process group
    dist.barrier()  # nobody leaves while another is still talking to it
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_equal_one_process_with_the_whole_batch(world_size, tmp_path):
    out = tmp_path / "errors.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    root = Path(__file__).resolve().parents[2]
    env = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}",
    }
    env |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    run = subprocess.run([*launcher, __file__, str(out)], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-8000:]
    result = json.loads(out.read_text())
    assert result["world_size"] == world_size
    assert len(result["errors"]) >= 15
    wrong = {name: error for name, error in result["errors"].items() if not error <= TOLERANCE}
    assert not wrong


if __name__ == "__main__":
    main(sys.argv[1])
