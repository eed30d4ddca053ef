"""Does an English pair of text and picture encoder keep its zero-shot, and learn eight languages? On emoji9, pixels.

    python experiments/dual_proof.py parallel                      # runs/dual/parallel_*: sentences in nine languages
    python experiments/dual_pair.py runs/dual/pair/seed0 --seed 0  # the pair, by transformers alone
    python experiments/dual_proof.py equality --seed 0             # its zero-shot here and there, to the digit
    python experiments/dual_proof.py train --row align --seed 0    # a row of ROWS
    python experiments/dual_proof.py results                       # results/dual/

The pair knows English names and keywords alone. `parallel_strict` is text9 (NTREX-128, Tatoeba) and the names of the
training clips: of each row the English text and the translations in which no name and no keyword of a validation or
test concept stands, in its language, word for word. The keywords of 450 held-out concepts are everyday words (you,
not, face, red), so that few sentences are left; `parallel_names` has, beside the same sentences, every training clip's
name in nine languages: text of the training split, which the rows `none / all` of emoji9's table learn from too.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from dual_pair import frames
from run import Run, commit, provenance
from torch.nn.functional import normalize
from transformers import VisionTextDualEncoderModel, VisionTextDualEncoderProcessor

from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.data.files import write_json, write_text
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split
from modeling_mmt.evaluation.diagnostics import holm
from modeling_mmt.evaluation.evaluate import EvalSpec, evaluate, open_corpus
from modeling_mmt.evaluation.ranks import ranks
from modeling_mmt.evaluation.significance import paired_test, summarise_seeds
from modeling_mmt.frames_mmt import FrameSampling

FOREIGN = LANGUAGES[1:]
NTREX = dict(zip(LANGUAGES, "eng deu fra ces zho-CN rus vie swa spa".split(), strict=True))
TATOEBA = dict(zip(FOREIGN, "deu fra ces cmn rus vie swh spa".split(), strict=True))
NAMES = "names of training clips"
FOLDER, RESULTS, FRAMES = Path("runs") / "dual", Path("results") / "dual", 2
HELD_OUT_SENTENCES = 0.1  # of the parallel rows: validation
SEARCH: dict[str, Any] = {
    "dataset": "emoji9",
    "video_column": "frames",
    "text_column": "name",
    "languages": list(LANGUAGES),
}
OPTIMIZATION = {"train_batch_size": 128, "weight_decay": 0.05, "warmup_ratio": 0.05, "lr_scheduler_type": "cosine"}
KEYWORDS = {"text_column": "keywords", "languages": list(LANGUAGES), "max_keywords": 3, "keyword_pool_size": 4}
MMP = {
    "pretraining": {
        **OPTIMIZATION,
        "sources": [KEYWORDS | {"noise_probability": 0.0}],
        "num_train_epochs": 20,
        "learning_rate": 5e-4,
        "evaluations": 0,
    },
    "finetuning": {
        **OPTIMIZATION,
        "sources": [
            {"text_column": "name", "languages": ["en"], "noise_probability": 0.0},
            KEYWORDS | {"noise_probability": 0.0, "weight": 0.5},
        ],
        "num_train_epochs": 10,
        "learning_rate": 2e-4,
        "evaluations": 5,
    },
}


def alignment(parallel: str, **changes: Any) -> dict[str, Any]:
    """The stage, on one of the parallel corpora."""
    source = {"dataset": str(FOLDER / parallel), "text_column": "sentence", "languages": list(LANGUAGES)}
    stage = {**OPTIMIZATION, "sources": [source], "num_train_epochs": 40, "learning_rate": 1e-3, "evaluations": 4}
    return {"alignment": stage | changes}


# row -> what it is, and its stages
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "align_strict": ("alignment, strict text", alignment("parallel_strict")),
    "mmp": ("MMP / en", MMP),
    "align_strict_mmp": ("alignment, strict text; MMP / en", alignment("parallel_strict") | MMP),
    "align": ("alignment, strict text and training names", alignment("parallel_names")),
    "align_mmp": ("alignment, strict text and training names; MMP / en", alignment("parallel_names") | MMP),
}


def recipe(row: str, seed: int) -> dict[str, Any]:
    """Of a row, on a seed's pair."""
    _, stages = ROWS[row]
    config = {"num_hidden_layers": 1, "hidden_dropout_prob": 0.1, "intra_weight": 0.0, "max_video_length": 32}
    config["video_input_dropout_prob"] = 0.3
    model = {"dual_encoder": str(FOLDER / "pair" / f"seed{seed}"), "num_frames": FRAMES, "learning": "heads"}
    return {"data": SEARCH, "model": model | {"config": config}, **stages}


def words(text: str) -> list[str]:
    """A text's words, case aside; "don't" is one, and no "t" is in it."""
    return re.findall(r"\w+(?:['’]t\b)?", text.casefold())


