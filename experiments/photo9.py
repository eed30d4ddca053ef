"""Names in nine languages to real photographs: `make table-photo9 DATA=...`.

    python experiments/photo9.py --data_dir ../shared/data/photo9    # 3 seeds; resumes row by row

Rows that saw no photograph (drawings, the rows of an ImageNet classifier, both) search all photos of the concepts
whose nine names are CLDR's; these and the rows that learned from photographs search `test` and `test_unseen`. A query
is the name of a concept, every photo of it a right answer, and concepts are what is drawn for intervals.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import run
import yaml

from modeling_mmt.commands import train
from modeling_mmt.commands.build import build
from modeling_mmt.data.files import write_json, write_text
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.evaluation.evaluate import Corpus, EvalSpec, open_checkpoint, open_corpus, search_corpus
from modeling_mmt.evaluation.metrics import average_over_languages
from modeling_mmt.evaluation.significance import bootstrap_interval
from modeling_mmt.extraction.extract import extract

FOLDER = Path("modeling_mmt") / "recipes" / "photo9"
PHOTOS, FEATURES = "runs/data/photo9", "runs/features/photo9-lite0-128"
DRAWINGS, PROTOTYPES = "runs/features/emoji9-lite0-128", "runs/data/imagenet_prototypes"
NAMED = "train+validation+test+test_unseen"  # the concepts whose nine names are CLDR's
ROWS = {  # recipe -> what it is trained on, whether it saw photographs
    "emoji9": ("emoji9", False),
    "prototypes": ("prototypes", False),
    "both": ("emoji9 + prototypes", False),
    "none_en": ("photo9 + emoji9, none / en", True),
    "mmp_en": ("photo9 + emoji9, MMP / en", True),
    "none_all": ("photo9 + emoji9, none / all", True),
}
METRICS = ("R@1", "mAP", "nDCG@10", "photo to name")
PARTS = ("all", "in emoji9's training", "not in it")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, then write `results/photo9/`; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="the folder with photo9.jsonl and images/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--work_dir", type=Path, default=Path("runs"))
    parser.add_argument("--output_dir", type=Path, default=Path("results") / "photo9")
    arguments = parser.parse_args(argv)
    prepare(arguments.data_dir)
    searched: dict[tuple[str, int], dict[str, Any]] = {}
    for name in arguments.rows:
        recipe = yaml.safe_load((run.ROOT / FOLDER / f"{name}.yaml").read_text("utf-8"))
        for seed in arguments.seeds:
            folder = arguments.work_dir / "photo9" / name / f"seed{seed}"
            one = run.Run(recipe, seed, folder, arguments.work_dir, options=())
            searched[name, seed] = trained_and_searched(one, splits_of(name))
    results = run.provenance(arguments.seeds) | {
        "rows": [
            row(name, split, [searched[name, seed][split] for seed in arguments.seeds])
            for name in arguments.rows
            for split in splits_of(name)
        ]
    }
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output_dir / "results.json", results)
    write_text(arguments.output_dir / "table.md", markdown(results))
    print(markdown(results))
    return results


def prepare(data_dir: Path):
    """Build the corpora and extract the features that are missing."""
    if not Path(PHOTOS).is_dir():
        build("photo9", ["--data_dir", str(data_dir), "--output_dir", PHOTOS])
    extract("emoji9", DRAWINGS)
    extract(PHOTOS, FEATURES)
    if not Path(PROTOTYPES, "features").is_dir():
        build("imagenet_prototypes", ["--like", DRAWINGS, "--output_dir", PROTOTYPES])


def splits_of(name: str) -> tuple[str, ...]:
    """What a row searches: all photos only if it was trained on none of them."""
    return ("test", "test_unseen") if ROWS[name][1] else (NAMED, "test", "test_unseen")


def trained_and_searched(one: run.Run, splits: Sequence[str]) -> dict[str, Any]:
    """The run's figures in each split, made if they are missing; the first seed keeps its weights."""
    path = one.folder / "photo9.json"
    if not (one.is_done() and path.is_file()):
        one.write_recipe()
        started = time.monotonic()
        train.main(one.words)
        model, processor = open_checkpoint(str(one.folder))
        figures = {}
        for split in splits:
            spec = EvalSpec(PHOTOS, features=[FEATURES], split=split, text_column="name", languages=LANGUAGES)
            figures[split] = by_concept(open_corpus(spec), model, processor)
        write_json(path, figures)
        one.finish(time.monotonic() - started)
        if one.seed:
            (one.folder / "model.safetensors").unlink()
    return json.loads(path.read_text(encoding="utf-8"))


