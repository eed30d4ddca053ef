"""Everything that a GPU should be asked once, in one command that ends by itself: correctness, speed, memory.

    python benchmarks/gpu.py --output results/benchmarks/gpu.json     # at most 8 minutes on one card
    python benchmarks/gpu.py --small                                  # the same at sizes for a CPU, in seconds

Sections, in this order; one that would begin after `--seconds` is left out and named in the JSON:

- `losses`: the streaming losses and their gradients in bfloat16 and float32, against `loss_mmt` in float64 on the CPU;
- `backward`: micro-batches and `two_pass_backward` under bfloat16 autocast against one float32 pass;
- `loss_speed`: `contrastive_loss` beside open_clip's and sentence-transformers' (cached) losses, where installed;
- `step`: a pre-training step of XLM-R-large's shape at the paper's setting (12 layers, 9 frozen, two TP heads), with
  and without `torch.compile`, by attention kernel: clips a second, memory, share of the card's matrix rate;
- `extraction`: frames a second of a ViT-B;
- `search`: one pass of exact search, products and top-k in blocks, over 10 million vectors of 512.

Contestants of a section take turns. The matrix rate is measured, not the vendor's: square bfloat16
products. Correctness decides the exit code; time is reported.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import harness
import torch
from torch.nn import functional
from transformers import AutoModel, ViTConfig

from modeling_mmt import MMTConfig, MMTModel, loss_mmt
from modeling_mmt.configuration_mmt import XLM_ROBERTA_LARGE
from modeling_mmt.training.large_batch import two_pass_backward
from modeling_mmt.training.micro_batches import micro_batches
from modeling_mmt.training.streaming_loss import contrastive_loss, streaming_loss

SCALE = 1 / 0.07
LOSSES = {
    "nce": loss_mmt.nce_loss,
    "multi_positive": loss_mmt.multi_positive_nce_loss,
    "symmetric_softmax": loss_mmt.symmetric_softmax_loss,
    "sigmoid": loss_mmt.sigmoid_loss,
}
# Relative error of a loss, and of its gradient along a random probe, that the type's rounding explains at these sizes.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


class Sizes(NamedTuple):
    """What a run measures with."""

    rows: int  # of the losses' check
    loss_rows: tuple[int, ...]  # of the losses' race
    width: int
    captions: int  # of a step
    tokens: int
    steps: int  # of a clip
    layers: int  # of the text encoder
    heads: int
    frames: int  # that the ViT takes together
    vectors: int  # that are searched
    product: int  # side of the products that measure the card


LARGE = Sizes(2048, (8192, 32768), 512, 512, 64, 32, 12, 16, 256, 10_000_000, 8192)
SMALL = Sizes(64, (256,), 64, 12, 8, 4, 2, 2, 4, 5_000, 128)


class Card:
    """The device, and what can be measured of it."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"

    def seconds(self, step: Callable[[], Any], repeats: int = 3) -> float:
        """Median seconds of a step that has run once before."""
        step()
        found = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            step()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found)

    def wait(self):
        """Until all that was asked of the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def peak_gib(self, step: Callable[[], Any]) -> float | None:
        """Largest allocation during a step, GiB; None without a card."""
        if not self.is_cuda:
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def matrix_rate(self, side: int) -> float:
        """Operations a second of bfloat16 products of square matrices."""
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: a @ b, repeats=10)


def unit_rows(count: int, width: int, seed: int) -> torch.Tensor:
    """`(count, width)` float64 unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def losses(card: Card, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Errors of each streaming loss, four rows a clip, against the dense one in float64 of the same rounded inputs."""
    ids = torch.arange(sizes.rows)[:, None] // 4
    mask = loss_mmt.positive_mask(ids)
    for dtype, tolerance in TOLERANCES.items():
        a, b = (unit_rows(sizes.rows, sizes.width, seed).to(dtype) for seed in (0, 1))
        for name, dense in LOSSES.items():
            truth = [x.double().clone().requires_grad_() for x in (a, b)]
            expected = dense(truth[0], truth[1], torch.tensor(SCALE, dtype=torch.float64), mask)
            ours = [x.detach().clone().to(card.device).requires_grad_() for x in (a, b)]
            scale = torch.tensor(SCALE, device=card.device)
            loss = streaming_loss(name, ours[0], ours[1], scale, ids.to(card.device))
            errors = [abs(loss.item() / expected.item() - 1)]
            gradients = zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, truth), strict=True)
            errors += [((mine.double().cpu() - theirs).norm() / theirs.norm()).item() for mine, theirs in gradients]
            yield {"loss": name, "dtype": str(dtype), "error": max(errors), "limit": tolerance}


def make_model(sizes: Sizes, attention: str = "sdpa") -> MMTModel:
    """XLM-R-large's shape under the paper's settings, random weights, no dropout; a small vocabulary."""
    torch.manual_seed(0)
    hidden = 64 * sizes.heads
    encoder = XLM_ROBERTA_LARGE | {"vocab_size": 1000, "num_hidden_layers": sizes.layers, "hidden_size": hidden}
    encoder |= {"num_attention_heads": sizes.heads, "intermediate_size": 4 * hidden, "attn_implementation": attention}
    encoder |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = MMTConfig(
        text_config=encoder,
        text_output_layer=sizes.layers,
        freeze_text_layers=sizes.layers * 3 // 4,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        projection_dim=hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        intra_weight=0.0,
        cross_weight=0.0,
        max_video_length=sizes.steps,
    )
    model = MMTModel(config)
    if attention != "sdpa":
        model.set_attn_implementation(attention)
    return model.train()


def make_batch(sizes: Sizes, config: MMTConfig) -> dict[str, torch.Tensor]:
    """Captions of all lengths, and one clip each."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, sizes.tokens + 1, (sizes.captions,), generator=generator)
    attention_mask = (torch.arange(sizes.tokens) < lengths[:, None]).long()
    ids = torch.randint(5, 1000, (sizes.captions, sizes.tokens), generator=generator)
    features = torch.randn(sizes.captions, sizes.steps, sum(config.video_feature_dims), generator=generator)
    return {
        "input_ids": torch.where(attention_mask.bool(), ids, 1),
        "attention_mask": attention_mask,
        "video_features": features,
        "video_mask": torch.ones(sizes.captions, sizes.steps, dtype=torch.long),
        "positive_ids": torch.arange(sizes.captions)[:, None],
    }


def on(device: torch.device, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def gradient_step(
    model: MMTModel, batch: dict[str, torch.Tensor], tokens: int | None, memory: int | None, half: bool
) -> Callable[[], float]:
    """A step as `mmt train` takes it: micro-batches, streaming loss, gradients; returns the loss."""
    device_type = batch["input_ids"].device.type

    def step() -> float:
        cut = micro_batches(batch, tokens)

        def encode(chunk: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            with torch.autocast(device_type, torch.bfloat16, enabled=half):
                return {name: value.float() for name, value in model.embed(chunk).items()}

        def loss(embeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return model.compute_objectives(cut.restore(embeds), batch["positive_ids"], contrastive_loss)["loss"]

        model.zero_grad()
        return two_pass_backward(encode, cut.chunks, loss, memory_budget=memory).item()

    return step


def backward(card: Card, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Losses and gradients of micro-batches, once or twice encoded, against one pass over the whole batch."""
    model: Any = make_model(sizes).to(card.device)  # type: ignore[arg-type]
    batch = on(card.device, make_batch(sizes._replace(captions=min(sizes.captions, 128)), model.config))

    def gradients(step: Callable[[], float]) -> tuple[float, torch.Tensor]:
        loss = step()
        return loss, torch.cat([p.grad.double().flatten().cpu() for p in model.parameters() if p.grad is not None])

    whole, wanted = gradients(gradient_step(model, batch, None, None, half=False))
    for name, memory, half, limit in (
        ("micro-batches, float32", None, False, 2e-3),
        ("two passes, float32", 0, False, 2e-3),
        ("micro-batches, bfloat16", None, True, 1e-1),
        ("two passes, bfloat16", 0, True, 1e-1),
    ):
        loss, grad = gradients(gradient_step(model, batch, sizes.captions * sizes.tokens // 8, memory, half))
        error = max(abs(loss / whole - 1), ((grad - wanted).norm() / wanted.norm()).item())
        yield {"step": name, "error": error, "limit": limit}


def loss_speed(card: Card, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Forward and backward of the losses in float32, and what four products of their size take."""
    for n in sizes.loss_rows:
        a, b = (unit_rows(n, sizes.width, seed).float().to(card.device).requires_grad_() for seed in (0, 1))
        for name, step in contestants(a, b, torch.tensor(SCALE, device=card.device)).items():
            try:
                yield {"rows": n, "loss": name, "seconds": card.seconds(step), "peak_gib": card.peak_gib(step)}
            except torch.OutOfMemoryError:
                yield {"rows": n, "loss": name, "seconds": None, "peak_gib": None, "out_of_memory": True}
            a.grad = b.grad = None


def contestants(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Our losses of the rows; open_clip's and sentence-transformers', where they are installed."""
    found: dict[str, Callable[[], Any]] = {
        "ours": lambda: contrastive_loss("symmetric_softmax", a, b, scale).backward(),
        "ours, NCE": lambda: contrastive_loss("nce", a, b, scale).backward(),
    }
    try:
        clip = harness.open_clip_loss(None).ClipLoss()
        found["open_clip ClipLoss"] = lambda: clip(a, b, scale).backward()
    except ModuleNotFoundError:
        pass
    try:
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    except ImportError:
        return found
    no_model: Any = torch.nn.Sequential(torch.nn.Identity())
    directions: Any = ("query_to_doc", "doc_to_query")
    cached = CachedMultipleNegativesRankingLoss(
        no_model, scale=SCALE, mini_batch_size=512, directions=directions, partition_mode="per_direction"
    )
    found["sentence-transformers cached MNRL"] = lambda: cached.calculate_loss([[a], [b]], with_backward=True)
    return found


def step(card: Card, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A pre-training step with AdamW under bfloat16 autocast, encoded once."""
    rate = card.matrix_rate(sizes.product)
    for attention, compiled in (("eager", False), ("sdpa", False), ("sdpa", True)):
        row: dict[str, Any] = {"attention": attention, "compiled": compiled}
        try:
            model: Any = make_model(sizes, attention).to(card.device)  # type: ignore[arg-type]
            batch = on(card.device, make_batch(sizes, model.config))
            operations = step_operations(model, batch)
            if compiled:
                model.embed = torch.compile(model.embed, dynamic=True)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
            gradients = gradient_step(model, batch, 16 * 1024, None, half=True)

            def update(gradients=gradients, optimizer=optimizer):
                gradients()
                optimizer.step()

            seconds = card.seconds(update)
            row |= {"seconds": seconds, "clips_a_second": sizes.captions / seconds, "peak_gib": card.peak_gib(update)}
            row["share_of_matrix_rate"] = operations / seconds / rate
        except Exception as error:  # a kernel that this card or torch lacks is a result
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
        yield row | {"matrix_rate": rate}


def step_operations(model: MMTModel, batch: Mapping[str, torch.Tensor]) -> int:
    """Operations of the products with weights: twice rows times weights forward, twice that again where they learn."""
    tokens, steps = int(batch["attention_mask"].sum()), int(batch["video_mask"].sum())
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            rows = steps if name.startswith("video") else tokens
            passes = 3 if module.weight.requires_grad else 1
            total += 2 * passes * rows * module.weight.numel()
    return total


def extraction(card: Card, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A ViT-B/16 over 224 px frames that lie on the device."""
    config = ViTConfig() if sizes is LARGE else ViTConfig(num_hidden_layers=1, hidden_size=48, num_attention_heads=4)
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModel.from_config(config).eval().to(card.device, dtype)
        frames = torch.randn(sizes.frames, 3, 224, 224, device=card.device, dtype=dtype)
        with torch.inference_mode():
            seconds = card.seconds(partial(model, frames))
        yield {"model": "ViT-B/16", "dtype": str(dtype), "frames_a_second": sizes.frames / seconds}


def search(card: Card, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The ten best of all vectors in float16, for one query and for 32."""
    generator = torch.Generator(card.device).manual_seed(0)
    corpus = torch.empty(sizes.vectors, 512, device=card.device, dtype=torch.float16)
    for start in range(0, len(corpus), 2**18):
        block = torch.randn(min(2**18, len(corpus) - start), 512, device=card.device, generator=generator)
        corpus[start : start + len(block)] = functional.normalize(block, dim=1)
    for count in (1, 32):
        queries = corpus[:count].clone()

        def best(queries: torch.Tensor = queries) -> torch.Tensor:
            parts = [(queries @ block.T).topk(10) for block in corpus.split(2**20)]
            scores, rows = (
                torch.cat([p.values for p in parts], 1),
                [p.indices + i * 2**20 for i, p in enumerate(parts)],
            )
            return torch.cat(rows, 1).gather(1, scores.topk(10).indices)

        right = bool((best()[:, 0] == torch.arange(count, device=card.device)).all())
        yield {"vectors": sizes.vectors, "queries": count, "seconds": card.seconds(best), "finds_itself": right}


SECTIONS: dict[str, Callable[[Card, Sizes], Iterator[dict[str, Any]]]] = {
    "losses": losses,
    "backward": backward,
    "loss_speed": loss_speed,
    "step": step,
    "extraction": extraction,
    "search": search,
}


def main(argv: list[str] | None = None) -> int:
    """Run the sections; 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; the default without a card")
    parser.add_argument("--seconds", type=float, default=420.0, help="after which no section begins (%(default)s)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    card = Card(args.device)
    sizes = SMALL if args.small or not card.is_cuda else LARGE
    begin, left_out = time.perf_counter(), []
    results: dict[str, list[dict[str, Any]]] = {}
    for name in args.sections:
        if time.perf_counter() - begin > args.seconds:
            left_out.append(name)
            continue
        results[name] = []
        for row in SECTIONS[name](card, sizes):
            print(f"{name}: {json.dumps(row)}", flush=True)
            results[name].append(row)
    wrong = [row for rows in results.values() for row in rows if row.get("error", 0) > row.get("limit", 0)]
    wrong += [row for row in results.get("search", []) if not row["finds_itself"]]
    content = {
        "benchmark": "gpu",
        "device": torch.cuda.get_device_name(card.device) if card.is_cuda else harness.cpu(),
        "sizes": sizes._asdict(),
        "seconds": time.perf_counter() - begin,
        "load": os.getloadavg()[0],
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "left_out": left_out,
        "wrong": wrong,
        "results": results,
    }
    if args.output:
        args.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{len(wrong)} wrong; left out: {', '.join(left_out) or 'nothing'}; {content['seconds']:.0f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
