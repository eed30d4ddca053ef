"""What is wrong with a corpus, as sentences that name column, clip and remedy."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from datasets import Dataset, Value


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
        excluded = np.array(rows[exclude_column], dtype=bool)
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
        clip_of, captions = flat_captions(rows[column])
        if not captions:
            yield f"{column} is empty; take {language} out of data.languages, or fill it"
        elif excluded[clip_of].all():
            yield f"{column} is empty but for clips that {exclude_column} leaves out; take {language} out, or fill it"
        yield from blank_texts(rows, column)


def repeated_clips(rows: Dataset) -> Iterator[str]:
    """Says that a clip has several rows: it would be its own rival, as many times over."""
    times = Counter(rows["video_id"])
    video_id, most = max(times.items(), key=lambda item: item[1], default=("", 1))
    if most > 1:
        yield f"video_id {video_id!r} stands in {most} rows; give a clip one row, and all its texts there as a list"


def not_boolean(rows: Dataset, column: str) -> Iterator[str]:
    """Says that a column which leaves clips out is not of true and false: every text would be taken for true."""
    kind = rows.features[column]
    if kind != Value("bool"):
        told = getattr(kind, "dtype", kind)
        yield f"{column}, of clips to leave out, is a column of {told}; give one of true and false"


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
    clip_of, captions = flat_captions(rows[column])
    blank = [clip for clip, caption in zip(clip_of, captions, strict=True) if not caption.strip()]
    if blank:
        clip = rows[blank[0]]["video_id"]
        yield f"{len(blank):,} texts of {column} are blank, the first of clip {clip!r}; fill them, or leave them out"


def flat_captions(column: Iterable[str | Sequence[str] | None]) -> tuple[list[int], list[str]]:
    """One language's column to the row that each caption belongs to, and to the captions."""
    captions = [[value] if value and isinstance(value, str) else value or [] for value in column]
    rows = [row for row, alternatives in enumerate(captions) for _ in alternatives]
    return rows, [caption for alternatives in captions for caption in alternatives]
