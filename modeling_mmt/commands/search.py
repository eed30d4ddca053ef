"""`mmt search`: the best moments, pictures or clips for each query."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image

from modeling_mmt.commands.errors import printable
from modeling_mmt.commands.evaluation_options import EvaluationOptions
from modeling_mmt.commands.terminal import Paint, is_watched, print_json
from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.extractors import check_extractors
from modeling_mmt.data.files import state_of, writing_folder
from modeling_mmt.data.reading import dataset_folder
from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.evaluation.evaluate import Corpus, EvalSpec, open_checkpoint
from modeling_mmt.inputs_mmt import clean_caption
from modeling_mmt.search.index import INDEX, SOURCE, SearchIndex
from modeling_mmt.search.manifest import SearchIndexError, read_source
from modeling_mmt.search.moments import Moment
from modeling_mmt.search.published import downloaded_index

SOURCE_FIELDS = (
    "dataset",
    "dataset_revision",
    "split",
    "features",
    "video_column",
    "text_column",
    "languages",
    "exclude_column",
)
MAX_QUERY = 10_000  # characters; a model reads some dozens of tokens
SHEET_CELL = 160  # pixels, as large as a thumbnail


def main(
    place: str,
    queries: Sequence[str] = (),
    index: str | None = None,
    engine: str = "exact",
    top: int = 5,
    where: Sequence[str] = (),
    windows: bool = False,
    by_picture: Sequence[str] = (),
    by_video: str | None = None,
    at: float | None = None,
    contact_sheet: str | None = None,
    save_moments: str | None = None,
    as_json: bool = False,
    **options: Any,
):
    """Print the best moments of each query.

    Args:
        place: folder of a checkpoint or its name on the Hub; or of an index, whose checkpoint is taken.
        queries: texts in any language.
        index: folder of an index of the checkpoint's; searched if it is there, else built and kept there.
        engine: that searches the index, and is kept beside it, by its name in `modeling_mmt.search.engines`.
        top: moments a query, at most.
        where: conditions `COLUMN=VALUE`; of those on one column one must hold, and all columns must agree.
        windows: show the windows of videos as they are, not joined to moments.
        by_picture: pictures that are queries.
        by_video: a video that is a query, all of it or what is shown `at` this second.
        at: see `by_video`.
        contact_sheet: picture to write, with a row a query.
        save_moments: folder to make, with a file for each moment.
        as_json: print JSON.
        options: of `EvaluationOptions`, which name what is searched.
    """
    texts = [check_query(query, number) for number, query in enumerate(queries, start=1)]
    media: list[tuple[str, float | None]] = [(file, None) for file in by_picture]
    media += [(by_video, at)] if by_video is not None else []
    check_options(texts, media, top, at if by_video is None else None, contact_sheet, save_moments)
    conditions = conditions_of(where)
    model, processor, searched = open_index(place, index, EvaluationOptions(**options), engine)
    top = min(top, len(searched))
    parts = [embed_texts(model, processor, texts)] if texts else []
    if media:
        from modeling_mmt.search.media_queries import embed_media

        parts += [embed_media(model, processor, file, at, searched.settings, searched) for file, at in media]
    embeddings = torch.cat(parts)
    if windows:
        found = [
            [searched.timeline.moment_of(hit) for hit in hits] for hits in searched.search(embeddings, top, conditions)
        ]
    else:
        found = searched.search_moments(embeddings, top, conditions)
    titles = [*texts, *(name if at is None else f"{name} at {at:g}" for name, at in media)]
    if contact_sheet:
        draw_sheet(searched, titles, found, contact_sheet)
    if save_moments:
        save_files(searched, found, Path(save_moments))
    if as_json:
        print_json(
            [
                {"query": title, "hits": [shown(searched, moment) for moment in moments]}
                for title, moments in zip(titles, found, strict=True)
            ]
        )
        return
    print_table(searched, titles, found)
    for file in filter(None, (contact_sheet, save_moments)):
        print(file)


def check_options(
    texts: Sequence[str],
    media: Sequence[tuple[str, float | None]],
    top: int,
    stray_at: float | None,
    contact_sheet: str | None,
    save_moments: str | None,
):
    """Refuse what would fail only after the search.

    Raises:
        InputError: no query, `top` below 1, `--at` without `--by_video`, or a file or folder that cannot be written.
    """
    if not texts and not media:
        raise InputError("no query: give a text, --by_picture or --by_video")
    if top < 1:
        raise InputError(f"--top is {top}; give a number from 1")
    if stray_at is not None:
        raise InputError(f"--at {stray_at:g} needs a video; name it with --by_video")
    if save_moments and os.path.lexists(save_moments):
        raise InputError(f"--save_moments {save_moments} already exists; name a new folder: nothing is overwritten")
    if contact_sheet:
        try:
            from modeling_mmt.report.contact_sheet import check_ending
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is not installed: pip install 'modeling_mmt[report]'") from error
        check_ending(contact_sheet)


def open_index(
    place: str, index: str | None, evaluation: EvaluationOptions, engine: str
) -> tuple[Any, Any, SearchIndex]:
    """Model, processor and index: opened, or built and kept where `index` says so."""
    stored, pulled = None, None
    if not Path(place).exists() and place.count("/") == 1 and (pulled := downloaded_index(place, evaluation.revision)):
        place = str(pulled)
    if engine != "exact" and (pulled or not ((Path(place) / INDEX).is_file() or index)):
        raise InputError(f"--engine {engine} is kept beside an index; name the folder of one, or --index FOLDER")
    if (Path(place) / INDEX).is_file():
        if index:
            raise InputError(f"{place} is an index already; leave --index {index} out, or name a checkpoint first")
        index, stored = place, SearchIndex.load(place, engine=engine)
        stored.media_folder = None if pulled else stored.media_folder  # as `SearchIndex.from_hub` has it
        place, evaluation = stored.model, replace(evaluation, revision=stored.revision)
    elif index and Path(index).exists():
        stored = SearchIndex.load(index, engine=engine)
    folder = Path(index) if index else None
    if stored is None and Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise InputError(
            f"{place} is neither a checkpoint nor an index; of a folder of videos and pictures make an index first: "
            f"mmt index {place} --model CHECKPOINT --output_dir INDEX"
        )
    model, processor = open_checkpoint(place, evaluation.revision)
    if stored is not None and folder is not None:
        stored.check_model(model)
        check_source(folder, place, evaluation)
        return model, processor, stored
    corpus = evaluation.open(place)
    check_extractors(processor, corpus.extractors, corpus.spec.features)
    built = SearchIndex.build(
        model,
        processor,
        corpus.rows,
        corpus.clips,
        columns=columns_of(corpus),
        revision=evaluation.revision,
        progress="clips" if is_watched(sys.stderr) else None,
    )
    if folder:
        built.save(folder, source_of(corpus.spec))
    return model, processor, built if engine == "exact" or not folder else SearchIndex.load(folder, engine=engine)


def print_table(searched: SearchIndex, titles: Sequence[str], found: Sequence[Sequence[Moment]]):
    """For people: rank, cosine, where, and what it is called."""
    paint = Paint(sys.stdout)
    for title, moments in zip(titles, found, strict=True):
        print(paint.bold(printable(title)))
        for rank, moment in enumerate(moments, start=1):
            name = printable(name_of(searched, moment))
            place = printable(moment.file or moment.video_id)
            where = f"{place}  {between(moment)}".rstrip()
            shown_name = "" if name == place else f"{name}  "
            print(f"{rank:4d}  {moment.score:6.3f}  {shown_name}{paint.grey(where)}")


def between(moment: Moment) -> str:
    """`00:08-00:16`, with hours where there are any; nothing for what has no times."""
    if moment.start is None or moment.end is None:
        return ""
    return f"{clock(moment.start)}-{clock(moment.end)}"


def clock(seconds: float) -> str:
    """`mm:ss`, or `h:mm:ss`, of rounded seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def draw_sheet(searched: SearchIndex, titles: Sequence[str], found: Sequence[Sequence[Moment]], path: str):
    """Write the thumbnails of what was found, a row a query."""
    from modeling_mmt.report import contact_sheet as sheets

    cells = [
        [
            sheets.Cell(
                thumbnails(searched, moment),
                (f"{rank}   {moment.score:.3f}   {between(moment)}", printable(name_of(searched, moment))),
            )
            for rank, moment in enumerate(moments, start=1)
        ]
        for moments in found
    ]
    sheets.save(sheets.contact_sheet([printable(title) for title in titles], cells, SHEET_CELL), path)


