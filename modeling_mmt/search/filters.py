"""Filters of an index's rows by the values of their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset

from modeling_mmt.data.errors import InputError


def matching_rows(clips: Dataset, where: Mapping[str, Any] | None) -> torch.Tensor | None:
    """`(N,)` bool, True for the rows of which a filter holds; None without one.

    Args:
        clips: N rows.
        where: column -> a value, or a list, tuple or set of values of which one must hold; all columns must agree. A
            text is read as the column's type, as `2020` or `true`, and a number asked of a column of texts is its
            text. Of a column of lists one item must hold. None holds of rows without a value.

    Raises:
        InputError: no such column, or a value that its type has not.
    """
    if not where:
        return None
    mask = np.ones(len(clips), dtype=bool)
    for column, wanted in where.items():
        if column not in clips.column_names:
            raise InputError(
                f"the index has no column {column!r} to filter by; its columns are {', '.join(clips.column_names)}"
            )
        values = clips.select_columns([column]).with_format("arrow")[:][column].combine_chunks()
        several = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
        mask &= _holds(values, column, list(several))
    return torch.from_numpy(mask)


def _holds(values: pa.Array, column: str, wanted: list[Any]) -> np.ndarray:
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        rows = pc.list_parent_indices(values).to_numpy()
        inside = _holds(values.flatten(), column, wanted)
        return np.bincount(rows[inside], minlength=len(values)) > 0
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return pc.is_in(values, _typed(wanted, values.type, column)).to_numpy(zero_copy_only=False)


def _typed(wanted: list[Any], kind: pa.DataType, column: str) -> pa.Array:
    """Values as a column's type has them."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array([value if value is None else str(value) for value in wanted], kind)
    typed = []
    for value in wanted:
        try:
            typed.append((pa.scalar(value).cast(kind) if isinstance(value, str) else pa.scalar(value, kind)).as_py())
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"column {column!r} holds {kind}, and {value!r} is none; give such a value") from error
    return pa.array(typed, kind)
