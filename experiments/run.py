"""Run a table's rows over several seeds and gather them: `make table`, `make table-quick`, `make ablations`.

    python experiments/run.py table                   # pre-training x fine-tuning on emoji9, 3 seeds
    python experiments/run.py table --quick           # the same path, one seed, the rows of the demo's length
    python experiments/run.py ablations               # one switch at a time, on validation
    python experiments/run.py pixels                  # from pixels: learning, frames, resolution, augmentation

A row is one `mmt train` of a recipe and a seed. A run whose figures are there is not repeated, so an interrupted
table goes on where it was; rows that share a pre-training share its stage. Test figures are computed, never looked at:
checkpoints are chosen on English validation names (`mmt train`), hyper-parameters on validation.
"""

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tables
import yaml

from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.evaluation.significance import paired_test, summarise_seeds

ROOT = Path(__file__).resolve().parent.parent
RECIPES = Path("modeling_mmt") / "recipes"
FOREIGN = LANGUAGES[1:]
VERSIONS = ("torch", "transformers", "datasets", "accelerate", "safetensors", "numpy")

# recipe -> (pre-training, fine-tuning), in the order of the table
ROWS = {
    "none_en": ("none", "en"),
    "mp_en": ("MP", "en"),
    "mmp_en": ("MMP", "en"),
    "text_en": ("text", "en"),
    "none_all": ("none", "all"),
    "mp_all": ("MP", "all"),
    "mmp_all": ("MMP", "all"),
    "mmp_without_names_en": ("MMP-names", "en"),
    "mmp_without_sw_en": ("MMP-sw", "en"),
    "mmp_without_cs_en": ("MMP-cs", "en"),
    "mmp_without_vi_en": ("MMP-vi", "en"),
}
# (row, row, languages): is the first better than the second?
COMPARISONS = (
    ("mmp_en", "none_en", FOREIGN),
    ("mmp_en", "mp_en", FOREIGN),
    ("mp_en", "none_en", FOREIGN),
    ("mmp_en", "none_en", ("en",)),
    ("mmp_en", "text_en", FOREIGN),
    ("text_en", "none_en", FOREIGN),
    ("mmp_all", "none_all", LANGUAGES),
    ("none_all", "mmp_en", FOREIGN),
    ("mmp_without_names_en", "none_en", FOREIGN),
    ("mmp_without_names_en", "mp_en", FOREIGN),
    ("mmp_en", "mmp_without_names_en", FOREIGN),
    ("mmp_without_sw_en", "none_en", ("sw",)),
    ("mmp_en", "mmp_without_sw_en", ("sw",)),
    ("mmp_without_cs_en", "none_en", ("cs",)),
    ("mmp_en", "mmp_without_cs_en", ("cs",)),
    ("mmp_without_vi_en", "none_en", ("vi",)),
    ("mmp_en", "mmp_without_vi_en", ("vi",)),
)
QUICK = {  # what `--quick` changes, so that one seed of every row takes minutes
    "pretraining.num_train_epochs": 15,
    "finetuning.num_train_epochs": 10,
    "finetuning.evaluations": 10,
    "*.keyword_pool_size": 2,
    "*.noise_pool_size": 1,
}
PIXELS = {  # recipe -> the one difference to the first
    "pixels_frozen": "encoder frozen, 2 frames, 128 px",
    "pixels_last_stage": "the encoder's last stage learns",
    "pixels_more_frames": "8 frames",
    "pixels_higher_resolution": "224 px",
    "pixels_augmented": "clips augmented",
}
ABLATED = "mmp_en"
TP_HEADS = {  # the paper's heads, narrow enough for 1,152 clips
    "model.config.num_hidden_layers": 2,
    "model.config.hidden_size": 128,
    "model.config.intermediate_size": 256,
    "model.config.norm_placement": "pre",
    "model.config.hidden_dropout_prob": 0.1,
}
KEYWORDS_ONLY = ("max_keywords", "exclude_text_column", "keyword_pool_size")  # not of sources of names
INTRA = {"model.config.intra_weight": 1.0, "*.noise_probability": 0.05, "*.noise_pool_size": 2}
PAIRS, TRIPLES = ({"pretraining.sources.0.languages_per_clip": number} for number in (2, 3))
NO_CROSS = {"model.config.cross_weight": 0.0}
ABLATIONS: dict[str, dict[str, Any]] = {  # name -> the one difference to `mmp_en`
    "as in the table": {},
    "intra-modal, 5 % noise": INTRA,
    "intra-modal, 15 % noise": INTRA | {"*.noise_probability": 0.15},
    "pairs of languages": PAIRS | NO_CROSS,
    "TP heads, mean of outputs": TP_HEADS,
    "TP heads, first output": TP_HEADS | {"model.config.pooling": "first"},
    "TP heads, intra-modal": TP_HEADS | INTRA,
    "TP heads, pairs": TP_HEADS | PAIRS | NO_CROSS,
    "TP heads, pairs, cross-lingual": TP_HEADS | PAIRS,
    "TP heads, three languages": TP_HEADS | TRIPLES | NO_CROSS,
    "TP heads, three languages, cross-lingual": TP_HEADS | TRIPLES,
    "without the linear skip": {"model.config.projection_skip": False},
    "without input dropout": {"model.config.video_input_dropout_prob": 0.0},
    "input dropout on text too": {"model.config.text_input_dropout_prob": 0.3},
    "temperature 0.05": {"model.config.logit_scale_init_value": math.log(1 / 0.05)},
    "temperature 0.2": {"model.config.logit_scale_init_value": math.log(1 / 0.2)},
    "temperature learned": {"model.config.learn_logit_scale": True},
    "loss: symmetric softmax": {"model.config.loss_type": "symmetric_softmax"},
    "loss: multi-positive": {"model.config.loss_type": "multi_positive"},
    "one keyword a caption": {"*.max_keywords": 1},
    "without keywords that name the clip": {"*.exclude_text_column": "name"},
    "no pre-training loss in fine-tuning": {"finetuning.sources.1.weight": 0.0},
    "fine-tuning at the pre-training rate": {"finetuning.learning_rate": 1e-3},
    "text tower frozen in fine-tuning": {"finetuning.freeze": ["text_model", "text_projection"]},
    "weights averaged with the pre-trained": {"finetuning.average_with_start": 0.5},
    "the top text layer learns": {
        "model.config.freeze_text_layers": 11,
        "pretraining.text_learning_rate": 1e-4,
        "finetuning.text_learning_rate": 1e-4,
    },
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, then write `results/emoji9/`; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "ablations", "pixels"))
    parser.add_argument("--quick", action="store_true", help="one seed, short stages, results beside the runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2 for the table, else 0")
    parser.add_argument("--rows", nargs="+", help="only these; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; they share the cores")
    parser.add_argument("--work_dir", type=Path, default=Path("runs"))
    parser.add_argument("--output_dir", type=Path, help="default: results/emoji9, or WORK_DIR/quick with --quick")
    arguments = parser.parse_args(argv)
    quick, work_dir = arguments.quick, arguments.work_dir
    rows: dict[str, Mapping[str, Any]] = {"table": ROWS, "ablations": ABLATIONS, "pixels": PIXELS}
    names = list(arguments.rows or rows[arguments.what])
    seeds = arguments.seeds or ([0] if quick or arguments.what != "table" else [0, 1, 2])
    runs = {}
    for name in names:
        changes = ABLATIONS[name] if arguments.what == "ablations" else {}
        recipe = changed(
            read_recipe(ABLATED if arguments.what == "ablations" else name), changes | (QUICK if quick else {})
        )
        for seed in seeds:
            folder = work_dir / f"{arguments.what}{'-quick' if quick else ''}" / slug(name) / f"seed{seed}"
            runs[name, seed] = Run(recipe, seed, folder, work_dir)
            if arguments.what == "pixels":  # one kind of text, in one language
                runs[name, seed].options = ()
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs))}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for number, (name, seed) in enumerate(runs):
            pool.submit(runs[name, seed].start, environment, f"[{number + 1}/{len(runs)}] {name}, seed {seed}")
    output_dir = arguments.output_dir or (work_dir / "quick" if quick else Path("results") / "emoji9")
    output_dir.mkdir(parents=True, exist_ok=True)
    gather = {"table": gather_table, "ablations": gather_ablations, "pixels": gather_pixels}[arguments.what]
    results = provenance(seeds) | gather({key: run.read() for key, run in runs.items()}, names, seeds)
    path = output_dir / {"table": "results.json"}.get(arguments.what, f"{arguments.what}.json")
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if arguments.what == "table":
        tables.main([str(path)])
        print(tables.metric_table([row for row in results["rows"] if row["split"] == "test"]))
    else:
        text = ablation_table(results) if arguments.what == "ablations" else pixel_table(results)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        print(text)
    return results


