"""B1: contrastive softmax loss, forward and backward, float32, d = 512.

    python benchmarks/b1_infonce.py --output results/benchmarks/b1_infonce.json     # about 15 minutes on 2 cores
    python benchmarks/b1_infonce.py --quick

Ours is `contrastive_loss`, which at these sizes streams. Against the peers it computes what they compute, the
symmetric softmax; the paper's NCE is printed too, without and with further positives (4 rows a clip). The limit is
four `N x N x d` products, 8 N^2 d operations, timed in the same run.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import Any

import harness
import torch
from torch.nn import functional

from modeling_mmt.training.streaming_loss import contrastive_loss

WIDTH = 512
SCALE = 1 / 0.07
PRODUCTS, OURS, NCE, MASKED = "four N x N x d products", "ours", "ours, NCE", "ours, NCE with further positives"
OPEN_CLIP, CACHED = "open_clip ClipLoss", "sentence-transformers cached MNRL"

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def contestant(make: Callable[[argparse.Namespace], Loss]) -> harness.Contestant:
    """Make a contestant of a loss of two sides and a scale, which it may already have differentiated."""

    def prepare(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
        (n,) = args.sizes
        generator = torch.Generator().manual_seed(0)
        a, b, probe = (functional.normalize(torch.randn(n, WIDTH, generator=generator), dim=1) for _ in range(3))
        b = functional.normalize(a + b, dim=1)  # pairs that resemble each other
        leaves = [a.requires_grad_(), b.requires_grad_(), torch.tensor(SCALE, requires_grad=True)]
        loss_fn = make(args)
        last = {}

        def run(rows_a: torch.Tensor, rows_b: torch.Tensor) -> None:
            loss = loss_fn(rows_a, rows_b, leaves[2])
            if loss.requires_grad:
                loss.backward()
            last["loss"] = loss.item()

        def check() -> dict[str, Any]:
            grad_a, grad_b, grad_scale = (leaf.grad for leaf in leaves)
            assert grad_a is not None and grad_b is not None
            outcome: dict[str, Any] = {**last, "norm": grad_a.norm().item()}
            outcome["probes"] = [((grad * probe).sum() / grad.norm()).item() for grad in (grad_a, grad_b)]
            outcome["scale_grad"] = None if grad_scale is None else grad_scale.item()
            for leaf in leaves:
                leaf.grad = None
            return outcome

        run(a[:64], b[:64])
        check()
        return lambda: run(a, b), check

    return prepare


def products(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """The limit: score, score again, and the two gradients' products, 1024 rows of the scores at a time."""
    (n,) = args.sizes
    a, b = torch.randn(n, WIDTH), torch.randn(n, WIDTH)
    scores, grad_a, grad_b = torch.empty(min(n, 1024), n), torch.zeros(n, WIDTH), torch.zeros(n, WIDTH)

    def step() -> None:
        for start in range(0, n, 1024):
            rows = a[start : start + 1024]
            panel = scores[: len(rows)]
            for _ in range(2):
                torch.mm(rows, b.T, out=panel)
            torch.mm(panel, b, out=grad_a[start : start + 1024])
            grad_b.addmm_(panel.T, rows)

    return step, dict


def ours(name: str, rows_a_clip: int | None = None) -> Callable[[argparse.Namespace], Loss]:
    """`contrastive_loss`, maybe with clips that have several rows."""

    def make(args: argparse.Namespace) -> Loss:
        def loss(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            ids = None if rows_a_clip is None else torch.arange(len(a))[:, None] // rows_a_clip
            return contrastive_loss(name, a, b, scale, ids)

        return loss

    return make


def open_clip(args: argparse.Namespace) -> Loss:
    """One process of open_clip's loss."""
    return harness.open_clip_loss(args.open_clip).ClipLoss()


def cached_mnrl(args: argparse.Namespace) -> Loss:
    """Its loss stage alone, which differentiates each chunk of 512 rows at once."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    no_model: Any = torch.nn.Sequential(torch.nn.Identity())
    loss = CachedMultipleNegativesRankingLoss(
        no_model,
        scale=SCALE,
        mini_batch_size=512,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    return lambda a, b, scale: loss.calculate_loss([[a], [b]], with_backward=True)


CONTESTANTS = {
    PRODUCTS: products,
    OURS: contestant(ours("symmetric_softmax")),
    OPEN_CLIP: contestant(open_clip),
    CACHED: contestant(cached_mnrl),
    NCE: contestant(ours("nce")),
    MASKED: contestant(ours("nce", rows_a_clip=4)),
}


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Memory and equality decide; time is reported."""
    verdicts = []
    sizes = sorted({size for _, size in results})
    for n in sizes:
        mine, clip, cached = (results[name, n] for name in (OURS, OPEN_CLIP, CACHED))
        for peer, tolerance in ((clip, 1e-5), (cached, 1e-4)):
            error = abs(mine.outcome["loss"] / peer.outcome["loss"] - 1)
            verdicts.append(harness.compare(f"N = {n}: loss, error to {peer.contestant}", error, 1, tolerance, True))
        error = max(
            abs(mine.outcome["norm"] / clip.outcome["norm"] - 1),
            abs(mine.outcome["scale_grad"] / clip.outcome["scale_grad"] - 1),
            *(abs(x - y) for x, y in zip(mine.outcome["probes"], clip.outcome["probes"], strict=True)),
        )
        verdicts.append(harness.compare(f"N = {n}: gradients, error to {OPEN_CLIP}", error, 1, 1e-4, True))
        if n >= 8192:
            verdicts.append(
                harness.compare(f"N = {n}: extra peak MiB, to {OPEN_CLIP}", mine.peak_mib, clip.peak_mib, 0.10, True)
            )
        best = min(clip, cached, key=lambda peer: peer.median)
        what = f"N = {n}: seconds, to the best peer ({best.contestant})"
        verdicts.append(harness.compare(what, mine.median, best.median, 1.05 if n <= 4096 else 1.1, False))
        limit = results[PRODUCTS, n].median
        verdicts.append(harness.compare(f"N = {n}: seconds, to the four products", mine.median, limit, 1.6, False))
        verdicts.append(
            harness.compare(
                f"N = {n}: seconds of NCE, to the four products", results[NCE, n].median, limit, 1.6, False
            )
        )
    for small, large in itertools.pairwise(sizes):
        if small < 8192:  # below, the tiles' constant is most of it
            continue
        what = f"N = {large}: extra peak MiB, to N = {small} (linear: {large / small:g})"
        peaks = results[OURS, large].peak_mib, results[OURS, small].peak_mib
        verdicts.append(harness.compare(what, *peaks, 1.1 * large / small, True))
    return verdicts


if __name__ == "__main__":
    arguments = harness.parser(__doc__, sizes=(4096, 8192, 16384), quick_sizes=(2048, 4096))
    sys.exit(harness.main(arguments, CONTESTANTS, judge, ("open_clip_torch", "sentence-transformers")))
