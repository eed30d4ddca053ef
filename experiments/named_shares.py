"""The claim at the paper's own proportions: how much pre-training pays where few clips have names.

    python experiments/named_shares.py --seeds 0 1 2 3 4     # make table-shares: hours; resumes row by row
    python experiments/named_shares.py --shares 0.25 --rows none_en mmp_en --seeds 0 --splits validation

A row is a bundled recipe of `emoji9_scarce` with a share of the clips whose names fine-tuning sees: a quarter, a half
or all. Beside the seven rows stand their controls: `none_en` with as many steps as MMP has (`none_all` has more),
`none_en` with the languages' directions taken out, MMP's fine-tuning without a pre-training stage, MP and MMP without
keywords that hold the clip's name in any of the nine languages, and at a quarter MMP without each of the eight
languages.

Pre-training does not depend on the share of names, so that the shares of a row have one stage together. Fine-tuning
has as many steps at every share.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import run
import tables

from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.evaluation.diagnostics import gap_closed, gap_closed_interval, holm
from modeling_mmt.evaluation.metrics import per_query
from modeling_mmt.evaluation.significance import paired_test

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "emoji9_scarce"
SHARES = (0.25, 0.5, 1.0)
NUM_CLIPS = 1152
WITHOUT_NAMES = {"exclude_text_column": "name", "exclude_languages": list(LANGUAGES)}


@dataclass(frozen=True)
class Row:
    """A line of the table: a recipe, what it is called, and what is changed in it."""

    recipe: str
    pretraining: str
    finetuning: str
    note: str = ""
    names_removed: bool = False
    without: str | None = None  # a language that keywords are not seen in
    changes: Mapping[str, Any] = field(default_factory=dict)
    shares: Sequence[float] = SHARES


MAIN = {
    "none_en": Row("none_en", "none", "en"),
    "mp_en": Row("mp_en", "MP", "en"),
    "mmp_en": Row("mmp_en", "MMP", "en"),
    "text_en": Row("text_en", "text", "en"),
    "none_all": Row("none_all", "none", "all"),
    "mp_all": Row("mp_all", "MP", "all"),
    "mmp_all": Row("mmp_all", "MMP", "all"),
}
CONTROLS = {
    "none_en_long": Row("none_en", "none", "en", "MMP's steps", changes={"finetuning.num_train_epochs": 405}),
    "none_en_lir": Row("none_en", "none", "en", "LIR", changes={"model.config.language_directions": 8}),
    "joint_en": Row("mmp_en", "joint", "en", changes={"pretraining": None}),
    "joint_all": Row("mmp_all", "joint", "all", changes={"pretraining": None}),
    **{
        f"{name}_without_names": Row(name, MAIN[name].pretraining, MAIN[name].finetuning, names_removed=True)
        for name in ("mp_en", "mmp_en", "text_en", "mp_all", "mmp_all")
    },
    **{
        f"mmp_without_{language}_en": Row("mmp_en", f"MMP-{language}", "en", without=language, shares=(0.25,))
        for language in LANGUAGES[1:]
    },
}
ROWS = MAIN | CONTROLS
COMPARISONS = (  # (row, row, languages): is the first better than the second, at the same share?
    ("mmp_en", "none_en", run.FOREIGN),
    ("mmp_en", "none_en", ("en",)),
    ("mmp_en", "mp_en", run.FOREIGN),
    ("mmp_all", "none_all", LANGUAGES),
    ("mmp_en", "joint_en", run.FOREIGN),
    ("mmp_all", "joint_all", LANGUAGES),
    ("mmp_en", "none_en_long", run.FOREIGN),
    ("mmp_en", "none_en_lir", run.FOREIGN),
    ("mmp_en", "text_en", run.FOREIGN),
    ("mmp_en_without_names", "none_en", run.FOREIGN),
    ("mmp_en_without_names", "none_en", ("en",)),
    ("mmp_all_without_names", "none_all", LANGUAGES),
    *((f"mmp_without_{language}_en", "none_en", (language,)) for language in LANGUAGES[1:]),
)
NUM_SAMPLES = 100_000  # sign flips of a test: after the correction, its least p is still below 0.01
METRICS = ("R@1", "R@5", "MRR")  # all of them, in both directions, are one family of tests
Key = tuple[str, float]  # row, share


def recipe_of(row: Row, share: float) -> dict[str, Any]:
    """A row's recipe at a share of the names, with as many steps of fine-tuning as at a quarter."""
    recipe = run.read_recipe(row.recipe, FOLDER)
    dotted = {path: value for path, value in row.changes.items() if "." in path}
    recipe = run.changed(recipe, dotted) | {key: value for key, value in row.changes.items() if "." not in key}
    for stage in (recipe[name] for name in ("pretraining", "finetuning") if recipe.get(name)):
        for source in stage["sources"]:
            if source["text_column"] == "name":
                source["named_share"] = share
                continue
            source |= WITHOUT_NAMES if row.names_removed else {}
            source["languages"] = [language for language in source["languages"] if language != row.without]
    stage = recipe["finetuning"]
    stage["num_train_epochs"] = round(stage["num_train_epochs"] * batches(0.25, stage) / batches(share, stage))
    return recipe


