"""`mmt demo`: what it refuses and skips; the whole of it is `make demo`."""

import json
import zipfile

import pytest

import mmt
from modeling_mmt.commands import demo
from modeling_mmt.training.recipe_reading import load_recipe


def test_a_folder_that_holds_something_else_is_refused_before_anything_is_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "packaged_encoder", lambda name: pytest.fail("it was fetched"))
    (tmp_path / "mine").mkdir()
    assert mmt.main(["demo", "--output_dir", str(tmp_path / "mine")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("mine is there, and no checkpoint; name a new folder")


@pytest.mark.parametrize("name", demo.ROWS)
def test_a_rows_words_are_a_recipe_and_its_features_are_those_that_the_demo_writes(name):
    recipe = load_recipe(demo.ROWS[name])
    read = {store for home in (recipe.data, *recipe.finetuning.sources) for store in home.features}
    made = {str(demo.DRAWINGS), *(f"runs/features/{store}" for store in ("emoji9-lite0-names-224", "emoji9-names"))}
    assert read <= made | {"runs/data/imagenet_prototypes/features"}


def test_the_pictures_of_the_wheel_are_indexed_and_every_query_is_asked(tmp_path, monkeypatch):
    calls = {}

    def download(wheel, folder):
        with zipfile.ZipFile(folder / wheel.wheel, "w") as archive:
            for name in ("skimage/data/horse.png", "skimage/data/phantom.png", "skimage/io/cat.png", "../horse.png"):
                archive.writestr(name, name)
        return folder / wheel.wheel

    monkeypatch.setattr(demo, "download_wheel", download)
    monkeypatch.setattr(demo.index, "main", lambda media, output_dir, **options: calls.update(index=options))
    monkeypatch.setattr(demo.search, "main", lambda place, queries, **options: calls.update(queries=queries))
    demo.search_pictures(tmp_path / "checkpoint", tmp_path)
    pictures = {path.name: path.read_text() for path in (tmp_path / "scikit-image").iterdir()}
    assert pictures == {"horse.png": "skimage/data/horse.png"}
    assert calls["index"] == {"model": str(tmp_path / "checkpoint")} and len(calls["queries"]) == 9


def test_the_figures_that_are_printed_are_those_of_the_test_split(tmp_path, capsys):
    figures = {split: {"all": {"t2v": {"en": {"R@1": r1}}}} for split, r1 in (("validation", 31.0), ("test", 23.0))}
    (tmp_path / "metrics.json").write_text(json.dumps({"figures": figures}))
    demo.print_figures({"none_en": tmp_path})
    *_, header, row = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "en" and row.split()[:2] == ["none_en", "23.0"]
