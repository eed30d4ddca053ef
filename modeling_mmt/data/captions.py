"""Which texts of a clip are used for training: kinds, languages, and the keywords to leave out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from typing import Any

import numpy as np
from datasets import Dataset

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CaptionColumns:
    """The columns `<kind>_<language>` that a clip's captions are drawn from.

    Args:
        kinds: of text; a column holds a string, or a list of strings.
        languages: to draw from.
        exclude_kind: keywords equal to the clip's text of this kind and their language, case aside, are left out.
        exclude_languages: and those that contain one of its texts of that kind in these languages, as letters
            anywhere within: `fire` is left out of `fireman`, and of `ceasefire`.
    """

    kinds: Sequence[str]
    languages: Sequence[str]
    exclude_kind: str | None = None
    exclude_languages: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Every column that is read."""
        names = [f"{kind}_{language}" for kind in self.kinds for language in self.languages]
        if self.exclude_kind is not None:
            names += [f"{self.exclude_kind}_{language}" for language in (*self.languages, *self.exclude_languages)]
        return list(dict.fromkeys(names))

    def available(self, row: Row) -> dict[str, list[str]]:
        """The kinds of text that a clip has, by language."""
        kinds = {language: [k for k in self.kinds if self.has(row, k, language)] for language in self.languages}
        return {language: of for language, of in kinds.items() if of}

    def has(self, row: Row, kind: str, language: str) -> bool:
        """Whether a clip has a text of this kind and language."""
        if self.exclude_kind is None and hasattr(row, "filled"):  # an Arrow row, which need not be decoded for it
            return row.filled(f"{kind}_{language}")
        return bool(self.texts(row, kind, language))

    def texts(self, row: Row, kind: str, language: str) -> str | list[str]:
        """A clip's text, or those of its keywords that are not left out; empty where there is none."""
        value = row.get(f"{kind}_{language}") or ""
        if isinstance(value, str) or self.exclude_kind in (None, kind):
            return value
        equal = set(_folded(row, f"{self.exclude_kind}_{language}"))
        within = [text for other in self.exclude_languages for text in _folded(row, f"{self.exclude_kind}_{other}")]
        return [
            keyword
            for keyword in value
            if keyword.casefold() not in equal and not any(text in keyword.casefold() for text in within)
        ]


def _folded(row: Row, column: str) -> list[str]:
    value = row.get(column) or []
    return [text.casefold() for text in ([value] if isinstance(value, str) else value)]


def stable_id(text: str) -> int:
    """63 bits of a text's hash, the same in every process and run (Python's own `hash` is salted)."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seeded_share(video_ids: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Choose a share of the clips: of one seed, a smaller share lies inside every larger one, in any order of rows.

    Args:
        video_ids: of all clips, each once.
        share: above 0, at most 1; rounded up to whole clips.
        seed: of the choice.

    Returns:
        `(clips,)` bool.
    """
    order = np.argsort([stable_id(f"{seed} {video_id}") for video_id in video_ids], kind="stable")
    chosen = np.zeros(len(video_ids), dtype=bool)
    chosen[order[: ceil(share * len(video_ids) - 1e-9)]] = True
    return chosen


def keep_drawn(rows: Dataset, columns: CaptionColumns, hidden_kind: str, seen: np.ndarray) -> Dataset:
    """Rows whose texts are those that may be drawn.

    Args:
        rows: of all clips.
        columns: that are drawn from.
        hidden_kind: of text that only some clips show.
        seen: `(rows,)` bool, which clips do; the texts of the others still leave keywords out.

    Returns:
        The clips that have a text left, and of the columns that are drawn from only what is.
    """
    source = list(rows.select_columns(["video_id", *columns.names]))
    has_text = np.zeros(len(rows), dtype=bool)
    for kind in columns.kinds:
        shown = seen if kind == hidden_kind else np.ones(len(rows), dtype=bool)
        for language in columns.languages:
            column = f"{kind}_{language}"
            values = [columns.texts(row, kind, language) or None for row in source]
            values = [value if is_shown else None for value, is_shown in zip(values, shown, strict=True)]
            has_text |= [value is not None for value in values]
            feature = rows.features[column]
            rows = rows.remove_columns(column).add_column(column, values, feature=feature)
    return rows.select(np.flatnonzero(has_text))
