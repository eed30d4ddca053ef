"""The recipes, and the table that `experiments/run.py` makes of them."""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import build_text_config
from tiny_corpus import write_recipe

from modeling_mmt import MMTConfig
from modeling_mmt.commands import train
from modeling_mmt.training.recipe_reading import load_recipe

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import run as table  # noqa: E402
import tables  # noqa: E402

ALL = sorted((ROOT / "modeling_mmt" / "recipes" / "emoji9").glob("*.yaml"))
RECIPES = [path for path in ALL if not path.stem.startswith("pixels_")]
PIXELS = [path for path in ALL if path not in RECIPES]
# Rows are compared at their best: what suits a row may differ, but neither its clips nor its architecture.
MAY_DIFFER = {"text_input_dropout_prob", "video_input_dropout_prob", "logit_scale_init_value"}
ABLATIONS = {name: changes for name, changes in table.ABLATIONS.items() if changes}
QUERIES, SEEDS = 24, [0, 1]


def effective(recipe, folder):
    """Every value that a recipe stands for, the defaults of `train.py` and `MMTConfig` filled in."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    values = asdict(load_recipe([str(path)]))
    config = values["model"]["config"]
    text = build_text_config(num_hidden_layers=12)
    built = MMTConfig(text_config=text, text_output_layer=None, **config)  # checks names and ranges
    values["model"]["config"] = {f.name: getattr(built, f.name) for f in fields(MMTConfig) if f.name != "text_config"}
    return values


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_its_values_are_allowed(path, tmp_path):
    values = effective(table.read_recipe(path.stem), tmp_path)
    assert values["finetuning"] and values["data"]["dataset"] == "emoji9"
    for stage in ("pretraining", "finetuning"):
        for source in (values[stage] or {"sources": []})["sources"]:
            assert set(source["languages"]) <= set(table.LANGUAGES)


def test_all_recipes_share_the_data_and_the_architecture():
    recipes = [table.read_recipe(path.stem) for path in RECIPES]
    for recipe in recipes:
        for name in MAY_DIFFER:
            recipe["model"]["config"].pop(name, None)
        assert recipe["data"] == recipes[0]["data"]
        assert recipe["model"] == recipes[0]["model"]


def test_the_rows_are_the_recipes_and_say_what_these_do():
    assert set(table.ROWS) == {path.stem for path in RECIPES}
    assert {name for a, b, _ in table.COMPARISONS for name in (a, b)} <= set(table.ROWS)
    for name, (pretraining, finetuning) in table.ROWS.items():
        recipe = table.read_recipe(name)
        assert len(recipe["finetuning"]["sources"][0]["languages"]) == {"en": 1, "all": 9}[finetuning]
        if pretraining == "none":
            assert recipe.get("pretraining") is None
            continue
        (source,) = recipe["pretraining"]["sources"]
        left_out = [pretraining.removeprefix("MMP-")] if pretraining.startswith("MMP-") else []
        wanted = ["en"] if pretraining == "MP" else [lang for lang in table.LANGUAGES if lang not in left_out]
        assert source["languages"] == wanted
        assert source.get("with_video", True) == (pretraining != "text")
        mixed_in = recipe["finetuning"]["sources"][1:]
        assert not any(lang in left_out for mixed in mixed_in for lang in mixed["languages"])


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_the_recipe_and_nothing_that_it_does_not_name(name, tmp_path):
    base = table.read_recipe(table.ABLATED)
    before, after = effective(base, tmp_path), effective(table.changed(base, ABLATIONS[name]), tmp_path)
    differing = set(differences(before, after))
    named = {path.rpartition(".")[2] for path in ABLATIONS[name]}
    assert differing and {path.rpartition(".")[2] for path in differing} == named


def differences(a, b, path=""):
    """Dotted paths of the values that differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from differences(a.get(key), b.get(key), f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and a and isinstance(a[0], dict):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}.{number}")
    elif a != b:
        yield path


