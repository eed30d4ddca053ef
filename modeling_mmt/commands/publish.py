"""`mmt publish`: a checkpoint, a dataset, an index or a feature store to the Hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from modeling_mmt.commands.terminal import print_json
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.feature_store import MANIFEST, FeatureStore
from modeling_mmt.hub.publish import publish
from modeling_mmt.hub.store_card import write_store_card
from modeling_mmt.search.manifest import INDEX


def main(
    folder: str,
    repository: str,
    repo_type: str | None = None,
    model: str | None = None,
    model_revision: str | None = None,
    as_json: bool = False,
    **options: Any,
):
    """Push a folder, and print where it is.

    Args:
        folder: of a checkpoint, a dataset, an index or a feature store.
        repository: `org/name`.
        repo_type: `model` or `dataset`; None is what the folder is: a dataset if it is an index or a store.
        model: of an index: the published checkpoint that made it.
        model_revision: tag or commit of that.
        as_json: print JSON.
        options: of `modeling_mmt.hub.publish.publish`.
    """
    place = Path(folder)
    is_index, is_store = (place / INDEX).is_file(), (place / MANIFEST).is_file()
    if model and not is_index:
        raise InputError(
            f"--model {model} names the checkpoint of an index, and {folder} is not an index; leave --model out"
        )
    if is_index or is_store:
        if repo_type == "model":
            raise InputError(f"{folder} is not a model; leave --repo_type out")
        repo_type = "dataset"
    with TemporaryDirectory() as scratch:
        if is_index:
            from modeling_mmt.search.published import write_copy

            write_copy(place, Path(scratch, "index"), repository, model, model_revision, options.get("tag"))
            place = Path(scratch, "index")
        elif is_store:
            FeatureStore(place).verify()
            write_store_card(place, repository, options.get("tag"))
        options["message"] = options.get("message") or f"Publish {options.get('tag') or Path(folder).resolve().name}"
        commit, tag = publish(place, repository, repo_type=repo_type or "model", **options), options.get("tag")
    if as_json:
        print_json({"repository": repository, "commit": commit, "tag": tag})
    else:
        print(f"{repository} is at {tag or options.get('revision', 'main')}, commit {commit}")
