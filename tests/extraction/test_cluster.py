"""Extraction by a Ray cluster of three nodes on this machine: the bytes of one process, whatever happens to a node."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import psutil
import pytest
import torch
from killed_process import files_of
from PIL import Image
from ray_nodes import Killer, cluster_of
from tiny_extraction import Reader, clips, encode_batches
from transformers import ResNetConfig, ResNetModel
from video_files import number_frame, write_video

from modeling_mmt.data.cluster import ClusterError, ClusterPool, check_answers, unread, versions
from modeling_mmt.extraction.extract import extract
from modeling_mmt.extraction.remote_shards import FailedClip, ShardEncoder

ROOT = Path(__file__).resolve().parents[2]
PREPARATION = """{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_normalize": true,
 "size": {"height": 32, "width": 32}, "resample": 3}"""
NUM_VIDEOS = 48


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("resnet")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PREPARATION)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of different lengths, and one file that is none."""
    folder = tmp_path_factory.mktemp("cluster") / "videos"
    folder.mkdir()
    for number in range(NUM_VIDEOS):
        write_video(folder / f"{number:02d}.mp4", 40 + number, rate=10)
    (folder / "broken.mp4").write_bytes(b"no film at all")
    return folder


def options(encoder, **more):
    return {"encoder": encoder, "num_frames": 16, "num_workers": 1, "shard_size": 3, "max_failures": 1, **more}


@pytest.fixture(scope="module")
def plain(videos, encoder, tmp_path_factory):
    """The files of a store that one process made."""
    folder = tmp_path_factory.mktemp("plain") / "store"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    extract(videos, folder, **options(encoder))
    torch.set_num_threads(threads)
    return files_of(folder)


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(1, 1, 1) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_node_that_is_killed_while_it_works_changes_no_byte_of_the_store(cluster, videos, encoder, plain, tmp_path):
    folder = tmp_path / "store"
    records = tmp_path / "store.partial" / "progress"

    def is_under_way():
        return 2 <= len(list(records.glob("0*.json")))

    with Killer(cluster, "ShardEncoder", is_under_way) as killer:
        store = extract(videos, folder, **options(encoder), cluster=cluster.address)
    assert killer.is_done
    assert len(store) == NUM_VIDEOS and files_of(folder) == plain and b"broken" in plain["failures.jsonl"]
    assert not records.parent.exists()


@pytest.mark.slow
def test_files_that_a_node_cannot_read_are_no_failures_of_clips(cluster, videos, encoder, tmp_path, monkeypatch):
    """`/proc/self/cwd` is another folder for each process: here it has the videos, on a node it has not."""
    monkeypatch.chdir(videos)
    (tmp_path / "list.txt").write_text("/proc/self/cwd/00.mp4\n/proc/self/cwd/01.mp4\n")
    with pytest.raises(ClusterError, match=r"node \S+ cannot read /proc/self/cwd/00.mp4, and this machine can"):
        extract(tmp_path / "list.txt", tmp_path / "store", **options(encoder), cluster=cluster.address)
    assert not list(tmp_path.glob("store*/**/0*.json"))
    (tmp_path / "list.txt").write_text("00.mp4\nnowhere.mp4\n")  # which is nowhere
    shutil.copy(videos / "00.mp4", tmp_path)
    monkeypatch.chdir(tmp_path)
    here = extract("list.txt", "here", **options(encoder))
    there = extract("list.txt", "there", **options(encoder), cluster=cluster.address)
    assert files_of(here.folder) == files_of(there.folder) and b"nowhere" in files_of(there.folder)["failures.jsonl"]


