"""B4: a training step of an effective batch of 512 captions in nine languages, 20 of each video.

    python benchmarks/b4_training_step.py --output results/benchmarks/b4_training_step.json     # 8 minutes on 2 cores
    python benchmarks/b4_training_step.py --quick

The captions are emoji9's: a clip's names in the nine languages, and lists of one to all of its keywords; the videos
are random features of 16 steps, of 26 clips. The encoder has the shape of multilingual-e5-small (12 layers, 384 wide;
its weights are random and its vocabulary is the batch's, which time does not depend on) under the paper's settings:
embeddings and 9 layers frozen, 3 learning, a head of 2 layers on either side, as wide as the encoder. All contestants
have the same weights and inputs, start from token ids, and end after AdamW's step, at a rate of 0 so that every repeat
does the same work. The loss is the symmetric softmax at a fixed temperature without a mask, which is what all of them
compute; dropout is off, since each draws in an order of its own (that ours is exact with dropout on is for
tests/training/test_micro_batches.py to show).

Peers: sentence-transformers' cached MNRL, and open_clip's `--accum-freq`, rewritten from its training loop around its
ClipLoss. Neither sorts by length; the first is also shown with a batch that was sorted for it. Ours: `micro_batches`
and `two_pass_backward`, with the activations of the whole batch (each row is encoded once), with none kept (as the
peers'), and with `FrozenTextCache`. The limit is the encoder's and heads' own matrix products for the distinct tokens
without padding: forward once, backward through what learns.
"""

import argparse
import itertools
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from datasets import load_dataset
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from modeling_mmt import MMTConfig, MMTModel
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.extraction.packaged_encoders import resolve_encoder
from modeling_mmt.training.large_batch import two_pass_backward
from modeling_mmt.training.layer_cache import FrozenTextCache
from modeling_mmt.training.micro_batches import micro_batches
from modeling_mmt.training.streaming_loss import contrastive_loss

ROOT = Path(__file__).resolve().parents[1]

CAPTIONS_A_VIDEO, STEPS, STREAMS = 20, 16, (512, 512)
WIDTH, FEED_FORWARD, FROZEN, LEARNING, HEAD = 384, 1536, 9, 3, 2  # of multilingual-e5-small, and layers
ROWS, TOKENS = 32, 1024  # of a micro-batch: the peers', and ours
SCALE = 10.0
OURS, TWO_PASSES, CACHED = "ours", "ours, no activations kept", "ours, frozen-layer cache"
ST, OPEN_CLIP, PRODUCTS = "sentence-transformers cached MNRL", "open_clip --accum-freq", "matrix products"
SORTED = ", sorted for it"

Batch = dict[str, torch.Tensor]
Step = Callable[[], torch.Tensor]


