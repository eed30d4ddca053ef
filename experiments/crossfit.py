"""Every concept of emoji9 as a test query once: five folds, the rows that the claim rests on.

    python experiments/crossfit.py --seeds 0        # make crossfit: hours; resumes run by run

A fold is a fifth of the 1,602 clips, drawn by their ids. Its clips, names and keywords enter no stage; of the others
150 choose checkpoints, the rest train. The recipes are those of `named_shares.py`, frozen before. Over 1,602 clips
intervals are about 2.3 times narrower than over the test split's 300; a fold's gallery is its own 320 clips, so that
the figures stand beside those of the 300 and are never pooled with them. With `--without_test_names` every keyword
that is the name of a concept of the fold's test part, in any language, is taken out of all clips.
"""

import argparse
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import named_shares
import numpy as np
import run
from datasets import Dataset, concatenate_datasets

from modeling_mmt.data.captions import stable_id
from modeling_mmt.data.files import writing_folder
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split

FOLDS = 5
NUM_VALIDATION = 150
ROWS = ("none_en", "mmp_en", "none_all", "mmp_all", "mmp_en_without_names", "mmp_all_without_names")
WITHOUT = "without_test_names"


def splits_of(rows: Dataset, fold: int, without_test_names: bool = False) -> Iterator[tuple[str, Dataset]]:
    """The fold's three splits of all clips; each clip is in one, and over the folds once in `test`."""
    order = np.argsort([stable_id(f"crossfit {video_id}") for video_id in rows["video_id"][:]], kind="stable")
    is_test = np.arange(len(rows)) % FOLDS == fold
    rest, test = order[~is_test], rows.select(np.sort(order[is_test]))
    if without_test_names:
        rows = without_keywords(rows, {name for code in LANGUAGES for name in test[f"name_{code}"][:]})
    yield "train", rows.select(np.sort(rest[NUM_VALIDATION:]))
    yield "validation", rows.select(np.sort(rest[:NUM_VALIDATION]))
    yield "test", test


def without_keywords(rows: Dataset, names: Collection[str]) -> Dataset:
    """The rows without the keywords that are such a name, in whatever language and case."""
    refused = {name.casefold() for name in names}
    columns = [f"keywords_{code}" for code in LANGUAGES]
    return rows.map(
        lambda row: {column: [word for word in row[column] if word.casefold() not in refused] for column in columns}
    )


def write_fold(rows: Dataset, fold: int, folder: Path, without_test_names: bool = False) -> Path:
    """A fold as a dataset in Parquet; returns its folder, which is left as it is where it is there."""
    target = folder / (f"fold{fold}-{WITHOUT}" if without_test_names else f"fold{fold}")
    if not target.is_dir():
        with writing_folder(target) as partial:
            (partial / "data").mkdir()
            for split, part in splits_of(rows, fold, without_test_names):
                part.to_parquet(str(partial / "data" / f"{split}-00000-of-00001.parquet"))
    return target


def joined(of_folds: Sequence[Any]) -> Any:
    """The folds' ranks, one after the other, in one nested mapping."""
    first = of_folds[0]
    if isinstance(first, Mapping):
        return {key: joined([of[key] for of in of_folds]) for key in first}
    return [rank for of in of_folds for rank in of]


def as_one_run(of_folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A seed's runs of all folds as if they were one over all clips."""
    return {
        "ranks": joined([of["ranks"] for of in of_folds]),
        "metrics": {"finetuning": {"seconds": sum(run.training_seconds(of["metrics"]) for of in of_folds)}},
        "done": {"commit": ", ".join(sorted({of["done"]["commit"] for of in of_folds}))},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, then write the results; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="default: all")
    parser.add_argument("--shares", type=float, nargs="+", choices=named_shares.SHARES, default=[0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; they share the cores")
    parser.add_argument(f"--{WITHOUT}", action="store_true", help="take these names out of all keywords")
    parser.add_argument("--work_dir", type=Path, default=Path("runs"))
    parser.add_argument("--output_dir", type=Path, default=Path("results") / "emoji9" / "crossfit")
    arguments = parser.parse_args(argv)
    splits = [read_split("emoji9", None, split) for split in ("train", "validation", "test")]
    rows = concatenate_datasets([split.remove_columns("frames") for split in splits])
    kind = f"-{WITHOUT}" if arguments.without_test_names else ""
    place = arguments.work_dir / "crossfit"
    folders = [write_fold(rows, fold, place, arguments.without_test_names) for fold in range(FOLDS)]
    keys = [(name, share) for name in arguments.rows for share in arguments.shares]
    runs = {}
    for name, share in keys:
        recipe = named_shares.recipe_of(named_shares.ROWS[name], share)
        for seed in arguments.seeds:
            for fold, dataset in enumerate(folders):
                runs[name, share, seed, fold] = run.Run(
                    run.changed(recipe, {"data.dataset": str(dataset)}),
                    seed,
                    place / f"{name}-{100 * share:.0f}{kind}" / f"fold{fold}-seed{seed}",
                    arguments.work_dir,
                )
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // arguments.jobs))}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for number, ((name, share, seed, fold), each) in enumerate(runs.items()):
            label = f"[{number + 1}/{len(runs)}] {name}, {share:.0%} named, seed {seed}, fold {fold}"
            pool.submit(each.start, environment, label)
    outputs = {
        (name, share): [
            as_one_run([runs[name, share, seed, fold].read() for fold in range(FOLDS)]) for seed in arguments.seeds
        ]
        for name, share in keys
    }
    results = run.provenance(arguments.seeds) | named_shares.gather(
        outputs, arguments.seeds, ["test"], f"crossfit.py --{WITHOUT}" if kind else "crossfit.py"
    )
    title = "emoji9 in five folds" + (", no keyword a test concept's name" if kind else "")
    named_shares.write(results, arguments.output_dir, title)
    return results


if __name__ == "__main__":
    main()
