"""The figures of `modeling_mmt.evaluation.moments` in every language, for a corpus with spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from modeling_mmt.evaluation.evaluate import Corpus, Evaluation
from modeling_mmt.evaluation.metrics import AVERAGES, average_over_languages
from modeling_mmt.evaluation.moments import DEPTHS, Span, judge, moment_metrics, spans_by_text, spans_of_rows
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.moments import JoinRule

Figures = dict[str, dict[str, float | None]]  # language -> metric -> value


def moment_figures(
    index: SearchIndex,
    corpus: Corpus,
    texts: Mapping[str, torch.Tensor],
    spans: Sequence[Span | None],
    rule: JoinRule | None = None,
) -> Figures:
    """Search an index by the texts of a corpus, each once, and hold what is found against the rows' spans.

    Args:
        index: whose files are those of the spans.
        corpus: its captions are the queries.
        texts: language -> `(captions, P)` float32, unit norm.
        spans: of `spans_of_rows`.
        rule: which windows are joined.

    Returns:
        Language -> `moment_metrics`, without languages none of whose texts has a span.
    """
    figures: Figures = {}
    for language, captions in corpus.captions.items():
        right = spans_by_text(spans, captions, corpus.clip_of[language])
        if right:
            first = {caption: place for place, caption in reversed(list(enumerate(captions)))}
            queries = texts[language][[first[caption] for caption in right]]
            found = index.search_moments(queries, max(DEPTHS), rule=rule)
            figures[language] = moment_metrics(
                [judge(moments, of) for moments, of in zip(found, right.values(), strict=True)]
            )
    return figures


def own_moment_figures(evaluation: Evaluation, corpus: Corpus) -> Figures:
    """The same where what is searched are the corpus's own clips; nothing where they have no spans."""
    spans = spans_of_rows(corpus.rows)
    if not any(spans):
        return {}
    clips = corpus.rows.select_columns(["video_id"])
    for number, name in enumerate(Span._fields):
        values = [span and span[number] for span in spans]
        clips = clips.add_column(name, values)  # type: ignore[call-arg]
    return moment_figures(SearchIndex(evaluation.videos, clips, ""), corpus, evaluation.texts, spans)


def average_moments(figures: Figures) -> Figures:
    """Adds `avg` and `avg_non_en` to the languages; None where a language has no value."""
    averages: Figures = {language: dict(of) for language, of in figures.items()}
    for name in next(iter(figures.values()), {}):
        values = {language: of[name] for language, of in figures.items()}
        whole = all(value is not None for value in values.values())
        means = average_over_languages({language: value if whole else 0.0 for language, value in values.items()})
        for key in (key for key in AVERAGES if key in means):
            averages.setdefault(key, {})[name] = float(means[key]) if whole else None
    return averages
