"""Search on a split with a run's model: to choose checkpoints, and at the end."""

from collections.abc import Sequence
from itertools import chain

from modeling_mmt.evaluation.embedding import texts_embedded_here
from modeling_mmt.evaluation.evaluate import EvalSpec, Evaluation, corpus_of, search_corpus
from modeling_mmt.training.batches import RunData


def search_split(
    data: RunData, split: str, text_column: str, languages: Sequence[str], exclude_column: str | None = None
) -> Evaluation:
    """Search a split by a kind of text in some languages, both ways; the frozen layers' output is kept.

    The run's processes share the work: each embeds some batches, and ranks some captions.
    """
    spec = EvalSpec(
        str(data.recipe.data.dataset),
        split=split,
        text_column=text_column,
        languages=languages,
        exclude_column=exclude_column,
    )
    corpus = corpus_of(spec, data.corpora.rows(data.recipe.data, split), data.clips(split))
    own = [texts_embedded_here(captions, data.group) for captions in corpus.captions.values()]
    data.encode_ahead(list(chain(*own)))
    return search_corpus(data.model, data.view, corpus, group=data.group)


def english_score(data: RunData) -> float:
    """MRR of English text-to-video search on validation: what checkpoints are chosen by."""
    evaluation = search_split(data, "validation", data.recipe.data.text_column, ["en"])
    return evaluation.figures["all"]["t2v"]["en"]["MRR"]