def batches(share: float, stage: Mapping[str, Any]) -> int:
    """Whole batches of the named clips."""
    return int(share * NUM_CLIPS) // stage["train_batch_size"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, then write the results; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="default: all")
    parser.add_argument("--shares", type=float, nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; they share the cores")
    parser.add_argument("--work_dir", type=Path, default=Path("runs"))
    parser.add_argument("--output_dir", type=Path, default=Path("results") / "emoji9" / "shares")
    parser.add_argument("--splits", nargs="+", choices=("test", "validation"), default=["test", "validation"])
    parser.add_argument("--done_only", action="store_true", help="start nothing: report the rows that are done")
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="change every recipe: for choices")
    arguments = parser.parse_args(argv)
    keys = [(name, share) for name in arguments.rows for share in arguments.shares if share in ROWS[name].shares]
    changes = {path: json.loads(value) for path, _, value in (pair.partition("=") for pair in arguments.set)}
    changes |= {} if "test" in arguments.splits else {"data.test_split": None}  # of a choice test says nothing
    runs = {
        (key, seed): run.Run(
            run.changed(recipe_of(ROWS[key[0]], key[1]), changes),
            seed,
            arguments.work_dir / "shares" / f"{key[0]}-{100 * key[1]:.0f}" / f"seed{seed}",
            arguments.work_dir,
        )
        for key in keys
        for seed in arguments.seeds
    }
    if arguments.done_only:
        keys = [key for key in keys if all(runs[key, seed].is_done() for seed in arguments.seeds)]
        runs = {(key, seed): one for (key, seed), one in runs.items() if key in keys}
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs))}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for number, ((name, share), seed) in enumerate(runs):
            label = f"[{number + 1}/{len(runs)}] {name}, {share:.0%} named, seed {seed}"
            pool.submit(runs[(name, share), seed].start, environment, label)
    outputs = {key: [runs[key, seed].read() for seed in arguments.seeds] for key in keys}
    results = run.provenance(arguments.seeds) | gather(outputs, arguments.seeds, arguments.splits)
    write(results, arguments.output_dir)
    return results


def write(results: Mapping[str, Any], folder: Path, title: str = "emoji9 with few names"):
    """Write the results as JSON, and as a page, which is printed too."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    page = markdown(results, title)
    share_figure(results).savefig(folder / "r1_by_named_share.png", dpi=150)
    (folder / "README.md").write_text(page, encoding="utf-8")
    print(page)


def gather(
    outputs: Mapping[Key, Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
    splits: Sequence[str],
    script: str = "named_shares.py",
) -> dict[str, Any]:
    """Rows, paired tests and shares of the gap, of the first of the splits.

    Args:
        outputs: each row's runs, a seed each.
        seeds: of the runs.
        splits: that are reported.
        script: of the command that makes a row, with its own options.
    """
    rows = [described(key, runs, seeds, split, script) for key, runs in outputs.items() for split in splits]
    tests = [
        {"direction": direction, "metric": metric, **test}
        for direction in tables.DIRECTION_NAMES
        for metric in METRICS
        for test in comparisons({key: figures_of(runs, splits[0], direction, metric) for key, runs in outputs.items()})
    ]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    hits = {key: figures_of(runs, splits[0], "t2v", "R@1") for key, runs in outputs.items()}
    return {"rows": rows, "comparisons": tests, "gap": list(gaps(hits)), "split": splits[0]}


def described(
    key: Key, runs: Sequence[Mapping[str, Any]], seeds: Sequence[int], split: str, script: str
) -> dict[str, Any]:
    """One row of `results.json`."""
    name, share = key
    row = ROWS[name]
    return {
        "name": name,
        "pretraining": row.pretraining,
        "finetuning": row.finetuning,
        "note": row.note,
        "named_share": share,
        "names_removed": row.names_removed,
        "seeds": list(seeds),
        "command": f"python experiments/{script} --rows {name} --shares {share:g} --seeds "
        + " ".join(map(str, seeds)),
        **run.summary(runs, split),
    }


def figures_of(runs: Sequence[Mapping[str, Any]], split: str, direction: str, metric: str) -> np.ndarray:
    """`(seeds, clips, languages)` in percent: each query's figure."""
    ranks = [run.as_arrays(each["ranks"][split]["all"])[direction] for each in runs]
    return np.stack([per_query(metric, np.stack([of[lang] for lang in LANGUAGES], axis=-1)) for of in ranks])


