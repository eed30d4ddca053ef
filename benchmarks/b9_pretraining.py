"""B9: pre-training on emoji9 in nine languages, as train.py does it, beside itself with nothing spared.

    python benchmarks/b9_pretraining.py --output results/benchmarks/b9_pretraining.json    # 8 minutes on 2 cores
    python benchmarks/b9_pretraining.py --quick

The bundled recipe `emoji9/mmp_en` with its fine-tuning left out, and with the paper's noised copies, from a
pool of 8 for each caption; so that it ends in minutes there are fewer clips, and as many epochs as the recipe has: how
often a caption comes back is what a cache lives on. Dropout is off, for each way of cutting a batch draws in an order
of its own, and losses could not be compared.

Ours: the frozen layers' output is kept (from an empty cache: the first of many runs; then again, from what the first
left on disk), each distinct caption and clip of a batch is encoded once, and rows of like length go together. Switched
off: every batch is encoded whole, as it comes, through all layers. Then, with the recipe's dropout, what the pools
cost in quality: 8 noised copies and 8 joined captions, kept, against both drawn afresh without the cache (K = 0).
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import yaml
from datasets import load_dataset

from modeling_mmt.data.reading import dataset_folder

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "modeling_mmt" / "recipes" / "emoji9" / "mmp_en.yaml"
COLD, WARM, OFF, POOL, AFRESH = (
    "ours, empty cache",
    "ours, filled cache",
    "switched off",
    "pools of 8",
    "K = 0, no cache",
)
TOLERANCE = 1e-3  # of a step's loss: rounding that grows with the steps


def make_recipe(clips: int, epochs: int | None, folder: Path) -> dict[str, Any]:
    """The recipe's pre-training over the first `clips` training clips, with noise."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    for split in ("train", "validation"):
        rows = load_dataset(dataset_folder(recipe["data"]["dataset"]), split=split).remove_columns("frames")
        rows = rows.select(range(min(clips, len(rows)))) if split == "train" else rows
        (folder / "corpus" / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(folder / "corpus" / "data" / f"{split}-00000-of-00001.parquet"))
    recipe["data"] |= {"dataset": str(folder / "corpus"), "test_split": None, "exclude_column": None}
    recipe["data"]["features"] = [str(ROOT / path) for path in recipe["data"]["features"]]
    recipe |= {"finetuning": None, "work_dir": str(folder / "stages"), "frozen_states_dir": str(folder / "frozen")}
    recipe["model"]["config"] |= {"intra_weight": 1.0}
    stage = recipe["pretraining"]
    stage |= {"evaluations": 0, "train_batch_size": min(stage["train_batch_size"], clips)}
    stage["num_train_epochs"] = epochs or stage["num_train_epochs"]
    stage["sources"][0] |= {"noise_probability": 0.05, "noise_pool_size": 8, "keyword_pool_size": 8}
    return recipe


