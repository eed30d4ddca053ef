"""What is wrong with a corpus, as sentences that name column, clip and remedy."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from modeling_mmt.data.errors import InputError


class CorpusError(InputError):
    """A dataset is not fit for what is asked of it; the message names dataset, column and remedy."""


def search_problems(
    rows: Dataset, kind: str, languages: Sequence[str], exclude_column: str | None = None
) -> Iterator[str]:
    """What makes a split unfit to be searched by a kind of text; each a sentence that says what to do.

    Args:
        rows: of the split; columns that are not there are somebody else's to miss.
        kind: the columns are `<kind>_<language>`.
        languages: that are searched in.
        exclude_column: boolean, of clips that a second set of figures leaves out.
    """
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
    """Says how many texts of a column hold nothing but white space; no text at all is fine: null, or an empty list."""
    if any(not_texts(rows, column)):
        return
    number, first = 0, None
    for batch in rows.select_columns(["video_id", column]).with_format("arrow").iter(batch_size=1024):
        clip_of, captions = flat_captions(batch[column].to_pylist())
        blank = [clip for clip, caption in zip(clip_of, captions, strict=True) if not caption.strip()]
        if blank and first is None:
            first = batch["video_id"][blank[0]].as_py()
        number += len(blank)
    if number:
        yield f"{number:,} texts of {column} are blank, the first of clip {first!r}; fill them, or leave them out"


def flat_captions(column: Iterable[str | Sequence[str] | None]) -> tuple[list[int], list[str]]:
    """One language's column to the row that each caption belongs to, and to the captions."""
    captions = [[value] if value and isinstance(value, str) else value or [] for value in column]
    rows = [row for row, alternatives in enumerate(captions) for _ in alternatives]
    return rows, [caption for alternatives in captions for caption in alternatives]
