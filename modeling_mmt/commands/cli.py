"""What the command `mmt` does once `mmt.py` has read its options."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import datasets
import huggingface_hub.utils
import transformers

import datasets_scripts
from modeling_mmt.commands.import_dual_encoder import import_command  # noqa: F401  called by its name
from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.features import FeatureStores, MissingClipError
from modeling_mmt.evaluation.evaluate import (
    AVERAGES,
    METRICS,
    WAYS,
    Corpus,
    Question,
    evaluate,
    open_checkpoint,
    open_corpus,
)
from modeling_mmt.evaluation.metrics import average_over_languages
from modeling_mmt.processing_mmt import clean_caption

BAD_INPUT, INTERRUPTED = 2, 130
SOURCE = "source.json"  # beside an index: what `mmt search` built it from
MAX_QUERY = 10_000  # characters; a model reads some dozens of tokens
BUNDLED = Path(datasets_scripts.__file__).parent  # where the wheel keeps the corpora that it brings


def run(command: Callable[[argparse.Namespace], None], arguments: argparse.Namespace, program: str) -> int:
    """Do a command; what was asked wrongly becomes one line and exit code 2, anything else a traceback."""
    be_quiet_unless_watched()
    try:
        command(arguments)
        sys.stdout.flush()
    except (ValueError, OSError, MissingClipError, ImportError) as error:
        if isinstance(error, BrokenPipeError):  # `mmt ... | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if arguments.traceback:
            raise
        told = " ".join(str(error).split()) or type(error).__name__
        print(f"{program}: {printable(told)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# commands
# ---------------------------------------------------------------------------------------------------------------------


def evaluate_command(arguments: argparse.Namespace):
    """Print a checkpoint's figures."""
    model, processor = open_checkpoint(arguments.checkpoint, arguments.revision)
    question, corpus = open_question(arguments)
    name = Path(arguments.checkpoint).name
    figures = evaluate(model, processor, corpus, name, progress=is_watched(sys.stderr)).figures
    counts = {language: len(captions) for language, captions in corpus.captions.items()}
    if arguments.json:
        told = {"checkpoint": arguments.checkpoint, "dataset": question.dataset, "split": question.split}
        told |= {"text_column": question.text_column, "n_clips": len(corpus.rows), "n_queries": counts}
        print_json(told | {"figures": figures})
        return
    paint = Paint(sys.stdout)
    queries = sorted(set(counts.values()))
    asked = f"{queries[0]}" if len(queries) == 1 else f"{queries[0]} to {queries[-1]}"
    print(f"{paint.bold(name)} on {question.dataset} ({question.split}): {len(corpus.rows)} clips, ", end="")
    print(f"{asked} queries ({question.text_column}) a language")
    for part, ways in figures.items():
        for way, by_language in ways.items():
            title = WAYS[way] + ("" if part == "all" else f", {part.replace('_', ' ', 1)}")
            print("\n" + paint.bold(f"{title:30}" + "".join(f"{metric:>8}" for metric in METRICS)))
            columns = {
                metric: average_over_languages({key: of[metric] for key, of in by_language.items()})
                for metric in METRICS
            }
            for key in columns["R@1"]:
                line = f"{AVERAGES.get(key, key):30}" + "".join(f"{columns[metric][key]:8.1f}" for metric in METRICS)
                print(paint.blue(line) if key in AVERAGES else line)


def search_command(arguments: argparse.Namespace):
    """Print the best clips of each query."""
    from modeling_mmt.search.index import SearchIndex

    queries = [check_query(query, place) for place, query in enumerate(arguments.queries, start=1)]
    where = dict(check_filter(text) for text in arguments.where)
    model, processor = open_checkpoint(arguments.checkpoint, arguments.revision)
    if arguments.index and arguments.index.exists():
        index = SearchIndex.load(arguments.index, model)
        check_source(arguments)
    else:
        question, corpus = open_question(arguments)
        columns = [
            name
            for name, feature in corpus.rows.features.items()
            if name not in ("video_id", "video_features") and not isinstance(feature, datasets.Image | datasets.Video)
        ]
        bar = "clips" if is_watched(sys.stderr) else None
        index = SearchIndex.build(
            model, processor, corpus.rows, corpus.clips, columns=columns, revision=arguments.revision, progress=bar
        )
        if arguments.index:
            index.save(arguments.index)
            told = json.dumps(source_of(question), indent=1, ensure_ascii=False)
            (arguments.index / SOURCE).write_text(told + "\n", encoding="utf-8")
    found = index.search_texts(model, processor, queries, arguments.top, where)
    name_column = next((name for name in index.clips.column_names if name.endswith("_en")), "video_id")
    results: list[dict[str, Any]] = [
        {
            "query": query,
            "hits": [{"score": round(hit.score, 4), **shown(index.clips[hit.row], name_column)} for hit in hits],
        }
        for query, hits in zip(queries, found, strict=True)
    ]
    if arguments.json:
        print_json(results)
        return
    paint = Paint(sys.stdout)
    for result in results:
        print(paint.bold(printable(str(result["query"]))))
        for rank, hit in enumerate(result["hits"], start=1):
            print(
                f"{rank:4d}  {hit['score']:6.3f}  {printable(hit['name'])}  {paint.grey(printable(hit['video_id']))}"
            )


