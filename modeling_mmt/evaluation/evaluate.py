"""A checkpoint on a dataset: its captions and clips as embeddings, and every query's rank.

`mmt evaluate` and `mmt report` measure any checkpoint so, and get the figures that `train.py` wrote to its
`metrics.json`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm

from modeling_mmt import MMTConfig, MMTModel, MMTProcessor
from modeling_mmt.data.checks import (
    CorpusError,
    feature_problems,
    flat_captions,
    missing_columns,
    search_problems,
)
from modeling_mmt.data.clip_cache import ClipSequence
from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.extractors import Extractor, check_extractors
from modeling_mmt.data.feature_store import FeatureStores
from modeling_mmt.data.hub_names import check_model_name
from modeling_mmt.data.reading import check_hub_name, dataset_folder, read_split
from modeling_mmt.data.weights import CheckpointError, check_finite, naming_torn_weights
from modeling_mmt.evaluation.checkpoint_recipe import RECIPE, recipe_file, searched_data
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos
from modeling_mmt.evaluation.metrics import retrieval_metrics
from modeling_mmt.evaluation.processes import Group
from modeling_mmt.evaluation.ranks import ranks_by_language
from modeling_mmt.evaluation.relevance import relevance_by_language

Ranks = dict[str, dict[str, np.ndarray]]  # direction -> language -> (queries,)
CONCEPT = "concept"  # column of what a clip shows; where it is there, every clip of a caption's concept answers it
MAKERS = "give the folder that `mmt train`, `mmt import` or `mmt demo` writes, or a name on the Hub: org/name"
MAX_WORDS = 600  # characters of a library's error that are passed on


@dataclass(frozen=True)
class EvalSpec:
    """What a checkpoint is asked to search.

    Args:
        dataset: folder or Hub name of a dataset with `video_id` and text columns `<kind>_<language>`.
        revision: tag, branch or commit of a Hub dataset.
        features: folders of feature stores, side by side in a step. Empty: the dataset has `video_features`, or
            `video_column` names its clips.
        video_column: column of videos, pictures or paths, for a checkpoint with a vision encoder.
        split: of the dataset.
        text_column: kind of text that is searched by.
        languages: that are searched in. Empty: all that the dataset has.
        exclude_column: boolean column of clips to leave out in a second set of figures; None for none.
    """

    dataset: str
    revision: str | None = None
    features: Sequence[str] = ()
    video_column: str | None = None
    split: str = "test"
    text_column: str = "caption"
    languages: Sequence[str] = ()
    exclude_column: str | None = None

    @classmethod
    def of_checkpoint(
        cls, checkpoint: str | Path, checkpoint_revision: str | None = None, **changes: Any
    ) -> "EvalSpec":
        """What the checkpoint's own recipe evaluates on, with the values of `changes` that are not None put over it.

        Args:
            checkpoint: folder, or name on the Hub.
            checkpoint_revision: tag, branch or commit of a name on the Hub.
            changes: fields.

        Raises:
            CorpusError: neither the recipe nor `changes` names a dataset.
        """
        path, spec = recipe_file(checkpoint, checkpoint_revision), cls(dataset="")
        if path is not None:
            data = searched_data(path)
            same = {key: data[key] for key in ("dataset", "revision", "features", "text_column", "languages")}
            same["video_column"] = data.get("video_column")
            spec = cls(**same, split=data["test_split"] or "validation", exclude_column=data["exclude_column"])
        dataset = changes.get("dataset")
        if dataset is not None and _folder(dataset) != _folder(spec.dataset):
            spec = cls(dataset=dataset)  # the recipe's columns and features are another dataset's
        if changes.get("features"):
            spec = replace(spec, video_column=None)
        elif changes.get("video_column"):
            spec = replace(spec, features=())
        spec = replace(spec, **{key: value for key, value in changes.items() if value is not None})
        if not spec.dataset:
            raise CorpusError(f"no dataset: {checkpoint} has no {RECIPE} that names one; give --dataset")
        return spec


def _folder(dataset: str) -> Path:
    return Path(dataset_folder(dataset)).resolve()


@dataclass
class Corpus:
    """A split, ready to be searched.

    Args:
        spec: what it was opened for.
        rows: the split, pictures and all.
        captions: language -> captions.
        clip_of: language -> the row that each caption belongs to; of a caption that many clips of a concept share,
            the first.
        clips: each row's features `(F_i, D_v)`, or what a processor reads as its video.
        parts: name -> `(rows,)` bool, True for a clip that is left out; `all` leaves out none.
        extractors: what made each stream of features; empty where it is not known.
    """

    spec: EvalSpec
    rows: Dataset
    captions: dict[str, list[str]]
    clip_of: dict[str, list[int]]
    clips: Sequence[Any]
    parts: dict[str, np.ndarray]
    extractors: Sequence[Extractor] = ()

    @property
    def languages(self) -> list[str]:
        """In the order asked for."""
        return list(self.captions)

    @cached_property
    def rows_of_concept(self) -> dict[str, list[int]]:
        """The rows of each concept, in order; empty where the dataset has no column `concept`."""
        rows: dict[str, list[int]] = {}
        for row, concept in enumerate(self.rows[CONCEPT] if CONCEPT in self.rows.column_names else ()):
            rows.setdefault(concept, []).append(row)
        return rows

    @cached_property
    def answers(self) -> dict[str, list[list[int]]]:
        """Language -> the rows that answer each caption: its clip, or all clips of its concept."""
        rows_like = {row: rows for rows in self.rows_of_concept.values() for row in rows}
        return {language: [rows_like.get(row, [row]) for row in owners] for language, owners in self.clip_of.items()}

    @cached_property
    def aligned(self) -> tuple[list[int], dict[str, list[int]]]:
        """The rows that have a caption in every language, and the place of each one's first caption by language."""
        first: dict[str, dict[int, int]] = {}
        for language, owners in self.clip_of.items():
            first[language] = {row: place for place, row in reversed(list(enumerate(owners)))}
        rows = [row for row in range(len(self.rows)) if all(row in of for of in first.values())]
        return rows, {language: [of[row] for row in rows] for language, of in first.items()}

    @property
    def is_paired(self) -> bool:
        """Whether every clip has one caption in every language."""
        return all(owners == list(range(len(self.rows))) for owners in self.clip_of.values())


