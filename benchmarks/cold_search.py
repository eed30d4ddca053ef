"""`mmt search INDEX QUERY`: from the start of the process to the answer, and a query in a process that has begun.

    python benchmarks/cold_search.py --model runs/demo/mmp_en --output results/benchmarks/cold_search.json

`--sizes` are windows of an index of random unit vectors. Contestants, in fresh processes that take turns:

- *ours*: `mmt search INDEX QUERY`, exact, whose index and weights are checked against their fingerprints;
- *weights*: `import torch, transformers`, and a read of every byte of the checkpoint's weights: the issue's limit;
- *transformers*: `AutoModel` and `AutoTokenizer` of the same text encoder alone, one query embedded, nothing searched:
  what the library itself costs whoever runs a model of it.

*warm* is one query of a Python process: the moments of an embedded text, that is all but the text encoder.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import torch
from datasets import Dataset

from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.search.index import SearchIndex, model_fingerprint

ROOT = Path(__file__).resolve().parents[1]
SIZES, QUICK_SIZES = (300, 1_000_000), (300,)
COLD_LIMIT, WARM_SECONDS = 1.5, 0.015
WINDOWS_A_FILE, SECONDS_A_WINDOW = 100, 4.0
QUERY = "con mèo"
READ_WEIGHTS = """
import sys, torch, transformers
from safetensors.torch import load_file
print(sum(tensor.clone().numel() for tensor in load_file(sys.argv[1]).values()))
"""
EMBED = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
with torch.inference_mode():
    print(model(**tokenizer([sys.argv[2]], return_tensors="pt")).last_hidden_state.shape)
"""


def make_inputs(args: argparse.Namespace, place: Path) -> None:
    """An index of the checkpoint's, and its text encoder as transformers saves it."""
    model, processor = open_checkpoint(str(args.model))
    model.text_model.encoder.save_pretrained(place / "encoder")
    processor.tokenizer.save_pretrained(place / "encoder")
    (count,) = args.sizes
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(count, model.config.projection_dim, generator=generator)
    files = [f"film-{row // WINDOWS_A_FILE:05d}.mp4" for row in range(count)]
    starts = [row % WINDOWS_A_FILE * SECONDS_A_WINDOW for row in range(count)]
    columns = {
        "video_id": [f"{file}#{start:g}" for file, start in zip(files, starts, strict=True)],
        "file": files,
        "start": starts,
        "end": [start + SECONDS_A_WINDOW for start in starts],
    }
    unit = torch.nn.functional.normalize(vectors, dim=1)
    fingerprint, name = model_fingerprint(model), str(args.model.resolve())
    SearchIndex(unit, Dataset.from_dict(columns), fingerprint, name).save(place / "index")


def in_a_process(*command: str) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """A contestant that is a program of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def step() -> None:
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)

    return step, dict


def ours(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """The command."""
    return in_a_process("-m", "mmt", "search", str(args.inputs / "index"), QUERY)


def weights(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """Imports and the bytes of the weights, without a model."""
    return in_a_process("-c", READ_WEIGHTS, str(args.model / "model.safetensors"))


def of_transformers(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """The text encoder, and nothing of ours."""
    return in_a_process("-c", EMBED, str(args.inputs / "encoder"), QUERY)


def warm(args: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """A query after the first, its text embedded."""
    index = SearchIndex.load(args.inputs / "index")
    query = embed_texts(*open_checkpoint(str(args.model)), [QUERY])
    said: dict[str, Any] = {}

    def step() -> None:
        said["moments"] = len(index.search_moments(query, 5)[0])

    step()  # the first, for which the screen is made and windows are put in order
    return step, lambda: said


CONTESTANTS: dict[str, harness.Contestant] = {
    "ours": ours,
    "weights": weights,
    "transformers": of_transformers,
    "warm": warm,
}


def judge(results: dict[tuple[str, int], harness.Measurement]) -> list[harness.Verdict]:
    """Seconds, of which none fails."""
    verdicts = []
    for size in sorted({size for _, size in results}):
        cold = results["ours", size].median
        for peer in ("weights", "transformers"):
            what = f"cold, {size:,} windows: seconds against {peer}"
            verdicts.append(harness.compare(what, cold, results[peer, size].median, COLD_LIMIT, fails=False))
        what = f"warm, {size:,} windows: seconds beyond the text encoder"
        verdicts.append(harness.compare(what, results["warm", size].median, WARM_SECONDS, 1.0, fails=False))
    return verdicts


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; see the module."""
    parser = harness.parser(__doc__, SIZES, QUICK_SIZES)
    parser.add_argument("--model", type=Path, default=ROOT / "runs" / "demo" / "mmp_en", help="checkpoint that asks")
    packages = ("transformers", "datasets", "safetensors", "tokenizers")
    return harness.main(parser, CONTESTANTS, judge, packages, argv, make_inputs)


if __name__ == "__main__":
    sys.exit(main())