@dataclass
class Run:
    """One recipe with one seed."""

    recipe: Mapping[str, Any]
    seed: int
    folder: Path
    work_dir: Path
    options: Sequence[str] = ("--data.other_text_columns", "[keywords]")
    keeps_weights: bool = False

    @property
    def words(self) -> list[str]:
        """The arguments of `mmt train`: the recipe and the options."""
        options = ["--seed", str(self.seed), "--output_dir", str(self.folder)]
        return [str(self.folder / "recipe.yaml"), *options, "--work_dir", str(self.work_dir / "stages"), *self.options]

    def is_done(self) -> bool:
        """Whether this very recipe's figures are there."""
        path = self.folder / "recipe.yaml"
        return (self.folder / "done.json").is_file() and path.is_file() and path.read_text("utf-8") == self._text()

    def write_recipe(self):
        """Put the recipe where the run reads it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "done.json").unlink(missing_ok=True)
        (self.folder / "recipe.yaml").write_text(self._text(), encoding="utf-8")

    def finish(self, seconds: float):
        """Say that the figures are whole, and what made them."""
        (self.folder / "done.json").write_text(json.dumps({"seconds": seconds, "commit": commit()}))

    def start(self, environment: Mapping[str, str], label: str):
        """Run it in a process of its own, unless it is done; its output goes to `log.txt`."""
        if self.is_done():
            return
        self.write_recipe()
        started = time.monotonic()
        command = [sys.executable, "-m", "mmt", "train", *self.words]
        with open(self.folder / "log.txt", "w", encoding="utf-8") as log:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode
        seconds = time.monotonic() - started
        if code == 0:
            self.finish(seconds)
            if self.seed and not self.keeps_weights:  # half a gigabyte each: the first seed's is kept
                (self.folder / "model.safetensors").unlink()
        print(f"{label}: {f'{seconds:.0f} s' if code == 0 else f'FAILED, see {log.name}'}", flush=True)

    def _text(self) -> str:
        return yaml.safe_dump(dict(self.recipe), sort_keys=False, allow_unicode=True)

    def read(self) -> dict[str, Any]:
        """Its figures.

        Raises:
            FileNotFoundError: the run failed; names its log.
        """
        if not self.is_done():
            raise FileNotFoundError(f"{self.folder}: no figures; the run failed, see {self.folder / 'log.txt'}")
        names = ("metrics", "ranks", "done")
        return {name: json.loads((self.folder / f"{name}.json").read_text("utf-8")) for name in names}


def gather_table(
    outputs: Mapping[tuple[str, int], Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """`results.json`'s rows and comparisons."""
    ranks = {
        key: {
            split: {part: as_arrays(values) for part, values in of_split.items()}
            for split, of_split in run["ranks"].items()
        }
        for key, run in outputs.items()
    }
    rows = []
    for name in names:
        for split in ("test", "validation"):
            rows.append(
                {
                    "pretraining": ROWS[name][0],
                    "finetuning": ROWS[name][1],
                    "command": f"mmt train emoji9/{name} --seed {{{','.join(map(str, seeds))}}}",
                    **summary([outputs[name, seed] for seed in seeds], split),
                }
            )
    comparisons = []
    for a, b, languages in COMPARISONS:
        if a in names and b in names:
            hits = [
                np.stack(
                    [
                        np.stack(
                            [100.0 * (ranks[name, seed]["test"]["all"]["t2v"][lang] <= 1) for lang in languages], -1
                        )
                        for seed in seeds
                    ]
                )
                for name in (a, b)
            ]  # (seeds, clips, languages) each
            scope = {FOREIGN: "non-English", LANGUAGES: "all nine"}.get(languages, ", ".join(languages))
            comparisons.append(
                {
                    "a": "/".join(ROWS[a]),
                    "b": "/".join(ROWS[b]),
                    "scope": f"R@1, {scope}",
                    **paired_test(hits[0], hits[1]),
                }
            )
    return {"rows": rows, "comparisons": comparisons}


