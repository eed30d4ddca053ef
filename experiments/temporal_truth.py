"""Does the order of frames matter to the video head? Temporal heads against mean pooling on `emoji_motion`.

    python experiments/temporal_truth.py clips     # renders the mp4s:           runs/emoji_motion/clips
    python experiments/temporal_truth.py features  # decodes and encodes them:   runs/emoji_motion/features
    python experiments/temporal_truth.py probe     # results/emoji_motion/probe.json
    python experiments/temporal_truth.py train     # modeling_mmt/recipes/emoji_motion/*.yaml, seeds 0 1 2
    python experiments/temporal_truth.py results   # results/emoji_motion/

The telling measure is *pair accuracy*: given a caption, is its clip scored above the twin, which has the same frames
in another order? Chance is 50 %, and a head that takes the mean over frames cannot leave it. R@1 is over the kind's
test clips; R@1 of the pair asks only for the clip or its twin, so it needs no order. Ties are shared: of two clips
scored alike, each counts half. `probe` asks, without texts or heads, whether the frames' features tell the twins of a
motion or a playback apart: a ridge regression on the last frame's minus the first's.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from run import commit, provenance

from datasets_scripts import emoji_motion
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import FeatureStoreWriter
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos
from modeling_mmt.evaluation.evaluate import EvalSpec, open_checkpoint, open_corpus
from modeling_mmt.evaluation.significance import bootstrap_interval
from modeling_mmt.extraction.encoders import StepEncoder, load_encoder
from modeling_mmt.training.layer_cache import CachedProcessor, FrozenTextCache

ROOT = Path(__file__).resolve().parents[1]
NUM_SAMPLES = 8  # frames a clip, at the centres of as many equal parts
ENCODER = "efficientnet-lite0"
MAX_PAIRS = 250  # of each kind in each split
PROBE_RIDGE = 1000.0
TIE = 1e-5  # cosine; what is closer is a tie: a float32 mean depends on the order of its terms by some 1e-7
RECIPES = sorted(path.stem for path in (ROOT / "modeling_mmt" / "recipes" / "emoji_motion").glob("*.yaml"))
CLIPS, FEATURES, FROZEN = (Path("runs") / "emoji_motion" / name for name in ("clips", "features", "frozen_states"))
MEASURES = ("pair", "R@1", "R@1 of the pair")
RUNS, RESULTS = Path("runs") / "emoji_motion", Path("results") / "emoji_motion"


def decoded_frames(path: str | Path, num_samples: int = NUM_SAMPLES) -> list[Image.Image]:
    """The RGB frames of an `emoji_motion` clip that are shown at the centres of `num_samples` equal parts of it."""
    wanted = set(emoji_motion.sample_steps(num_samples))
    with av.open(str(path)) as container:
        return [frame.to_image() for step, frame in enumerate(container.decode(video=0)) if step in wanted]


def encoded_clips(
    files: Iterable[Path], encoder: StepEncoder, batch_size: int = 16
) -> Iterator[tuple[str, np.ndarray]]:
    """Each file's name and features `(NUM_SAMPLES, D_v)`; equal pictures are encoded once and have equal features."""
    cache: dict[bytes, np.ndarray] = {}
    for path in files:
        frames = decoded_frames(path)
        keys = [frame.tobytes() for frame in frames]
        new = [place for place, key in enumerate(keys) if key not in cache and keys.index(key) == place]
        for start in range(0, len(new), batch_size):
            places = new[start : start + batch_size]
            pixels = torch.from_numpy(np.stack([np.asarray(frames[place]) for place in places])).permute(0, 3, 1, 2)
            features = encoder.encode(encoder.prepare(pixels).numpy())
            cache |= {keys[place]: row for place, row in zip(places, features, strict=True)}
        yield path.stem, np.stack([cache[key] for key in keys])
        if len(cache) > 50_000:  # twins are neighbours: what is old does not come again
            cache.clear()