def thumbnails(searched: SearchIndex, moment: Moment) -> list[Image.Image]:
    """The picture of a moment's best window; none where the index has none."""
    picture = searched.thumbnail(moment.row)
    with naming_input(f"thumbnail of {moment.video_id}", SearchIndexError):
        return [] if picture is None else [Image.open(BytesIO(picture)).convert("RGB")]


def save_files(searched: SearchIndex, found: Sequence[Sequence[Moment]], folder: Path):
    """Write every moment as a file `QUERY-RANK` into a new folder: ids are data, and name no file.

    Raises:
        InputError: a clip of a dataset, which has no file; or a file that is missing or cannot be copied.
    """
    from modeling_mmt.search.excerpts import media_file, save_excerpt

    with writing_folder(folder) as partial:
        for number, moments in enumerate(found, start=1):
            for rank, moment in enumerate(moments, start=1):
                source = media_file(searched, moment.file)
                save_excerpt(source, moment.start, moment.end, partial / f"{number:02d}-{rank:02d}")


def columns_of(corpus: Corpus) -> list[str]:
    """What an index keeps of a corpus: all but features and media."""
    media = datasets.Image | datasets.Video
    features = corpus.rows.features.items()
    return [
        name for name, kind in features if name not in ("video_id", "video_features") and not isinstance(kind, media)
    ]