def summary(runs: Sequence[Mapping[str, Any]], split: str) -> dict[str, Any]:
    """What `results.json` says of a row's runs, a seed each, on a split."""
    ranks = [{part: as_arrays(values) for part, values in run["ranks"][split].items()} for run in runs]
    return {
        "split": split,
        **summarise_seeds([of["all"] for of in ranks]),
        "without_flags": summarise_seeds([of["without_is_flag"] for of in ranks]),
        "n_queries": len(ranks[0]["all"]["t2v"]["en"]),
        "commit": ", ".join(sorted({run["done"]["commit"] for run in runs})),
        "seconds": [training_seconds(run["metrics"]) for run in runs],
    }


def gather_ablations(
    outputs: Mapping[tuple[str, int], Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """`ablations.json`'s rows: English names, and keywords in nine languages, on validation alone."""
    rows = []
    for name in names:
        runs = [outputs[name, seed]["metrics"]["figures"] for seed in seeds]
        names_en = [run["validation"]["all"]["t2v"]["en"] for run in runs]
        keywords = [run["validation_keywords"]["all"]["t2v"] for run in runs]
        rows.append(
            {
                "name": name,
                "changes": ABLATIONS[name],
                "names_en": {metric: float(np.mean([f[metric] for f in names_en])) for metric in ("R@1", "MRR")},
                "keywords_non_en": {
                    metric: float(np.mean([f[lang][metric] for f in keywords for lang in FOREIGN]))
                    for metric in ("R@1", "MRR")
                },
                "seconds": [training_seconds(outputs[name, seed]["metrics"]) for seed in seeds],
            }
        )
    return {"split": "validation", "rows": rows}


def ablation_table(results: Mapping[str, Any]) -> str:
    """Markdown of `ablations.json`."""
    lines = [
        "| one change to MMP / en | English names R@1 | MRR | non-English keywords R@1 | MRR | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        figures = [row[kind][metric] for kind in ("names_en", "keywords_non_en") for metric in ("R@1", "MRR")]
        cells = " | ".join(f"{figure:.1f}" for figure in figures)
        lines.append(f"| {row['name']} | {cells} | {np.mean(row['seconds']):.0f} |")
    return "\n".join([*lines, "", f"Validation, seeds {results['seeds']}; {results['machine']}.", ""])


def gather_pixels(
    outputs: Mapping[tuple[str, int], Mapping[str, Any]], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """`pixels.json`'s rows: English names on validation, each row beside the first."""
    ranks = {
        name: np.array([outputs[name, seed]["ranks"]["validation"]["all"]["t2v"]["en"] for seed in seeds])
        for name in names
    }  # (seeds, clips) each
    rows = []
    for name in names:
        rows.append(
            {
                "recipe": name,
                "difference": PIXELS[name],
                **{f"R@{k}": float(100 * (ranks[name] <= k).mean()) for k in (1, 10)},
                "MRR": float(100 * (1 / ranks[name]).mean()),
                "MRR beside the first": paired_test(100 / ranks[name], 100 / ranks[names[0]]),
                "curve": [outputs[name, seed]["metrics"]["finetuning"]["curve"] for seed in seeds],
                "seconds": [training_seconds(outputs[name, seed]["metrics"]) for seed in seeds],
                "commit": ", ".join(sorted({outputs[name, seed]["done"]["commit"] for seed in seeds})),
            }
        )
    return {"split": "validation", "n_queries": int(ranks[names[0]].shape[1]), "rows": rows}


def pixel_table(results: Mapping[str, Any]) -> str:
    """Markdown of `pixels.json`."""
    lines = [
        "| from pixels | R@1 | R@10 | MRR | MRR, less the first row's | p | training seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        test = row["MRR beside the first"]
        low, high = test["ci95"]
        cells = " | ".join(f"{row[metric]:.1f}" for metric in ("R@1", "R@10", "MRR"))
        beside = f"{test['difference']:+.1f} [{low:+.1f}, {high:+.1f}] | {test['p']:.2f}"
        beside = "- | -" if row is results["rows"][0] else beside
        lines.append(f"| {row['difference']} | {cells} | {beside} | {np.mean(row['seconds']):.0f} |")
    note = f"English names, {results['n_queries']} validation clips, seeds {results['seeds']}; {results['machine']}."
    return "\n".join([*lines, "", note, ""])


def read_recipe(name: str, folder: str = "emoji9") -> dict[str, Any]:
    """A recipe of a folder of `modeling_mmt/recipes` as plain values."""
    return yaml.safe_load((ROOT / RECIPES / folder / f"{name}.yaml").read_text("utf-8"))


def changed(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe with values put at dotted paths; `*.field` means that field of every source.

    A path into a stage that the recipe does not have is passed over.
    """
    result = copy.deepcopy(dict(recipe))
    for path, value in changes.items():
        *parents, last = path.split(".")
        if parents == ["*"]:
            stages = [result[stage] for stage in ("pretraining", "finetuning") if result.get(stage)]
            for source in (source for stage in stages for source in stage["sources"]):
                if last not in KEYWORDS_ONLY or "max_keywords" in source:
                    source[last] = value
        elif result.get(parents[0]):
            target: Any = result
            for parent in parents:
                target = target[int(parent) if parent.isdigit() else parent]
            target[last] = value
    return result


def training_seconds(metrics: Mapping[str, Any]) -> float:
    """Wall time of a run's stages, a shared pre-training counted in every row that builds on it."""
    return round(sum(metrics[stage]["seconds"] for stage in ("pretraining", "finetuning") if stage in metrics), 1)


def as_arrays(ranks: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, np.ndarray]]:
    """`ranks.json`'s lists as arrays."""
    return {
        direction: {lang: np.array(values) for lang, values in by_language.items()}
        for direction, by_language in ranks.items()
    }


def slug(name: str) -> str:
    """A row's name as a folder's."""
    return "".join(character if character.isalnum() else "_" for character in name)


def commit() -> str:
    """The tree's commit, marked if it was changed since."""
    call = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def provenance(seeds: Sequence[int]) -> dict[str, Any]:
    """Where and with what the figures were made."""
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, no GPU"
    return {"machine": machine, "versions": {name: version(name) for name in VERSIONS}, "seeds": list(seeds)}


if __name__ == "__main__":
    main()
