"""B6: how long do the metrics of 20k captions x 3k clips x 9 languages take, both directions, beside full sorts?

    python benchmarks/retrieval_metrics.py            # about 20 minutes on 2 cores
    python benchmarks/retrieval_metrics.py --quick    # the same sizes, one language, three repeats: 1 to 3 minutes

In one process, interleaved (ours, sorts, ours, sorts, ...), the median of the repeats:

- ours: `modeling_mmt.evaluation.ranks.ranks_by_language`, and `retrieval_metrics` of each language and direction;
- argsort: the usual implementation, written here from its description: the whole similarity matrix, `torch.argsort` of
  every row, then the place of the correct item (text to video), and of the best-placed caption (video to text);
- value sort: the other usual one: `numpy.sort` of every row, then the place where the correct item's score stands;
- limit: the matrix products alone.

The embeddings are small multiples of 1/8, so that float32 products are exact and all three must agree to the last rank
wherever no tie is involved; where ties are, ours must be the average of the places that a sort could give. Peak
memory is what each allocates beyond the embeddings, measured in fresh processes. Exits with 1 if a rank is wrong or if
our memory grows with the size of the score matrix; never because of time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from modeling_mmt.evaluation.metrics import retrieval_metrics
from modeling_mmt.evaluation.ranks import ranks_by_language

WIDTH = 512


def corpus(num_texts: int, num_videos: int, languages: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Captions near their clip, on a grid of 1/8: every product and partial sum is exact in float32."""
    rng = np.random.default_rng(0)
    videos = np.round(8 * rng.standard_normal((num_videos, WIDTH), dtype=np.float32)) / 8
    clip_of_text = np.concatenate([np.arange(num_videos), rng.integers(num_videos, size=num_texts - num_videos)])
    texts = {
        f"l{i}": np.round(8 * (0.1 * videos[clip_of_text] + rng.standard_normal((num_texts, WIDTH), dtype=np.float32)))
        / 8
        for i in range(languages)
    }
    return texts, videos, clip_of_text


def our_metrics(texts: dict[str, np.ndarray], videos: np.ndarray, clip_of_text: np.ndarray) -> object:
    """Every figure of every language, both ways."""
    found = ranks_by_language(texts, videos, clip_of_text)
    return {direction: {key: retrieval_metrics(ranks) for key, ranks in of.items()} for direction, of in found.items()}