@pytest.mark.parametrize("name", table.ROWS)
def test_quick_shortens_every_row(name, tmp_path):
    base = table.read_recipe(name)
    quick = table.changed(base, table.QUICK)
    assert quick != base
    values = effective(quick, tmp_path)
    for stage in ("pretraining", "finetuning"):
        assert values[stage] is None or values[stage]["num_train_epochs"] < base[stage]["num_train_epochs"]


def test_a_changed_recipe_is_a_copy():
    recipe = {"model": {"config": {}}, "finetuning": {"sources": [{"a": 1}, {"max_keywords": 3}]}}
    changes = {
        "*.max_keywords": 1,
        "*.noise": 0,
        "pretraining.x": 1,
        "finetuning.sources.1.weight": 2,
        "model.config.p": "q",
    }
    assert table.changed(recipe, changes) == {
        "model": {"config": {"p": "q"}},
        "finetuning": {"sources": [{"a": 1, "noise": 0}, {"max_keywords": 1, "noise": 0, "weight": 2}]},
    }
    assert recipe == {"model": {"config": {}}, "finetuning": {"sources": [{"a": 1}, {"max_keywords": 3}]}}


@pytest.fixture
def found():
    """What `Run.read` gives for every row and two seeds: `mmp_en` finds every clip, the others at random ranks."""
    generator = np.random.default_rng(0)

    def ranks(name, queries):
        def one():
            return np.ones(queries) if name == "mmp_en" else generator.integers(1, 20, queries).astype(float)

        return {way: {lang: one().tolist() for lang in table.LANGUAGES} for way in ("t2v", "v2t")}

    def parts(name):
        return {"all": ranks(name, QUERIES), "without_is_flag": ranks(name, QUERIES - 4)}

    def figures():
        return {"all": {"t2v": {lang: {"R@1": 50.0, "MRR": 60.0} for lang in table.LANGUAGES}}}

    return {
        (name, seed): {
            "ranks": {"test": parts(name), "validation": parts(name)},
            "metrics": {
                "finetuning": {"seconds": 10.0},
                **({} if "none" in name else {"pretraining": {"seconds": 20.04}}),
                "figures": {"validation": figures(), "validation_keywords": figures()},
            },
            "done": {"seconds": 99.0, "commit": "0123abcd"},
        }
        for name in table.ROWS
        for seed in SEEDS
    }


def test_the_results_have_the_agreed_format(found):
    names = ["none_en", "mmp_en"]
    results = table.provenance(SEEDS) | table.gather_table(found, names, SEEDS)
    assert results.keys() == {"machine", "versions", "seeds", "rows", "comparisons"}
    assert [(row["pretraining"], row["split"]) for row in results["rows"]] == [
        (pretraining, split) for pretraining in ("none", "MMP") for split in ("test", "validation")
    ]
    for row in results["rows"]:
        assert {"finetuning", "n_queries", "command", "commit", "seconds", "without_flags"} <= row.keys()
        for part in (row, row["without_flags"]):
            for way in ("t2v", "v2t"):
                assert {"R@1", "R@5", "R@10", "MedR", "MRR"} <= part[way].keys()
                for cells in part[way].values():
                    assert cells.keys() == {*table.LANGUAGES, "avg", "avg_non_en"}
                    for cell in cells.values():
                        assert {"mean", "per_seed", "ci95"} <= cell.keys()
                        assert len(cell["per_seed"]) == 2 and cell["ci95"][0] <= cell["mean"] <= cell["ci95"][1]
    mmp = results["rows"][2]
    assert mmp["t2v"]["R@1"]["avg_non_en"]["mean"] == 100
    assert (mmp["n_queries"], mmp["seconds"]) == (QUERIES, [30.0, 30.0])
    assert mmp["command"] == "mmt train emoji9/mmp_en --seed {0,1}"
    (foreign, english) = results["comparisons"]
    assert (foreign["a"], foreign["b"], foreign["scope"]) == ("MMP/en", "none/en", "R@1, non-English")
    none = results["rows"][0]["t2v"]["R@1"]
    assert foreign["difference"] == pytest.approx(100 - none["avg_non_en"]["mean"])
    assert english["difference"] == pytest.approx(100 - none["en"]["mean"])
    assert foreign["p"] < 0.05
    json.dumps(results)
    assert "**100.0**" in tables.metric_table([row for row in results["rows"] if row["split"] == "test"])