@dataclass
class Evaluation:
    """What a checkpoint made of a corpus.

    Args:
        name: of the checkpoint, for people.
        texts: language -> `(captions, P)` float32, unit norm.
        videos: `(clips, P)` float32, unit norm.
        ranks: part -> direction -> language -> `(queries,)`; a clip without a caption has rank NaN.
        max_text_length: longest caption in tokens that the model reads.
        tokens: language -> `(captions,)` tokens of each caption before it is cut, special ones included.
        relevance: part -> language -> `mAP` and `nDCG@10` of each text-to-video query, `(queries,)`; empty where a
            query has one right answer.
    """

    name: str
    texts: dict[str, torch.Tensor]
    videos: torch.Tensor
    ranks: dict[str, Ranks]
    max_text_length: int = 0
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    relevance: dict[str, dict[str, dict[str, np.ndarray]]] = field(default_factory=dict)

    @cached_property
    def figures(self) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """As in `metrics.json`: part -> direction -> language -> R@1, R@5, R@10, MedR, MeanR, MRR.

        Of queries with many right answers also mAP and nDCG@10; video to text then names what a clip shows, so that
        its R@1 is the accuracy from clip to name.
        """
        figures = {
            part: {
                direction: {lang: retrieval_metrics(values[~np.isnan(values)]) for lang, values in by_language.items()}
                for direction, by_language in ranks.items()
            }
            for part, ranks in self.ranks.items()
        }
        for part, by_language in self.relevance.items():
            for language, values in by_language.items():
                figures[part]["t2v"][language] |= {metric: float(of.mean()) for metric, of in values.items()}
        return figures


def open_corpus(spec: EvalSpec) -> Corpus:
    """Read what is to be searched.

    Raises:
        CorpusError: a column or language is missing, or its content cannot be searched.
    """
    spec, rows = _open_rows(spec)
    where = f"{spec.dataset} ({spec.split})"
    own = None if spec.features else spec.video_column or "video_features"
    of_features = feature_problems(rows) if own == "video_features" else ()
    remedy = "; name the column of the clips with --video_column, or feature stores with --features"
    for problem in missing_columns(rows, [own] if own else []):
        raise CorpusError(f"{where}: {problem}{remedy}")
    for problem in of_features:
        raise CorpusError(f"{where}: {problem}")
    extractors: Sequence[Extractor] = ()
    if spec.features:
        stores = FeatureStores(spec.features)
        for _, problem in stores.problems(rows["video_id"][:]):
            raise CorpusError(f"{where}: {problem}")
        clips: Sequence[Any] = [stores[key] for key in rows["video_id"]]
        extractors = stores.extractors
    elif spec.video_column:
        clips = ClipSequence(ClipColumn(rows, spec.video_column, spec.dataset), rows["video_id"][:])
    else:
        clips = rows["video_features"][:]
    return replace(corpus_of(spec, rows, clips), extractors=extractors)