def variants(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The recipe of each run."""

    def changed(dropout: bool, **changes: Any) -> dict[str, Any]:
        copy = json.loads(json.dumps(recipe))
        if not dropout:
            names = ("video_input", "text_input", "hidden", "attention_probs", "projection")
            copy["model"]["config"] |= {f"{name}_dropout_prob": 0.0 for name in names}
        copy["pretraining"]["sources"][0] |= changes.pop("source", {})
        return copy | changes

    afresh = {"noise_pool_size": 0, "keyword_pool_size": 0}
    return {
        COLD: changed(False),
        WARM: changed(False),
        OFF: changed(False, cache_frozen_layers=False, frozen_states_dir=None),
        POOL: changed(True, frozen_states_dir=None),
        AFRESH: changed(True, cache_frozen_layers=False, frozen_states_dir=None, source=afresh),
    }


def worker(name: str, path: Path, threads: int) -> None:
    """One run of train.py; its last line of output is what it measured."""
    import torch

    from modeling_mmt import MMTModel
    from modeling_mmt.commands import train
    from modeling_mmt.training import run, step
    from modeling_mmt.training.micro_batches import MicroBatches

    torch.set_num_threads(threads)
    losses: list[float] = []

    def timed(*args: Any) -> dict[str, Any]:
        start, cpu_start = time.perf_counter(), time.process_time()
        result = train_stage(*args)
        return result | {"clock": time.perf_counter() - start, "cpu": time.process_time() - cpu_start}

    def recorded(*args: Any) -> dict[str, torch.Tensor]:
        values = backward(*args)
        losses.append(values["loss"].item())
        return values

    def whole(batch: dict[str, torch.Tensor], *_: Any, **__: Any) -> MicroBatches:
        rows = {key: value for key, value in batch.items() if key not in ("positive_ids", "return_loss")}
        order = torch.arange(len(batch["positive_ids"]))
        return MicroBatches([rows], {"text": order, "video": order}, {"text": ("",), "video": ("",)})

    train_stage, run.train_stage = run.train_stage, timed  # type: ignore[assignment]
    backward, step.Learner.backward = step.Learner.backward, recorded  # type: ignore[method-assign,assignment]
    MMTModel.save_pretrained = lambda *_, **__: None  # type: ignore[method-assign]  # half a gigabyte that is not read
    if name == OFF:
        step.micro_batches = whole  # type: ignore[assignment]
    metrics = train.main([str(path), "--output_dir", str(path.with_suffix(""))])
    stage = metrics["pretraining"]
    english = metrics["figures"]["validation"]["all"]["t2v"]["en"]
    found = {"seconds": stage["clock"], "cpu_seconds": stage["cpu"], "losses": losses, "R@1": english["R@1"]}
    print("\n" + json.dumps(found | {"MRR": english["MRR"]}))


def run(name: str, recipe: Mapping[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    """Run a variant in a process of its own."""
    path = folder / f"{name.replace(' ', '_').replace(',', '')}.yaml"
    path.write_text(yaml.safe_dump(dict(recipe), allow_unicode=True), encoding="utf-8")
    shutil.rmtree(folder / "stages", ignore_errors=True)
    if name == COLD:
        shutil.rmtree(folder / "frozen", ignore_errors=True)
    command = [sys.executable, __file__, "--worker", name, "--inputs", str(path), "--threads", str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def judge(results: Mapping[str, harness.Measurement]) -> list[harness.Verdict]:
    """Equality decides; time is reported."""
    verdicts = []
    for name in (COLD, WARM):
        pairs = zip(results[name].outcome["losses"], results[OFF].outcome["losses"], strict=True)
        error = max(abs(x / y - 1) for x, y in pairs)
        verdicts.append(harness.compare(f"{name}: losses of all steps, error to {OFF}", error, 1, TOLERANCE, True))
    for ours, other in ((COLD, OFF), (WARM, OFF), (POOL, AFRESH)):
        mine, peer = results[ours], results[other]
        what = f"seconds of {ours}, to {other}"
        verdicts.append(harness.compare(what, mine.median, peer.median, 0.5, False))
        verdicts.append(harness.compare(f"CPU {what}", mine.cpu_median, peer.cpu_median, 0.5, False))
    return verdicts


def main() -> int:
    """Print the table; 1 if losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=256, help="clips to train on, in batches of at most 128")
    parser.add_argument("--epochs", type=int, help="passes over them (default: the recipe's)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, taking turns; the median counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="32 clips, 3 epochs")
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.inputs, args.threads)
        return 0
    if args.quick:
        args.clips, args.epochs = 32, 3
    load = os.getloadavg()[0]
    results: dict[str, harness.Measurement] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_recipe(args.clips, args.epochs, folder)
        args.epochs = recipe["pretraining"]["num_train_epochs"]
        missing = [path for path in recipe["data"]["features"] if not Path(path).is_dir()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} does not exist: `make demo` extracts it")
        for _ in range(args.repeats):
            for variant, changed in variants(recipe).items():
                found = run(variant, changed, folder, args.threads)
                measurement = results.setdefault(variant, harness.Measurement(variant, args.clips))
                measurement.seconds.append(found.pop("seconds"))
                measurement.cpu_seconds.append(found.pop("cpu_seconds"))
                measurement.outcome = found | {"loss": found["losses"][-1]}
    verdicts = judge(results)
    facts = {
        "benchmark": "b9_pretraining",
        "command": f"python benchmarks/b9_pretraining.py --clips {args.clips} --epochs {args.epochs}"
        f" --repeats {args.repeats} --threads {args.threads}",
        "date": datetime.date.today().isoformat(),
        "machine": harness.machine(load, args.threads),
        "versions": harness.versions(("transformers", "accelerate"), None),
        "validation": {name: {key: m.outcome[key] for key in ("R@1", "MRR")} for name, m in results.items()},
    }
    harness.print_markdown(__doc__ or "", facts, list(results.values()), verdicts)
    print("\n| run | validation, English names: R@1 | MRR |\n|---|---|---|")
    for name, figures in ((name, m.outcome) for name, m in results.items()):
        print(f"| {name} | {figures['R@1']:.1f} | {figures['MRR']:.1f} |")
    if args.output:
        harness.write_json(args.output, facts, list(results.values()), verdicts)
    return int(any(verdict.fails and not verdict.reached for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