def by_concept(corpus: Corpus, model: Any, processor: Any) -> dict[str, Any]:
    """Every metric of each concept, by language, in the order of `concepts`; and which of them emoji9 trains on."""
    found = search_corpus(model, processor, corpus)
    firsts = [rows[0] for rows in corpus.rows_of_concept.values()]
    values: dict[str, dict[str, list[float]]] = {metric: {} for metric in METRICS}
    for language in LANGUAGES:
        if corpus.clip_of[language] != firsts:
            raise ValueError(f"{corpus.spec.split}: not every concept has one name in {language!r}")
        named = 100.0 * (found.ranks["all"]["v2t"][language] <= 1)
        values["R@1"][language] = (100.0 * (found.ranks["all"]["t2v"][language] <= 1)).tolist()
        values["photo to name"][language] = [float(named[rows].mean()) for rows in corpus.rows_of_concept.values()]
        for metric, of in found.relevance["all"][language].items():
            values[metric][language] = of.tolist()
    in_training = [split == "train" for split in np.array(corpus.rows["emoji9_split"])[firsts].tolist()]
    return {"concepts": list(corpus.rows_of_concept), "in_training": in_training, "photos": len(corpus.rows)} | values


def row(name: str, split: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of `results.json`: the mean over seeds, and its interval over concepts."""
    in_training = np.array(runs[0]["in_training"])
    parts = {PARTS[0]: np.ones(len(in_training), bool), PARTS[1]: in_training, PARTS[2]: ~in_training}
    figures: dict[str, Any] = {}
    for part, chosen in parts.items():
        if chosen.any():
            figures[part] = {metric: cells(metric, runs, chosen) for metric in METRICS}
    seen = {"concepts": int(len(in_training)), "photos": runs[0]["photos"]}
    return {"row": name, "trained_on": ROWS[name][0], "split": split, **seen, "figures": figures}


def cells(metric: str, runs: Sequence[Mapping[str, Any]], chosen: np.ndarray) -> dict[str, Any]:
    """Language or average -> mean over seeds, each seed's value, and the interval over concepts."""
    tables = {lang: np.array([one[metric][lang] for one in runs]).T[chosen] for lang in LANGUAGES}  # (concepts, seeds)
    return {
        key: {
            "mean": float(of.mean()),
            "per_seed": of.mean(axis=0).tolist(),
            "ci95": list(bootstrap_interval(of)),
        }
        for key, of in average_over_languages(tables).items()
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of `results.json`: for each split and part, metrics in English and over nine languages."""
    lines = [f"In %, mean of seeds {results['seeds']}; intervals over concepts. {results['machine']}."]
    for split in dict.fromkeys(one["split"] for one in results["rows"]):
        rows = [one for one in results["rows"] if one["split"] == split]
        lines += ["", f"**{split}**: {rows[0]['concepts']} concepts, {rows[0]['photos']:,} photos", ""]
        heads = [f"{metric} {scope}" for metric in METRICS for scope in ("en", "nine")]
        lines += ["| trained on | concepts | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
        for one in rows:
            for part, figures in one["figures"].items():
                shown = [interval(figures[metric][key]) for metric in METRICS for key in ("en", "avg")]
                lines.append(f"| {one['trained_on']} | {part} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, ""])


def interval(cell: Mapping[str, Any]) -> str:
    """A mean and its interval."""
    low, high = cell["ci95"]
    return f"{cell['mean']:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