def open_texts(spec: EvalSpec) -> Corpus:
    """As `open_corpus`, without clips: for those who search an index with the captions."""
    spec, rows = _open_rows(spec)
    return corpus_of(spec, rows, ())


def _open_rows(spec: EvalSpec) -> tuple[EvalSpec, Dataset]:
    """The split, and what it was opened for with its languages named."""
    kind = spec.text_column
    rows = read_split(spec.dataset, spec.revision, spec.split)
    there = [name.removeprefix(f"{kind}_") for name in rows.column_names if name.startswith(f"{kind}_")]
    where = f"{spec.dataset} ({spec.split})"
    if not there:
        raise CorpusError(f"{where}: no column {kind}_<language>; found {', '.join(rows.column_names)}")
    for language in spec.languages:
        if language not in there:
            raise CorpusError(f"{where}: no {kind} in language {language!r}; there are {', '.join(there)}")
    spec = replace(spec, languages=spec.languages or there)
    for problem in missing_columns(rows, filter(None, ("video_id", spec.exclude_column))):
        raise CorpusError(f"{where}: {problem}")
    for problem in search_problems(rows, kind, spec.languages, spec.exclude_column):
        raise CorpusError(f"{where}: {problem}")
    return spec, rows


def corpus_of(spec: EvalSpec, rows: Dataset, clips: Sequence[Any]) -> Corpus:
    """A split that is open already, as it is searched.

    Args:
        spec: its kind of text, languages and `exclude_column` are taken.
        rows: of the split, found fit to be searched (`modeling_mmt.data.checks.search_problems`).
        clips: as `Corpus.clips`.
    """
    captions, clip_of = {}, {}
    concepts = rows[CONCEPT][:] if CONCEPT in rows.column_names else None
    for language in spec.languages:
        owners, texts = flat_captions(rows[f"{spec.text_column}_{language}"])
        if concepts is not None:
            owners, texts = asked_once(owners, texts, concepts)
        clip_of[language], captions[language] = owners, texts
    parts = {"all": np.zeros(len(rows), dtype=bool)}
    if spec.exclude_column:
        parts[f"without_{spec.exclude_column}"] = np.array(rows[spec.exclude_column], dtype=bool)
    return Corpus(spec, rows, captions, clip_of, clips, parts)


def asked_once(owners: Sequence[int], texts: Sequence[str], concepts: Sequence[str]) -> tuple[list[int], list[str]]:
    """The captions of each concept, each once, with the first row that it belongs to.

    Args:
        owners: the row of each caption.
        texts: the captions.
        concepts: of each row.
    """
    first: dict[tuple[str, str], int] = {}
    for row, text in zip(owners, texts, strict=True):
        first.setdefault((concepts[row], text), row)
    return list(first.values()), [text for _, text in first]


def check_checkpoint(source: str):
    """Refuse what `open_checkpoint` cannot open, before anything long is begun.

    Raises:
        FileNotFoundError: `source` is neither the folder of a checkpoint nor formed like a Hub name.
        InputError: as `check_hub_name` and `check_model_type`.
    """
    config = Path(source) / "config.json"
    if config.is_file():
        check_model_type(config)
    elif Path(source).exists():
        raise FileNotFoundError(f"no checkpoint in {source}: it has no config.json; {MAKERS}")
    elif source.count("/") != 1:
        raise FileNotFoundError(f"no checkpoint in {source}, which does not exist; {MAKERS}")
    else:
        check_hub_name(source)


def check_model_type(config: Path):
    """Refuse another model's config.json; one that cannot be read is `open_checkpoint`'s to name.

    Raises:
        InputError: it names another kind of model.
    """
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in (None, MMTConfig.model_type):
        raise InputError(
            f"{config}: model_type is {kind!r}, not {MMTConfig.model_type!r}; if it is a dual encoder, such as CLIP, "
            f"make a checkpoint of it: mmt import {config.parent} --output_dir CHECKPOINT"
        )


