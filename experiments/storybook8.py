"""The rows none / MP / MMP on storybook8, whose captions are sentences: `make table-storybook8`.

    python experiments/storybook8.py --data_dir ../shared/data/storybook8    # 3 seeds; resumes row by row

A second check of the method beside emoji9: pages of picture books, split by story; a page's picture is the clip, its
sentences the captions, those of the pages around it what is pre-trained on. There is no Czech, and not every page has
every language, so here a story is what is drawn: the pages of one show the same people and are no independent draws.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import run
import yaml

from modeling_mmt.commands.build import build
from modeling_mmt.data.checks import flat_captions
from modeling_mmt.data.reading import load_split
from modeling_mmt.evaluation.metrics import average_over_languages, per_query
from modeling_mmt.evaluation.significance import bootstrap_interval, paired_test
from modeling_mmt.extraction.extract import extract

FOLDER = Path("modeling_mmt") / "recipes" / "storybook8"
ROWS = {
    "none_en": ("none", "en"),
    "mp_en": ("MP", "en"),
    "mmp_en": ("MMP", "en"),
    "none_all": ("none", "all"),
    "mmp_all": ("MMP", "all"),
}
COMPARISONS = (("mmp_en", "none_en"), ("mmp_en", "mp_en"), ("mp_en", "none_en"), ("mmp_all", "none_all"))
METRICS = ("R@1", "R@10", "MRR")
SHOWN = ("R@1", "R@10")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, then write `results/storybook8/`; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="the folder with storybook8.jsonl and images/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; they share the cores")
    parser.add_argument("--work_dir", type=Path, default=Path("runs"))
    parser.add_argument("--output_dir", type=Path, default=Path("results") / "storybook8")
    arguments = parser.parse_args(argv)
    recipes = {name: yaml.safe_load((run.ROOT / FOLDER / f"{name}.yaml").read_text("utf-8")) for name in ROWS}
    data = recipes["none_en"]["data"]
    if not Path(data["dataset"]).is_dir():
        build("storybook8", ["--data_dir", str(arguments.data_dir), "--output_dir", data["dataset"]])
    extract(data["dataset"], data["features"][0])
    runs = {}
    for name, recipe in recipes.items():
        for seed in arguments.seeds:
            folder = arguments.work_dir / "storybook8" / name / f"seed{seed}"
            runs[name, seed] = run.Run(recipe, seed, folder, arguments.work_dir, options=())
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs))}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for number, ((name, seed), one) in enumerate(runs.items()):
            pool.submit(one.start, environment, f"[{number + 1}/{len(runs)}] {name}, seed {seed}")
    outputs = {key: one.read() for key, one in runs.items()}
    results = run.provenance(arguments.seeds) | {"splits": {}, "rows": [], "comparisons": []}
    for split in ("validation", "test"):
        stories = stories_of_queries(data, split)
        results["splits"][split] = {
            "stories": len({story for of in stories.values() for story in of}),
            "pages": len(load_split(data["dataset"], None, split, ["story"])),
            "queries": {language: len(of) for language, of in stories.items()},
        }
        results["rows"] += [row(name, split, outputs, stories, arguments.seeds) for name in ROWS]
        if split == "test":
            results["comparisons"] = [
                comparison(metric, a, b, outputs, stories, arguments.seeds) for metric in SHOWN for a, b in COMPARISONS
            ]
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (arguments.output_dir / "results.json").write_text(text, encoding="utf-8")
    (arguments.output_dir / "README.md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))
    return results


def stories_of_queries(data: Mapping[str, Any], split: str) -> dict[str, np.ndarray]:
    """The story of each caption, by language, in the order of `ranks.json`."""
    columns = [f"{data['text_column']}_{language}" for language in data["languages"]]
    rows = load_split(data["dataset"], None, split, ["story", *columns])
    story = np.array(rows["story"])
    return {
        language: story[flat_captions(rows[column])[0]]
        for language, column in zip(data["languages"], columns, strict=True)
    }


def by_story(ranks: Mapping[str, Sequence[float]], stories: Mapping[str, np.ndarray], metric: str) -> np.ndarray:
    """`(stories, languages)`: what each story adds to each language's figure, times the number of stories.

    So the mean over stories is the figure, a mean over the language's queries; a story without a query adds nothing.
    """
    names = sorted({story for of in stories.values() for story in of})
    table = np.zeros((len(names), len(stories)))
    for column, (language, of) in enumerate(stories.items()):
        values = per_query(metric, np.array(ranks[language]))
        np.add.at(table[:, column], np.searchsorted(names, of), values * len(names) / len(of))
    return table


def row(
    name: str,
    split: str,
    outputs: Mapping[tuple[str, int], Mapping[str, Any]],
    stories: Mapping[str, np.ndarray],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """One row of `results.json`: text to video, the mean over seeds and its interval over stories."""
    figures: dict[str, Any] = {}
    for metric in METRICS:
        tables = np.stack([by_story(ranks(outputs[name, seed], split), stories, metric) for seed in seeds], axis=-1)
        by_language = average_over_languages(
            dict(zip(stories, tables.swapaxes(0, 1), strict=True))
        )  # (stories, seeds)
        figures[metric] = {
            key: {
                "mean": float(values.mean()),
                "per_seed": [float(value) for value in values.mean(axis=0)],
                "ci95": list(bootstrap_interval(values)),
            }
            for key, values in by_language.items()
        }
    return {
        "pretraining": ROWS[name][0],
        "finetuning": ROWS[name][1],
        "split": split,
        "t2v": figures,
        "command": f"mmt train storybook8/{name} --seed {{{','.join(map(str, seeds))}}}",
        "commit": ", ".join(sorted({outputs[name, seed]["done"]["commit"] for seed in seeds})),
        "seconds": [run.training_seconds(outputs[name, seed]["metrics"]) for seed in seeds],
    }


def comparison(
    metric: str,
    a: str,
    b: str,
    outputs: Mapping[tuple[str, int], Mapping[str, Any]],
    stories: Mapping[str, np.ndarray],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Is row `a` better than row `b` on the non-English metric of test? Paired over stories and seeds."""
    foreign = [column for column, language in enumerate(stories) if language != "en"]
    values = [
        np.stack([by_story(ranks(outputs[name, seed], "test"), stories, metric)[:, foreign] for seed in seeds])
        for name in (a, b)
    ]
    names = {"a": "/".join(ROWS[a]), "b": "/".join(ROWS[b]), "metric": metric, "scope": "non-English"}
    return names | paired_test(values[0], values[1])


