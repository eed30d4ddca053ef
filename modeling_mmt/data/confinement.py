"""Confines a dataset to its own folder: its card and rows may be a stranger's, but are read on this machine.

`datasets` reads whatever a card's `data_files` name, be it `/home/me/notes.csv` or `http://127.0.0.1`, and decodes
whatever a row of pictures or videos names.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets import Dataset
from huggingface_hub import DatasetCard

from modeling_mmt.data.errors import InputError

CARDS = ("README.md", ".huggingface.yaml")  # where `datasets` looks for configs


class ConfinementError(InputError):
    """A dataset names a file outside its folder, or an address; nothing of it was opened."""


def check_card(folder: str | os.PathLike):
    """Refuse a dataset whose card has data files elsewhere; before `datasets` sees it, which would look them up.

    Raises:
        ConfinementError: a pattern of `data_files`, or a `data_dir`, is absolute, an address, or has `..` in it.
    """
    for card, config in configs_of(folder):
        for field in ("data_files", "data_dir"):
            for pattern in _strings(config.get(field)):
                if leads_out(pattern):
                    raise ConfinementError(
                        f"{card}: config {config.get('config_name')!r} has {field} {pattern!r}, outside the "
                        "dataset's folder; name files of that folder, relative to it"
                    )


def configs_of(folder: str | os.PathLike) -> list[tuple[Path, Mapping[str, Any]]]:
    """The configs that a dataset's cards declare, each with its card."""
    cards = [path for path in (Path(folder, name) for name in CARDS) if path.is_file()]
    return [(card, config) for card in cards for config in _configs(card)]


def _configs(card: Path) -> list[Mapping[str, Any]]:
    """The configs of a card, read as `datasets` reads them."""
    if card.suffix == ".md":
        content: Any = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict()
    else:
        content = yaml.safe_load(card.read_text(encoding="utf-8"))
    configs = content.get("configs") if isinstance(content, Mapping) else None
    return [config for config in configs if isinstance(config, Mapping)] if isinstance(configs, list) else []


def _strings(value: Any) -> Iterator[str]:
    """Every string of nested lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def leads_out(pattern: str) -> bool:
    """Whether a pattern may name something else than a file below the folder that it is taken from."""
    as_windows = PureWindowsPath(pattern)  # whose separators are / and \
    is_elsewhere = bool(as_windows.drive or as_windows.root) or PurePosixPath(pattern).is_absolute()
    return is_elsewhere or ".." in as_windows.parts or "::" in pattern or "://" in pattern or pattern.startswith("~")


def check_media(rows: Dataset, folder: str | os.PathLike, name: str):
    """Refuse rows whose pictures or videos lie elsewhere; no row is decoded, and no media are read.

    Args:
        rows: of the dataset.
        folder: of the dataset. What `datasets` unpacked from an archive of it lies in the cache, and passes.
        name: of the dataset, for people.

    Raises:
        ConfinementError: names the column, the row's id and the path.
    """
    roots = [os.path.abspath(folder), os.path.realpath(folder), str(datasets.config.EXTRACTED_DATASETS_PATH)]
    for column in rows.column_names:
        first = 0
        for chunk in rows.data.column(column).chunks:
            for media, owners in _media(chunk, np.arange(first, first + len(chunk))):
                for number, path in _outside(media, roots):
                    row = int(owners[number])
                    owner = repr(rows["video_id"][row]) if "video_id" in rows.column_names else f"row {row}"
                    raise ConfinementError(
                        f"{name}: column {column} of {owner} names {path!r}, outside the dataset's folder; put the "
                        "file into the folder, or leave the row out"
                    )
            first += len(chunk)


def _media(values: pa.Array, owners: np.ndarray) -> Iterator[tuple[pa.StructArray, np.ndarray]]:
    """The pictures and videos that a column's values hold, however nested, and the row of each."""
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        yield from _media(values.storage, owners)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _media(values.flatten(), owners[pc.list_parent_indices(values).to_numpy()])
    elif pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        yield values, owners
    elif pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            yield from _media(pc.struct_field(values, [place]), owners)


def _outside(media: pa.StructArray, roots: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The places and paths of media that would be opened from elsewhere: those that are not in the rows themselves."""
    is_file = pc.and_(pc.is_null(pc.struct_field(media, "bytes")), pc.is_valid(pc.struct_field(media, "path")))
    places = np.flatnonzero(is_file.to_numpy(zero_copy_only=False))
    for place, path in zip(places, pc.struct_field(media, "path").take(pa.array(places)).to_pylist(), strict=True):
        real = os.path.abspath(path)
        if "://" in path or not any(real.startswith(os.path.join(root, "")) for root in roots):
            yield int(place), path