def extract(folder: Path = CLIPS, output_dir: Path = FEATURES) -> FeatureStore:
    """Features of every clip, by its id; `folder` as `emoji_motion.build` writes it."""
    encoder = load_encoder(ENCODER, emoji_motion.SIZE, crop=False)
    source = {"dataset": "emoji_motion", "num_samples": NUM_SAMPLES}
    with FeatureStoreWriter(
        output_dir, extractor=ENCODER, revision=encoder.revision, source=source, clips_per_shard=256, resume=True
    ) as writer:
        files = sorted(folder.glob(f"*/*/{emoji_motion.METADATA}"))
        names = [
            (path.parent, json.loads(line)["file_name"]) for path in files for line in open(path, encoding="utf-8")
        ]
        lines = [parent / name for parent, name in names]
        missing = [path for path in lines if path.stem not in writer.stored_ids]
        for name, features in encoded_clips(missing, encoder):
            writer.add(name, features)
    return FeatureStore(output_dir)


def answers(similarity: np.ndarray, twins: np.ndarray, tie: float = TIE) -> dict[str, np.ndarray]:
    """What each caption finds.

    Args:
        similarity: `(N, N)` captions by clips; caption i belongs to clip i.
        twins: `(N,)` each clip's twin.
        tie: scores that differ by no more are alike.

    Returns:
        `pair`, `R@1` and `R@1 of the pair`, `(N,)` each, 0 to 100: the expected hits if ties were drawn by lot.
    """
    rows = np.arange(len(similarity))
    own, twin = similarity[rows, rows], similarity[rows, twins]
    pair = (own > twin + tie) + 0.5 * (np.abs(own - twin) <= tie)

    def first(best: np.ndarray, others: np.ndarray) -> np.ndarray:
        is_beaten = (others > best[:, None] + tie).any(axis=1)
        return ~is_beaten / (1 + (np.abs(others - best[:, None]) <= tie).sum(axis=1))

    others = similarity.copy()
    others[rows, rows] = -np.inf
    alone = first(own, others)
    others[rows, twins] = -np.inf
    figures = {"pair": pair, "R@1": alone, "R@1 of the pair": first(np.maximum(own, twin), others)}
    return {name: 100.0 * np.asarray(hits, dtype=np.float64) for name, hits in figures.items()}


def measure(checkpoint: str | Path, split: str, languages: Sequence[str]) -> dict[str, Any]:
    """Every answer of a checkpoint on a split, kind by kind: {kind: {measure: {language: (N,)}}}.

    Beside these each kind has `pairs` `(N,)`, the same number for a clip and its twin, and `largest_gap`, by how much
    a clip's and its twin's scores differ at most.
    """
    model, processor = open_checkpoint(str(checkpoint))
    cache = FrozenTextCache(model.text_model, FROZEN)
    view = CachedProcessor(processor, cache)
    figures: dict[str, Any] = {}
    for kind in emoji_motion.KINDS:
        spec = EvalSpec(str(CLIPS / kind), features=[str(FEATURES)], split=split, languages=languages)
        corpus = open_corpus(spec)
        place = {video_id: row for row, video_id in enumerate(corpus.rows["video_id"])}
        rows, twins = np.arange(len(place)), np.array([place[twin] for twin in corpus.rows["twin"]])
        clips = embed_videos(model, view, corpus.clips).double().numpy()
        figures[kind] = {"pairs": np.minimum(rows, twins), "largest_gap": 0.0}
        for language in languages:
            similarity = embed_texts(model, view, corpus.captions[language]).double().numpy() @ clips.T
            gap = np.abs(similarity[rows, rows] - similarity[rows, twins]).max()
            figures[kind]["largest_gap"] = max(figures[kind]["largest_gap"], float(gap))
            for name, hits in answers(similarity, twins).items():
                figures[kind].setdefault(name, {})[language] = hits
    cache.save()
    return figures


