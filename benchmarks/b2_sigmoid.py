"""B2: sigmoid loss, forward and backward, float32, d = 512.

    python benchmarks/b2_sigmoid.py --open-clip LOSS_PY --output results/benchmarks/b2_sigmoid.json    # 2 minutes
    python benchmarks/b2_sigmoid.py --quick

The peer is open_clip's SigLipLoss, in chunks of 512 rows where it can: the last release, 3.3.0, cannot, its main
branch (commit 89fb801) can, and `--open-clip` takes that `src/open_clip/loss.py`. Without it the comparison with
chunks is left out, and the one with the release's loss is printed.

Ours computes the scores twice (8 N^2 d operations); the peer keeps them, and so needs a quarter less time at best.
"""

import argparse
import inspect
import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
from b1_infonce import PRODUCTS, WIDTH, products
from torch.nn import functional

from modeling_mmt.training.streaming_loss import contrastive_loss

OURS, WHOLE, CHUNKED = "ours", "open_clip SigLipLoss", "open_clip SigLipLoss(chunk_size=512)"
NO_CHUNKS = "this open_clip has no chunk_size"

Loss = Callable[..., torch.Tensor]


def contestant(make: Callable[[argparse.Namespace], Loss | None]) -> harness.Contestant:
    """Make a contestant of a loss of two sides, a scale and a bias; SigLIP's initial values of both."""

    def prepare(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
        (n,) = args.sizes
        loss_fn = make(args)
        if loss_fn is None:
            return (lambda: None), (lambda: {"left_out": NO_CHUNKS})
        generator = torch.Generator().manual_seed(0)
        a, b = (functional.normalize(torch.randn(n, WIDTH, generator=generator), dim=1) for _ in range(2))
        leaves = [x.requires_grad_() for x in (a, b, torch.tensor(10.0), torch.tensor(-10.0))]
        last = {}

        def run(rows_a: torch.Tensor, rows_b: torch.Tensor) -> None:
            loss = loss_fn(rows_a, rows_b, leaves[2], leaves[3])
            loss.backward()
            last["loss"] = loss.item()

        def check() -> dict[str, Any]:
            outcome = {**last, "norms": [leaf.grad.norm().item() for leaf in leaves if leaf.grad is not None]}
            for leaf in leaves:
                leaf.grad = None
            return outcome

        run(a[:64], b[:64])
        check()
        return lambda: run(a, b), check

    return prepare


def ours(args: argparse.Namespace) -> Loss:
    """`contrastive_loss` with its default budget."""
    return lambda a, b, scale, bias: contrastive_loss("sigmoid", a, b, scale, logit_bias=bias)


def whole(args: argparse.Namespace) -> Loss:
    """As it is by default."""
    return harness.open_clip_loss(args.open_clip).SigLipLoss()


def chunked(args: argparse.Namespace) -> Loss | None:
    """In chunks, if it knows them."""
    peer = harness.open_clip_loss(args.open_clip).SigLipLoss
    return peer(chunk_size=512) if "chunk_size" in inspect.signature(peer).parameters else None


CONTESTANTS = {
    PRODUCTS: products,
    OURS: contestant(ours),
    WHOLE: contestant(whole),
    CHUNKED: contestant(chunked),
}


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Memory and equality decide; time is reported."""
    verdicts = []
    for n in sorted({size for _, size in results}):
        mine = results[OURS, n]
        for name in (CHUNKED, WHOLE):
            peer = results[name, n]
            if "left_out" in peer.outcome:
                print(f"{name}: left out, {NO_CHUNKS}; give a newer loss.py with --open-clip")
                continue
            pairs = zip(
                [mine.outcome["loss"], *mine.outcome["norms"]],
                [peer.outcome["loss"], *peer.outcome["norms"]],
                strict=True,
            )
            error = max(abs(x / y - 1) for x, y in pairs)
            verdicts.append(harness.compare(f"N = {n}: loss and gradients, error to {name}", error, 1, 1e-4, True))
            if n >= 8192:
                what = f"N = {n}: extra peak MiB, to {name}"
                verdicts.append(harness.compare(what, mine.peak_mib, peer.peak_mib, 0.2, True))
            what = f"N = {n}: seconds, to {name}"
            verdicts.append(harness.compare(what, mine.median, peer.median, 4 / 3, False))
        what = f"N = {n}: seconds, to the four products"
        verdicts.append(harness.compare(what, mine.median, results[PRODUCTS, n].median, 1.6, False))
    return verdicts


if __name__ == "__main__":
    arguments = harness.parser(__doc__, sizes=(8192,), quick_sizes=(2048,))
    sys.exit(harness.main(arguments, CONTESTANTS, judge, ("open_clip_torch",)))
