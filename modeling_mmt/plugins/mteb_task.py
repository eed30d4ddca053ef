"""Text-to-video search in many languages as a task of MTEB, which has none: nine-language emoji9, or any corpus.

    import mteb
    from modeling_mmt.plugins.mteb_task import TextToVideoRetrieval

    scores = mteb.evaluate(encoder, TextToVideoRetrieval(), cache=None)

The captions of a language are its queries, and every language searches the same clips. Needs the extra `plugins`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import dataset_folder

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
)


class TextToVideoRetrieval(AbsTaskRetrieval):
    """Search the clips of one corpus by its captions in each language.

    Args:
        metadata: of the corpus, from `text_to_video_metadata`; emoji9's by default.
        text_column: kind of text; `<text_column>_<language>` holds a caption or a list of them.
        features: `(F, D_v)` array of each `video_id`, for models that take a frozen extractor's features: they become
            the corpus's column `video`. `None`: it holds the dataset's own videos or, where those are film strips
            (`frames`, `num_frames`), arrays `(F, 3, height, width)` uint8.
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
        revision = None if Path(source["path"]).is_dir() else source["revision"]
        self.dataset: dict[str, Any] = {language: {} for language in self.hf_subsets}
        for split in self.metadata.eval_splits:
            rows = load_dataset(source["path"], split=split, revision=revision)
            columns = {language: f"{self.text_column}_{language}" for language in self.hf_subsets}
            for column in ("video_id", *columns.values()):
                if column not in rows.column_names:
                    raise ValueError(f"{source['path']} ({split}): no column {column}; found {rows.column_names}")
            corpus = self._corpus(rows)
            for language, column in columns.items():
                queries, relevant = _queries(rows["video_id"], rows[column])
                self.dataset[language][split] = RetrievalSplitData(
                    queries=queries, corpus=corpus, relevant_docs=relevant, top_ranked=None
                )
        self.data_loaded = True

    def _corpus(self, rows: Dataset) -> Dataset:
        if self.features is None and "video" in rows.column_names:
            return rows.select_columns(["video_id", "video"]).rename_column("video_id", "id")
        pixels = [] if self.features is not None else ["frames", "num_frames"]
        return rows.select_columns(["video_id", *pixels]).rename_column("video_id", "id").with_transform(self._videos)

    def _videos(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        ids = {"id": batch["id"]}
        if self.features is not None:
            return ids | {"video": [self.features[video_id] for video_id in batch["id"]]}
        if "frames" not in batch:  # the ids alone were asked for
            return ids
        strips = [{"frames": f, "num_frames": n} for f, n in zip(batch["frames"], batch["num_frames"], strict=True)]
        return ids | {
            "video": [
                np.stack([np.asarray(frame) for frame in frames_of(strip)]).transpose(0, 3, 1, 2) for strip in strips
            ]
        }


def _queries(video_ids: Sequence[str], captions: Sequence[Any]) -> tuple[Dataset, dict[str, dict[str, int]]]:
    queries, relevant = [], {}
    for video_id, value in zip(video_ids, captions, strict=True):
        for number, caption in enumerate([value] if isinstance(value, str) else value or []):
            query = f"{video_id}-{number}"
            queries.append({"id": query, "text": caption})
            relevant[query] = {video_id: 1}
    return Dataset.from_list(queries), relevant