def open_checkpoint(source: str, revision: str | None = None) -> tuple[MMTModel, MMTProcessor]:
    """Model and processor of a folder, or of a Hub name at a revision.

    Raises:
        FileNotFoundError: as `check_checkpoint`.
        InputError: as `check_model_name`.
        CheckpointError: a file is missing or torn, does not fit the others, or a weight is not finite; names it.
    """
    check_checkpoint(source)
    check_model_name(source, revision)
    remedy = "download or save the checkpoint again"
    with naming_torn_weights(source, remedy):
        try:
            model = MMTModel.from_pretrained(source, revision=revision or "main").eval()
        except (OSError, ValueError, TypeError, StrictDataclassError) as error:
            raise CheckpointError(_in_one_line(_suspect(source, "config.json"), error, remedy)) from error
    check_finite(model.state_dict(), source, remedy)
    files = "processor_config.json", "tokenizer.json", "tokenizer_config.json"
    try:
        processor = MMTProcessor.from_pretrained(source, revision=revision or "main")
    except Exception as error:  # the libraries read what is there before they look whether it makes sense
        what = f"{_suspect(source, *files)}: processor and tokenizer"
        raise CheckpointError(_in_one_line(what, error, remedy)) from error
    if processor.tokenizer.pad_token is None:
        raise CheckpointError(f"{_suspect(source, *files)}: the tokenizer has no padding token; {remedy}")
    return model, processor


def _suspect(source: str, *names: str) -> str:
    """The first of a checkpoint's JSON files that is missing or holds no object; the checkpoint if all do."""
    for path in (Path(source) / name for name in names if Path(source).is_dir()):
        try:
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                return f"{path} is not a JSON object"
        except FileNotFoundError:
            return f"{path} does not exist"
        except ValueError:
            return f"{path} is not JSON"
    return source


def _in_one_line(what: str, error: Exception, remedy: str) -> str:
    """What could not be read, a library's words for why, and what to do."""
    words = " ".join(str(error).split()) or type(error).__name__
    return f"{what}: {words if len(words) <= MAX_WORDS else words[:MAX_WORDS] + '...'}; {remedy}"


def evaluate(
    model: MMTModel, processor: MMTProcessor, corpus: Corpus, name: str = "model", progress: bool = False
) -> Evaluation:
    """Embed a corpus and rank it, both ways and in every part.

    Args:
        model: in any mode; it is put back.
        processor: of the model.
        corpus: what to search.
        name: of the checkpoint, for people.
        progress: show a bar on the standard error stream.

    Raises:
        ValueError: a caption is empty, a clip has the wrong width, or an embedding is not finite; names which.
        ExtractorError: as `check_extractors`.
    """
    check_extractors(processor, corpus.extractors, corpus.spec.features)
    evaluation = search_corpus(model, processor, corpus, name, progress)
    tokens = {language: token_counts(processor, captions) for language, captions in corpus.captions.items()}
    return replace(evaluation, max_text_length=processor.max_text_length, tokens=tokens)


def search_corpus(
    model: MMTModel,
    processor: Callable[..., Any],
    corpus: Corpus,
    name: str = "model",
    progress: bool = False,
    group: Group = None,
) -> Evaluation:
    """As `evaluate`, with anything that makes the model's inputs, and without counting tokens.

    Args:
        model: as `evaluate`'s.
        processor: `processor(text=...)` and `processor(videos=...)` give the model's inputs.
        corpus: as `evaluate`'s.
        name: as `evaluate`'s.
        progress: as `evaluate`'s.
        group: processes that share embedding and ranking, each calling this with the same model and corpus; all of
            them get what one process would, to the last digit. None: this one alone.
    """
    texts = {}
    with tqdm(total=len(corpus.languages) + 1, desc=name, disable=not progress) as bar:
        for language, captions in corpus.captions.items():
            bar.set_postfix_str(language)
            texts[language] = embed_texts(model, processor, captions, group=group)
            bar.update()
        bar.set_postfix_str("clips")
        videos = embed_videos(model, processor, corpus.clips, ids=corpus.rows["video_id"][:], group=group)
        bar.update()
    answers, parts = corpus.answers, corpus.parts.items()
    ranks = {part: ranks_by_language(texts, videos, answers, excluded, group=group) for part, excluded in parts}
    evaluation = Evaluation(name, texts, videos, ranks)
    if corpus.rows_of_concept:
        evaluation.relevance = {
            part: relevance_by_language(texts, videos, answers, excluded, group) for part, excluded in parts
        }
    return evaluation


def token_counts(processor: MMTProcessor, captions: Sequence[str]) -> np.ndarray:
    """`(captions,)` tokens of each caption as the model would read it if it cut none."""
    prefixed = [processor.text_prefix + caption for caption in captions]
    return np.array([len(ids) for ids in processor.tokenizer(prefixed, verbose=False)["input_ids"]])
