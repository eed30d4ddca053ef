"""The paper's recipes, every row of its tables, run on small corpora in the official formats; the dry run."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import official_files
import pytest
import yaml
from conftest import build_text_config, build_tokenizer, randomize
from transformers import AutoConfig, AutoModel

from modeling_mmt import MMTConfig
from modeling_mmt.commands import train
from modeling_mmt.commands.build import build as build_corpus
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.training import corpora
from modeling_mmt.training.recipe import STAGES
from modeling_mmt.training.recipe_reading import load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "modeling_mmt" / "recipes" / "paper").glob("*.yaml"))
TINY = {
    "text_output_layer": None,
    "freeze_text_layers": 1,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "projection_dim": 12,
    "max_video_length": 16,
}
ROWS = {  # the seed's rows that are the paper's own: recipe, and the languages that it is tested in
    "(a-1)": {
        f"{encoder}_{rest}": 9
        for encoder in ("mbert", "xlmr")
        for rest in ("none_en", "mp_en", "mmp_en", "none_all", "mmp_all")
    },
    "(a-2)": {"xlmr_none_en": 9, "xlmr_mmp_en": 9},
    "(b)": {f"vatex_xlmr_{rest}": 2 for rest in ("none_en", "mmp_en", "mmp_all")},
    "(c)": {f"multi30k_xlmr_{rest}": 4 for rest in ("none_en", "mmp_en", "mmp_all")},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with `data/`, as the recipes name it, made by the builders, and a tiny encoder."""
    root = tmp_path_factory.mktemp("paper")
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    splits = {"train": 16, "val": 4, "test_2016_flickr": 4}
    made = {
        "msrvtt9": ("msrvtt", official_files.msrvtt(root / "msrvtt", sizes=(16, 4, 6))),
        "vatex": ("vatex", official_files.vatex(root / "vatex", sizes=(16, 8))),
        "multi30k": ("multi30k", official_files.multi30k(root / "multi30k", splits)),
        "multi_howto100m": ("multi_howto100m", official_files.how2(root / "multi_howto100m", num_videos=16)),
    }
    generator = np.random.default_rng(0)
    for name, (builder, ids) in made.items():
        corpus = {"msrvtt9": "msrvtt", "multi_howto100m": "howto100m"}.get(name, name)
        streams = {"regions": (2048, None)} if name == "multi30k" else {"r2plus1d": (512, 1.0), "s3d": (512, 1.0)}
        folders = []
        for stream, (width, rate) in streams.items():
            folders.append(str(root / f"data/features/{corpus}-{stream}"))
            clips = ((video_id, generator.standard_normal((12, width))) for video_id in ids)
            write_feature_store(folders[-1], clips, extractor=stream, revision="1", rate=rate)
        places = ["--data_dir", str(root / builder), "--output_dir", str(root / "data" / name)]
        build_corpus(builder, [*places, "--features", *folders])
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *official_files.COLOURS, *official_files.ANIMALS]
    words += [*official_files.NINE, *map(str, range(10))]
    config = build_text_config(num_hidden_layers=2, vocab_size=len(words), max_position_embeddings=64)
    randomize(AutoModel.from_config(AutoConfig.for_model(**config)), sharpness=1).save_pretrained(root / "encoder")
    build_tokenizer(words).save_pretrained(root / "encoder")
    return root


@pytest.fixture
def inside(world, monkeypatch):
    """The recipes name their data by relative paths."""
    monkeypatch.chdir(world)
    return world


def shortened(world, path, **changes):
    """The recipe's command line for the tiny encoder: what is learned, from what and for how long, is cut; no more."""
    argv = [str(path), "--model.text_model", str(world / "encoder"), "--model.config", json.dumps(TINY)]
    argv += ["--model.max_text_length", "40"]  # the tiny encoder's positions
    argv += ["--mixed_precision", "no", "--work_dir", "stages", "--output_dir", f"out/{path.stem}"]
    recipe = yaml.safe_load(path.read_text())
    for stage in ("pretraining", "finetuning"):
        if recipe.get(stage):
            argv += [f"--{stage}.num_train_epochs", "1", f"--{stage}.train_batch_size", "8"]
    if recipe.get("finetuning"):
        argv += ["--finetuning.evaluations", "1"]
    return argv + [word for key, value in changes.items() for word in (f"--{key.replace('__', '.')}", value)]


def test_every_row_of_the_seeds_tables_has_its_recipe_and_says_which_it_is():
    assert {path.stem for path in RECIPES} == {name for table in ROWS.values() for name in table}
    for table, rows in ROWS.items():
        for name in rows:
            text = (ROOT / f"modeling_mmt/recipes/paper/{name}.yaml").read_text()
            assert table in text.splitlines()[0], name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_keeps_the_papers_values_and_says_where_all_that_it_needs_comes_from(path):
    recipe = load_recipe([str(path)])
    config = MMTConfig()
    assert recipe.model.config == {}
    assert (config.text_output_layer, config.freeze_text_layers, config.hidden_size) == (12, 9, 1024)
    needs = {recipe.data.dataset, *recipe.data.features}
    languages = recipe.finetuning.sources[0].languages
    assert (recipe.finetuning.num_train_epochs, recipe.finetuning.learning_rate) == (10, 2e-4)
    assert languages == (["en"] if path.stem.endswith("_en") else languages)
    assert recipe.finetuning.sources[0].languages_per_clip == (1 if path.stem.endswith("_en") else 2)
    if "none" in path.stem:
        assert recipe.pretraining is None
    else:
        (source,) = recipe.pretraining.sources
        assert source.languages == (["en"] if "_mp_" in path.stem else list(official_files.NINE))
        assert recipe.pretraining.num_train_epochs == 16 and source.clip_seconds and source.languages_per_clip == 1
        needs |= {source.dataset, *source.features}
    assert {need for need in needs if not need.startswith("absent:")} == set(recipe.comes_from)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_runs_end_to_end_on_a_small_corpus_in_the_official_format(path, inside):
    checked = train.main([*shortened(inside, path), "--dry_run"])
    assert checked["problems"] == []
    metrics = train.main(shortened(inside, path))
    (languages,) = {rows[path.stem] for rows in ROWS.values() if path.stem in rows}
    figures = metrics["figures"]["test"]["all"]["t2v"]
    assert len(figures) == languages and all(0 <= figure["R@10"] <= 100 for figure in figures.values())
    assert (inside / f"out/{path.stem}/model.safetensors").is_file()