def comparisons(figures: Mapping[Key, np.ndarray]) -> Iterator[dict[str, Any]]:
    """The paired tests of the rows that are there."""
    for a, b, languages in COMPARISONS:
        for share in SHARES:
            if (a, share) in figures and (b, share) in figures:
                columns = [LANGUAGES.index(language) for language in languages]
                scope = {run.FOREIGN: "non-English", LANGUAGES: "all nine"}.get(languages, ", ".join(languages))
                test = paired_test(figures[a, share][..., columns], figures[b, share][..., columns], NUM_SAMPLES)
                yield {"a": a, "b": b, "named_share": share, "scope": scope, **test}


def gaps(hits: Mapping[Key, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Of the way from the better `none_en` to `none_all` abroad, how much MMP and English names cover."""
    for share in SHARES:
        abroad = {name: of[..., 1:].mean(axis=(0, 2)) for (name, at), of in hits.items() if at == share}
        least = [name for name in ("none_en", "none_en_long") if name in abroad]
        for name in ("mmp_en", "mmp_en_without_names"):
            if name in abroad and least and "none_all" in abroad:
                low = max(least, key={one: of.mean() for one, of in abroad.items()}.__getitem__)
                three = (abroad[name], abroad[low], abroad["none_all"])
                interval = gap_closed_interval(*three)
                yield {
                    "row": name,
                    "named_share": share,
                    "from": low,
                    "to": "none_all",
                    "percent": gap_closed(*(float(values.mean()) for values in three)),
                    "ci95": None if interval is None else list(interval),
                }


def share_figure(results: Mapping[str, Any]) -> "Figure":
    """Non-English R@1 against the share of named clips: the four rows of the claim, with 95 % intervals over clips."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(("none_en", "mmp_en", "none_all", "mmp_all")):
        rows = [row for row in results["rows"] if row["name"] == name and row["split"] == results["split"]]
        cells = [(row["named_share"], row["t2v"]["R@1"]["avg_non_en"]) for row in sorted(rows, key=_share)]
        means = [cell["mean"] for _, cell in cells]
        errors = [[max(0.0, sign * (c["ci95"][end] - c["mean"])) for _, c in cells] for end, sign in ((0, -1), (1, 1))]
        axes.errorbar(
            [100 * share for share, _ in cells], means, yerr=errors if cells else None, capsize=3,
            color=tables.COLOURS[number], marker=tables.MARKERS[number],
            label=f"{MAIN[name].pretraining} / {MAIN[name].finetuning}",
        )  # fmt: skip
    axes.set_xticks([100 * share for share in SHARES])
    axes.set_xlabel("clips whose names are seen (%)")
    axes.set_ylabel("text to video R@1, non-English (%)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="0.88", linewidth=0.6)
    axes.legend(title="pre-training / fine-tuning", frameon=False)
    return figure


def _share(row: Mapping[str, Any]) -> float:
    return row["named_share"]


def markdown(results: Mapping[str, Any], title: str) -> str:
    """The page for `results.json`."""
    rows = [row for row in results["rows"] if row["split"] == results["split"]]
    lines = [
        f"# {title}: text to video, R@1 ({results['split']}, {rows[0]['n_queries']} queries a language)",
        f"Seeds {results['seeds']}; {results['machine']}. Brackets: 95 % intervals over clips.",
        "| named | pre-train / fine-tune | English | non-English | names in keywords |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=_share):
        cells = [row["t2v"]["R@1"][column] for column in ("en", "avg_non_en")]
        figures = " | ".join(f"{c['mean']:.1f} [{c['ci95'][0]:.1f}, {c['ci95'][1]:.1f}]" for c in cells)
        label = f"{tables.row_name(row)}{', ' + row['note'] if row['note'] else ''}"
        left = "removed" if row["names_removed"] else "kept"
        lines.append(f"| {row['named_share']:.0%} | {label} | {figures} | {left} |")
    text = "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n"
    for gap in results["gap"]:
        if gap["percent"] is not None:
            low, high = gap["ci95"] or (float("nan"), float("nan"))
            text += (
                f"\nAt {gap['named_share']:.0%}, {gap['row']} covers {gap['percent']:.0f} % [{low:.0f}, {high:.0f}] "
                f"of the way abroad from {gap['from']} to {gap['to']}.\n"
            )
    if results["comparisons"]:
        lines = [
            "| named | A | B | scope | A - B | 95 % interval | p | p (Holm) |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for test in results["comparisons"]:
            low, high = test["ci95"]
            figure = f"{test['direction']} {test['metric']}"
            cells = [f"{test['named_share']:.0%}", test["a"], test["b"], test["scope"], figure]
            cells += [f"{test['difference']:+.1f}"]
            cells += [f"[{low:+.1f}, {high:+.1f}]", f"{test['p']:.5f}", f"{test['p_holm']:.5f}"]
            lines.append(f"| {' | '.join(cells)} |")
        text += "\n" + "\n".join(lines) + "\n"
    return text


if __name__ == "__main__":
    main()
