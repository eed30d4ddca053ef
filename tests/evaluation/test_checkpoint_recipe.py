"""The folders that a checkpoint's recipe names, found from any folder."""

import json

import pytest

from modeling_mmt.data.reading import dataset_folder
from modeling_mmt.evaluation.checkpoint_recipe import recipe_file, searched_data
from modeling_mmt.evaluation.evaluate import EvalSpec

DATA = {"dataset": "data/mine", "revision": None, "features": ["features/a", "features/b"], "text_column": "caption"}
DATA |= {"languages": ["en"], "test_split": "test", "exclude_column": None}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder in which a run wrote `runs/mine`; the working folder is another one."""
    clone = tmp_path / "clone"
    for folder in ("data/mine", "features/a", "features/b", "runs/mine"):
        (clone / folder).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return clone


def write(folder, **recipe):
    (folder / "recipe.json").write_text(json.dumps({"data": DATA, "output_dir": "runs/mine"} | recipe))
    return searched_data(recipe_file(folder))


def test_relative_folders_are_found_where_the_run_was_started(clone):
    data = write(clone / "runs/mine")
    assert data["dataset"] == str(clone / "data/mine")
    assert data["features"] == [str(clone / "features/a"), str(clone / "features/b")]
    assert write(clone / "runs/mine", output_dir="./runs/../runs/mine/")["features"] == data["features"]


def test_the_working_folder_goes_before_it(clone, tmp_path):
    (tmp_path / "elsewhere/features/a").mkdir(parents=True)
    assert write(clone / "runs/mine")["features"] == ["features/a", str(clone / "features/b")]


@pytest.mark.parametrize("output_dir", ["runs/other", "/runs/mine", "mine/runs/mine", "", ".."])
def test_a_checkpoint_that_was_moved_names_its_folders_as_they_are(clone, output_dir):
    assert write(clone / "runs/mine", output_dir=output_dir)["features"] == ["features/a", "features/b"]


def test_what_is_nowhere_and_what_is_on_the_hub_keep_their_names(clone):
    data = write(clone / "runs/mine", data=DATA | {"dataset": "org/clips", "features": ["features/none", "/abs"]})
    assert (data["dataset"], data["features"]) == ("org/clips", ["features/none", "/abs"])


def test_a_bundled_corpus_is_the_same_by_each_of_its_names_from_any_folder(clone):
    for name in ("emoji9", "datasets_scripts/emoji9"):
        write(clone / "runs/mine", data=DATA | {"dataset": name})
        for given in ("emoji9", "datasets_scripts/emoji9", dataset_folder("emoji9")):
            spec = EvalSpec.of_checkpoint(clone / "runs/mine", dataset=given)
            assert dataset_folder(spec.dataset) == dataset_folder("emoji9")
            assert list(spec.features) == [str(clone / "features/a"), str(clone / "features/b")]  # the recipe's still
