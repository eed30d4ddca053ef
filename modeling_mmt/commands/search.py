"""`mmt search`: the best clips of each query."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from modeling_mmt.commands.errors import printable
from modeling_mmt.commands.evaluation_options import EvaluationOptions
from modeling_mmt.commands.terminal import Paint, is_watched, print_json
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.extractors import check_extractors
from modeling_mmt.data.files import state_of
from modeling_mmt.data.reading import dataset_folder
from modeling_mmt.evaluation.evaluate import Corpus, EvalSpec, open_checkpoint
from modeling_mmt.inputs_mmt import clean_caption
from modeling_mmt.search.index import INDEX, SOURCE, Hit, SearchIndex

SOURCE_FIELDS = ("dataset", "dataset_revision", "split", "features", "video_column")
MAX_QUERY = 10_000  # characters; a model reads some dozens of tokens


def main(
    place: str,
    queries: Sequence[str],
    index: str | None = None,
    top: int = 5,
    where: Sequence[str] = (),
    as_json: bool = False,
    **options: Any,
):
    """Print the best clips of each query.

    Args:
        place: folder of a checkpoint or its name on the Hub; or the folder of an index, whose checkpoint is taken.
        queries: texts in any language.
        index: folder of an index of the checkpoint's; searched if it is there, else built and kept there.
        top: clips a query.
        where: conditions `COLUMN=VALUE` that all must hold of a clip.
        as_json: print JSON.
        options: of `EvaluationOptions`, which name what is searched.
    """
    texts = [check_query(query, number) for number, query in enumerate(queries, start=1)]
    conditions = dict(check_condition(text) for text in where)
    evaluation = EvaluationOptions(**options)
    if (Path(place) / INDEX).is_file():
        if index:
            raise InputError(f"{place} is an index already; leave --index {index} out, or name a checkpoint first")
        index, stored = place, SearchIndex.load(place)
        place, evaluation = stored.model, replace(evaluation, revision=stored.revision)
    folder = Path(index) if index else None
    model, processor = open_checkpoint(place, evaluation.revision)
    if folder and folder.exists():
        searched = SearchIndex.load(folder, model)
        check_source(folder, place, evaluation)
    else:
        corpus = evaluation.open(place)
        check_extractors(processor, corpus.extractors, corpus.spec.features)
        searched = SearchIndex.build(
            model,
            processor,
            corpus.rows,
            corpus.clips,
            columns=columns_of(corpus),
            revision=evaluation.revision,
            progress="clips" if is_watched(sys.stderr) else None,
        )
        if folder:
            searched.save(folder, source_of(corpus.spec))
    hits_of_queries = searched.search_texts(model, processor, texts, top, conditions)
    results: list[dict[str, Any]] = [
        {"query": text, "hits": [shown(searched, hit) for hit in hits]}
        for text, hits in zip(texts, hits_of_queries, strict=True)
    ]
    if as_json:
        print_json(results)
        return
    paint = Paint(sys.stdout)
    for result in results:
        print(paint.bold(printable(result["query"])))
        for rank, hit in enumerate(result["hits"], start=1):
            name, video_id = printable(hit["name"]), printable(hit["video_id"])
            print(f"{rank:4d}  {hit['score']:6.3f}  {name}  {paint.grey(video_id)}")


def columns_of(corpus: Corpus) -> list[str]:
    """What an index keeps of a corpus: all but features and media."""
    media = datasets.Image | datasets.Video
    features = corpus.rows.features.items()
    return [
        name for name, kind in features if name not in ("video_id", "video_features") and not isinstance(kind, media)
    ]


def shown(index: SearchIndex, hit: Hit) -> dict[str, Any]:
    """A hit's score, id, and what the clip is called: the first of its English texts, or the id again."""
    column = next((name for name in index.clips.column_names if name.endswith("_en")), "video_id")
    name = index.clips[hit.row][column] or hit.video_id
    return {
        "score": round(hit.score, 4),
        "video_id": hit.video_id,
        "name": name if isinstance(name, str) else name[0],
    }


def source_of(spec: EvalSpec) -> dict[str, Any]:
    """The clips that a search is over; folders in full, since a command may be given anywhere, and their state."""

    def full(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).exists() else name

    dataset, features = full(dataset_folder(spec.dataset)), [full(name) for name in spec.features]
    return {
        "dataset": dataset,
        "dataset_revision": spec.revision,
        "split": spec.split,
        "features": features,
        "video_column": spec.video_column,
        "state": {name: state_of(Path(name)) for name in (dataset, *features) if Path(name).is_dir()},
    }


def check_source(folder: Path, checkpoint: str, evaluation: EvaluationOptions):
    """Refuse options that name other clips than the index holds, and an index of clips that have changed since.

    Raises:
        InputError: names the option or the folder, and what the index was built from.
    """
    path = folder / SOURCE
    try:
        source = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        states = dict(source.get("state", {}))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not the JSON that `mmt search` writes ({error}); build the index again") from error
    for place, state in states.items():
        if Path(place).is_dir() and state_of(Path(place)) != state:
            raise InputError(
                f"{place} has changed since {folder} was built from it; delete the index to build it again"
            )
    named = [name for name in SOURCE_FIELDS if getattr(evaluation, name)]
    if not named:
        return
    requested = source_of(evaluation.spec(checkpoint))
    for name in named:
        if name not in source or source[name] != requested[name]:
            raise InputError(
                f"--index {folder} was built from {name} {source.get(name, '(not known)')}, and --{name} is "
                f"{requested[name]}; leave --{name} out, or name another folder for another index"
            )


def check_query(query: str, place: int) -> str:
    """A query without control characters.

    Raises:
        InputError: nothing is left of it, it is not UTF-8, or it is longer than anyone would type.
    """
    if len(query) > MAX_QUERY:
        raise InputError(f"query {place} has {len(query):,} characters; at most {MAX_QUERY:,} are allowed")
    if any("\ud800" <= character <= "\udfff" for character in query):
        raise InputError(f"query {place} has bytes that are not UTF-8: {query!r}; type it in a UTF-8 terminal")
    try:
        return clean_caption(query, place)
    except ValueError:
        raise InputError(f"query {place} is empty: {query!r}; type what the clip shows") from None


def check_condition(text: str) -> tuple[str, Any]:
    """`COLUMN=VALUE` in two; the value is read as JSON where it is JSON, as `true` or `8`, and as text elsewhere.

    Raises:
        InputError: no `=`.
    """
    column, sign, value = text.partition("=")
    if not sign:
        raise InputError(f"--where {text}: write COLUMN=VALUE, such as is_flag=false")
    try:
        return column, json.loads(value)
    except json.JSONDecodeError:
        return column, value