class HeldOut:
    """Names and keywords of the validation and test concepts, as they may stand in a sentence."""

    def __init__(self):
        self.terms: dict[str, set[str]] = {language: set() for language in LANGUAGES}
        for split in ("validation", "test"):
            rows = read_split("emoji9", None, split)
            for language, terms in self.terms.items():
                for name, keywords in zip(rows[f"name_{language}"], rows[f"keywords_{language}"], strict=True):
                    terms |= {" ".join(words(text)) for text in (name, *keywords)} - {""}
        self.longest = max(len(term.split()) for terms in self.terms.values() for term in terms)

    def stands_in(self, language: str, text: str) -> bool:
        """Whether one of them stands in a text of this language, word for word; in Chinese, letter for letter."""
        terms, found = self.terms[language], words(text)
        if language == "zh":
            return any(term.replace(" ", "") in "".join(found) for term in terms)
        spans = ((start, start + n) for n in range(1, self.longest + 1) for start in range(len(found) - n + 1))
        return any(" ".join(found[start:end]) in terms for start, end in spans)

    def left_of(self, row: Mapping[str, str]) -> dict[str, str]:
        """A row's texts in which none stands; nothing, where that leaves no English or no translation."""
        left = {language: text for language, text in row.items() if text and not self.stands_in(language, text)}
        return left if "en" in left and len(left) > 1 else {}


