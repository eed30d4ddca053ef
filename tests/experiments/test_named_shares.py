"""The rows of `experiments/named_shares.py`: what their recipes say, and how their figures are gathered."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset

from modeling_mmt.training.recipe_reading import load_recipe

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import crossfit  # noqa: E402
import named_shares  # noqa: E402
import run  # noqa: E402

KEYS = [(name, share) for name, row in named_shares.ROWS.items() for share in row.shares]
CLIPS = 40


def parsed(key, folder):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(named_shares.recipe_of(named_shares.ROWS[key[0]], key[1])), encoding="utf-8")
    return load_recipe([str(path)])


@pytest.mark.parametrize("key", KEYS, ids=lambda key: f"{key[0]}-{key[1]}")
def test_every_row_is_a_recipe_that_does_what_its_name_says(key, tmp_path):
    (name, share), recipe = key, parsed(key, tmp_path)
    row = named_shares.ROWS[name]
    assert (recipe.pretraining is None) == (row.pretraining in ("none", "joint"))
    sources = [source for stage in (recipe.pretraining, recipe.finetuning) if stage for source in stage.sources]
    for source in sources:
        if source.text_column == "name":
            assert source.named_share == share
            assert source.languages == (["en"] if row.finetuning == "en" else list(run.LANGUAGES))
            continue
        assert source.exclude_languages == (list(run.LANGUAGES) if row.names_removed else [])
        assert source.exclude_text_column == ("name" if row.names_removed else None)
        left = ["en"] if "mp_" in name and "mmp" not in name else list(run.LANGUAGES)
        assert source.languages == [language for language in left if language != row.without]
        assert source.with_video == (row.pretraining != "text")
    assert recipe.finetuning.sources[0].text_column == "name"
    assert recipe.model.statistics_text_column == "keywords", "the names of most clips are not to be seen"
    assert recipe.model.config.get("language_directions", 0) == (8 if row.note == "LIR" else 0)


@pytest.mark.parametrize("name", named_shares.MAIN)
def test_a_row_has_as_many_steps_at_every_share_and_one_pretraining(name):
    recipes = {share: named_shares.recipe_of(named_shares.ROWS[name], share) for share in named_shares.SHARES}
    steps = {
        s: r["finetuning"]["num_train_epochs"] * named_shares.batches(s, r["finetuning"]) for s, r in recipes.items()
    }
    assert named_shares.batches(0.25, recipes[0.25]["finetuning"]) == 2  # 288 clips in batches of 128
    assert max(steps.values()) <= 1.05 * min(steps.values())
    without = [{key: value for key, value in recipe.items() if key != "finetuning"} for recipe in recipes.values()]
    assert without[0] == without[1] == without[2]


def test_controls_without_pretraining_have_at_least_the_steps_of_mmp():
    def steps(row):
        recipe = named_shares.recipe_of(named_shares.ROWS[row], 1.0)
        return sum(stage["num_train_epochs"] for stage in (recipe.get("pretraining"), recipe["finetuning"]) if stage)

    assert steps("none_en_long") == pytest.approx(steps("mmp_en"), rel=0.02)
    assert steps("none_all") >= steps("mmp_all")


def output(hit_rate, seed):
    """What a run leaves: in each language and both directions, the given share of first ranks."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(CLIPS)
    ranks = {
        language: np.where(order < round(CLIPS * (hit_rate if language == "en" else hit_rate / 2)), 1, 5).tolist()
        for language in run.LANGUAGES
    }
    part = {"t2v": ranks, "v2t": ranks}
    split = {"all": part, "without_is_flag": part}
    return {
        "ranks": {"test": split, "validation": split},
        "metrics": {"finetuning": {"seconds": 2.0}},
        "done": {"commit": "abc"},
    }