def first_places(order: torch.Tensor, correct: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """1-based place of the first correct item in each sorted row."""
    return (correct(order).to(torch.uint8).argmax(dim=1) + 1).numpy()


def argsort_ranks(text: np.ndarray, videos: np.ndarray, clip_of_text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Full argsort in both directions."""
    clips = torch.from_numpy(clip_of_text)
    similarity = torch.from_numpy(text) @ torch.from_numpy(videos).T
    forth = first_places(torch.argsort(similarity, dim=1, descending=True), lambda order: order == clips[:, None])
    numbers = torch.arange(len(videos))[:, None]
    back = first_places(torch.argsort(similarity.T, dim=1, descending=True), lambda order: clips[order] == numbers)
    return forth, back


def value_sort_ranks(text: np.ndarray, videos: np.ndarray, clip_of_text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Full sort of the values in both directions; the first place that holds the correct item's score."""
    similarity = text @ videos.T
    mine = similarity[np.arange(len(text)), clip_of_text]
    forth = np.argmax(np.sort(-similarity, axis=1) == -mine[:, None], axis=1) + 1
    best = np.full(len(videos), -np.inf, dtype=np.float32)
    np.maximum.at(best, clip_of_text, mine)
    back = np.argmax(np.sort(-similarity.T, axis=1) == -best[:, None], axis=1) + 1
    return forth, back


def run_sort(kind: str, texts: dict[str, np.ndarray], videos: np.ndarray, clip_of_text: np.ndarray) -> dict:
    """The same table as ours, from sorts."""
    ranker = {"argsort": argsort_ranks, "value sort": value_sort_ranks}[kind]
    table = {}
    for language, text in texts.items():
        table[language] = [
            {f"R@{k}": 100 * float(np.mean(places <= k)) for k in (1, 5, 10)}
            | {
                "MedR": float(np.median(places)),
                "MeanR": float(places.mean()),
                "MRR": 100 * float((1 / places).mean()),
            }
            for places in ranker(text, videos, clip_of_text)
        ]
    return table


def run_limit(texts: dict[str, np.ndarray], videos: np.ndarray) -> None:
    """The matrix products alone, in the same tiles, without a score matrix."""
    for text in texts.values():
        for start in range(0, len(text), 2048):
            for column in range(0, len(videos), 2048):
                text[start : start + 2048] @ videos[column : column + 2048].T


def errors(texts: dict[str, np.ndarray], videos: np.ndarray, clip_of_text: np.ndarray) -> list[str]:
    """Compares every rank of one language with the definition, in exact arithmetic."""
    language = next(iter(texts))
    text = texts[language]
    ours = ranks_by_language({language: text}, videos, clip_of_text)
    similarity = text @ videos.T
    found = []
    mine = similarity[np.arange(len(text)), clip_of_text][:, None]
    above, tied = (similarity > mine).sum(1), (similarity == mine).sum(1)
    if not np.array_equal(ours["t2v"][language], above + (tied + 1) / 2):
        found.append("text-to-video ranks differ from the definition")
    best = np.full(len(videos), -np.inf, dtype=np.float32)
    np.maximum.at(best, clip_of_text, mine[:, 0])
    correct_ties = np.bincount(clip_of_text[mine[:, 0] == best[clip_of_text]], minlength=len(videos))
    above, tied = (similarity > best).sum(0), (similarity == best).sum(0)
    if not np.array_equal(ours["v2t"][language], 1 + above + (tied - correct_ties) / (correct_ties + 1)):
        found.append("video-to-text ranks differ from the definition")
    for name, ranker in (("argsort", argsort_ranks), ("value sort", value_sort_ranks)):
        forth, back = ranker(text, videos, clip_of_text)
        for direction, places, untied in (("t2v", forth, (similarity == mine).sum(1) == 1), ("v2t", back, tied == 1)):
            if not np.array_equal(places[untied], ours[direction][language][untied]):
                found.append(f"{direction} ranks without ties differ from {name}")
    print(f"ties: {np.mean((similarity == mine).sum(1) > 1):.1%} of captions, {np.mean(tied > 1):.1%} of clips")
    return found


def peak_megabytes(kind: str, num_texts: int, num_videos: int) -> float:
    """Peak memory beyond the embeddings of one language, in a fresh process."""
    command = [sys.executable, __file__, "--memory_of", kind, "--texts", str(num_texts), "--videos", str(num_videos)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def memory_of(kind: str, num_texts: int, num_videos: int) -> None:
    """Prints how far one run raises this process's peak above what a small run needs."""
    small = corpus(64, 32, 1)
    texts, videos, clip_of_text = corpus(num_texts, num_videos, 1)
    run: Callable[..., object] = our_metrics if kind == "ours" else lambda *data: run_sort(kind, *data)
    run(*small)  # libraries, threads
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # forget the peak of making the corpus
    before = resident_peak()
    run(texts, videos, clip_of_text)
    print(resident_peak() - before)


def resident_peak() -> float:
    """Peak resident megabytes of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one language, three repeats")
    parser.add_argument("--texts", type=int, default=20_000, help="captions a language")
    parser.add_argument("--videos", type=int, default=3_000, help="clips")
    parser.add_argument("--languages", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    parser.add_argument("--memory_of", choices=("ours", "argsort", "value sort"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.memory_of:
        memory_of(arguments.memory_of, arguments.texts, arguments.videos)
        return 0
    if arguments.quick:
        arguments.languages, arguments.repeats = 1, 3

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch threads {torch.get_num_threads()}, "
        f"load {os.getloadavg()[0]:.1f}, python {platform.python_version()}, numpy {np.__version__}, "
        f"torch {torch.__version__}"
    )
    print(f"{arguments.texts} captions x {arguments.videos} clips x {arguments.languages} languages, width {WIDTH}")
    data = corpus(arguments.texts, arguments.videos, arguments.languages)
    wrong = errors(*data)

    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: our_metrics(*data),
        "argsort": lambda: run_sort("argsort", *data),
        "value sort": lambda: run_sort("value sort", *data),
        "limit": lambda: run_limit(data[0], data[1]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(arguments.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        print(f"repeat {repeat + 1}: " + ", ".join(f"{name} {took[-1]:.2f} s" for name, took in seconds.items()))
    median = {name: statistics.median(took) for name, took in seconds.items()}
    memory = {name: peak_megabytes(name, arguments.texts, arguments.videos) for name in runs if name != "limit"}
    twice = peak_megabytes("ours", 2 * arguments.texts, 2 * arguments.videos)

    flop = 2 * arguments.texts * arguments.videos * arguments.languages * WIDTH
    print("\n| | median s | range | ours / this | extra peak memory, one language |\n|---|---|---|---|---|")
    for name, took in seconds.items():
        peak = f"{memory[name]:.0f} MB" if name in memory else "–"
        print(
            f"| {name} | {median[name]:.2f} | {min(took):.2f}–{max(took):.2f} | {median['ours'] / median[name]:.2f} "
            f"| {peak} |"
        )
    print(f"\nmatrix products: {flop / median['limit'] / 1e9:.0f} GF/s; target: ours / argsort <= 0.2")
    matrix = 4 * arguments.texts * arguments.videos / 2**20
    print(f"score matrix: {matrix:.0f} MB; our peak for a matrix of {4 * matrix:.0f} MB: {twice:.0f} MB")
    if twice > 2.5 * memory["ours"] + 20:
        wrong.append(f"memory grows faster than the number of items: {memory['ours']:.0f} MB -> {twice:.0f} MB")
    for message in wrong:
        print(f"WRONG: {message}")
    if arguments.output:
        facts = {
            "benchmark": "retrieval_metrics",
            "command": f"python benchmarks/retrieval_metrics.py --texts {arguments.texts} --videos {arguments.videos}"
            f" --languages {arguments.languages} --repeats {arguments.repeats}",
            "machine": {"cpu": platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
            "seconds": seconds,
            "peak_megabytes": memory | {"ours, twice the texts and videos": twice},
            "wrong": wrong,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