def shown(clip: Mapping[str, Any], name_column: str) -> dict[str, str]:
    """A clip's id and what it is called: the first of its English texts, or the id again."""
    name = clip[name_column] or clip["video_id"]
    return {"video_id": clip["video_id"], "name": name if isinstance(name, str) else name[0]}


def report_command(arguments: argparse.Namespace):
    """Write a report."""
    try:
        from modeling_mmt.report.write import write_report
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'modeling_mmt[report]'") from error
    measures, page = write_report(arguments)
    if arguments.json:
        print_json(measures)
    else:
        print(page)


def publish_command(arguments: argparse.Namespace):
    """Push a checkpoint, or a dataset's folder."""
    from modeling_mmt.hub.publish import publish

    commit = publish(
        arguments.checkpoint,
        arguments.repository,
        repo_type=arguments.repo_type,
        revision=arguments.revision,
        tag=arguments.tag,
        private=arguments.private or None,
        message=arguments.message,
        scripts=arguments.script,
    )
    if arguments.json:
        print_json({"repository": arguments.repository, "commit": commit, "tag": arguments.tag})
    else:
        print(f"{arguments.repository} is at {arguments.tag or arguments.revision}, commit {commit}")


# ---------------------------------------------------------------------------------------------------------------------
# what commands share
# ---------------------------------------------------------------------------------------------------------------------


def open_question(arguments: argparse.Namespace) -> tuple[Question, Corpus]:
    """What the options of `mmt.add_question` name, opened."""
    question = question_of(arguments)
    return question, open_corpus(question, FeatureStores, ClipColumn)


def question_of(arguments: argparse.Namespace) -> Question:
    """What the options of `mmt.add_question` name."""
    return Question.of_checkpoint(
        arguments.checkpoint,
        dataset=bundled(arguments.dataset),
        revision=arguments.dataset_revision,
        features=arguments.features,
        video_column=arguments.video_column,
        split=arguments.split,
        text_column=arguments.text_column,
        languages=arguments.languages,
        exclude_column=arguments.exclude_column,
    )


def source_of(question: Question) -> dict[str, Any]:
    """The clips that a question is asked of; folders in full, since a command may be given anywhere."""

    def place(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).exists() else name

    return {
        "dataset": place(question.dataset),
        "dataset_revision": question.revision,
        "split": question.split,
        "features": [place(name) for name in question.features],
        "video_column": question.video_column,
    }


def check_source(arguments: argparse.Namespace):
    """Refuse options that name other clips than the index of `--index` holds.

    Raises:
        ValueError: names the option, and what the index was built from.
    """
    given = [name for name in ("dataset", "dataset_revision", "split", "features", "video_column")
             if getattr(arguments, name)]  # fmt: skip
    path = arguments.index / SOURCE
    if not given:
        return
    try:
        kept = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not the JSON that `mmt search` writes ({error}); build the index again") from error
    asked = source_of(question_of(arguments))
    for name in given:
        if name not in kept or kept[name] != asked[name]:
            raise ValueError(
                f"--index {arguments.index} was built from {name} {kept.get(name, '(not told)')}, and --{name} is "
                f"{asked[name]}; leave --{name} out, or name another folder for another index"
            )


def bundled(dataset: str | None) -> str | None:
    """The folder of a corpus that comes with the package, if it is called so and no folder here is."""
    inside = BUNDLED / dataset if dataset and dataset.isidentifier() else None
    return str(inside) if inside and not Path(str(dataset)).exists() and inside.is_dir() else dataset


def check_query(query: str, place: int) -> str:
    """A query without control characters.

    Raises:
        ValueError: nothing is left of it, or it is longer than anyone would type.
    """
    if len(query) > MAX_QUERY:
        raise ValueError(f"query {place} has {len(query):,} characters; at most {MAX_QUERY:,} are taken")
    try:
        return clean_caption(query, place)
    except ValueError:
        raise ValueError(f"query {place} is empty: {query!r}; type what the clip shows") from None


def check_filter(text: str) -> tuple[str, Any]:
    """`COLUMN=VALUE` in two; the value is read as JSON where it is JSON, as `true` or `8`, and as text elsewhere.

    Raises:
        ValueError: no `=`.
    """
    column, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--where {text}: write COLUMN=VALUE, such as is_flag=false")
    try:
        return column, json.loads(value)
    except json.JSONDecodeError:
        return column, value


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def print_json(value: Any):
    """JSON on the standard output; a number that JSON has not is an error."""
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def is_watched(stream: IO[str]) -> bool:
    """Whether a person sees the stream as it is written."""
    return stream.isatty()


def be_quiet_unless_watched():
    """Progress bars of the libraries go to terminals alone."""
    if not is_watched(sys.stderr):
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


class Paint:
    """Colours on a terminal, plain text elsewhere and where NO_COLOR is set (https://no-color.org)."""

    def __init__(self, stream: IO[str], environment: Mapping[str, str] = os.environ):
        dumb = environment.get("TERM") == "dumb"
        self.is_on = is_watched(stream) and not environment.get("NO_COLOR") and not dumb

    def bold(self, text: str) -> str:
        """For headings."""
        return self._paint("1", text)

    def blue(self, text: str) -> str:
        """For averages."""
        return self._paint("34", text)

    def grey(self, text: str) -> str:
        """For what matters less."""
        return self._paint("90", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.is_on else text
