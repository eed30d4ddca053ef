"""README and docs say what is true: code blocks run, the table is the measured one, recipes parse, links work."""

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
from readme_blocks import HUB, PAGES, PARALLEL, README, ROOT, code_blocks

import mmt
import modeling_mmt
from modeling_mmt.data.feature_store_writer import write_feature_store

sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "docs")]
import make_reference  # noqa: E402
import tables  # noqa: E402

RESULTS = ROOT / "results" / "emoji9" / "results.json"
EMOJI9 = ROOT / "datasets_scripts" / "emoji9"
EMOJI9_TEST = EMOJI9 / "data" / "test-00000-of-00001.parquet"
PLACEHOLDER = "# OUTPUT"
NUMBER = r"-?\d+\.\d+"


BLOCK = code_blocks("python", "README.md")[0]
CLIPS = re.findall(r'store\["(.+?)"\]', BLOCK)
CAPTIONS = re.findall(r'"(.*?)"', re.search(r"processor\(\[(.*?)\]", BLOCK)[1])
PRINTED = BLOCK[BLOCK.index("print(") :].splitlines()[1:]  # the comment under the print


PLUG_IN = [block for block in code_blocks("python") if re.search(r"sentence_transformers|pipeline|mteb", block)]
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


@pytest.fixture
def run_here(run, monkeypatch, capsys):
    """Run code in this process, where what it imports is there already."""
    monkeypatch.chdir(run.work)

    def run_here(code):
        capsys.readouterr()
        exec(compile(code, "<page>", "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out

    return run_here


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


def test_the_block_on_features_writes_a_store_of_them(run_here):
    made = "import numpy as np\nmy_features = [('one', np.ones((3, 4), 'f4')), ('two', np.zeros((1, 4), 'f4'))]\n"
    read = (
        'from modeling_mmt.data.feature_store import FeatureStore\nprint(FeatureStore("features/mine")["one"].sum())'
    )
    assert run_here(made + STORE + read).split() == ["12.0"]


def test_the_line_on_fine_tuning_leaves_a_checkpoint_with_other_weights(run, run_here):
    pytest.importorskip("peft", reason="an optional peer: extra `plugins`")
    program, *words = shlex.split(FINETUNE)
    assert program == "python"
    run("", *words, *"--max_steps 2 --use_cpu --report_to none --save_strategy no --learning_rate 0.01".split())
    load = "from transformers import AutoModel\nimport modeling_mmt\n"
    load += (
        'for name in ("runs/demo/mmp_en", "runs/lora"):\n    weights = AutoModel.from_pretrained(name).state_dict()\n'
    )
    load += "    print(*(round(value.double().sum().item(), 6) for value in weights.values()))"
    before, after = (line.split() for line in run_here(load).splitlines())
    assert len(before) == len(after) and 5 < sum(a != b for a, b in zip(before, after, strict=True)) < len(before)


def test_every_python_block_is_run_by_a_test():
    """Those of `HUB`, and the line that publishes, by `test_pull.py`; one says by itself that it needs the Hub.

    `PARALLEL` by `test_alignment.py`.
    """
    pages = ("tutorials/without_torch", "how_it_works/media_index", "how_it_works/moments")
    elsewhere = [block for page in pages for block in code_blocks("python", f"docs/{page}.md")]  # by tests of theirs
    needs_the_hub = [block for block in code_blocks("python") if "needs the Hub" in block]
    elsewhere += PARALLEL
    assert sorted([BLOCK, STORE, *HUB, *PLUG_IN, *elsewhere, *needs_the_hub]) == sorted(code_blocks("python"))


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
    demo = (ROOT / "modeling_mmt" / "commands" / "demo.py").read_text(encoding="utf-8")
    assert '"mmp_en"' in demo and '"demo"' in demo and "runs/demo/mmp_en" in BLOCK


def test_the_table_is_the_measured_one():
    shown = re.search(r"<!-- table:start -->\n(.*?)<!-- table:end -->", README, re.DOTALL)[1].strip()
    if not RESULTS.is_file():
        assert shown == "", f"the README has a table, but {RESULTS.relative_to(ROOT)} does not exist"
        return
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    shown_rows = ("none / en", "MP / en", "MMP / en", "none / all")
    measured = tables.metric_table(
        [row for row in rows if row["split"] == "test" and tables.row_name(row) in shown_rows]
    )
    assert shown == measured, f"put this between README.md's table marks:\n\n{measured}\n"


def test_the_recipe_for_your_own_clips_parses_and_names_only_fields_of_the_config(tmp_path):
    from modeling_mmt import MMTConfig
    from modeling_mmt.training.recipe_reading import load_recipe

    (text,), (pixels,) = (code_blocks("yaml", f"docs/tutorials/{page}.md") for page in ("fine_tune", "pixels"))
    (tmp_path / "pixels.yaml").write_text(pixels, encoding="utf-8")
    from_pixels = load_recipe([str(tmp_path / "pixels.yaml")])
    assert from_pixels.finetuning.learn_vision_layers == 1 and from_pixels.data.video_column == "video"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe([str(tmp_path / "recipe.yaml"), "--finetuning.learning_rate", "3e-5"])
    assert recipe.finetuning.learning_rate == 3e-5
    assert recipe.pretraining.sources[0].text_column == "transcript"
    assert set(recipe.model.config) <= set(MMTConfig().to_dict())


MADE = ("runs/", "features/", "data/mine")  # by the commands that the pages name


def test_the_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_every_path_that_the_readme_names_is_there_or_is_made_by_a_command():
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.(?:py|md))`", README))
    assert named
    for path in named - {"org/name"}:
        if not path.startswith(MADE):
            recipe = ROOT / "modeling_mmt" / "recipes" / f"{path}.yaml"
            assert (ROOT / path).exists() or recipe.exists(), f"README.md names {path}"


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_of_a_page_leads_to_a_file(page):
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(link).exists(), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_is_in_the_makefile(page):
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z0-9-]+)\b", PAGES[page], re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_is_one_that_mmt_has(page):
    verbs = {line.split()[0] for line in re.findall(r"^    (\w+ )", mmt.build_parser().format_help(), re.MULTILINE)}
    for block in code_blocks("sh", page):
        for verb in re.findall(r"(?:^|-m )mmt (\w+)", block, re.MULTILINE):
            assert verb in verbs, f"{page} shows mmt {verb}"


@pytest.mark.parametrize("page", make_reference.PAGES)
def test_a_page_that_is_written_from_the_code_is_what_the_code_says(page):
    written = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert written == make_reference.PAGES[page](), "run `python docs/make_reference.py`, and commit what it writes"


def test_every_public_name_has_a_place_on_the_page_about_python():
    page = PAGES["docs/reference/api.md"]
    missing = [name for name in modeling_mmt.__all__ if f".{name}\n" not in page]
    assert missing == []


def test_every_page_is_in_the_navigation_and_the_other_way_round():
    listed = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert listed == pages
