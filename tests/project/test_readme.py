"""The README says what is true: its code blocks run, its table is the measured one, its recipe parses."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from readme_blocks import HUB, README, ROOT, code_blocks

from modeling_mmt.data.feature_store_writer import write_feature_store

sys.path.insert(0, str(ROOT / "experiments"))
import tables  # noqa: E402

RESULTS = ROOT / "results" / "emoji9" / "results.json"
EMOJI9 = ROOT / "datasets_scripts" / "emoji9"
EMOJI9_TEST = EMOJI9 / "data" / "test-00000-of-00001.parquet"
PLACEHOLDER = "# OUTPUT"
NUMBER = r"-?\d+\.\d+"


BLOCK = code_blocks("python")[0]
CLIPS = re.findall(r'store\["(.+?)"\]', BLOCK)
CAPTIONS = re.findall(r'"(.*?)"', re.search(r"processor\(\[(.*?)\]", BLOCK)[1])
PRINTED = BLOCK[BLOCK.index("print(") :].splitlines()[1:]  # the comment under the print


PLUG_IN = [block for block in code_blocks("python") if re.search(r"sentence_transformers|pipeline|mteb", block)]
(SEARCH,) = (block for block in code_blocks("python") if "SearchIndex" in block)
(STORE,) = (block for block in code_blocks("python") if "write_feature_store" in block)
(FINETUNE,) = (line for block in code_blocks("sh") for line in block.splitlines() if "finetune_with_trainer" in line)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run code in a folder with a briefly trained checkpoint and a store where the blocks look for them."""
    from conftest import build_model, build_processor

    work = tmp_path_factory.mktemp("readme")
    model, processor = build_model(), build_processor()
    generator = np.random.default_rng(0)
    splits = [pq.read_table(path, columns=["video_id"]) for path in sorted((EMOJI9 / "data").glob("*.parquet"))]
    ids = [clip for split in splits for clip in split["video_id"].to_pylist()]
    clips = {clip: generator.standard_normal((3, 8)).astype(np.float32) for clip in ids}
    batch = processor(["red dog", "Hund schnell"], [clips[clip] for clip in CLIPS])
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**batch, return_loss=True).loss.backward()
        optimizer.step()
    (checkpoint,) = set(re.findall(r'from_pretrained\("(.+?)"', BLOCK))
    model.eval().save_pretrained(work / checkpoint)
    processor.save_pretrained(work / checkpoint)
    (store,) = re.findall(r'FeatureStore\("(.+?)"', BLOCK)
    write_feature_store(work / store, clips.items(), extractor="random", revision="1")
    environment = {"PYTHONPATH": str(ROOT), "HF_HOME": str(work / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    for name in ("datasets_scripts", "examples"):
        (work / name).symlink_to(ROOT / name)

    def run(code, *command):
        done = subprocess.run(
            [sys.executable, *(command or ("-c", code))],
            cwd=work,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run.work = work
    return run


@pytest.fixture(scope="module")
def output(run):
    return run(BLOCK)


def test_the_blocks_on_other_libraries_run_one_after_the_other(run):
    for name in ("sentence_transformers", "mteb"):
        pytest.importorskip(name, reason="an optional peer: extra `plugins`")
    assert len(PLUG_IN) == 3
    printed = run("\n".join(PLUG_IN))
    assert re.search(r"tensor\(\[\[", printed)
    found = json.loads(re.search(r"^\[\{.*\}\]$", printed, re.MULTILINE)[0].replace("'", '"'))
    assert found[0]["id"] in CLIPS
    assert re.search(r"\{'en': \d.*'es': \d[\d.e-]*\}", printed)


def test_the_block_on_search_finds_clips_that_are_no_flags(run):
    rows = f'rows, features = datasets.load_dataset({str(EMOJI9)!r}, split="test"), store\n'
    *block, last = SEARCH.splitlines()
    shown = f"\nfor hits in {last}: print(*(hit.row for hit in hits))"
    printed = run("import datasets\n" + BLOCK.split("batch =")[0] + rows + "\n".join(block) + shown)
    flags = pq.read_table(EMOJI9_TEST, columns=["is_flag"])["is_flag"].to_pylist()
    assert 0 < sum(flags) < len(flags)
    assert [[flags[int(row)] for row in line.split()] for line in printed.splitlines()] == [[False] * 8] * 2


def test_the_block_on_features_writes_a_store_of_them(run):
    made = "import numpy as np\nmy_features = [('one', np.ones((3, 4), 'f4')), ('two', np.zeros((1, 4), 'f4'))]\n"
    read = (
        'from modeling_mmt.data.feature_store import FeatureStore\nprint(FeatureStore("features/mine")["one"].sum())'
    )
    assert run(made + STORE + read).split() == ["12.0"]


def test_the_line_on_fine_tuning_leaves_a_checkpoint_with_other_weights(run):
    pytest.importorskip("peft", reason="an optional peer: extra `plugins`")
    program, *words = shlex.split(FINETUNE)
    assert program == "python"
    run("", *words, *"--max_steps 2 --use_cpu --report_to none --save_strategy no --learning_rate 0.01".split())
    load = "from transformers import AutoModel\nimport modeling_mmt\n"
    load += (
        'for name in ("runs/demo/mmp_en", "runs/lora"):\n    weights = AutoModel.from_pretrained(name).state_dict()\n'
    )
    load += "    print(*(round(value.double().sum().item(), 6) for value in weights.values()))"
    before, after = (line.split() for line in run(load).splitlines())
    assert len(before) == len(after) and 5 < sum(a != b for a, b in zip(before, after, strict=True)) < len(before)


def test_every_python_block_is_run_by_a_test():
    """Those of `HUB`, and the line that publishes, by `test_pull.py`."""
    assert sorted([BLOCK, SEARCH, STORE, *HUB, *PLUG_IN]) == sorted(code_blocks("python"))


def test_the_first_code_block_prints_a_cosine_for_each_caption_and_clip(output):
    numbers = [float(number) for number in re.findall(NUMBER, output)]
    assert len(numbers) == len(CAPTIONS) * len(CLIPS)
    assert all(-1 <= number <= 1 for number in numbers)
    assert len(set(numbers)) > 1


def test_the_first_code_block_has_ten_lines_and_a_comment_of_what_it_prints():
    code = [line for line in BLOCK.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) == 10
    assert PRINTED and all(line.startswith("#") for line in PRINTED)
    if RESULTS.is_file():
        assert PLACEHOLDER not in PRINTED, "run the block after `make demo` and put what it prints in its place"
    if PLACEHOLDER not in PRINTED:
        assert len(re.findall(NUMBER, "\n".join(PRINTED))) == len(CAPTIONS) * len(CLIPS)


def test_the_first_code_block_names_test_clips_and_folders_that_the_demo_makes():
    split = pq.read_table(EMOJI9_TEST, columns=["video_id"])
    assert set(CLIPS) <= set(split["video_id"].to_pylist())
    recipe = yaml.safe_load((ROOT / "modeling_mmt" / "recipes" / "emoji9" / "mmp_en.yaml").read_text(encoding="utf-8"))
    assert f'FeatureStore("{recipe["data"]["features"][0]}")' in BLOCK
    demo = (ROOT / "experiments" / "demo.py").read_text(encoding="utf-8")
    assert '"mmp_en"' in demo and '"demo"' in demo and "runs/demo/mmp_en" in BLOCK


def test_the_table_is_the_measured_one():
    shown = re.search(r"<!-- table:start -->\n(.*?)<!-- table:end -->", README, re.DOTALL)[1].strip()
    if not RESULTS.is_file():
        assert shown == "", f"the README has a table, but {RESULTS.relative_to(ROOT)} does not exist"
        return
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    measured = tables.metric_table([row for row in rows if row["split"] == "test"])
    assert shown == measured, f"put this between README.md's table marks:\n\n{measured}\n"


def test_the_recipe_for_your_own_clips_parses_and_names_only_fields_of_the_config(tmp_path):
    from modeling_mmt import MMTConfig
    from modeling_mmt.training.recipe_reading import load_recipe

    pixels, text = code_blocks("yaml")
    (tmp_path / "pixels.yaml").write_text(pixels, encoding="utf-8")
    from_pixels = load_recipe([str(tmp_path / "pixels.yaml")])
    assert from_pixels.finetuning.learn_vision_layers == 1 and from_pixels.data.video_column == "video"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe([str(tmp_path / "recipe.yaml"), "--finetuning.learning_rate", "3e-5"])
    assert recipe.finetuning.learning_rate == 3e-5
    assert recipe.pretraining.sources[0].text_column == "transcript"
    assert set(recipe.model.config) <= set(MMTConfig().to_dict())


def test_every_path_that_the_readme_names_is_there_or_is_made_by_a_command():
    made = ("runs/", "results/", "features/mine")
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.(?:py|md))`", README)
    of_a_checkpoint = {"README.md", "org/name"}
    assert named
    for path in set(named) - of_a_checkpoint:
        if not path.startswith(made):
            places = [ROOT / path, ROOT / "experiments" / path]
            assert any(place.exists() for place in places), f"README.md names {path}"


def test_every_make_target_that_the_readme_names_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test", "table"} <= set(re.findall(r"(?:`|^)make ([a-z-]+)\b", README, re.MULTILINE)) <= targets