def test_ablations_are_gathered_from_validation_alone(found):
    name = "temperature 0.2"
    of_it = {(name, seed): {k: v for k, v in found["mmp_en", seed].items() if k != "ranks"} for seed in SEEDS}
    results = table.provenance(SEEDS) | table.gather_ablations(of_it, [name], SEEDS)
    (row,) = results["rows"]
    assert row["changes"] == table.ABLATIONS[name]
    assert (row["names_en"], row["keywords_non_en"]) == ({"R@1": 50.0, "MRR": 60.0}, {"R@1": 50.0, "MRR": 60.0})
    assert f"| {name} | 50.0 | 60.0 | 50.0 | 60.0 | 30 |" in table.ablation_table(results)


@pytest.fixture
def tiny_table(corpus, tmp_path, monkeypatch):
    """The runner on the tiny corpus: two rows, each trained in this process; returns a list of what was trained."""
    trained = []

    def start(self, environment, label):
        if not self.is_done():
            self.write_recipe()
            train.main(self.words)
            self.finish(1.0)
            trained.append(label)

    def read_recipe(name):
        changes = {"pretraining": None} if name == "none_en" else {}
        return yaml.safe_load(Path(write_recipe(corpus, tmp_path, changes, name)).read_text())

    monkeypatch.setattr(table.Run, "start", start)
    monkeypatch.setattr(table, "read_recipe", read_recipe)
    monkeypatch.setattr(table, "LANGUAGES", ("en", "de"))
    monkeypatch.setattr(table, "FOREIGN", ("de",))
    monkeypatch.setattr(table, "COMPARISONS", (("mmp_en", "none_en", ("de",)),))
    return trained


def test_the_table_is_made_end_to_end_and_not_run_twice(tiny_table, tmp_path):
    argv = ["table", "--rows", "none_en", "mmp_en", "--seeds", "0", "--jobs", "1"]
    argv += ["--work_dir", str(tmp_path / "runs"), "--output_dir", str(tmp_path / "results")]
    results = table.main(argv)
    assert tiny_table == ["[1/2] none_en, seed 0", "[2/2] mmp_en, seed 0"]
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == results
    assert len(results["rows"]) == 4 and results["comparisons"][0]["b"] == "none/en"
    assert "MMP / en" in (tmp_path / "results" / "README.md").read_text()
    assert (tmp_path / "results" / "r1_by_language.png").stat().st_size > 1000
    assert table.main(argv)["rows"] == results["rows"]
    assert len(tiny_table) == 2
    table.main([*argv, "--quick"])  # other recipes: trained, in folders of their own
    assert len(tiny_table) == 4


def test_ablations_are_made_end_to_end(tiny_table, tmp_path):
    names = ["as in the table", "temperature 0.2"]
    argv = ["ablations", "--rows", *names, "--jobs", "1", "--work_dir", str(tmp_path / "runs")]
    results = table.main([*argv, "--output_dir", str(tmp_path / "results")])
    assert [row["name"] for row in results["rows"]] == names
    assert json.loads((tmp_path / "results" / "ablations.json").read_text()) == results
    assert (tmp_path / "results" / "ablations.md").read_text().count("\n") == 6


def test_a_row_that_failed_names_its_log(tmp_path):
    failed = table.Run({"data": {}}, 0, tmp_path / "row", tmp_path)
    failed.write_recipe()
    with pytest.raises(FileNotFoundError, match="the run failed, see .*log.txt"):
        failed.read()