def train(recipe: str, seed: int, *changes: str, folder: Path | None = None) -> Path:
    """Trains a recipe with a seed, unless that is done; returns the checkpoint's folder."""
    folder = folder or RUNS / recipe / f"seed{seed}"
    if not (folder / "seconds.json").is_file():
        options = ["--seed", str(seed), "--output_dir", str(folder), "--work_dir", str(RUNS / "stages")]
        options += ["--frozen_states_dir", str(FROZEN), *changes]
        command = [sys.executable, "-m", "mmt", "train", f"emoji_motion/{recipe}", *options]
        started, before = time.monotonic(), os.times()
        subprocess.run(command, cwd=ROOT, check=True)
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        seconds = {"cpu": round(cpu, 1), "wall": round(time.monotonic() - started, 1), "commit": commit()}
        (folder / "seconds.json").write_text(json.dumps(seconds))
    return folder


def probe(ridge: float = PROBE_RIDGE) -> dict[str, Any]:
    """Trains the probe on the training clips of each pair of words; its accuracy on validation and test, 0 to 100."""
    store = FeatureStore(FEATURES)
    figures: dict[str, Any] = {}
    for kind, words in (
        ("motion", ("right", "left")),
        ("motion", ("down", "up")),
        ("playback", ("normal", "reverse")),
    ):

        def changes(split: str, kind: str = kind, words: Sequence[str] = words) -> tuple[np.ndarray, np.ndarray]:
            lines = (CLIPS / kind / split / emoji_motion.METADATA).read_text("utf-8").splitlines()
            ids = [json.loads(line)["video_id"] for line in lines]
            ids = [name for name in ids if name.rpartition("_")[2] in words]
            steps = np.stack([store[name] for name in ids]).astype(np.float64)
            return steps[:, -1] - steps[:, 0], np.where([name.endswith(f"_{words[0]}") for name in ids], 1.0, -1.0)

        x, y = changes("train")
        scale = x.std(axis=0) + 1e-3
        x = x / scale
        weights = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), y)
        name = f"{kind}: {' or '.join(words)}"
        figures[name] = {"train_pairs": len(y) // 2}
        for split in ("validation", "test"):
            x, y = changes(split)
            hits = 100.0 * (np.sign(x / scale @ weights) == y)
            interval = bootstrap_interval(hits, groups=np.arange(len(y)) // 2)
            figures[name][split] = {
                "pairs": len(y) // 2,
                "accuracy": round(float(hits.mean()), 1),
                "ci95": [round(end, 1) for end in interval],
            }
    return figures


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The seeds' answers of a recipe: {kind: {measure: {language or "avg": {"mean", "ci95", "seeds"}}}}.

    Intervals draw pairs, with both of their clips, all seeds and languages.
    """
    summary: dict[str, Any] = {}
    for kind in emoji_motion.KINDS:
        groups = runs[0][kind]["pairs"]
        summary[kind] = {"num_pairs": len(set(groups.tolist()))}
        summary[kind]["largest_gap"] = max(run[kind]["largest_gap"] for run in runs)
        for name in MEASURES:
            of_language = {
                language: np.stack([run[kind][name][language] for run in runs], axis=-1)  # (N, seeds)
                for language in runs[0][kind][name]
            }
            of_language["avg"] = np.stack(list(of_language.values()), axis=-1).mean(axis=-1)
            summary[kind][name] = {
                language: {
                    "mean": round(float(hits.mean()), 2),
                    "ci95": [round(end, 2) for end in bootstrap_interval(hits, groups=groups)],
                    "seeds": [round(float(value), 2) for value in hits.mean(axis=0)],
                }
                for language, hits in of_language.items()
            }
    return summary


def results(recipes: Sequence[str], seeds: Sequence[int], output_dir: Path = RESULTS) -> dict[str, Any]:
    """Asks the test split in nine languages and writes `results.json` and `README.md`."""
    rows = {}
    for recipe in recipes:
        folders = [RUNS / recipe / f"seed{seed}" for seed in seeds]
        cost = [json.loads((folder / "seconds.json").read_text()) for folder in folders]
        runs = [measure(folder, "test", LANGUAGES) for folder in folders]
        rows[recipe] = {"test": summarise(runs), "training": cost}
    manifest = FeatureStore(FEATURES).manifest
    features = {key: manifest[key] for key in ("extractor", "revision", "source")}
    figures = provenance(seeds) | {"commit": commit(), "features": features, "tie": TIE, "rows": rows}
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.json").write_text(
        json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (output_dir / "README.md").write_text(page(figures), encoding="utf-8")
    return figures


def page(figures: Mapping[str, Any]) -> str:
    """`results.json` as tables."""
    seeds = " ".join(map(str, figures["seeds"]))
    parts = [
        "# Temporal truth: does the order of frames matter to the video head?",
        "Clips of `emoji_motion` come in pairs of twins with the same frames in another order. **Pair accuracy**: "
        "given a caption, is its clip scored above the twin? Chance is 50 %. **R@1** is over all test clips of the "
        "kind, **R@1 of the pair** accepts the twin too. Brackets: 95 % bootstrap over pairs.",
        "![Twins of each kind](clips.png)",
    ]
    for name in MEASURES:
        head = ["kind", "recipe", *LANGUAGES, "avg"]
        lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
        for kind in emoji_motion.KINDS:
            for recipe, row in figures["rows"].items():
                of = row["test"][kind][name]
                cells = [f"{of[language]['mean']:.1f}" for language in LANGUAGES]
                low, high = of["avg"]["ci95"]
                cells.append(f"{of['avg']['mean']:.1f} [{low:.1f}, {high:.1f}]")
                lines.append(
                    f"| {kind} ({row['test'][kind]['num_pairs']} pairs) | {recipe} | " + " | ".join(cells) + " |"
                )
        parts += [f"## {'Pair accuracy' if name == 'pair' else name}", "\n".join(lines)]
    gaps = [
        f"{recipe}, {kind}: {row['test'][kind]['largest_gap']:.1e}"
        for recipe, row in figures["rows"].items()
        for kind in emoji_motion.KINDS
    ]
    cpu = {recipe: [run["cpu"] for run in row["training"]] for recipe, row in figures["rows"].items()}
    parts += [
        f"Scores that differ by at most {figures['tie']:g} are ties, and a tie counts half. The largest difference "
        f"between a clip's and its twin's score: {'; '.join(gaps)}.",
        f"Seeds {seeds}; {figures['machine']}; commit {figures['commit']}; CPU seconds of training, by seed: {cpu}. "
        "Commands: `python experiments/temporal_truth.py clips`, then `features`, "
        f"`train --seeds {seeds}`, `results --seeds {seeds}`.",
    ]
    return "\n\n".join(parts) + "\n"


def contact_sheet(path: Path, kinds: Sequence[str] = emoji_motion.KINDS) -> None:
    """A picture of one test pair of each kind: the sampled frames of a clip and, below them, of its twin."""
    size, gap = emoji_motion.SIZE, 8
    rows = []
    for kind in kinds:
        folder = CLIPS / kind / "test"
        first, second = (folder / emoji_motion.METADATA).read_text("utf-8").splitlines()[:2]
        rows += [decoded_frames(folder / json.loads(line)["file_name"]) for line in (first, second)]
    sheet = Image.new("RGB", (NUM_SAMPLES * (size + gap) + gap, len(rows) * (size + gap) + gap), "#dddddd")
    for y, frames in enumerate(rows):
        for x, frame in enumerate(frames):
            sheet.paste(frame, (gap + x * (size + gap), gap + y * (size + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clips", "features", "probe", "train", "results"))
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args(argv)
    if arguments.what == "clips":
        emoji_motion.build(CLIPS, max_pairs=MAX_PAIRS)
    elif arguments.what == "features":
        extract()
    elif arguments.what == "probe":
        figures = provenance([]) | {"commit": commit(), "ridge": PROBE_RIDGE, "probe": probe()}
        contact_sheet(RESULTS / "clips.png")
        (RESULTS / "probe.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(figures["probe"], indent=1))
    elif arguments.what == "train":
        for recipe in arguments.recipes:
            for seed in arguments.seeds:
                train(recipe, seed)
    else:
        contact_sheet(RESULTS / "clips.png")
        print(page(results(arguments.recipes, arguments.seeds)))


if __name__ == "__main__":
    main()
