"""The numbers of the report, from evaluations of one or more checkpoints on one corpus."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from modeling_mmt.evaluation.diagnostics import (
    agreement,
    confusions,
    gap_closed,
    gap_closed_interval,
    gap_to_english,
    hardest,
    holm,
    hubness,
    mean_rank_variance,
    occurrences,
    overlap,
    text_similarity,
    top_results,
    unanimity,
)
from modeling_mmt.evaluation.evaluate import Corpus, Evaluation
from modeling_mmt.evaluation.metrics import (
    DIRECTIONS,
    RELEVANCE_METRICS,
    STATISTIC,
    average_over_languages,
    per_query,
    shown_metrics,
)
from modeling_mmt.evaluation.significance import bootstrap_interval, paired_test, summarise_seeds
from modeling_mmt.search.moment_figures import own_moment_figures

TOP = 10  # results a query that overlap and hubness look at
SHOWN = 12  # hardest clips, and confusions
HUBS = 3


def measure(
    evaluations: Sequence[Evaluation],
    corpus: Corpus,
    zero_shot: str | None = None,
    translate_train: str | None = None,
    num_samples: int = 10_000,
) -> dict[str, Any]:
    """The report's JSON; keys that are languages are in the corpus's order.

    Args:
        evaluations: the checkpoint that the report is about, then those it is compared with.
        corpus: what they searched.
        zero_shot: name of the one that was fine-tuned on English without help; with `translate_train`, of the one
            trained on every language: how much of the gap between them the first checkpoint closes.
        translate_train: see `zero_shot`.
        num_samples: bootstrap samples, and sign flips.
    """
    spec, first = corpus.spec, evaluations[0]
    by_name = {evaluation.name: evaluation for evaluation in evaluations}
    result: dict[str, Any] = {
        "dataset": spec.dataset,
        "revision": spec.revision,
        "split": spec.split,
        "text_column": spec.text_column,
        "languages": corpus.languages,
        "n_clips": len(corpus.rows),
        "n_queries": {language: len(captions) for language, captions in corpus.captions.items()},
        "checkpoints": {e.name: measure_one(e, corpus, num_samples) for e in evaluations},
        "comparisons": comparisons(evaluations, corpus, num_samples),
        "gap_closed": None,
    }
    if zero_shot and translate_train and corpus.aligned[0] and set(corpus.languages) - {"en"}:
        result["gap_closed"] = {
            direction: closed(first, by_name[zero_shot], by_name[translate_train], corpus, direction, num_samples)
            for direction in DIRECTIONS
        }
    return result


def measure_one(evaluation: Evaluation, corpus: Corpus, num_samples: int) -> dict[str, Any]:
    """Everything about one checkpoint."""
    languages, (rows, places) = corpus.languages, corpus.aligned
    figures = {part: with_intervals(evaluation, corpus, part, num_samples) for part in evaluation.ranks}
    result: dict[str, Any] = {
        "figures": figures,
        "gap_to_english": {
            direction: gap_to_english(
                {language: figures["all"][direction]["R@1"][language]["value"] for language in languages}
            )
            for direction in DIRECTIONS
        },
        "tokens": {language: token_figures(evaluation, language) for language in languages},
        "n_aligned": len(rows),
        "moments": own_moment_figures(evaluation, corpus),
    }
    if not rows:
        return result
    texts = torch.stack([evaluation.texts[language][places[language]] for language in languages])  # (L, N, P)
    found = np.stack([top_results(text, evaluation.videos, TOP) for text in texts])  # (L, N, k)
    ranks = aligned_ranks(evaluation, corpus)
    same, different = text_similarity(texts)
    reference = languages.index("en") if "en" in languages else 0
    result["consistency"] = {
        "top_k": found.shape[2],
        "overlap": overlap(found).tolist(),
        "reference": languages[reference],
        "agreement": dict(zip(languages, agreement(found[..., 0], reference).tolist(), strict=True)),
        "unanimity": unanimity(found[..., 0]),
        "mean_rank_variance": mean_rank_variance(ranks),
    }
    result["text_similarity"] = {
        "same_clip": same.tolist(),
        "different_clips": [[value if math.isfinite(value) else None for value in row] for row in different.tolist()],
    }
    counts = {language: occurrences(of, len(corpus.rows)) for language, of in zip(languages, found, strict=True)}
    result["hubness"] = {language: hubness(of) for language, of in counts.items()}
    ids, total = corpus.rows["video_id"], np.sum(list(counts.values()), axis=0)
    result["occurrences"] = {language: of.tolist() for language, of in counts.items()}
    largest = np.argsort(-total, kind="stable")[:HUBS].tolist()
    result["hubs"] = [{"video_id": ids[row], "row": row, "count": int(total[row])} for row in largest]
    result["hardest"] = [
        {
            "video_id": ids[rows[place]],
            "row": rows[place],
            "ranks": dict(zip(languages, ranks[:, place].tolist(), strict=True)),
            "found": {language: int(found[number, place, 0]) for number, language in enumerate(languages)},
        }
        for place in hardest(ranks)[:SHOWN]
    ]
    kin = np.arange(len(corpus.rows))  # what another clip of the concept shows is no confusion
    for alike in corpus.rows_of_concept.values():
        kin[alike] = alike[0]
    result["confusions"] = [
        {"asked": pair.expected, "found": pair.retrieved, "languages": list(pair.languages)}
        for pair in confusions(kin[found[..., 0]], kin[rows].tolist(), languages)[:SHOWN]
    ]
    return result


def with_intervals(evaluation: Evaluation, corpus: Corpus, part: str, num_samples: int) -> dict[str, Any]:
    """Direction -> metric -> language or average -> value and `ci95`, over clips.

    The averages have an interval only where every clip has one caption in every language, so that a clip can be drawn
    in all of them at once.
    """
    summary = summarise_seeds([evaluation.ranks[part]], num_samples) if corpus.is_paired else None
    figures = evaluation.figures[part]
    result: dict[str, Any] = {direction: {} for direction in DIRECTIONS}
    is_included = ~corpus.parts[part]
    for direction, by_language in evaluation.ranks[part].items():
        for metric in shown_metrics(next(iter(figures[direction].values()))):
            means = average_over_languages(
                {language: figures[direction][language][metric] for language in by_language}
            )
            cells = result[direction][metric] = {}
            for key, mean in means.items():
                interval = None
                if summary is not None and metric in summary[direction]:
                    interval = summary[direction][metric][key]["ci95"]
                elif key in by_language:
                    if metric in RELEVANCE_METRICS:
                        values = evaluation.relevance[part][key][metric]
                    else:
                        values = per_query(metric, by_language[key][~np.isnan(by_language[key])])
                    is_kept = [is_included[rows].any() for rows in corpus.answers[key]]
                    groups = np.array(corpus.clip_of[key])[is_kept] if direction == "t2v" else None
                    interval = list(
                        bootstrap_interval(values, num_samples, statistic=STATISTIC[metric], groups=groups)
                    )
                cells[key] = {"value": float(mean), "ci95": interval}
    return result


def token_figures(evaluation: Evaluation, language: str) -> dict[str, float]:
    """Median, 95th percentile and longest caption in tokens, and percent of captions that are cut."""
    counts = evaluation.tokens[language]
    return {
        "mean": float(counts.mean()),
        "median": float(np.median(counts)),
        "p95": float(np.quantile(counts, 0.95)),
        "longest": int(counts.max()),
        "cut": float(100.0 * np.mean(counts > evaluation.max_text_length)),
    }


def aligned_ranks(evaluation: Evaluation, corpus: Corpus) -> np.ndarray:
    """`(L, N)` text-to-video rank of the first caption of each clip that has one in every language."""
    _, places = corpus.aligned
    return np.stack([evaluation.ranks["all"]["t2v"][language][places[language]] for language in corpus.languages])


def hits_by_clip(evaluation: Evaluation, corpus: Corpus, direction: str) -> dict[str, np.ndarray]:
    """Language -> `(N,)` R@1 (0 to 100) of each clip that has a caption in every language, its captions averaged."""
    rows, _ = corpus.aligned
    result = {}
    for language, ranks in evaluation.ranks["all"][direction].items():
        hits = 100.0 * (ranks <= 1)
        if direction == "t2v":
            owners = np.array(corpus.clip_of[language])
            total = np.bincount(owners, weights=hits, minlength=len(corpus.rows))
            hits = total / np.maximum(1, np.bincount(owners, minlength=len(corpus.rows)))
        result[language] = hits[rows]
    return result


def comparisons(evaluations: Sequence[Evaluation], corpus: Corpus, num_samples: int) -> list[dict[str, Any]]:
    """Paired tests of R@1 between every two checkpoints; `p_holm` is adjusted for all tests of the report."""
    languages = corpus.languages
    foreign = [language for language in languages if language != "en"]
    scopes = {"en": ["en"], "all but en": foreign} if 0 < len(foreign) < len(languages) else {"all": languages}
    tests: list[dict[str, Any]] = []
    for a, b in combinations(evaluations if corpus.aligned[0] else [], 2):
        for direction in DIRECTIONS:
            left, right = hits_by_clip(a, corpus, direction), hits_by_clip(b, corpus, direction)
            for scope, chosen in scopes.items():
                values = [np.stack([of[language] for language in chosen], axis=-1)[None] for of in (left, right)]
                test = paired_test(values[0], values[1], num_samples)
                tests.append({"a": a.name, "b": b.name, "way": direction, "scope": scope, **test})
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p
    return tests


def closed(
    ours: Evaluation,
    zero_shot: Evaluation,
    translate_train: Evaluation,
    corpus: Corpus,
    direction: str,
    num_samples: int,
) -> dict[str, Any]:
    """How much of the gap in non-English R@1 is closed: on average with its interval, and in each language."""
    three = [hits_by_clip(evaluation, corpus, direction) for evaluation in (ours, zero_shot, translate_train)]
    foreign = [language for language in corpus.languages if language != "en"]
    by_clip = [np.mean([of[language] for language in foreign], axis=0) for of in three]
    means = [float(values.mean()) for values in by_clip]
    return {
        "zero_shot": zero_shot.name,
        "translate_train": translate_train.name,
        "average": gap_closed(*means),
        "ci95": gap_closed_interval(by_clip[0], by_clip[1], by_clip[2], num_samples),
        "languages": {language: gap_closed(*(float(of[language].mean()) for of in three)) for language in foreign},
    }