def sources(text9: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Rows of sentences by language, of each source."""
    lines = {language: (text9 / "ntrex128" / f"{code}.txt").read_text("utf-8") for language, code in NTREX.items()}
    columns = [text.splitlines() for text in lines.values()]
    yield "NTREX-128", [dict(zip(lines, row, strict=True)) for row in zip(*columns, strict=True)]
    pairs = []
    for language, code in TATOEBA.items():
        path = text9 / "tatoeba_laser" / f"tatoeba.{code}-eng"
        english, foreign = (Path(f"{path}.{end}").read_text("utf-8").splitlines() for end in ("eng", code))
        pairs += [{"en": a, language: b} for a, b in zip(english, foreign, strict=True)]
    yield "Tatoeba", pairs
    rows = read_split("emoji9", None, "train").select_columns([f"name_{language}" for language in LANGUAGES])
    yield NAMES, [{name.removeprefix("name_"): text for name, text in row.items()} for row in rows]


def parallel(text9: Path) -> dict[str, dict[str, Any]]:
    """Write both corpora; returns how many rows each source has, and how many texts are left, by language."""
    held_out, counts = HeldOut(), {}
    strict: list[dict[str, str]] = []
    for source, rows in sources(text9):
        left = [texts for row in rows if (texts := held_out.left_of(row))]
        by_language = {language: sum(language in texts for texts in left) for language in LANGUAGES}
        counts[source] = {"rows": len(rows), "left": by_language}
        if source == NAMES:
            write_corpus("parallel_names", strict + rows)
        strict += left
    write_corpus("parallel_strict", strict)
    write_json(FOLDER / "parallel.json", counts)
    return counts


def write_corpus(name: str, rows: Sequence[Mapping[str, str]]):
    """A dataset of sentences, some of them for validation."""
    order = np.random.default_rng(0).permutation(len(rows))
    table = [
        {"video_id": f"row{row}"} | {f"sentence_{language}": rows[row].get(language) for language in LANGUAGES}
        for row in order
    ]
    share = round(HELD_OUT_SENTENCES * len(table))
    for split, part in (("validation", table[:share]), ("train", table[share:])):
        path = FOLDER / name / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(part).to_parquet(str(path))


@torch.inference_mode()
def equality(seed: int) -> dict[str, Any]:
    """A pair's English search of the test clips by transformers alone, and by what `mmt import` makes of it."""
    folder = str(FOLDER / "pair" / f"seed{seed}")
    model: Any = VisionTextDualEncoderModel.from_pretrained(folder).eval()
    processor = VisionTextDualEncoderProcessor.from_pretrained(folder)
    rows = read_split("emoji9", None, "test")
    texts = []
    for name in rows["name_en"]:
        batch = processor(text=[name], return_tensors="pt")
        texts.append(model.get_text_features(**batch).pooler_output[0])
    clips = []
    for clip in frames("test", FRAMES):
        pixels = processor.image_processor(clip, return_tensors="pt")["pixel_values"]
        pictures = model.vision_model(pixels).pooler_output.flatten(1)
        clips.append(normalize(model.visual_projection(pictures), dim=-1).mean(0))
    theirs = [normalize(torch.stack(embeds), dim=-1) for embeds in (texts, clips)]
    ours = MMTModel.from_dual_encoder(folder)
    reader = MMTProcessor.from_dual_encoder(folder, sampling=FrameSampling(FRAMES))
    found = evaluate(ours, reader, open_corpus(EvalSpec(**SEARCH)))
    own = ranks(theirs[0], theirs[1])
    result = {
        "seed": seed,
        "largest_difference": {
            "caption": float((found.texts["en"] - theirs[0]).abs().max()),
            "clip": float((found.videos - theirs[1]).abs().max()),
        },
        "different_ranks": int((own != found.ranks["all"]["t2v"]["en"]).sum()),
        "R@1": {"transformers": float(100 * np.mean(own <= 1)), "imported": found.figures["all"]["t2v"]["en"]["R@1"]},
        "before": {direction: as_lists(of) for direction, of in found.ranks["all"].items()},
    }
    write_json(FOLDER / "equality" / f"seed{seed}.json", result)
    return {name: value for name, value in result.items() if name != "before"}


def as_lists(of: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """By language, for JSON."""
    return {language: values.tolist() for language, values in of.items()}


def run_of(row: str, seed: int) -> Run:
    """A row's `mmt train`."""
    return Run(recipe(row, seed), seed, FOLDER / "rows" / row / f"seed{seed}", FOLDER, options=())


def results(seeds: Sequence[int]) -> dict[str, Any]:
    """Gather every row into `results/dual/`."""
    checks = [json.loads((FOLDER / "equality" / f"seed{seed}.json").read_text("utf-8")) for seed in seeds]
    all_ranks = {"zero_shot": [{"t2v": check["before"]["t2v"], "v2t": check["before"]["v2t"]} for check in checks]}
    seconds: dict[str, list[float]] = {}
    for row in ROWS:
        outputs = [run_of(row, seed).read() for seed in seeds]
        all_ranks[row] = [output["ranks"]["test"]["all"] for output in outputs]
        seconds[row] = [output["done"]["seconds"] for output in outputs]
    arrays = {
        row: [{way: {k: np.array(v) for k, v in of.items()} for way, of in each.items()} for each in of_seeds]
        for row, of_seeds in all_ranks.items()
    }
    hits = {
        row: np.stack([np.stack([100.0 * (each["t2v"][lang] <= 1) for lang in FOREIGN], -1) for each in of_seeds])
        for row, of_seeds in arrays.items()
    }  # (seeds, clips, languages)
    pairs = [("align", "zero_shot"), ("align_strict", "zero_shot"), ("mmp", "zero_shot"), ("align_mmp", "mmp")]
    pairs += [("align_strict_mmp", "mmp"), ("align_mmp", "align")]
    found = provenance(list(seeds)) | {
        "commit": commit(),
        "parallel": json.loads((FOLDER / "parallel.json").read_text("utf-8")),
        "equality": [{name: value for name, value in check.items() if name != "before"} for check in checks],
        "rows": {row: summarise_seeds(of_seeds) for row, of_seeds in arrays.items()},
        "seconds": seconds,
        "comparisons": [{"a": a, "b": b, **paired_test(hits[a], hits[b])} for a, b in pairs],
    }
    for test, p in zip(found["comparisons"], holm([test["p"] for test in found["comparisons"]]), strict=True):
        test["p_holm"] = p
    write_json(RESULTS / "results.json", found)
    write_text(RESULTS / "table.md", table(found))
    return found


def table(found: Mapping[str, Any]) -> str:
    """R@1 by language, of every row, and of `none / en` and `MMP / en` of emoji9's table."""
    lines = [f"| | {' | '.join(LANGUAGES)} | avg w/o en |", "|---" * (len(LANGUAGES) + 2) + "|"]
    names = {"zero_shot": "the imported pair, as it is"} | {row: name for row, (name, *_) in ROWS.items()}
    rows = [(names[row], figures) for row, figures in found["rows"].items()]
    others = json.loads((Path("results") / "emoji9" / "results.json").read_text("utf-8"))["rows"]
    rows += [
        (f"{row['pretraining']} / {row['finetuning']} of emoji9's table", row)
        for row in others
        if (row["pretraining"], row["finetuning"], row["split"]) in (("none", "en", "test"), ("MMP", "en", "test"))
    ]
    for name, figures in rows:
        of = figures["t2v"]["R@1"]
        mean = of["avg_non_en"]
        each = " | ".join(f"{of[language]['mean']:.1f}" for language in LANGUAGES)
        low, high = mean["ci95"]
        lines.append(f"| {name} | {each} | {mean['mean']:.1f} [{low:.1f}, {high:.1f}] |")
    return "\n".join(lines) + "\n"


def main():
    """What the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parallel", "equality", "train", "results"))
    parser.add_argument("--row", choices=tuple(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--text9", type=Path, help="folder of NTREX-128 and Tatoeba")
    arguments = parser.parse_args()
    if arguments.what == "parallel":
        print(json.dumps(parallel(arguments.text9), indent=1))
    elif arguments.what == "equality":
        print(json.dumps(equality(arguments.seed), indent=1))
    elif arguments.what == "train":
        run_of(arguments.row, arguments.seed).start(dict(os.environ), f"{arguments.row}, seed {arguments.seed}")
    else:
        print(table(results(arguments.seeds)))


if __name__ == "__main__":
    main()
