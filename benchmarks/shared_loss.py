"""The streaming loss over W processes: whole on each, as until November 2026, or each with its share of the rows.

    python benchmarks/shared_loss.py --output results/benchmarks/shared_loss.json     # some minutes on 2 cores
    python benchmarks/shared_loss.py --quick

Operations are counted by torch's FlopCounterMode while the loss runs, forward and backward, at `--count_rows` rows of
width `--count_width`; they grow with the width, so that those of another width follow. The clock's rows are of
`--time_rows` and `--time_width`; both losses take turns within one group of processes (gloo, one thread each), and a
process's time is that of the slowest. What W processes can gain by the clock depends on the cores that there are.

The share of a step: the operations of one loss beside those of the towers' products for N / W clips, XLM-R-large's
shape at the paper's setting (`gpu.py`), at the same width. Values and gradients fail the benchmark, time does not.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gpu
import harness
import torch
import torch.distributed as dist
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from modeling_mmt.data.files import write_json
from modeling_mmt.training.large_batch import gather_embeddings
from modeling_mmt.training.streaming_loss import streaming_loss

WORLDS = (1, 2, 4)
WHOLE, SHARED = "whole on each", "shared"
LIMIT = 1e-5  # of the relative difference between the two


def rows_of(number: int, width: int) -> list[torch.Tensor]:
    """This process's rows of `a` and `b`, and 1 / tau; they require gradients."""
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    a, b = (functional.normalize(torch.randn(number, width, generator=generator), dim=1) for _ in range(2))
    own = [rows.tensor_split(world)[rank].clone() for rows in (a, functional.normalize(a + b, dim=1))]
    return [leaf.requires_grad_() for leaf in (*own, torch.tensor(gpu.SCALE))]


def loss_and_gradients(leaves: Sequence[torch.Tensor], shares: bool) -> list[torch.Tensor]:
    """Forward and backward of the paper's NCE over the rows of all processes."""
    a, b, scale = leaves
    if shares:
        loss = streaming_loss("nce", a, b, scale, group=dist.group.WORLD)
    else:
        loss = streaming_loss("nce", gather_embeddings(a), gather_embeddings(b), scale)
    return [loss.detach(), *torch.autograd.grad(loss, list(leaves))]


def operations(step: Callable[[], Any]) -> int:
    """Of the products of a step: two for each multiplication with an addition."""

    def product_added_in_place(_: Sequence[int], a: Sequence[int], b: Sequence[int], **__: Any) -> int:
        return 2 * a[0] * a[1] * b[1]  # of (n, k) and (k, m); the counter by itself leaves these out

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product_added_in_place}) as counter:
        step()
    return counter.get_total_flops()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What one process counts and times."""
    losses = {WHOLE: partial(loss_and_gradients, shares=False), SHARED: partial(loss_and_gradients, shares=True)}
    leaves = rows_of(args.count_rows, args.count_width)
    counted = {name: operations(partial(loss, leaves)) for name, loss in losses.items()}
    leaves = rows_of(args.time_rows, args.time_width)
    results = {name: loss(leaves) for name, loss in losses.items()}  # the first run warms up
    differences = [
        ((mine - theirs).norm() / theirs.norm()).item()
        for mine, theirs in zip(results[SHARED], results[WHOLE], strict=True)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(args.repeats):
        for name, loss in losses.items():
            dist.barrier()
            start = time.perf_counter()
            loss(leaves)
            seconds[name].append(time.perf_counter() - start)
    return {"operations": counted, "difference": max(differences), "seconds": seconds}


def serve(args: argparse.Namespace):
    """One process of a group; the first writes what all found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = measure(args)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        write_json(args.worker, everyone)
    dist.destroy_process_group()


def launch(world: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
        options = ("count_rows", "count_width", "time_rows", "time_width", "repeats")
        words = [word for name in options for word in (f"--{name}", str(getattr(args, name)))]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launcher, __file__, "--worker", str(path), *words], check=True, env=env)
        return json.loads(path.read_text())


def tower_operations() -> float:
    """Of the towers' products for one clip and its caption, forward and backward."""
    with torch.device("meta"):
        model = gpu.make_model(gpu.LARGE)
    batch = gpu.make_batch(gpu.LARGE, model.config)
    return gpu.step_operations(model, batch) / gpu.LARGE.captions


def summary(world: int, found: Sequence[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """One row of the results: of the process that has most."""
    width, towers = 64 * gpu.LARGE.heads, tower_operations() * args.count_rows / world
    row: dict[str, Any] = {"processes": world, "difference": max(process["difference"] for process in found)}
    for name in (WHOLE, SHARED):
        counted = max(process["operations"][name] for process in found)
        loss = counted * width / args.count_width
        slowest = [max(times) for times in zip(*(process["seconds"][name] for process in found), strict=True)]
        row[name] = {
            "operations": counted,
            "share_of_step": loss / (loss + towers),
            "seconds": statistics.median(slowest),
            "all_seconds": slowest,
        }
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Measure with each number of processes; the exit code says whether the two agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count_rows", type=int, default=32768)
    parser.add_argument("--count_width", type=int, default=16)
    parser.add_argument("--time_rows", type=int, default=4096)
    parser.add_argument("--time_width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat, one and two processes")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        serve(args)
        return 0
    worlds: Sequence[int] = WORLDS
    if args.quick:
        args.count_rows, args.time_rows, args.repeats, worlds = 2048, 1024, 1, (1, 2)
    load = os.getloadavg()[0]
    rows = [summary(world, launch(world, args), args) for world in worlds]
    facts = {
        "benchmark": "shared_loss",
        "command": "python benchmarks/shared_loss.py" + (" --quick" if args.quick else ""),
        "date": datetime.date.today().isoformat(),
        "machine": harness.machine(load),
        "versions": {"torch": importlib.metadata.version("torch")},
        "sizes": {name: getattr(args, name) for name in ("count_rows", "count_width", "time_rows", "time_width")},
    }
    print(
        f"\n| processes | loss | operations a process at N = {args.count_rows} | share of the step | seconds at N = ",
        end="",
    )
    print(f"{args.time_rows}, median (lowest to highest) |\n|---|---|---|---|---|")
    for row in rows:
        for name in (WHOLE, SHARED):
            of = row[name]
            spread = f"{of['seconds']:.3f} ({min(of['all_seconds']):.3f} to {max(of['all_seconds']):.3f})"
            print(f"| {row['processes']} | {name} | {of['operations']:.3e} | {of['share_of_step']:.1%} | {spread} |")
    if args.output:
        write_json(args.output, {**facts, "rows": rows})
    return int(any(row["difference"] > LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
