"""film9: does a folder of films with subtitles do for search what a curated corpus does? `make film9`.

    python experiments/film9.py                          # 3 seeds; hours; goes on where it was
    python experiments/film9.py --share 0.1 --seeds 0    # the same path on a tenth of the training clips

Films are made of emoji9 (`film9_films.py`), their features extracted at 2 steps a second, their subtitles built, and
three rows trained: fine-tuned on the films' English captions alone; pre-trained on the films' subtitles first; or on
emoji9's own clips and keywords first. Each searches the test films by clips' names in nine languages
(`film9_search.py`). How films are cut and windows joined is chosen on the validation films, in English.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import film9_films
import film9_report
import numpy as np
import run
from film9_search import (
    Scored,
    Windows,
    best_ious,
    embed_windows,
    read_truth,
    recall,
    windows_of,
)

from modeling_mmt.commands.build import build
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.files import write_json
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import load_split
from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.evaluation.moments import IOUS
from modeling_mmt.extraction.extract import extract
from modeling_mmt.search.media_windows import WindowRule, shot_changes
from modeling_mmt.search.moments import JoinRule
from modeling_mmt.training.layer_cache import CachedProcessor, FrozenTextCache

RATE = 2.0  # steps a second
IMAGE_SIZE = 128
BATCH = 64  # windows a step of pre-training, no more than there are films
CLIP_SECONDS = [2.0, 4.0]  # about one cue: a clip is shown 3 to 9 seconds
EPOCHS = 50  # of emoji9/mmp_en: pre-training on films draws as many windows as that draws clips
ROWS = ("none", "mmp_films", "mmp_emoji9")
CHOSEN_WITH = "mmp_films"
WINDOWS: tuple[tuple[float, float], ...] = (
    (4.0, 1.0),
    (4.0, 2.0),
    (4.0, 4.0),
    (6.0, 1.0),
    (6.0, 3.0),
    (8.0, 2.0),
    (8.0, 4.0),
    (8.0, 8.0),
)
WINDOWS += ((12.0, 3.0), (12.0, 6.0), (12.0, 12.0))  # seconds and stride
GRID = (10.0, 10.0)
FRAMES = (1 / RATE, 1 / RATE)
NEIGHBOURHOODS = (1.0, 2.0, 3.0, 4.0, 5.0)  # seconds before and after the best frame
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Corpus:
    """Where everything of a film9 lies.

    Args:
        work_dir: the folder of it.
    """

    def __init__(self, work_dir: Path):
        self.folder = work_dir
        self.films, self.truth = work_dir / "films", work_dir / "truth.json"
        self.subtitles, self.captions = work_dir / "data" / "subtitles", work_dir / "data" / "captions"
        self.clips = work_dir / "data" / "clips"

    def features(self, name: str) -> Path:
        """The store of a split's films, of the captions' spans, or of emoji9."""
        return self.folder / "features" / name


def prepare(corpus: Corpus, arguments: argparse.Namespace) -> None:
    """Films, features and datasets; what is there is kept."""
    film9_films.make_corpus(corpus.folder, arguments.small, 0, arguments.jobs, arguments.share)
    at = {"image_size": IMAGE_SIZE, "num_workers": arguments.jobs - 1}
    for split in film9_films.SPLITS:
        extract(corpus.films / split, corpus.features(split), frames_per_second=RATE, **at)
    extract(corpus.films / "captions.csv", corpus.features("captions"), frames_per_second=RATE, **at)
    extract("emoji9", corpus.features("emoji9"), **at)
    shown = len(film9_films.clips_shown("train", arguments.small, arguments.share))
    corpus.clips.mkdir(parents=True, exist_ok=True)
    clips = film9_films.clips_of("train").remove_columns("frames").select(range(shown))
    clips.to_parquet(corpus.clips / "train.parquet")
    for kind, source, output, store in (
        ("subtitled_videos", corpus.films / "train", corpus.subtitles, "train"),
        ("own_clips", corpus.films, corpus.captions, "captions"),
    ):
        if not output.is_dir():
            words = ["--data_dir", source, "--output_dir", output, "--features", corpus.features(store)]
            build(kind, list(map(str, words)))


def recipes(corpus: Corpus) -> dict[str, dict[str, Any]]:
    """The three rows' recipes: those of emoji9, on the films' captions, with another source of pre-training."""
    data: dict[str, Any] = {"dataset": str(corpus.captions), "features": [str(corpus.features("captions"))]}
    data |= {"text_column": "caption", "languages": ["en"], "test_split": None}
    with_keywords = run.read_recipe("mmp_en")
    captions: dict[str, Any] = {"sources": [{"text_column": "caption", "languages": ["en"], "noise_probability": 0.0}]}
    captions["train_batch_size"] = BATCH
    films: dict[str, Any] = {
        "dataset": str(corpus.subtitles),
        "features": [str(corpus.features("train"))],
        "text_column": "text",
    }
    films |= {"languages": list(LANGUAGES), "clip_seconds": CLIP_SECONDS, "noise_probability": 0.0}
    keywords = with_keywords["pretraining"]["sources"][0]
    keywords |= {"dataset": str(corpus.clips), "features": [str(corpus.features("emoji9"))]}
    num_films = len(FeatureStore(corpus.features("train")))
    rows = {}
    for name, source in (("none", None), ("mmp_films", films), ("mmp_emoji9", keywords)):
        recipe = run.read_recipe("mmp_en" if source else "none_en")
        recipe["data"] = data
        recipe["card"] |= {"dataset_name": "film9", "dataset_description": "Films of emoji9's clips, with subtitles."}
        recipe["finetuning"] |= captions
        recipe |= {"cache_windows": True, "frozen_states_dir": str(corpus.folder / "frozen_states")}
        if source:
            batch = min(BATCH, num_films)
            recipe["pretraining"] |= {"sources": [source], "train_batch_size": batch}
            if name == "mmp_films":
                draws = EPOCHS * len(load_split(str(corpus.clips), None, "train", []))
                recipe["pretraining"]["num_train_epochs"] = -(-draws // (num_films - num_films % batch))
        rows[name] = recipe
    return rows


class Searcher:
    """A trained row as a search engine over the films of a split.

    Args:
        corpus: of film9.
        folder: of the checkpoint.
    """

    def __init__(self, corpus: Corpus, folder: Path):
        self.corpus = corpus
        self.model, processor = open_checkpoint(str(folder))
        cache = FrozenTextCache(self.model.text_model, corpus.folder / "frozen_states")
        self.processor, self.cache = processor, CachedProcessor(processor, cache)

    def queries(self, names: Sequence[str]) -> np.ndarray:
        """`(q, P)` embeddings of clips' names."""
        embeddings = embed_texts(self.model, self.cache, names).numpy()
        self.cache.cache.save()
        return embeddings

    def scored(self, queries: np.ndarray, split: str, windows: Windows) -> Scored:
        """The queries' scores in an index of a split's films."""
        store = FeatureStore(self.corpus.features(split))
        return Scored(windows, queries @ embed_windows(self.model, self.processor, store, windows).T)


