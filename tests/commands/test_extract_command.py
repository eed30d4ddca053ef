"""`mmt extract`: its options are those of `extract`, and its exit codes say how it ended."""

import inspect
import os
import socket
import sys

import fsspec
import pytest
from command_line import call
from killed_process import files_of
from transformers import ResNetConfig, ResNetModel
from video_files import write_video

import mmt
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.extraction.extract import extract

PREPARATION = """{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_normalize": true,
 "size": {"height": 32, "width": 32}, "resample": 3}"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PREPARATION)
    return folder


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in "ab":
        write_video(tmp_path / "videos" / f"{name}.mp4", 4, rate=10)
    return tmp_path / "videos"


def test_every_option_is_one_of_the_function_with_its_default():
    options = vars(mmt.build_parser().parse_args(["extract", "x", "--output_dir", "y"]))
    assert (options.pop("verb"), options.pop("source"), options.pop("output_dir")) == ("extract", "x", "y")
    parameters = inspect.signature(extract).parameters.values()
    assert options == {each.name: each.default for each in parameters if each.default is not each.empty}


def test_videos_become_a_store_and_one_that_cannot_be_decoded_ends_in_exit_code_3(videos, encoder, tmp_path, capsys):
    words = ["extract", videos, "--encoder", encoder, "--num_frames", 2, "--num_workers", 0, "--output_dir"]
    code, out, err = call(capsys, *words, tmp_path / "store")
    assert code == 0 and "2 clips" in out.splitlines()[-1]
    store = FeatureStore(tmp_path / "store")
    assert {name: len(store[name]) for name in store} == {"a": 2, "b": 2}
    (videos / "cut.mp4").write_bytes((videos / "a.mp4").read_bytes()[:300])
    code, out, err = call(capsys, *words, tmp_path / "more")
    assert code == 3 and "mmt: 1 of 3 clips failed" in err and "Traceback" not in err
    assert call(capsys, *words, tmp_path / "more", "--max_failures", 1)[0] == 0
    assert "1 failed" in call(capsys, *words, tmp_path / "more", "--max_failures", "0.5")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no_folder"], "no_folder does not exist; give a folder of videos or a list"),
        (["videos", "--batch_size", "0"], "batch_size is 0; give more than 0"),
        (["videos", "--frames_per_second", "1e6"], "frames_per_second is 1e+06; give at most 240"),
        (["videos", "--frames_per_second", "nan"], "frames_per_second is nan; give more than 0"),
        (["videos", "--frames_per_second", "inf"], "frames_per_second is inf; give at most 240"),
        (["videos", "--timeout", "inf"], "timeout is inf; give at most 1e+06"),
        (["videos", "--num_workers", "1000000"], "num_workers is 1e+06; give at most 1024"),
        (["videos", "--image_size", "1000000"], "image_size is 1e+06; give at most 4096"),
        (["videos", "--max_failures", "1.5"], "max_failures is 1.5"),
        (["emoji9", "--encoder", "no/where/at/all"], "no/where/at/all"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "extract", *words, "--output_dir", "store")
    assert (code, out) == (2, "") and message in err.splitlines()[-1] and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_utf8_is_one_line_that_shows_it(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / os.fsdecode(b"caf\xe9.mp4"), 4, rate=10)
    code, out, err = call(capsys, "extract", tmp_path / "videos", "--output_dir", tmp_path / "store")
    assert code == 2 and err.count("\n") == 1 and r"caf\udce9" in err


def test_a_number_of_failures_that_is_none_is_refused(capsys):
    assert call(capsys, "extract", "x", "--output_dir", "y", "--max_failures", "few")[0] == 2


def test_an_address_where_nothing_answers_is_one_line_before_anything_is_opened(videos, encoder, tmp_path, capsys):
    pytest.importorskip("ray", reason="an optional scheduler: extra `cluster`")
    words = ["extract", videos, "--encoder", encoder, "--num_frames", 2, "--output_dir"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "127.0.0.1", "127.0.0.1:99999", f"ray://127.0.0.1:{port}"):
        code, _, err = call(capsys, *words, tmp_path / "store", "--cluster", address)
        assert code == 2 and err.startswith(f"mmt: --cluster {address} cannot be reached (") and err.count("\n") == 1
        assert not (tmp_path / "store").exists()


def test_a_cluster_needs_ray_and_one_process_does_not(videos, encoder, tmp_path, capsys, monkeypatch):
    words = ["extract", videos, "--encoder", encoder, "--num_frames", 2, "--num_workers", 1, "--output_dir"]
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    code, _, err = call(capsys, *words, tmp_path / "store", "--cluster", "local")
    assert code == 2 and err.splitlines()[-1] == "mmt: --cluster needs Ray: pip install modeling_mmt[cluster]"
    assert call(capsys, *words, tmp_path / "store")[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call(capsys, *words, tmp_path / "more", "--cluster", "local")
    assert code == 2 and "without torchrun" in err
    code, _, err = call(capsys, *words, "memory://bucket/mine")
    assert code == 2 and "one process" in err


def test_a_url_gets_the_files_of_the_store_and_nothing_stays_here(videos, encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["extract", videos, "--encoder", encoder, "--num_frames", 2, "--num_workers", 1, "--output_dir"]
    assert call(capsys, *words, "memory://bucket/mine")[0] == 0
    assert call(capsys, *words, tmp_path / "store")[0] == 0
    memory = fsspec.filesystem("memory")
    copied = {name.removeprefix("/bucket/mine/"): memory.cat(name) for name in memory.find("/bucket/mine")}
    assert copied == files_of(tmp_path / "store") and {path.name for path in tmp_path.iterdir()} == {"videos", "store"}
    code, _, err = call(capsys, *words, "memory://bucket/mine")
    assert code == 2 and "memory://bucket/mine already has a manifest.json" in err
    memory.rm("/bucket", recursive=True)