# The dry run


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_with_nothing_there_names_all_that_is_missing_and_its_source(
    path, world, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    problems = train.main([*shortened(world, path), "--dry_run"])["problems"]
    recipe = load_recipe([str(path)])
    for name, origin in recipe.comes_from.items():
        (problem,) = [problem for problem in problems if f" {name} " in problem]
        assert problem.endswith(f"it comes from: {origin}")
    assert len(problems) == len(recipe.comes_from)
    assert "it comes from: mmt build " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # nothing is trained or written


DRY = ROOT / "modeling_mmt/recipes/paper/xlmr_mmp_all.yaml"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__languages": "[en, pt]"},
            r"data/msrvtt9 \(validation\): no column caption_pt; found video_id, caption_en",
        ),
        ({"data__test_split": "final"}, "data/msrvtt9: .*final"),
        ({"data__exclude_column": "is_flag"}, "no column is_flag"),
        (
            {"data__features": "[data/features/vatex-s3d]"},
            r"16 of 16 clips are not in data/features/vatex-s3d, the first 'video0'",
        ),
        (
            {"data__features": "[data/features/msrvtt-s3d]"},
            r"streams are \[512, 512\] wide, data.features \[512\]; they must agree",
        ),
        ({"data__features": "[]"}, "no column video_features; found .*; or name feature stores, or a video_column"),
        ({"data__features": "['absent:x']"}, "write absent:<width>"),
        (
            {"finetuning__train_batch_size": "64"},
            "finetuning.train_batch_size: batch_size is 64; the corpus has 16 rows: choose 1 to 16",
        ),
        ({"model__text_model": "./nowhere"}, "text model ./nowhere cannot be loaded"),
        ({"model__config.text_output_layer": "12"}, "has 2 layers, the recipe reads 12"),
        (
            {"pretraining__sources.0.features": "[data/features/multi30k-regions]"},
            "clip_seconds needs one rate of all its stores; they have .None",
        ),
    ],
)
def test_a_dry_run_finds_what_the_data_and_the_recipe_do_not_agree_on(changes, message, inside, tmp_path):
    import re

    recipe = yaml.safe_load(DRY.read_text())
    argv = shortened(inside, DRY)
    for key, value in changes.items():
        if ".0." in key:
            recipe["pretraining"]["sources"][0]["features"] = yaml.safe_load(value)
        else:
            argv += [f"--{key.replace('__', '.')}", value]
    argv[0] = str(tmp_path / DRY.name)
    Path(argv[0]).write_text(yaml.safe_dump(recipe))
    problems = train.main([*argv, "--dry_run"])["problems"]
    assert any(re.search(message, problem) for problem in problems), problems


def test_a_dry_run_counts_clips_without_a_caption_in_the_languages_of_a_stage(inside, tmp_path):
    rows = datasets.load_dataset("data/msrvtt9")
    for split, part in rows.items():
        emptied = part.map(
            lambda row, number: row | {"caption_en": [] if number < 3 else row["caption_en"]}, with_indices=True
        )
        (tmp_path / "d/data").mkdir(parents=True, exist_ok=True)
        emptied.to_parquet(tmp_path / f"d/data/{split}-00000-of-00001.parquet")
    path = ROOT / "modeling_mmt/recipes/paper/xlmr_none_en.yaml"
    problems = train.main([*shortened(inside, path, data__dataset=str(tmp_path / "d")), "--dry_run"])["problems"]
    assert (
        len(problems) == 1 and "3 of 16 clips of" in problems[0] and "fewer than 1 of en: drop or fill" in problems[0]
    )


def test_a_dry_run_says_how_many_rows_there_are_and_should_be(inside, capsys):
    train.main([*shortened(inside, DRY), "--dry_run"])
    assert "data/msrvtt9 (train): 16 rows, published 6,513  <- not the published number" in capsys.readouterr().out


def test_a_dry_run_looks_at_each_revision_of_a_dataset(monkeypatch):
    read = {name: datasets.Dataset.from_dict({"video_id": [name]}) for name in ("v1", "v2")}
    monkeypatch.setattr(corpora, "read_split", lambda name, revision, split: read[revision])
    opened = corpora.Corpora(SimpleNamespace(comes_from={}, **dict.fromkeys(STAGES)))
    sources = [SimpleNamespace(dataset="org/clips", revision=revision) for revision in read]
    assert [opened.rows(source, "train")["video_id"][0] for source in sources] == ["v1", "v2"]