def cuts_of(corpus: Corpus, split: str) -> dict[str, Windows]:
    """Every way that a split's films are cut, by name."""
    store, shots = FeatureStore(corpus.features(split)), shots_of(corpus, split)
    rules = {f"windows {seconds:g}/{stride:g}": WindowRule(seconds, stride) for seconds, stride in WINDOWS}
    rules |= {"grid 10": WindowRule(*GRID), "frames": WindowRule(*FRAMES)}
    cuts = {name: windows_of(store, rule) for name, rule in rules.items()}
    return cuts | {"shots": windows_of(store, WindowRule(8.0, 4.0, shots=True), shots)}


def shots_of(corpus: Corpus, split: str) -> dict[str, list[float]]:
    """Seconds of each film's shot changes, by PySceneDetect; kept in a file."""
    path = corpus.folder / f"shots-{split}.json"
    if not path.is_file():
        films = sorted((corpus.films / split).glob("*.m[pk][4v]"))
        write_json(path, {film.stem: shot_changes(str(film)) for film in films})
    return json.loads(path.read_text(encoding="utf-8"))


def answers(scored: Scored, cut: str) -> dict[str, Any]:
    """Every answer that a cut's scores give, by name."""
    if cut == "grid 10":
        return {"best": scored.best()}
    if cut == "frames":
        return {f"+-{seconds:g} s": scored.about_best(seconds) for seconds in NEIGHBOURHOODS}
    joined = {f"joined at {threshold:g}": scored.joined(JoinRule(threshold)) for threshold in THRESHOLDS}
    return {"best": scored.best()} | joined


def family(cut: str, answer: str) -> str:
    """Which of the five ways to answer a configuration is one of."""
    kind = cut.split()[0]
    return kind if kind in ("grid", "frames") else f"{kind}, joined" if answer.startswith("joined") else kind