def ranks(one: Mapping[str, Any], split: str) -> Mapping[str, Sequence[float]]:
    """The ranks of a run's text-to-video queries, by language."""
    return one["ranks"][split]["all"]["t2v"]


def markdown(results: Mapping[str, Any]) -> str:
    """What a person reads."""
    rows = [row for row in results["rows"] if row["split"] == "test"]
    columns = list(rows[0]["t2v"]["R@1"])
    size = results["splits"]["test"]
    pages = size["pages"]
    lines = [
        "# storybook8: sentences of picture books to their page's picture",
        "",
        f"Test, text to image, in %, mean of seeds {results['seeds']}; {pages} pages of {size['stories']} stories; "
        f"chance is {100 / pages:.1f} for R@1, {1000 / pages:.1f} for R@10; queries: "
        + ", ".join(f"{language} {count}" for language, count in size["queries"].items())
        + ". `make table-storybook8 DATA=<folder with storybook8/>`; intervals are over stories.",
    ]
    for metric in SHOWN:
        lines += ["", f"| {metric}: pre-training / fine-tuning | " + " | ".join(columns) + " |"]
        lines += ["|---" * (1 + len(columns)) + "|"]
        for one in rows:
            cells = []
            for key in columns:
                cell = one["t2v"][metric][key]
                low, high = cell["ci95"]
                cells.append(f"{cell['mean']:.1f}" + (f" [{low:.1f}, {high:.1f}]" if key.startswith("avg") else ""))
            lines.append(f"| {one['pretraining']} / {one['finetuning']} | " + " | ".join(cells) + " |")
    lines += ["", "| non-English | | difference | 95 % | p |", "|---|---|---|---|---|"]
    for one in results["comparisons"]:
        low, high = one["ci95"]
        lines.append(
            f"| {one['metric']} | {one['a']} - {one['b']} | {one['difference']:+.1f} | [{low:.1f}, {high:.1f}] "
            f"| {one['p']:.4f} |"
        )
    return "\n".join([*lines, "", f"{results['machine']}.", ""])


if __name__ == "__main__":
    main()
