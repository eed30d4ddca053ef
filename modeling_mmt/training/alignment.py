"""The stage `alignment`: a text tower learns languages from a frozen teacher, with translated sentences.

A row holds one sentence in several languages, `<kind>_<language>`. The student reads one of them, the teacher the
English one, and the student's embedding moves to the teacher's (`alignment_loss.py`). No clip is needed: where the
teacher's space is that of clips, so is the student's afterwards.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from modeling_mmt import MMTModel
from modeling_mmt.data.checks import has_text, missing_columns
from modeling_mmt.data.collator import stable_id
from modeling_mmt.evaluation.embedding import embed_texts, texts_embedded_here
from modeling_mmt.evaluation.metrics import retrieval_metrics
from modeling_mmt.evaluation.ranks import ranks
from modeling_mmt.training.alignment_loss import alignment_loss
from modeling_mmt.training.batches import RunData
from modeling_mmt.training.corpora import Corpora
from modeling_mmt.training.recipe import AlignmentArguments, StageArguments
from modeling_mmt.training.recipe_sources import Source, columns_of, english_column
from modeling_mmt.training.task import RetrievalTask

SENTENCES = "teacher_sentences"  # of a collated batch: the English ones, (B,) strings


class AlignmentTask(RetrievalTask):
    """Sentences in many languages get the teacher's embedding of the English one.

    Args:
        data: of the run.
        stage: that is trained.
    """

    def __init__(self, data: RunData, stage: AlignmentArguments):
        super().__init__(data, stage)
        assert data.teacher is not None
        self.loss_kind, self.teacher = stage.loss, data.teacher

    @property
    def held(self) -> list[str]:
        """As `RetrievalTask.held`; the temperature is not learned from pairs of sentences."""
        return [*super().held, "logit_"]

    def collator(self, source: Source) -> Callable[..., dict[str, Any]]:
        """Rows of a source to a batch of one language a row, with the English sentences."""
        collate, column = self.data.collator(source), english_column(source)

        def collate_pairs(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            sentences = [row[column] for row in rows]
            ids = torch.tensor([[stable_id(sentence)] for sentence in sentences])
            return {**collate(rows), "positive_ids": ids, SENTENCES: sentences}

        return collate_pairs

    def targets(self, batch: MutableMapping[str, Any]) -> torch.Tensor:
        """The teacher's embeddings of the batch's English sentences, `(B, P)`."""
        return self.teacher(batch.pop(SENTENCES))

    def embed(self, model: MMTModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The student's embeddings, not normalised."""
        return {"text_embeds": model.get_text_features(**batch).pooler_output}

    def objectives(
        self, embeds: Mapping[str, torch.Tensor], positive_ids: torch.Tensor, targets: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """`"loss"` alone, as `RetrievalTask.objectives`."""
        assert targets is not None
        scale, student = embeds["logit_scale"].detach(), embeds["text_embeds"]
        return {"loss": alignment_loss(self.loss_kind, student, targets, scale, positive_ids, self.data.group)}

    def score(self) -> float:
        """MRR, in percent, of the teacher's English sentence among all of validation's, sought by its translations.

        The mean over languages, and over sources.
        """
        scores = [
            self.translation_mrr(rows, source, language)
            for source, rows in held_out(self.data.corpora, self.stage.sources)
            for language in foreign_languages(source)
        ]
        return float(np.mean(scores))

    def translation_mrr(self, rows: Dataset, source: Source, language: str) -> float:
        """Of one language, over the rows that have it."""
        english, foreign = rows[english_column(source)][:], rows[f"{source.text_column}_{language}"][:]
        pairs = [(row, text) for row, text in enumerate(foreign) if text]
        texts = [text for _, text in pairs]
        group = self.data.group
        self.data.encode_ahead(texts_embedded_here(texts, group))
        queries = embed_texts(self.data.model, self.data.view, texts, group=group)
        gallery = embed_texts(self.teacher.model, self.teacher.view, english, group=group)
        return retrieval_metrics(ranks(queries, gallery, [row for row, _ in pairs], group=group))["MRR"]


def open_task(data: RunData, stage: StageArguments) -> RetrievalTask:
    """What a stage teaches."""
    return AlignmentTask(data, stage) if isinstance(stage, AlignmentArguments) else RetrievalTask(data, stage)


def foreign_languages(source: Source) -> list[str]:
    """All but English."""
    return [language for language in source.languages if language != "en"]


def held_out(corpora: Corpora, sources: Sequence[Source]) -> Iterator[tuple[Source, Dataset]]:
    """Each source with the rows of its dataset's `validation` split that have an English sentence."""
    for source in sources:
        rows = corpora.rows(corpora.home(source), "validation")
        yield source, rows.select(np.flatnonzero(has_text(rows, english_column(source))))


def pair_problems(corpora: Corpora, source: Source, evaluations: int) -> Iterator[str]:
    """What makes a source unfit for alignment: lists in place of sentences, no English, nothing held out."""
    data = corpora.home(source)
    columns = [english_column(source), *columns_of(source)]
    for split in ("train", "validation") if evaluations else ("train",):
        where, rows = f"{data.dataset} ({split})", corpora.rows(data, split)
        missing = list(missing_columns(rows, ["video_id", *columns]))
        yield from (f"{where}: {problem}" for problem in missing)
        if missing:
            continue
        for column in columns:
            if getattr(rows.features[column], "dtype", None) not in ("string", "large_string"):
                yield f"{where}: {column} is no column of texts; alignment needs one sentence a row and language"
        if split == "train" and (lacking := int((~has_text(rows, english_column(source))).sum())):
            yield f"{where}: {lacking:,} of {len(rows):,} rows have no {english_column(source)}; drop or fill them"
        if split == "validation":
            english = has_text(rows, english_column(source))
            for language in foreign_languages(source):
                if not (english & has_text(rows, f"{source.text_column}_{language}")).any():
                    yield f"{where}: no row has both {source.text_column}_{language} and English; take {language} out"
