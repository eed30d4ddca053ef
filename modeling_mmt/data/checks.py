"""Problems of a corpus, as sentences that name the column, the clip and the remedy."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from modeling_mmt.data.errors import InputError
from modeling_mmt.inputs_mmt import is_blank


class CorpusError(InputError):
    """A dataset is not fit for what is asked of it; the message names dataset, column and remedy."""


def search_problems(
    rows: Dataset, kind: str, languages: Sequence[str], exclude_column: str | None = None
) -> Iterator[str]:
    """What makes a split unfit to be searched by a kind of text; each a sentence that says what to do.

    Args:
        rows: of the split; a column that it lacks is another check's.
        kind: the columns are `<kind>_<language>`.
        languages: that are searched in.
        exclude_column: boolean, of clips that a second set of figures leaves out.
    """
    if problems := list(id_problems(rows)):
        yield from problems
        return
    yield from repeated_clips(rows)
    excluded = np.zeros(len(rows), dtype=bool)
    if exclude_column is not None and exclude_column in rows.column_names:
        yield from not_boolean(rows, exclude_column)
        excluded = np.array(rows[exclude_column][:], dtype=bool)
    if len(rows) and excluded.all():
        yield f"{exclude_column} holds for every clip, which leaves none; set data.exclude_column to null"
        excluded[:] = False  # said once
    for language in languages:
        column = f"{kind}_{language}"
        if column not in rows.column_names:
            continue
        if others := list(not_texts(rows, column)):
            yield from others
            continue
        described = has_text(rows, column)
        if not described.any():
            yield f"{column} is empty; take {language} out of data.languages, or fill it"
        elif excluded[described].all():
            yield f"{column} is empty but for clips that {exclude_column} leaves out; take {language} out, or fill it"
        yield from blank_texts(rows, column)


def missing_columns(rows: Dataset, columns: Iterable[str]) -> Iterator[str]:
    """Says which columns a split does not have, one after the other."""
    for column in dict.fromkeys(columns):
        if column not in rows.column_names:
            yield f"no column {column}; found {', '.join(rows.column_names)}"


def has_text(rows: Dataset, column: str) -> np.ndarray:
    """`(rows,)` bool: whether a row has a text, or a list of some; counted in Arrow, no text is decoded."""
    return are_filled(rows.select_columns([column]).with_format("arrow")[:][column])


def are_filled(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """`(values,)` bool: which texts, or lists of texts, are neither null nor empty."""
    kind = values.type
    if pa.types.is_null(kind):
        return np.zeros(len(values), dtype=bool)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    lengths = pc.list_value_length(values) if is_list else pc.binary_length(values)
    return pc.greater(pc.fill_null(lengths, 0), 0).to_numpy(zero_copy_only=False)


def too_few_languages(
    rows: Dataset, name: str, kinds: Sequence[str], languages: Sequence[str], at_least: int
) -> Iterator[str]:
    """Says how many clips have a text, of whichever of these kinds, in fewer languages than one draws of a clip."""
    languages_of = np.sum(
        [np.any([has_text(rows, f"{kind}_{language}") for kind in kinds], axis=0) for language in languages], axis=0
    )
    if too_few := int((languages_of < at_least).sum()):
        yield (
            f"{too_few:,} of {len(rows):,} clips of {name} have {' or '.join(kinds)} in fewer than {at_least} of "
            f"{', '.join(languages)}: drop or fill them"
        )


def id_type_problems(rows: Dataset) -> Iterator[str]:
    """Says that ids are not texts: another type would find no clip, or another one."""
    kind = getattr(rows.features["video_id"], "dtype", "list") if "video_id" in rows.features else "string"
    if kind not in ("string", "large_string"):
        yield (
            f"column video_id is {kind}, and ids are texts (001 is not 1): write them as strings, or build the table "
            "with `mmt build own_clips`"
        )


def id_problems(rows: Dataset) -> Iterator[str]:
    """Says that ids are not texts, or how many are missing, and where."""
    if problems := list(id_type_problems(rows)):
        yield from problems
        return
    missing = np.flatnonzero(~has_text(rows, "video_id"))
    if len(missing):
        yield f"{len(missing):,} rows have no video_id, the first is row {missing[0]} from 0; give each clip an id"


def repeated_clips(rows: Dataset) -> Iterator[str]:
    """Says that a clip has several rows: it would be its own rival, as many times over."""
    counts = rows.select_columns(["video_id"]).with_format("arrow")[:]["video_id"].value_counts()
    times = counts.field("counts").to_numpy()
    if len(counts) < len(rows):
        video_id, most = counts.field("values")[times.argmax()].as_py(), times.max()
        yield f"video_id {video_id!r} is in {most} rows; give a clip one row, and all its texts there as a list"


def not_boolean(rows: Dataset, column: str) -> Iterator[str]:
    """Says that a column which leaves clips out is not of true and false: every text would be taken for true."""
    kind = rows.features[column]
    if kind != Value("bool"):
        kind = getattr(kind, "dtype", kind)
        yield f"{column}, of clips to leave out, is a column of {kind}; give one of true and false"


def not_texts(rows: Dataset, column: str) -> Iterator[str]:
    """Says that a column is neither of strings nor of lists of them."""
    kind = rows.features[column]
    inner = getattr(kind, "feature", kind)
    if getattr(inner, "dtype", None) not in ("string", "large_string", "null"):
        yield f"{column} is a column of {getattr(kind, 'dtype', kind)}; give one of texts, or of lists of texts"


def blank_texts(rows: Dataset, column: str) -> Iterator[str]:
    """Says how many texts of a column have nothing to see, or are null in a list; no text at all is fine."""
    if any(not_texts(rows, column)):
        return
    number, first = 0, None
    for batch in rows.select_columns(["video_id", column]).with_format("arrow").iter(batch_size=1024):
        clip_of, captions = flat_captions(batch[column].to_pylist())
        blank = [clip for clip, caption in zip(clip_of, captions, strict=True) if is_blank(caption)]
        if blank and first is None:
            first = batch["video_id"][blank[0]].as_py()
        number += len(blank)
    if number:
        yield f"{number:,} texts of {column} are blank or null, the first of clip {first!r}; fill or remove them"


def cue_problems(rows: Dataset, kind: str, language: str) -> Iterator[str]:
    """Says how many videos have cues whose texts and seconds do not fit together, or are null."""
    columns = [f"{name}_{language}" for name in (kind, "start", "end")]
    faults = Faults()
    for batch in rows.select_columns(["video_id", *columns]).with_format("arrow").iter(batch_size=1024):
        texts, starts, ends = (batch[column].combine_chunks() for column in columns)
        if not all(_is_list(cues.type) or pa.types.is_null(cues.type) for cues in (texts, starts, ends)):
            yield f"{', '.join(columns)} are not lists of cues' texts and seconds; set clip_seconds to null"
            return
        count = _lengths(texts)
        uneven = (count != _lengths(starts)) | (count != _lengths(ends))
        faults.add(f"have not as many {columns[0]} as {columns[1]} and {columns[2]}", batch["video_id"], uneven)
        unusable = _any_of(_inner(texts).is_null().to_numpy(zero_copy_only=False), count)
        for seconds in (starts, ends):
            unusable |= _any_of(_unusable(_inner(seconds)), _lengths(seconds))
        faults.add(f"have null or NaN in {', '.join(columns)}", batch["video_id"], unusable)
    yield from faults.sentences("build the dataset again, or drop them")


def feature_problems(rows: Dataset, width: int | None = None, column: str = "video_features") -> Iterator[str]:
    """Says how many clips have features of their own that cannot be read: none, of another width, or not finite.

    Args:
        rows: with `video_id` and the column, lists of steps, each a list of numbers; counted in Arrow.
        width: `D_v` of the model; None: of the first step.
        column: of the features.
    """
    remedy = "extract their features again, or drop them"
    faults = Faults()
    for batch in rows.select_columns(["video_id", column]).with_format("arrow").iter(batch_size=256):
        clips, ids = _storage(batch[column].combine_chunks()), batch["video_id"]
        lengths = _lengths(clips)
        faults.add(f"have no {column} (null, or no steps)", ids, lengths == 0)
        if pa.types.is_null(clips.type):
            continue
        steps = _storage(clips.flatten()) if _is_list(clips.type) else clips
        if not (_is_list(clips.type) and _is_list(steps.type) and _is_number(steps.type.value_type)):
            yield f"{column} is a column of {clips.type}; give lists of steps, each a list of numbers"
            return
        widths = _lengths(steps)
        if width is None and len(widths):
            width = int(widths[0])
        faults.add(f"have {column} of another width than {width}", ids, _any_of(widths != width, lengths))
        not_finite = _any_of(_any_of(_unusable(steps.flatten()), widths), lengths)
        faults.add(f"have NaN, infinity or null in {column}", ids, not_finite)
    yield from faults.sentences(remedy)


class Faults:
    """How many clips have each fault, and the first of them."""

    def __init__(self):
        self.found: dict[str, tuple[int, str]] = {}

    def add(self, fault: str, ids: pa.ChunkedArray, has: np.ndarray):
        """Count the clips of a batch: `has` is `(clips,)` bool."""
        if has.any():
            number, first = self.found.get(fault, (0, ids[int(has.argmax())].as_py()))
            self.found[fault] = number + int(has.sum()), first

    def sentences(self, remedy: str) -> Iterator[str]:
        """One for each fault."""
        for fault, (number, first) in self.found.items():
            yield f"{number:,} clips {fault}, the first {first!r}; {remedy}"


def _storage(values: pa.Array) -> pa.Array:
    """The lists under a `datasets.Array2D`."""
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _lengths(lists: pa.Array) -> np.ndarray:
    """`(lists,)` how many values each has; 0 of a null."""
    if not _is_list(lists.type):
        return np.zeros(len(lists), np.int64)
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)


def _inner(lists: pa.Array) -> pa.Array:
    """The values of all lists, one after another; those of a null do not count."""
    return lists.flatten() if _is_list(lists.type) else pa.nulls(0)


def _unusable(numbers: pa.Array) -> np.ndarray:
    """`(numbers,)` bool: null, NaN or infinite."""
    values = numbers.to_numpy(zero_copy_only=False)  # null becomes NaN
    return ~np.isfinite(values) if values.dtype.kind in "fiu" else np.ones(len(values), dtype=bool)


def _any_of(flags: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`(lists,)` bool: whether any of a list's values has its flag."""
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths), flags, minlength=len(lengths)) > 0


def flat_captions(column: Iterable[str | Sequence[str] | None]) -> tuple[list[int], list[str]]:
    """One language's column to the row that each caption belongs to, and to the captions."""
    captions = [[value] if value and isinstance(value, str) else value or [] for value in column]
    rows = [row for row, alternatives in enumerate(captions) for _ in alternatives]
    return rows, [caption for alternatives in captions for caption in alternatives]