def make_batch(args: argparse.Namespace, path: Path) -> None:
    """Write collated captions and clips, in no order."""
    (num_captions,) = args.sizes
    draw = random.Random(0)
    rows = load_dataset(str(ROOT / "datasets_scripts" / "emoji9"), split="train")
    texts, clips = [], []
    for clip in draw.sample(range(len(rows)), -(-num_captions // CAPTIONS_A_VIDEO)):
        row = rows[clip]
        names = [row[f"name_{language}"] for language in LANGUAGES]
        keywords = []
        for language in itertools.islice(itertools.cycle(LANGUAGES), CAPTIONS_A_VIDEO - len(names)):
            words = row[f"keywords_{language}"]
            keywords.append(", ".join(draw.sample(words, draw.randint(1, len(words)))))
        texts += names + keywords
        clips += [clip] * CAPTIONS_A_VIDEO
    order = draw.sample(range(len(texts)), num_captions)
    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder("multilingual-e5-small"))
    tokens = tokenizer([f"query: {texts[i]}" for i in order], padding=True, return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    features = {clip: torch.randn(STEPS, sum(STREAMS), generator=generator) for clip in sorted(set(clips))}
    batch = {
        "input_ids": tokens["input_ids"].unique(return_inverse=True)[1],
        "attention_mask": tokens["attention_mask"],
        "video_features": torch.stack([features[clips[i]] for i in order]),
        "video_mask": torch.ones(num_captions, STEPS, dtype=torch.long),
        "positive_ids": torch.tensor([clips[i] for i in order])[:, None],
    }
    save_file({name: value.contiguous() for name, value in batch.items()}, path)


def make_model(vocabulary: int) -> MMTModel:
    """The paper's settings over a smaller encoder, without dropout."""
    torch.manual_seed(0)
    encoder = {"model_type": "bert", "vocab_size": vocabulary, "hidden_size": WIDTH, "num_attention_heads": 12}
    encoder |= {"num_hidden_layers": FROZEN + LEARNING, "intermediate_size": FEED_FORWARD, "pad_token_id": None}
    config = MMTConfig(
        text_config=encoder,
        video_feature_dims=STREAMS,
        freeze_text_layers=FROZEN,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        projection_dim=WIDTH,
        max_video_length=STEPS,
        loss_type="symmetric_softmax",
        intra_weight=0.0,
        cross_weight=0.0,
    )
    model = MMTModel(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0  # type: ignore[assignment]  # of attention weights
    return model.train()


def contestant(make: Callable[[MMTModel, Batch, argparse.Namespace], Step], by_length: bool = False):
    """Make a contestant of what turns model and batch into a step that leaves gradients and returns the loss."""

    def prepare(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
        batch = load_file(args.inputs)
        model = make_model(int(batch["input_ids"].max()) + 1)
        if by_length:
            order = batch["attention_mask"].sum(dim=1).argsort(descending=True)
            batch = {name: value[order] for name, value in batch.items()}
        learning = {name: value for name, value in model.named_parameters() if value.requires_grad}
        optimizer = torch.optim.AdamW(learning.values(), lr=0.0)
        step = make(model, batch, args)
        last = {}

        def run() -> None:
            optimizer.zero_grad()
            last["loss"] = step().item()
            optimizer.step()

        def check() -> dict[str, Any]:
            generator = torch.Generator().manual_seed(1)
            probes = {}
            for name, parameter in learning.items():
                probe = torch.randn(parameter.shape, generator=generator)
                if parameter.grad is not None:
                    probes[name] = [parameter.grad.norm().item(), (parameter.grad * probe).sum().item()]
            return {**last, "gradients": probes}

        run()  # the optimizer's state, threads, the layer cache
        return run, check

    return prepare


def ours(memory_budget: int | None, with_cache: bool = False, compiled: bool = False):
    """As train.py takes a step; compiled as `accelerate launch --dynamo_backend inductor` has it."""

    def make(model: MMTModel, batch: Batch, args: argparse.Namespace) -> Step:
        cache = FrozenTextCache(model.text_model) if with_cache else None
        embed = torch.compile(model.embed, dynamic=True) if compiled else model.embed

        def encode(chunk: Batch) -> Batch:
            return embed(chunk if cache is None else cache.attach(dict(chunk)))

        def step() -> torch.Tensor:
            cut = micro_batches(batch, TOKENS)

            def loss(embeds: Batch) -> torch.Tensor:
                return model.compute_objectives(cut.restore(embeds), None, contrastive_loss)["loss"]

            return two_pass_backward(encode, cut.chunks, loss, memory_budget=memory_budget)

        return step

    return make


class Sentences(nn.Module):
    """The model as sentence-transformers calls it: captions or clips in, `sentence_embedding` out."""

    def __init__(self, model: MMTModel):
        super().__init__()
        self.model = model

    def forward(self, features: Batch) -> Batch:
        """Encode what is there; clips' mask has the name that the peer cuts rows by."""
        if "input_ids" in features:
            return {"sentence_embedding": self.model.embed(features)["text_embeds"]}
        clips = {"video_features": features["video_features"], "video_mask": features["attention_mask"]}
        return {"sentence_embedding": self.model.embed(clips)["video_embeds"]}


def sentence_transformers(model: MMTModel, batch: Batch, args: argparse.Namespace) -> Step:
    """Symmetric, one softmax a direction."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    sequential: Any = nn.Sequential(Sentences(model))
    loss_fn = CachedMultipleNegativesRankingLoss(
        sequential,
        scale=SCALE,
        mini_batch_size=ROWS,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    clips = {"video_features": batch["video_features"], "attention_mask": batch["video_mask"]}

    def step() -> torch.Tensor:
        loss = loss_fn([texts, clips], torch.empty(0))
        loss.backward()
        return loss.detach()

    return step


def open_clip(model: MMTModel, batch: Batch, args: argparse.Namespace) -> Step:
    """Features of all slices without a graph, then each slice again with one, and the whole loss for each."""
    loss_fn = harness.open_clip_loss(args.open_clip).ClipLoss()
    names = [name for name in batch if name != "positive_ids"]
    slices = []
    for start in range(0, len(batch["input_ids"]), ROWS):
        part = {name: batch[name][start : start + ROWS] for name in names}
        longest = int(part["attention_mask"].sum(dim=1).max())
        slices.append(part | {name: part[name][:, :longest] for name in ("input_ids", "attention_mask")})

    def step() -> torch.Tensor:
        with torch.no_grad():
            embedded = [model.embed(part) for part in slices]
        for number, part in enumerate(slices):
            inputs = [*embedded[:number], model.embed(part), *embedded[number + 1 :]]
            texts, clips = (torch.cat([x[name] for x in inputs]) for name in ("text_embeds", "video_embeds"))
            loss = loss_fn(texts, clips, SCALE)
            loss.backward()
        return loss.detach()

    return step


def products(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """Projections and feed-forward maps of all layers, 1024 rows at a time; a learning one's backward is two more."""
    cut = micro_batches(load_file(args.inputs))
    tokens, steps = (int(cut.chunks[0][name].sum()) for name in ("attention_mask", "video_mask"))
    weights = [torch.randn(WIDTH, WIDTH)] * 4 + [torch.randn(WIDTH, FEED_FORWARD), torch.randn(FEED_FORWARD, WIDTH)]
    inputs = {width: torch.randn(1024, width) for width in (WIDTH, FEED_FORWARD)}

    def layers(rows: int, forward: int, backward: int) -> None:
        for start in range(0, rows, 1024):
            count = min(1024, rows - start)
            for weight in weights:
                x, grad = inputs[weight.shape[0]][:count], inputs[weight.shape[1]][:count]
                for _ in range(forward):
                    x @ weight
                for _ in range(backward):
                    grad @ weight.T
                    x.T @ grad

    def step() -> None:
        layers(tokens, FROZEN + LEARNING + HEAD, LEARNING + HEAD)
        layers(steps, HEAD, HEAD)

    return step, lambda: {"tokens": tokens, "steps": steps}


CONTESTANTS = {
    PRODUCTS: products,
    OURS: contestant(ours(None)),
    TWO_PASSES: contestant(ours(0)),
    CACHED: contestant(ours(None, with_cache=True)),
    ST: contestant(sentence_transformers),
    OPEN_CLIP: contestant(open_clip),
    ST + SORTED: contestant(sentence_transformers, by_length=True),
}


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Equality decides; time is reported."""
    verdicts = []
    for n in sorted({size for _, size in results}):
        mine, limit = results[OURS, n], results[PRODUCTS, n]
        print(f"\n{n} captions: {limit.outcome['tokens']} tokens and {limit.outcome['steps']} steps are distinct")
        for name in (TWO_PASSES, CACHED, ST, OPEN_CLIP):
            peer = results[name, n]
            verdicts.append(harness.compare(f"loss and gradients, error to {name}", error(mine, peer), 1, 1e-4, True))
        best = min((results[name, n] for name in (ST, OPEN_CLIP)), key=lambda peer: peer.cpu_median)
        for peer in (best, results[ST + SORTED, n]):
            for name, target in ((OURS, 1.4), (CACHED, 3.0)):
                verdicts += times(results[name, n], peer, f"to {peer.contestant}", 1 / target)
        verdicts += times(results[TWO_PASSES, n], best, f"to {best.contestant}", 1.0)
        peaks = results[TWO_PASSES, n].peak_mib, best.peak_mib
        verdicts.append(harness.compare(f"extra peak MiB of {TWO_PASSES}, to {best.contestant}", *peaks, 1.2, False))
        for result in (mine, results[CACHED, n], best):
            verdicts += times(result, limit, "to the matrix products", 1.6)
    return verdicts


def times(mine: harness.Measurement, peer: harness.Measurement, of_what: str, limit: float) -> list[harness.Verdict]:
    """Seconds by the clock, and on processors: others' work on the machine changes the second least."""
    what = f"seconds of {mine.contestant}, {of_what}"
    return [
        harness.compare(what, mine.median, peer.median, limit, False),
        harness.compare(f"CPU {what}", mine.cpu_median, peer.cpu_median, limit, False),
    ]


def error(one: harness.Measurement, other: harness.Measurement) -> float:
    """Largest relative error of the loss, and of each learning tensor's gradient: its norm, and along a random probe.

    Errors of small tensors count by a thousandth of the largest: attention's key biases hold rounding only.
    """
    found = [abs(one.outcome["loss"] / other.outcome["loss"] - 1)]
    mine, theirs = one.outcome["gradients"], other.outcome["gradients"]
    largest = max(norm for norm, _ in mine.values())
    for name in mine.keys() | theirs.keys():
        (norm, probe), (wanted, wanted_probe) = mine.get(name, (0.0, 0.0)), theirs.get(name, (0.0, 0.0))
        scale = max(wanted, 1e-3 * largest)
        found += [abs(norm - wanted) / scale, abs(probe - wanted_probe) / scale]
    return max(found)


if __name__ == "__main__":
    arguments = harness.parser(__doc__, sizes=(512,), quick_sizes=(80,))
    packages = ("open_clip_torch", "sentence-transformers", "transformers")
    sys.exit(harness.main(arguments, CONTESTANTS, judge, packages, make_inputs=make_batch))
