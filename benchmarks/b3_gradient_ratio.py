"""B3: gradients on W processes, divided by those of one process with the whole batch.

    python benchmarks/b3_gradient_ratio.py --output results/benchmarks/b3_gradient_ratio.json    # a minute

A toy of two linear towers and a temperature under DDP (gloo, CPU), the symmetric softmax, equal shares of 24 pairs
(ours takes unequal ones too: tests/training). Ours: `gather_embeddings`, dense and streaming. Peers:
open_clip's ClipLoss in all its modes, and CLIP4Clip's gather, rewritten from its description: an all-gather whose
backward keeps the local slice. What counts is the ratio of the towers' gradients, their cosine, and the temperature's
ratio; all must be 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from modeling_mmt.loss_mmt import symmetric_softmax_loss
from modeling_mmt.training.large_batch import gather_embeddings
from modeling_mmt.training.streaming_loss import streaming_loss

PAIRS = 24
TOLERANCE = 1e-5

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Towers(nn.Module):
    """Two linear towers and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.video = nn.Linear(12, 8), nn.Linear(10, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, texts: torch.Tensor, videos: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return unit-norm embeddings and 1/tau."""
        normalize = functional.normalize
        return normalize(self.text(texts), dim=1), normalize(self.video(videos), dim=1), self.logit_scale.exp()


class LocalSliceGather(torch.autograd.Function):
    """Gathers; its backward keeps the gradient of the local rows and forgets what the other processes found."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes."""
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Return the local slice."""
        start = ctx.rows * dist.get_rank()
        return grad[start : start + ctx.rows]


def gathered(gather: Callable[[torch.Tensor], torch.Tensor], loss: Loss) -> Loss:
    """Let every process compute the loss over all rows."""
    return lambda a, b, scale: loss(gather(a), gather(b), scale)


def variants(open_clip: Path | None) -> dict[str, Loss]:
    """Every way of computing the loss on several processes, ours first."""
    peer = harness.open_clip_loss(open_clip).ClipLoss
    world = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    return {
        "ours": gathered(gather_embeddings, symmetric_softmax_loss),
        "ours, streaming": gathered(gather_embeddings, partial(streaming_loss, "symmetric_softmax", block_size=5)),
        "open_clip default": peer(**world),
        "open_clip --local-loss": peer(**world, local_loss=True),
        "open_clip --gather-with-grad": peer(**world, gather_with_grad=True),
        "open_clip --gather-with-grad --local-loss": peer(**world, gather_with_grad=True, local_loss=True),
        "CLIP4Clip's gather": gathered(LocalSliceGather.apply, symmetric_softmax_loss),
    }


def gradients(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the towers' gradients as one vector, and the temperature's."""
    named = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    towers = [grad.flatten() for name, grad in named.items() if grad is not None and name != "logit_scale"]
    temperature = named["logit_scale"]
    assert temperature is not None
    return torch.cat(towers), temperature


def worker(args: argparse.Namespace) -> None:
    """One of W processes, started by torchrun; the first writes its result."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    warnings.simplefilter("ignore", FutureWarning)  # open_clip's collective is deprecated
    generator = torch.Generator().manual_seed(0)
    texts, videos = torch.randn(PAIRS, 12, generator=generator), torch.randn(PAIRS, 10, generator=generator)

    def step(loss_fn: Loss, wrap: Callable[[nn.Module], nn.Module], rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        model = wrap(Towers())
        loss_fn(*model(texts[rows], videos[rows])).backward()
        return gradients(model)

    share = PAIRS // dist.get_world_size()
    mine = slice(share * dist.get_rank(), share * (dist.get_rank() + 1))
    expected, expected_temperature = step(symmetric_softmax_loss, lambda model: model, slice(None))
    result: dict[str, Any] = {"world_size": dist.get_world_size()}
    for name, loss_fn in variants(args.open_clip).items():
        towers, temperature = step(loss_fn, DistributedDataParallel, mine)
        result[name] = {
            "towers": (towers.norm() / expected.norm()).item(),
            "cosine": functional.cosine_similarity(towers.double(), expected.double(), dim=0).item(),
            "error": ((towers - expected).norm() / expected.norm()).item(),
            "temperature": (temperature / expected_temperature).item(),
        }
    if dist.get_rank() == 0:
        Path(args.worker).write_text(json.dumps(result), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def launch(world_size: int, open_clip: Path | None) -> dict[str, Any]:
    """Run the worker on `world_size` processes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        command += [__file__, "--worker", str(out)]
        command += [] if open_clip is None else ["--open-clip", str(open_clip)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        result = json.loads(out.read_text(encoding="utf-8"))
    if result.pop("world_size") != world_size:
        raise RuntimeError(f"torchrun gave another number of processes than {world_size}")
    return result


def main() -> int:
    """Print the table; 1 if ours is not exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two processes only")
    parser.add_argument("--open-clip", type=Path, help="loss.py of an open_clip newer than the one installed")
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return 0
    results = {world_size: launch(world_size, args.open_clip) for world_size in ([2] if args.quick else [2, 4])}
    verdicts = []
    for world_size, result in results.items():
        for name in ("ours", "ours, streaming"):
            error = max(result[name]["error"], abs(result[name]["temperature"] - 1))
            what = f"W = {world_size}: {name}, error of towers and temperature"
            verdicts.append(harness.compare(what, error, 1, TOLERANCE, True))
    facts = {
        "benchmark": "b3_gradient_ratio",
        "command": "python benchmarks/b3_gradient_ratio.py" + (" --quick" if args.quick else ""),
        "machine": {"cpu": harness.cpu(), "load": os.getloadavg()[0]},
        "versions": harness.versions(("open_clip_torch",), args.open_clip),
        "ratios": results,
    }
    harness.print_markdown(__doc__ or "", facts, [], verdicts)
    print("\n| W | way | towers' ratio | cosine | temperature's ratio |\n|---|---|---|---|---|")
    for world_size, result in results.items():
        for name, row in result.items():
            print(f"| {world_size} | {name} | {row['towers']:.6f} | {row['cosine']:.6f} | {row['temperature']:.6f} |")
    if args.output:
        harness.write_json(args.output, facts, [], verdicts)
    return int(any(not verdict.reached for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