def test_rows_tests_and_gaps_come_from_the_ranks(tmp_path):
    rates = {"none_en": 0.2, "mmp_en": 0.5, "none_all": 0.6, "mp_en": 0.2}
    outputs = {(name, 0.25): [output(rate, seed) for seed in (0, 1)] for name, rate in rates.items()}
    results = named_shares.gather(outputs, [0, 1], ["test", "validation"])
    row = next(row for row in results["rows"] if row["name"] == "mmp_en" and row["split"] == "test")
    assert {key: row[key] for key in ("pretraining", "finetuning", "named_share", "names_removed", "seeds")} == {
        "pretraining": "MMP",
        "finetuning": "en",
        "named_share": 0.25,
        "names_removed": False,
        "seeds": [0, 1],
    }
    assert row["t2v"]["R@1"]["en"]["mean"] == 50 and row["t2v"]["R@1"]["avg_non_en"]["mean"] == 25
    (gap,) = results["gap"]
    assert gap["percent"] == pytest.approx(100 * (25 - 10) / (30 - 10))
    keys = ("a", "b", "scope", "direction", "metric")
    tests = {tuple(test[key] for key in keys): test for test in results["comparisons"]}
    assert tests["mmp_en", "none_en", "en", "t2v", "R@1"]["difference"] == pytest.approx(30)
    assert tests["mmp_en", "none_en", "non-English", "v2t", "R@1"]["difference"] == pytest.approx(15)
    # a query that does not come first comes fifth
    assert tests["mmp_en", "none_en", "en", "t2v", "R@5"]["difference"] == 0
    assert tests["mmp_en", "none_en", "en", "t2v", "MRR"]["difference"] == pytest.approx(30 * (1 - 1 / 5))
    assert len(results["comparisons"]) == 2 * 3 * 3  # directions, figures, and pairs of rows that are there
    assert all(test["p"] <= test["p_holm"] <= 1 for test in results["comparisons"])
    named_shares.write(run.provenance([0, 1]) | results, tmp_path, "emoji9")
    assert json.loads((tmp_path / "results.json").read_text())["gap"] == results["gap"]
    assert (tmp_path / "r1_by_named_share.png").stat().st_size > 1000
    page = (tmp_path / "README.md").read_text()
    assert "| 25% | MMP / en | 50.0 [" in page and "mmp_en covers 75 %" in page


def test_a_table_of_what_is_done_starts_no_run_and_has_no_row_that_lacks_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(run.subprocess, "run", None)  # whoever starts one fails
    for name, seed in (("none_en", 0), ("none_en", 1), ("mmp_en", 0)):
        recipe = named_shares.recipe_of(named_shares.ROWS[name], 0.5)
        one = run.Run(recipe, seed, tmp_path / "shares" / f"{name}-50" / f"seed{seed}", tmp_path)
        one.write_recipe()
        for kind, value in output(0.5, seed).items():
            (one.folder / f"{kind}.json").write_text(json.dumps(value))
    options = ["--work_dir", str(tmp_path), "--output_dir", str(tmp_path / "page"), "--seeds", "0", "1"]
    results = named_shares.main(["--done_only", *options])
    assert {(row["name"], row["named_share"]) for row in results["rows"]} == {("none_en", 0.5)}


def test_every_clip_is_a_test_query_once_and_never_learned_from_in_that_fold():
    ids = [f"clip-{number}" for number in range(1602)]
    rows = Dataset.from_dict({"video_id": ids})
    tested = []
    for fold in range(crossfit.FOLDS):
        splits = {split: part["video_id"][:] for split, part in crossfit.splits_of(rows, fold)}
        assert sorted(sum(splits.values(), [])) == sorted(ids)
        assert len(splits["validation"]) == 150 and len(splits["test"]) in (320, 321)
        tested += splits["test"]
    assert sorted(tested) == sorted(ids)
    shuffled = dict(crossfit.splits_of(rows.shuffle(seed=0), 3))
    assert set(shuffled["test"]["video_id"]) == set(dict(crossfit.splits_of(rows, 3))["test"]["video_id"])


def test_without_test_names_no_keyword_is_one_and_the_others_stay():
    clips = [{"video_id": f"c{number}"} for number in range(400)]
    for number, clip in enumerate(clips):
        for code in run.LANGUAGES:
            clip |= {f"name_{code}": f"Name {number} {code}"}
            clip[f"keywords_{code}"] = [f"NAME {(number + 1) % 400} de", f"word {number}", f"name {number}"]
    kept = dict(crossfit.splits_of(Dataset.from_list(clips), 2, without_test_names=True))
    whole = dict(crossfit.splits_of(Dataset.from_list(clips), 2))
    assert kept["test"].to_list() == whole["test"].to_list()
    of_test = {int(video_id[1:]) for video_id in kept["test"]["video_id"]}
    for row in [*kept["train"], *kept["validation"]]:
        number = int(row["video_id"][1:])
        next_one = [] if (number + 1) % 400 in of_test else [f"NAME {(number + 1) % 400} de"]
        assert row["keywords_vi"] == [*next_one, f"word {number}", f"name {number}"]
        assert row["name_en"] == f"Name {number} en"


def test_folds_are_joined_to_one_run_over_all_clips():
    folds = [output(rate, seed) for rate, seed in ((0.2, 0), (0.6, 1))]
    one = crossfit.as_one_run(folds)
    assert len(one["ranks"]["test"]["all"]["t2v"]["en"]) == 2 * CLIPS
    row = named_shares.gather({("mmp_en", 0.25): [one]}, [0], ["test"])["rows"][0]
    assert row["t2v"]["R@1"]["en"]["mean"] == pytest.approx(40) and row["n_queries"] == 2 * CLIPS
    assert row["seconds"] == [4.0]