def choose(corpus: Corpus, searchers: Mapping[tuple[str, int], Path], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every configuration on the validation films in English, mean over seeds."""
    truth, names = read_truth(corpus.truth, "validation"), names_of("validation")
    cuts = cuts_of(corpus, "validation")
    ious: dict[tuple[str, str], list[np.ndarray]] = {}
    for seed in seeds:
        searcher = Searcher(corpus, searchers[CHOSEN_WITH, seed])
        queries = searcher.queries([names["en"][clip] for clip in truth])
        for cut, windows in cuts.items():
            scored = searcher.scored(queries, "validation", windows)
            for answer, found in answers(scored, cut).items():
                ious.setdefault((cut, answer), []).append(best_ious(found, list(truth.values())))
    return [
        {"cut": cut, "answer": answer, "family": family(cut, answer), "R@1": recall(np.stack(values))}
        for (cut, answer), values in ious.items()
    ]


def names_of(split: str) -> dict[str, dict[str, str]]:
    """Language -> clip -> name."""
    clips = film9_films.clips_of(split)
    ids = clips["video_id"][:]
    return {language: dict(zip(ids, clips[f"name_{language}"][:], strict=True)) for language in LANGUAGES}


def search_test_films(
    corpus: Corpus, searchers: Mapping[tuple[str, int], Path], ways: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Of each row and seed: way -> `(languages, clips)` IoU of the first moment, in the test films."""
    truth, names = read_truth(corpus.truth, "test"), names_of("test")
    cuts = cuts_of(corpus, "test")
    ious: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for key, folder in searchers.items():
        searcher = Searcher(corpus, folder)
        queries = searcher.queries([names[language][clip] for language in LANGUAGES for clip in truth])
        scored = {way["cut"]: searcher.scored(queries, "test", cuts[way["cut"]]) for way in ways.values()}
        ious[key] = {
            name: best_ious(answers(scored[way["cut"]], way["cut"])[way["answer"]], list(truth.values()) * 9).reshape(
                len(LANGUAGES), len(truth)
            )
            for name, way in ways.items()
        }
        print(key, recall(ious[key][film9_report.default_of(ways)]), flush=True)
    return ious


def about(corpus: Corpus, arguments: argparse.Namespace) -> str:
    """What was searched and by what command, for the page."""
    films = json.loads(corpus.truth.read_text(encoding="utf-8"))["films"].values()
    parts = []
    for split in film9_films.SPLITS:
        seconds = [film["showings"][-1]["end"] for film in films if film["split"] == split]
        parts.append(f"{split} {len(seconds)} films, {sum(seconds) / 3600:.1f} h")
    share = "" if arguments.share == 1 else f" --share {arguments.share}"
    command = f"python experiments/film9.py{share} --seeds {' '.join(map(str, arguments.seeds))}"
    return f"`{command}`: {'; '.join(parts)}. A film's steps are {RATE:g} a second of {IMAGE_SIZE} px."


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Make what is missing, then write the results; returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="three films: the path alone, no figures to speak of")
    parser.add_argument("--share", type=float, default=1.0, help="of the training clips (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="films, or clips decoded, at a time")
    parser.add_argument("--work_dir", type=Path, default=Path("runs") / "film9")
    parser.add_argument("--output_dir", type=Path, default=Path("results") / "film9")
    arguments = parser.parse_args(argv)
    corpus = Corpus(arguments.work_dir.resolve())
    prepare(corpus, arguments)
    searchers = {}
    for name, recipe in recipes(corpus).items():
        for seed in arguments.seeds:
            folder = corpus.folder / "rows" / name / f"seed{seed}"
            one = run.Run(recipe, seed, folder, corpus.folder, options=(), keeps_weights=True)
            one.start(dict(os.environ), f"{name}, seed {seed}")
            one.read()
            searchers[name, seed] = one.folder
    configurations = choose(corpus, searchers, arguments.seeds)
    ways = film9_report.chosen(configurations)
    ious = search_test_films(corpus, searchers, ways)
    results = run.provenance(arguments.seeds) | film9_report.summary(ious, ways, arguments.seeds, IOUS)
    results |= {"about": about(corpus, arguments), "configurations": configurations}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output_dir / "results.json", results)
    (arguments.output_dir / "README.md").write_text(film9_report.markdown(results), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