def shown(index: SearchIndex, moment: Moment) -> dict[str, Any]:
    """A moment as it is shown: seconds from the file's first frame; None where it has no file or no times."""
    return {
        "file": moment.file,
        "start": moment.start if moment.start is None else round(moment.start, 3),
        "end": moment.end if moment.end is None else round(moment.end, 3),
        "score": round(moment.score, 4),
        "video_id": moment.video_id,
        "name": name_of(index, moment),
    }


def name_of(index: SearchIndex, moment: Moment) -> str:
    """What a clip is called: the first of its English texts, or its file, or its id."""
    column = next((name for name in index.clips.column_names if name.endswith("_en")), None)
    named = index.clips[moment.row][column] if column else None
    first = named[0] if isinstance(named, list) and named else named
    return first if first and isinstance(first, str) else moment.file or moment.video_id


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
        "text_column": spec.text_column,
        "languages": list(spec.languages),
        "exclude_column": spec.exclude_column,
        "state": {name: state_of(Path(name)) for name in (dataset, *features) if Path(name).is_dir()},
    }


def check_source(folder: Path, checkpoint: str, evaluation: EvaluationOptions):
    """Refuse options that name other clips than the index holds, and an index of clips that have changed since.

    Raises:
        InputError: names the option or the folder, and what the index was built from.
    """
    source = read_source(folder)
    states = source.get("state", {})
    if not isinstance(states, dict):
        raise InputError(f"{folder / SOURCE}: state is {states!r}, no object; build the index again")
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


def conditions_of(texts: Sequence[str]) -> Mapping[str, list[str]]:
    """`COLUMN=VALUE` as a filter; each column's type says what its values are, and one of several must hold.

    Raises:
        InputError: no `=`.
    """
    conditions: dict[str, list[str]] = {}
    for text in texts:
        column, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"--where {text}: write COLUMN=VALUE, such as file=kitchen/kettle.mp4")
        conditions.setdefault(column, []).append(value)
    return conditions