@pytest.mark.slow
def test_the_clips_of_a_dataset_are_sent_to_the_nodes(cluster, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {
        "video_id": [f"clip{number}" for number in range(7)],
        "num_frames": [number % 3 + 1 for number in range(7)],
    }
    rows["frames"] = [
        Image.fromarray(number_frame(9 * n, (48 * count, 48))) for n, count in enumerate(rows["num_frames"])
    ]
    (tmp_path / "corpus" / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict(rows).cast_column("frames", datasets.Image())
    table.to_parquet(tmp_path / "corpus" / "data" / "train-00000-of-00001.parquet")
    chosen = {"encoder": encoder, "num_workers": 1, "shard_size": 3}
    here = extract(tmp_path / "corpus", tmp_path / "here", **chosen)
    there = extract(tmp_path / "corpus", tmp_path / "there", **chosen, cluster=cluster.address)
    assert len(there) == 7 and files_of(there.folder) == files_of(here.folder)


@pytest.mark.slow
def test_a_cluster_of_this_machine_that_is_interrupted_goes_on_to_the_same_store(videos, encoder, plain, tmp_path):
    """By the command, with a relative folder, since Ray's processes work elsewhere."""
    pytest.importorskip("ray", reason="an optional scheduler: extra `cluster`")
    words = [sys.executable, "-m", "mmt", "extract", "videos", "--output_dir", str(tmp_path / "store")]
    words += [word for name, value in options(encoder).items() for word in (f"--{name}", str(value))]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    settings = {"cwd": videos.parent, "env": os.environ | environment, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [*words, "--cluster", "local"],
        **settings,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    while not list(tmp_path.glob("store.partial/progress/0*.json")) and process.poll() is None:
        time.sleep(0.01)
    own = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, process.stderr.read()
    assert process.stderr.read().endswith("mmt: interrupted\n")
    assert psutil.wait_procs(own, timeout=20)[1] == []
    assert 1 <= len(list(tmp_path.glob("store.partial/progress/0*.json"))) < len(plain)
    done = subprocess.run([*words, "--cluster", "local"], **settings, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    listed = plain["failures.jsonl"].replace(f"{videos.parent}/".encode(), b"")  # as the folder was given
    assert files_of(tmp_path / "store") == plain | {"failures.jsonl": listed}


@pytest.mark.slow
@pytest.mark.parametrize("other", ["changed", "missing"])
def test_a_node_with_other_code_or_none_is_named(other, tmp_path, monkeypatch):
    package = tmp_path / "modeling_mmt"
    if other == "changed":
        shutil.copytree(ROOT / "modeling_mmt", package, ignore=shutil.ignore_patterns("__pycache__"))
        (package / "loss_mmt.py").write_text((package / "loss_mmt.py").read_text() + "\n")
    else:
        package.mkdir()
        (package / "__init__.py").write_text('raise ImportError("as if it were not installed")\n')
    words = "has modeling_mmt .*, and this machine" if other == "changed" else "cannot import modeling_mmt"
    monkeypatch.chdir(tmp_path.parent)  # Ray looks for modules in the folder of the process that asks, too
    with cluster_of(0) as cluster:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        cluster.add_node(num_cpus=1)
        with pytest.raises(ClusterError, match=rf"node \S+ {words}"), ClusterPool(cluster.address) as pool:
            list(pool.map(abs, [1, 2]))


@pytest.mark.slow
def test_results_come_in_order_errors_as_they_were_and_a_cluster_without_room_is_refused(cluster, videos, monkeypatch):
    with ClusterPool(cluster.address) as pool:
        taken = []
        results = pool.map(abs, (taken.append(number) or -number for number in range(50)))
        assert next(results) == 0 and len(taken) == 2 * pool.num_slots  # no more than there is room for
        assert list(results) == list(range(1, 50))
        with pytest.raises(TypeError):
            list(pool.map(abs, [None]))
        with pytest.raises(FileNotFoundError) as error:
            list(pool.map(Path.read_bytes, [Path("/no/such/file")]))
        assert type(error.value) is FileNotFoundError
        monkeypatch.chdir(videos)
        with pytest.raises(ClusterError, match=r"node \S+ cannot read /proc/self/cwd/00.mp4, and this machine can"):
            list(pool.map(Path.read_bytes, [Path("/proc/self/cwd/00.mp4")]))
    with pytest.raises(ClusterError, match="a task needs 99 CPUs, and its nodes have"), ClusterPool("auto", 99):
        pass


@pytest.mark.slow
def test_cards_that_no_node_has_are_said_before_anything_is_written(cluster, videos, encoder, tmp_path):
    with pytest.raises(ClusterError, match="needs 1 CPUs and 1 GPUs, and .* CPUs and 0 GPUs .* give --device cpu$"):
        extract(videos, tmp_path / "store", **options(encoder, cluster=cluster.address, device="cuda"))
    assert not list(tmp_path.iterdir())


def test_auto_is_the_address_of_the_environment(monkeypatch):
    pytest.importorskip("ray", reason="an optional scheduler: extra `cluster`")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"^--cluster auto is RAY_ADDRESS=127.0.0.1:1, which cannot be reached"):
        check_answers("auto")


@pytest.mark.slow
def test_an_address_where_something_else_answers_is_one_line():
    pytest.importorskip("ray", reason="an optional scheduler: extra `cluster`")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError) as error, ClusterPool(address):
            pass
    message = str(error.value)
    assert message.startswith(f"--cluster {address}: ") and "\n" not in message and "Traceback" not in message
    assert "Timed out" in message and "ray start --address" in message


class TinyEncoder:
    """That of `tiny_extraction`."""

    encode_batches = staticmethod(encode_batches)

    def to(self, device):
        pass


def test_on_a_node_a_clip_that_crashes_hangs_or_is_bad_is_one_failure(tmp_path):
    special = {1: "crash1", 3: "bad3", 5: "hang5"}
    shard = ShardEncoder(Reader(tmp_path / "log"), TinyEncoder(), "cpu", 4, 2, 1, "float16")
    outcomes = shard(clips(14, special))
    reasons = {number: one.reason for number, one in enumerate(outcomes) if isinstance(one, FailedClip)}
    words = {1: "SIGSEGV", 3: "bad", 5: "longer than 1 sec", 13: "not finite"}
    assert reasons.keys() == words.keys() and all(words[number] in reason for number, reason in reasons.items())
    assert outcomes[10].tolist() == [[20, 2 * step, 2, 0] for step in range(2)] and outcomes[10].dtype == "float16"
    shard._pool.__exit__()


def test_only_a_path_that_cannot_be_opened_is_unread(tmp_path):
    (tmp_path / "there").touch()
    assert unread(tmp_path / "there") is None and unread(b"bytes") is None and unread(None) is None
    assert unread(tmp_path / "gone").path == str(tmp_path / "gone")


def test_versions_name_every_package_that_can_change_a_result():
    assert versions()["torch"] == torch.__version__.partition("+")[0]
    assert {"modeling_mmt", "torch", "transformers", "numpy", "pillow", "av"} == versions().keys()
    assert "missing" not in versions().values()
