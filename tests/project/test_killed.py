"""Killed before any change of a file, or twice at once: a second call leaves what one undisturbed call leaves.

That is byte for byte, and nothing else: no partial file, no lock, no old card beside new data.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from killed_process import files_of, run_at_once, run_killed
from PIL import Image
from tiny_corpus import WITHOUT_DROPOUT, write_recipe
from transformers import ResNetConfig, ResNetModel

from datasets_scripts import corpus, own_clips
from modeling_mmt.commands import train
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.files import PARTIAL, remove_leftovers, writing_file, writing_folder
from modeling_mmt.extraction.extract import extract
from modeling_mmt.search.index import SearchIndex

pytestmark = pytest.mark.slow
MOST, EVERY = 2000, int(os.environ.get("MMT_KILL_EVERY", "1"))


def kill_everywhere(tmp_path, call, finish, expected):
    """Kill `call(folder)` before each of its changes, then `finish(folder)`; how many kills there were.

    `MMT_KILL_EVERY` is the distance between two of them.
    """
    for number in range(0, MOST, EVERY):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        if run_killed(lambda folder=folder: call(folder), folder, number):
            assert expected(folder)
            return number
        finish(folder)
        assert expected(folder), f"killed before change {number}"
        shutil.rmtree(folder)
    raise AssertionError(f"more than {MOST} changes")


def index():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(20, 4, generator=generator), dim=-1)
    clips = Dataset.from_dict({"video_id": [f"v{n}" for n in range(20)]})
    return SearchIndex(embeddings, clips, "f" * 64, "model")


def test_an_index_that_is_killed_while_it_is_saved_is_whole_or_saved_again(tmp_path):
    def save(folder):
        index().save(folder / "index", {"dataset": "d"})

    def finish(folder):
        if not (folder / "index").exists():
            save(folder)
        SearchIndex.load(folder / "index")

    save(tmp_path)
    whole = files_of(tmp_path / "index")

    def expected(folder):
        left = {name: content for name, content in files_of(folder).items() if name != "index.lock"}
        return left == {f"index/{name}": content for name, content in whole.items()}

    assert kill_everywhere(tmp_path, save, finish, expected) > 10


def build_encoder(folder):
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])).save_pretrained(folder)
    size = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.2] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    return folder


TABLE = "video_id,language,caption,split\n" + "".join(
    f"v{number},{language},caption {number} {language},{split}\n"
    for number, split in enumerate(["train"] * 6 + ["validation"] * 2 + ["test"] * 2)
    for language in ("en", "sw")
)


def build(folder, table=TABLE):
    source = folder.parent / f"table-{crc32(table.encode())}"
    source.mkdir(exist_ok=True)
    (source / "captions.csv").write_text(table)
    corpus.build(own_clips.ABOUT, own_clips.read, corpus.Options(source, folder / "data"), own_clips.RULES)


def test_a_dataset_that_is_killed_while_it_is_built_is_built_again_without_a_trace(tmp_path):
    (tmp_path / "whole").mkdir()
    build(tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    assert kill_everywhere(tmp_path, build, build, lambda folder: files_of(folder) == whole) > 15


def test_a_dataset_that_is_killed_while_it_is_built_anew_has_no_old_card(tmp_path):
    old = TABLE.replace("caption", "title").replace(",title,", ",caption,", 1)

    def rebuild(folder):
        build(folder)

    def prepared(folder):
        build(folder, old)
        return folder

    (tmp_path / "whole").mkdir()
    build(tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    for number in range(MOST):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = run_killed(lambda folder=folder: rebuild(folder), prepared(folder), number)
        card, record = folder / "data" / "README.md", folder / "data" / "build.json"
        if card.exists() and record.exists():  # then they are those of the data, old or new
            rows = json.loads(record.read_text())["sources"]
            assert any(rows == json.loads(of)["sources"] for of in (whole["data/build.json"], record.read_text()))
        rebuild(folder)
        assert files_of(folder) == whole, f"killed before change {number}"
        shutil.rmtree(folder)
        if ended:
            break
    assert number > 15


def test_a_store_that_is_killed_while_it_is_written_is_written_again(tmp_path):
    clips = {f"v{n}": np.full((2, 3), n + 1, np.float32) for n in range(5)}

    def write(folder):
        write_feature_store(folder / "store", clips.items(), extractor="x", revision="1")

    def finish(folder):
        if not (folder / "store").exists():
            write(folder)
        FeatureStore(folder / "store").verify()

    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole")
    whole = files_of(tmp_path / "whole")

    def expected(folder):
        return {name: of for name, of in files_of(folder).items() if name != "store.lock"} == whole

    assert kill_everywhere(tmp_path, write, finish, expected) > 5


def test_an_extraction_that_is_killed_goes_on_to_the_same_store(tmp_path):
    encoder_folder = build_encoder(tmp_path / "encoder")
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(4):
        frames = [Image.new("RGB", (32, 32), (number * 40, shade, 9)) for shade in (0, 90, 200)]
        frames[0].save(videos / f"{number}.gif", save_all=True, append_images=frames[1:], duration=100)

    def run(folder):
        torch.set_num_threads(1)
        extract(videos, folder / "store", encoder=encoder_folder, num_frames=2, shard_size=2, num_workers=0)

    def finish(folder):  # in a process of its own, since one that has started the workers' server cannot be forked
        assert run_killed(lambda: run(folder), folder, MOST)

    (tmp_path / "whole").mkdir()
    finish(tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    assert kill_everywhere(tmp_path, run, finish, lambda folder: files_of(folder) == whole) > 20


@pytest.fixture
def fresh_accelerate_state():
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def test_a_training_that_is_killed_goes_on_to_the_same_files(corpus, tmp_path, fresh_accelerate_state):
    """Weights and ranks byte for byte; of metrics and card all but seconds. The layer cache is on."""
    short = {f"{stage}.{key}": value for stage in ("pretraining", "finetuning") for key, value in SHORT.items()}

    def run(folder):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        changes = WITHOUT_DROPOUT | short | {"frozen_states_dir": str(folder / "frozen")}
        train.main([write_recipe(corpus, folder, changes, "model")])

    (tmp_path / "whole").mkdir()
    run_killed(lambda: run(tmp_path / "whole"), tmp_path / "whole", MOST * 10)
    whole = comparable(tmp_path / "whole")

    def finish(folder):
        assert run_killed(lambda: run(folder), folder, MOST * 10)

    def expected(folder):
        return comparable(folder) == whole

    assert kill_everywhere(tmp_path, run, finish, expected) > 100


SHORT = {"num_train_epochs": 1, "evaluations": 1, "save_steps": 2}


def comparable(folder: Path):
    """A run's files; of the layer cache the number of captions alone, since a resumed run writes other shards."""
    files, captions = files_of(folder), 0
    for name in list(files):
        if name.startswith("frozen/"):
            del files[name]
            captions += 1
        elif name.endswith((".json", ".jsonl", ".yaml", "README.md")) and "tokenizer" not in name:
            files[name] = b"timed"  # seconds differ
    assert captions >= 1
    return files


