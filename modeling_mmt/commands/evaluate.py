"""`mmt evaluate`: a checkpoint's figures."""

import sys
from pathlib import Path
from typing import Any

from modeling_mmt.commands.evaluation_options import EvaluationOptions
from modeling_mmt.commands.terminal import Paint, is_watched, print_json
from modeling_mmt.evaluation.evaluate import Corpus, evaluate, open_checkpoint
from modeling_mmt.evaluation.metrics import AVERAGES, DIRECTIONS, average_over_languages, shown_metrics


def main(checkpoint: str, as_json: bool = False, **options: Any):
    """Print a checkpoint's figures.

    Args:
        checkpoint: folder, or name on the Hub.
        as_json: print JSON, as in a checkpoint's metrics.json.
        options: of `EvaluationOptions`.
    """
    evaluation = EvaluationOptions(**options)
    model, processor = open_checkpoint(checkpoint, evaluation.revision)
    corpus, name = evaluation.open(checkpoint), Path(checkpoint).name
    figures = evaluate(model, processor, corpus, name, progress=is_watched(sys.stderr)).figures
    if not as_json:
        print_tables(name, corpus, figures)
        return
    spec = corpus.spec
    print_json(
        {
            "checkpoint": checkpoint,
            "dataset": spec.dataset,
            "split": spec.split,
            "text_column": spec.text_column,
            "n_clips": len(corpus.rows),
            "n_queries": {language: len(captions) for language, captions in corpus.captions.items()},
            "figures": figures,
        }
    )


def print_tables(name: str, corpus: Corpus, figures: dict[str, Any]):
    """A table for each direction of each part, a row for each language."""
    paint, spec = Paint(sys.stdout), corpus.spec
    counts = sorted({len(captions) for captions in corpus.captions.values()})
    queries = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    print(f"{paint.bold(name)} on {spec.dataset} ({spec.split}): {len(corpus.rows)} clips, ", end="")
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
