"""An MTEB task for text-to-video search in many languages: nine-language emoji9, or any corpus.

    import mteb
    from modeling_mmt.plugins.mteb_task import TextToVideoRetrieval

    scores = mteb.evaluate(encoder, TextToVideoRetrieval(), cache=None)

The captions of a language are its queries, and every language searches the same clips. Needs the extra `plugins`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import dataset_folder, read_split
from modeling_mmt.evaluation.evaluate import Corpus, EvalSpec, corpus_of

# MTEB's names of the paper's languages
MTEB_NAMES = dict(
    zip(
        LANGUAGES,
        ("eng-Latn", "deu-Latn", "fra-Latn", "ces-Latn", "zho-Hans", "rus-Cyrl", "vie-Latn", "swh-Latn", "spa-Latn"),
        strict=True,
    )
)


def text_to_video_metadata(
    name: str, path: str, *, revision: str, description: str, languages: Sequence[str] = LANGUAGES, **fields
) -> TaskMetadata:
    """What MTEB wants to know about a corpus of clips with captions in several languages.

    Args:
        name: of the task, unique within MTEB.
        path: folder of the dataset, or its name on the Hub.
        revision: of the dataset.
        description: one sentence.
        languages: codes of `LANGUAGES`; each becomes a subset.
        fields: any other field of `TaskMetadata`.

    Raises:
        ValueError: a language that `LANGUAGES` lacks.
    """
    if unknown := sorted(set(languages) - set(LANGUAGES)):
        raise ValueError(f"languages has {unknown[0]!r}; choose from {', '.join(LANGUAGES)}")
    facts: dict[str, Any] = {
        "name": name,
        "description": description,
        "reference": None,
        "dataset": {"path": path, "revision": revision},
        "type": "Any2AnyMultilingualRetrieval",
        "category": "t2v",
        "modalities": ["text", "video"],
        "eval_splits": ["test"],
        "eval_langs": {language: [MTEB_NAMES[language]] for language in languages},
        "main_score": "ndcg_at_10",  # as MTEB's own video tasks; recall_at_1, 5 and 10 stand beside it
        "bibtex_citation": "",
    }
    return TaskMetadata(**(facts | fields))


EMOJI9 = text_to_video_metadata(
    "Emoji9TextToVideoRetrieval",
    dataset_folder("emoji9"),
    revision="1.0",
    description="Find the animated emoji that a name in one of nine languages describes.",
    task_subtypes=["Caption Pairing"],
    domains=["Web", "Written"],
    annotations_creators="expert-annotated",
    sample_creation="found",
    license="not specified",  # two: MIT for the pictures, Unicode-3.0 for the names
    dialect=[],
    reference="https://github.com/microsoft/fluentui-emoji",
    date=("2026-05-12", "2026-08-19"),  # when the packages of its names and of its pictures were published
)


class TextToVideoRetrieval(AbsTaskRetrieval):
    """Search the clips of one corpus by its captions in each language.

    Args:
        metadata: of the corpus, from `text_to_video_metadata`; emoji9's by default.
        text_column: kind of text; `<text_column>_<language>` holds a caption or a list of them.
        features: `(F, D_v)` array of each `video_id`, for models that take a frozen extractor's features: they become
            the corpus's column `video`. `None`: it holds the dataset's own videos or, where those are film strips
            (`frames`, `num_frames`), tensors `(F, 3, height, width)` uint8.
        kwargs: of MTEB's `AbsTask`.
    """

    metadata = EMOJI9
    data_loaded: bool
    k_values = (1, 5, 10, 20, 100)  # MTEB's own go on to 1000; the ranking is kept down to the last

    def __init__(
        self,
        metadata: TaskMetadata = EMOJI9,
        *,
        text_column: str = "name",
        features: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.metadata = metadata
        self.text_column, self.features = text_column, features
        super().__init__(**kwargs)

    def load_data(self, num_proc: int | None = None, **kwargs: Any):
        """Put queries, clips and which belongs to which in MTEB's form.

        Raises:
            ValueError: a column is missing; names the dataset.
        """
        if getattr(self, "data_loaded", False):
            return
        source = self.metadata.dataset
        self.dataset: dict[str, Any] = {language: {} for language in self.hf_subsets}
        for split in self.metadata.eval_splits:
            rows = read_split(source["path"], source["revision"], split)
            columns = {language: f"{self.text_column}_{language}" for language in self.hf_subsets}
            for column in ("video_id", *columns.values()):
                if column not in rows.column_names:
                    raise ValueError(f"{source['path']} ({split}): no column {column}; found {rows.column_names}")
            corpus = self._corpus(rows)
            spec = EvalSpec(source["path"], split=split, text_column=self.text_column, languages=list(columns))
            searched = corpus_of(spec, rows, clips=())
            for language in columns:
                queries, relevant = _queries(searched, language)
                self.dataset[language][split] = RetrievalSplitData(
                    queries=queries, corpus=corpus, relevant_docs=relevant, top_ranked=None
                )
        self.data_loaded = True

    def _corpus(self, rows: Dataset) -> Dataset:
        if self.features is None and "video" in rows.column_names:
            return rows.select_columns(["video_id", "video"]).rename_column("video_id", "id")
        ids = rows["video_id"][:]
        clips = partial(_read_clips, self.features, rows, {video_id: row for row, video_id in enumerate(ids)})
        return Dataset.from_dict({"id": ids}).with_transform(clips)

    def _calculate_descriptive_statistics_from_split(self, split: str, **kwargs: Any) -> Any:
        """As MTEB's, which wants a column of clips; encoders that find one want a video decoder's, torchaudio too."""
        self.load_data()
        parts = [subset[split] for subset in self.dataset.values()]
        corpora = [part["corpus"] for part in parts]
        for part, corpus in zip(parts, corpora, strict=True):
            if "video" not in corpus.column_names:
                clips = corpus.format["format_kwargs"]["transform"]
                part["corpus"] = Dataset.from_dict({"id": corpus["id"][:], "video": corpus["id"][:]}).with_transform(
                    clips
                )
        try:
            return super()._calculate_descriptive_statistics_from_split(split, **kwargs)
        finally:
            for part, corpus in zip(parts, corpora, strict=True):
                part["corpus"] = corpus


class Clip(torch.Tensor):
    """Features or frames as other encoders take them, with what MTEB's statistics ask of torchcodec's decoder."""

    @property
    def metadata(self) -> SimpleNamespace:
        """Steps, and of frames `(F, 3, H, W)` the size; features have none.

        MTEB hashes all steps but the last, so a still of one step counts as two.
        """
        height, width = self.shape[2:] if self.ndim == 4 else (None, None)
        unknown = dict.fromkeys(("average_fps", "duration_seconds", "rotation", "pixel_aspect_ratio"))
        return SimpleNamespace(num_frames=max(2, len(self)), height=height, width=width, **unknown)

    def get_frames_at(self, indices: Sequence[int]) -> SimpleNamespace:
        """The steps at these places, in `data`."""
        return SimpleNamespace(data=self.as_subclass(torch.Tensor)[list(indices)])


def _read_clips(features: Any, rows: Dataset, places: Mapping[str, int], batch: dict[str, list[Any]]) -> dict:
    """A corpus's ids to tensors, which other encoders take: features, or frames `(F, 3, H, W)`."""
    ids = batch.get("id", batch.get("video"))
    if features is not None:
        clips = [torch.as_tensor(np.asarray(features[video_id])) for video_id in ids or []]
    else:
        frames = [np.stack([np.asarray(frame) for frame in frames_of(rows[places[each]])]) for each in ids or []]
        clips = [torch.from_numpy(clip.transpose(0, 3, 1, 2)) for clip in frames]
    return batch | {"video": [clip.as_subclass(Clip) for clip in clips]}


def _queries(searched: Corpus, language: str) -> tuple[Dataset, dict[str, dict[str, int]]]:
    """A language's captions, and the clips that answer each: its own, or all of its concept."""
    ids = searched.rows["video_id"][:]
    queries, relevant, asked = [], {}, Counter[int]()
    owners, texts, answers = searched.clip_of[language], searched.captions[language], searched.answers[language]
    for row, text, rows in zip(owners, texts, answers, strict=True):
        query = f"{ids[row]}-{asked[row]}"
        asked[row] += 1
        queries.append({"id": query, "text": text})
        relevant[query] = {ids[answer]: 1 for answer in rows}
    return Dataset.from_list(queries), relevant