# Two at once


@pytest.mark.parametrize("times", [50])
def test_two_that_save_one_index_at_once_leave_one_whole_index_and_nothing_else(tmp_path, times):
    for number in range(times):
        folder = tmp_path / str(number)
        codes = run_at_once([lambda folder=folder: index().save(folder)] * 2)
        assert 0 in codes and set(codes) <= {0, 1}
        SearchIndex.load(folder)
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
        shutil.rmtree(folder)


@pytest.mark.parametrize("times", [50])
def test_two_that_build_one_dataset_at_once_leave_data_and_card_of_one(tmp_path, times):
    tables = [TABLE, TABLE.replace("caption 0", "title 0")]
    whole = []
    for number, table in enumerate(tables):
        (tmp_path / f"whole{number}").mkdir()
        build(tmp_path / f"whole{number}", table)
        whole.append(files_of(tmp_path / f"whole{number}"))
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        codes = run_at_once([lambda table=table, folder=folder: build(folder, table) for table in tables])
        assert 0 in codes and set(codes) <= {0, 1}
        assert files_of(folder) in whole
        shutil.rmtree(folder)


@pytest.mark.parametrize("times", [50])
def test_two_that_write_one_store_at_once_leave_one_whole_store(tmp_path, times):
    def write(folder, value):
        clips = [(f"v{n}", np.full((2, 3), value, np.float32)) for n in range(20)]
        write_feature_store(folder / "store", clips, extractor="x", revision="1")

    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        codes = run_at_once([lambda value=value, folder=folder: write(folder, value) for value in (1, 2)])
        assert 0 in codes and set(codes) <= {0, 1}
        store = FeatureStore(folder / "store")
        store.verify()
        assert len({float(store[video_id].mean()) for video_id in store}) == 1
        assert [path.name for path in folder.iterdir()] == ["store"]


def test_two_runs_of_one_output_folder_at_once_leave_the_weights_and_figures_of_one(corpus, tmp_path):
    short = {"pretraining": None, **{f"finetuning.{key}": value for key, value in SHORT.items()}}

    def run(seed, work, output):
        path = write_recipe(corpus, tmp_path / work, short | {"seed": seed, "output_dir": str(output)}, f"seed{seed}")
        train.main([path])

    weights = []
    for seed in (0, 1):
        assert run_killed(lambda seed=seed: run(seed, f"alone{seed}", tmp_path / f"out{seed}"), tmp_path, MOST * 10)
        weights.append((tmp_path / f"out{seed}" / "model.safetensors").read_bytes())
    names = {path.name for path in (tmp_path / "out0").iterdir()}
    for number in range(5):
        output = tmp_path / f"both{number}"
        runs = [partial(run, seed, f"w{number}-{seed}", output) for seed in (0, 1)]
        codes = run_at_once(runs)
        assert codes == [0, 0]
        seed = json.loads((output / "metrics.json").read_text())["seed"]
        assert json.loads((output / "recipe.json").read_text())["seed"] == seed
        assert (output / "model.safetensors").read_bytes() == weights[seed] != weights[1 - seed]
        assert {path.name for path in output.iterdir()} == names


# What killed writers leave


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_stays(tmp_path):
    def die():
        with writing_file(tmp_path / "a.json") as partial, writing_folder(tmp_path / "b"):
            partial.write_text("half")
            (tmp_path / "never").touch()  # the last change: the process is killed before it

    assert not run_killed(die, tmp_path / "never", 0)
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 2 and all(PARTIAL.fullmatch(name) for name in left)
    with writing_file(tmp_path / "a.json") as mine:
        elsewhere = tmp_path / f"a.json.elsewhere-{2**22 + 1}-0a1b2c3d.partial"  # of a process of another machine
        elsewhere.touch()
        remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, elsewhere.name}
    remove_leftovers(tmp_path / "nowhere")
