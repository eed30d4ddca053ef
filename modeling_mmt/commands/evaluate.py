"""`mmt evaluate`: a checkpoint's figures, or those of an index of videos."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from modeling_mmt.commands.evaluation_options import EvaluationOptions
from modeling_mmt.commands.terminal import Paint, is_watched, print_json
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.wording import counted
from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.evaluation.evaluate import Corpus, evaluate, open_checkpoint
from modeling_mmt.evaluation.metrics import AVERAGES, DIRECTIONS, average_over_languages, shown_metrics
from modeling_mmt.evaluation.moments import spans_of_rows
from modeling_mmt.search.index import INDEX, SearchIndex
from modeling_mmt.search.moment_figures import Figures, average_moments, moment_figures, own_moment_figures


def main(checkpoint: str, as_json: bool = False, **options: Any):
    """Print a checkpoint's figures, or how well the moments of a corpus are found in an index.

    Args:
        checkpoint: folder, or name on the Hub; or the folder of an index, whose checkpoint is taken.
        as_json: print JSON, as in a checkpoint's metrics.json.
        options: of `EvaluationOptions`.
    """
    evaluation = EvaluationOptions(**options)
    if (Path(checkpoint) / INDEX).is_file():
        evaluate_index(Path(checkpoint), evaluation, as_json)
        return
    model, processor = open_checkpoint(checkpoint, evaluation.revision)
    corpus, name = evaluation.open(checkpoint), Path(checkpoint).name
    evaluated = evaluate(model, processor, corpus, name, progress=is_watched(sys.stderr))
    moments = own_moment_figures(evaluated, corpus)
    if as_json:
        figures = {"figures": evaluated.figures, **({"moments": moments} if moments else {})}
        print_json({"checkpoint": checkpoint, **described(corpus), "n_clips": len(corpus.rows), **figures})
        return
    print_tables(name, corpus, evaluated.figures)
    print_moments(moments)


def evaluate_index(folder: Path, evaluation: EvaluationOptions, as_json: bool):
    """Search an index by the texts of a corpus whose rows say where in its files they lie.

    Raises:
        InputError: no row does, or none of its files is in the index.
    """
    index = SearchIndex.load(folder)
    evaluation = replace(evaluation, revision=index.revision)
    model, processor = open_checkpoint(index.model, index.revision)
    index.check_model(model)
    corpus = evaluation.open_texts(index.model)
    spans = spans_of_rows(corpus.rows)
    dataset = f"{corpus.spec.dataset} ({corpus.spec.split})"
    files = {span.file for span in spans if span is not None}
    if not files:
        raise InputError(f"{dataset}: no row has a file, a start and an end; name such a corpus with --dataset")
    if not files & set(index.timeline.files.to_pylist()):
        raise InputError(
            f"{dataset}: none of its files is in {folder}, such as {min(files)!r}; write them relative to the folder "
            "that was indexed"
        )
    texts = {language: embed_texts(model, processor, captions) for language, captions in corpus.captions.items()}
    moments = moment_figures(index, corpus, texts, spans)
    if as_json:
        print_json({"index": str(folder), "checkpoint": index.model, **described(corpus), "moments": moments})
        return
    size = f"{counted(len(index), 'window')} of {counted(len(files), 'file')}"
    print(f"{Paint(sys.stdout).bold(folder.name)}: {size}, with the queries of {dataset}")
    print_moments(moments)


def described(corpus: Corpus) -> dict[str, Any]:
    """What the queries are of."""
    spec = corpus.spec
    counts = {language: len(captions) for language, captions in corpus.captions.items()}
    return {"dataset": spec.dataset, "split": spec.split, "text_column": spec.text_column, "n_queries": counts}


def print_moments(moments: Figures):
    """A row for each language: recall at each IoU, in the right file, and the median error of the start."""
    if not moments:
        return
    paint, names = Paint(sys.stdout), list(next(iter(moments.values())))
    print("\n" + paint.bold(f"{'moments':12}" + "".join(f"{name:>13}" for name in names)))
    for key, figures in average_moments(moments).items():
        cells = "".join(f"{'-':>13}" if value is None else f"{value:13.1f}" for value in figures.values())
        line = f"{AVERAGES.get(key, key):12}{cells}"
        print(paint.blue(line) if key in AVERAGES else line)


def print_tables(name: str, corpus: Corpus, figures: dict[str, Any]):
    """A table for each direction of each part, a row for each language."""
    paint, spec = Paint(sys.stdout), corpus.spec
    counts = sorted({len(captions) for captions in corpus.captions.values()})
    queries = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    print(f"{paint.bold(name)} on {spec.dataset} ({spec.split}): {counted(len(corpus.rows), 'clip')}, ", end="")
    print(f"{queries} queries ({spec.text_column}) a language")
    for part, directions in figures.items():
        for direction, by_language in directions.items():
            title = DIRECTIONS[direction] + ("" if part == "all" else f", {part.replace('_', ' ', 1)}")
            metrics = shown_metrics(next(iter(by_language.values())))
            print("\n" + paint.bold(f"{title:30}" + "".join(f"{metric:>8}" for metric in metrics)))
            columns = {
                metric: average_over_languages({key: of[metric] for key, of in by_language.items()})
                for metric in metrics
            }
            for key in columns["R@1"]:
                line = f"{AVERAGES.get(key, key):30}" + "".join(f"{columns[metric][key]:8.1f}" for metric in metrics)
                print(paint.blue(line) if key in AVERAGES else line)
