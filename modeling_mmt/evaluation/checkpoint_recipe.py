"""The recipe beside a checkpoint: what it was trained from, and what it is searched on.

A recipe names folders as they were seen where the run was started. From elsewhere a relative name is looked for in two
places: the working folder, then the folder that the run was started in, which is known where the checkpoint still lies
at the recipe's `output_dir` (`/clone/runs/mmp_en` for `runs/mmp_en`: `/clone`). A published recipe names no folder of
the machine, so its features come by `--features`, or lie below the working folder under the same name.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from modeling_mmt.data.errors import InputError, naming_input
from modeling_mmt.data.reading import dataset_folder

RECIPE = "recipe.json"
REMEDY = "download or save the checkpoint again, or name the dataset and its columns"
NEEDED = ("dataset", "revision", "features", "text_column", "languages", "test_split", "exclude_column")
KINDS = {"dataset": str, "text_column": str, "features": list, "languages": list}


def recipe_file(checkpoint: str | Path, revision: str | None = None) -> Path | None:
    """The recipe of a checkpoint; None where it has none.

    Args:
        checkpoint: folder, or name on the Hub.
        revision: tag, branch or commit of a name on the Hub.
    """
    if Path(checkpoint).exists():
        path = Path(checkpoint, RECIPE)
        return path if path.is_file() else None
    with naming_input(str(checkpoint)):
        try:
            return Path(hf_hub_download(str(checkpoint), RECIPE, revision=revision))
        except (RemoteEntryNotFoundError, LocalEntryNotFoundError):  # offline, what was never fetched is missing
            return None


def searched_data(path: Path) -> Mapping[str, Any]:
    """The part `data` of a recipe, its folders found.

    Raises:
        InputError: the file is not JSON, or a field is missing or of another kind.
    """
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); {REMEDY}") from error
    data = recipe.get("data", {}) if isinstance(recipe, dict) else {}
    missing = [key for key in NEEDED if not isinstance(data, dict) or key not in data]
    if missing:
        raise InputError(f"{path}: no data.{missing[0]}; {REMEDY}")
    for key, kind in KINDS.items():
        if not isinstance(data[key], kind):
            raise InputError(f"{path}: data.{key} is {data[key]!r}, no {kind.__name__}; {REMEDY}")
    start = folder_of_the_run(path, str(recipe.get("output_dir", "")))
    return data | {
        "dataset": resolve_path(start, data["dataset"]),
        "features": [resolve_path(start, str(name)) for name in data["features"]],
    }


def folder_of_the_run(path: Path, output_dir: str) -> Path | None:
    """Where the run of a recipe was started; None where its checkpoint does not lie at `output_dir` any more."""
    folder, inside = Path(os.path.abspath(path)).parent, Path(os.path.normpath(output_dir)).parts
    if not output_dir or Path(output_dir).is_absolute() or folder.parts[-len(inside) :] != inside:
        return None
    return Path(*folder.parts[: -len(inside)])


def resolve_path(start: Path | None, name: str) -> str:
    """A folder's name, as it is where it is there or is nowhere, else seen from `start`."""
    if start is None or Path(dataset_folder(name)).exists() or not (start / name).exists():
        return name
    return str(start / name)
