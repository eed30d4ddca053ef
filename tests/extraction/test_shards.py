"""Shards by several processes, killed and gone on with; what a store holds depends on none of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_extraction import SETTINGS, Reader, clips, encode_batches, extract

from modeling_mmt.data import feature_store as features
from modeling_mmt.data.feature_store import FeatureStore, FeatureStoreError
from modeling_mmt.extraction import shards as extraction
from modeling_mmt.extraction.shards import Extraction, TooManyFailuresError
from modeling_mmt.extraction.workers import WorkerPool

PROGRAM = str(Path(__file__).parents[1] / "tiny_extraction.py")


@pytest.fixture
def whole(tmp_path):
    """The manifest of a run that nothing disturbed."""
    assert extract(tmp_path / "whole", clips(), tmp_path / "whole.log")
    return FeatureStore(tmp_path / "whole").manifest


def read_in(log):
    return Counter(log.read_text().split()) if log.exists() else Counter()


def test_a_store_holds_every_clip_in_order_with_its_own_steps(tmp_path, whole):
    store = FeatureStore(tmp_path / "whole")
    store.verify()
    assert list(store) == [f"clip{number}" for number in range(11)] and len(whole["shards"]) == 4
    for number in range(11):
        steps = number % 3 + 1
        assert np.array_equal(store[f"clip{number}"], [[2 * number, 2 * step, 2, 0] for step in range(steps)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "whole.log"]
    assert {key: store.manifest[key] for key in SETTINGS} == SETTINGS


def test_killed_in_earnest_a_run_goes_on_without_reading_a_finished_shard_again(tmp_path, whole):
    log, partial = tmp_path / "log", tmp_path / "store.partial"
    process = subprocess.Popen([sys.executable, PROGRAM, tmp_path / "store", log, "1", "0.15"])
    while len(list(partial.glob("progress/*[0-9].json"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = sorted(partial.glob("features-*.parquet"))
    before, stamps = read_in(log), [path.stat().st_mtime_ns for path in finished]
    assert 2 <= len(finished) < 4
    time.sleep(0.5)  # a worker that was left over ends by itself
    assert extract(tmp_path / "store", clips(), log)
    assert FeatureStore(tmp_path / "store").manifest == whole
    assert [(tmp_path / "store" / path.name).stat().st_mtime_ns for path in finished] == stamps
    again = read_in(log) - before
    assert not set(again) & {f"clip{number}" for number in range(6)} and set(again) >= {"clip9", "clip10"}


@pytest.mark.parametrize("folder", ["/", "."])
def test_a_folder_without_a_name_of_its_own_is_refused(folder):
    with pytest.raises(FileExistsError, match="choose another folder"):
        Extraction(folder, clips(), {})


def kill_before_change(number):
    """This process ends by SIGKILL before it changes a folder for the n-th time, counted from 0."""
    left = [number]

    def counted(change):
        def change_or_die(*args, **kwargs):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return change(*args, **kwargs)

        return change_or_die

    os.replace, os.rename = counted(os.replace), counted(os.rename)
    extraction.shutil.rmtree = counted(extraction.shutil.rmtree)


def test_killed_at_any_of_its_steps_a_run_goes_on_to_the_same_store(tmp_path, whole):
    """The process ends before its n-th change of the folder, for every n until it gets through."""
    num_kills = 0
    for number in range(100):
        folder, log = tmp_path / f"store{number}", tmp_path / f"log{number}"
        child = os.fork()
        if not child:
            kill_before_change(number)
            extract(folder, clips(), log)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if folder.exists():
            Extraction.clean(folder)
        else:
            num_done = len(list(tmp_path.glob(f"store{number}.partial/progress/*[0-9].json")))
            before = read_in(log)
            assert extract(folder, clips(), log)
            assert sum((read_in(log) - before).values()) == 11 - min(3 * num_done, 11)
        assert FeatureStore(folder).manifest == whole
        FeatureStore(folder).verify()
        assert not (folder / "progress").exists()
        assert {path.name for path in tmp_path.glob("store*")} <= {f"store{n}" for n in range(number + 1)}
        if status == 0:
            break
        num_kills += 1
    assert num_kills == 12  # the plan, four shards and their records, the manifest, the store, what is left over


def test_two_processes_of_torchrun_give_the_store_of_one(tmp_path, whole):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, PROGRAM, tmp_path / "store", tmp_path / "log", "0", "0.01"]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert FeatureStore(tmp_path / "store").manifest == whole
    assert read_in(tmp_path / "log") == {f"clip{number}": 1 for number in range(11)}


@pytest.mark.parametrize("num_processes", [2, 3, 7])
def test_the_number_of_processes_and_their_order_change_nothing(tmp_path, whole, num_processes):
    log = tmp_path / "log"
    outcomes = [
        extract(tmp_path / "store", clips(), log, rank=rank, num_processes=num_processes)
        for rank in reversed(range(min(num_processes, 4)))  # of seven, three have no shard
    ]
    assert outcomes == [False] * (len(outcomes) - 1) + [True]
    assert FeatureStore(tmp_path / "store").manifest == whole
    assert set(read_in(log).values()) == {1}
    with pytest.raises(FileExistsError):
        extract(tmp_path / "store", clips(), log, rank=6, num_processes=7)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, whole):
    log = tmp_path / "log"
    assert not extract(tmp_path / "store", clips(), log, rank=1, num_processes=3)
    assert extract(tmp_path / "store", clips(), log)
    assert FeatureStore(tmp_path / "store").manifest == whole and set(read_in(log).values()) == {1}


def test_clips_that_crash_hang_are_bad_or_not_finite_are_listed_and_the_others_are_there(tmp_path):
    special = {1: "crash1", 3: "bad3", 5: "hang5"}
    videos = clips(14, special)
    assert extract(tmp_path / "store", videos, tmp_path / "log", 2, max_failures=4, timeout=1)
    store = FeatureStore(tmp_path / "store")
    assert list(store) == [f"clip{number}" for number in (0, 2, 4, 6, 7, 8, 9, 10, 11, 12)]
    assert np.array_equal(store["clip10"][1], [20, 2, 2, 0])
    failures = [json.loads(line) for line in (tmp_path / "store" / "failures.jsonl").read_text().splitlines()]
    assert [(failure["video_id"], failure["source"]) for failure in failures] == [
        ("crash1", "1"), ("bad3", "3"), ("hang5", "5"), ("clip13", "13"),
    ]  # fmt: skip
    for failure, words in zip(failures, ["SIGSEGV", "bad", "longer than 1 sec", "not finite"], strict=True):
        assert words in failure["reason"]


def test_a_shard_of_failures_alone_is_left_out_and_a_store_of_them_is_refused(tmp_path):
    special = {number: f"bad{number}" for number in range(6)}
    assert extract(
        tmp_path / "store", clips(11, special | {0: "clip0", 1: "clip1", 2: "clip2"}), tmp_path / "log", max_failures=9
    )  # noqa: E501
    shards = FeatureStore(tmp_path / "store").manifest["shards"]
    assert [shard["file"] for shard in shards] == [f"features-{number:05d}.parquet" for number in (0, 2, 3)]
    with pytest.raises(FeatureStoreError, match="every clip failed"):
        extract(tmp_path / "none", clips(6, special), tmp_path / "log", max_failures=9)


def test_the_ceiling_counts_the_failures_of_all_processes_and_the_cause_can_be_mended(tmp_path, whole):
    bad, log, folder = clips(11, {1: "bad1", 4: "bad4", 7: "bad7"}), tmp_path / "log", tmp_path / "store"
    assert not extract(folder, bad, log, rank=1, num_processes=2, max_failures=2)  # shards 1 and 3: bad4
    with pytest.raises(TooManyFailuresError, match="3 of 11 clips failed, more than --max_failures 2:") as stopped:
        extract(folder, bad, log, rank=0, num_processes=2, max_failures=2)
    assert "bad1: bad" in str(stopped.value) and "*.failures.json" in str(stopped.value)
    listed = (tmp_path / "store.partial" / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["video_id"] for line in listed] == ["bad1", "bad4", "bad7"]
    with pytest.raises(TooManyFailuresError):  # what is recorded counts at once
        extract(folder, bad, log, max_failures=1)
    before = read_in(log)
    for record in tmp_path.glob("store.partial/progress/*.failures.json"):
        record.unlink()
    assert extract(folder, bad, log, max_failures=3)
    assert not set(read_in(log) - before) & {"clip9", "clip10"}  # of shard 3, which had no failure
    assert (tmp_path / "store" / "failures.jsonl").read_text().splitlines() == listed


def test_a_shard_that_is_lost_or_cut_is_done_again(tmp_path, whole):
    log = tmp_path / "log"
    assert not extract(tmp_path / "store", clips(), log, rank=0, num_processes=2)
    (tmp_path / "store.partial" / "features-00000.parquet").write_bytes(b"cut")
    (tmp_path / "store.partial" / "features-00002.parquet").unlink()
    (tmp_path / "store.partial" / "failures.jsonl").write_text("of a run that was stopped, and whose cause was mended")
    assert extract(tmp_path / "store", clips(), log)
    assert FeatureStore(tmp_path / "store").manifest == whole
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"manifest.json", *(shard["file"] for shard in whole["shards"])}


def test_other_settings_other_clips_and_a_second_process_of_the_same_number_are_refused(tmp_path):
    folder, log = tmp_path / "store", tmp_path / "log"
    assert not extract(folder, clips(), log, num_processes=2)
    with pytest.raises(FeatureStoreError, match="num_clips is 11, now 12"):
        Extraction(folder, clips(12), SETTINGS, 3)
    with pytest.raises(FeatureStoreError, match="shard_size is 3, now 4"):
        Extraction(folder, clips(), SETTINGS, 4)
    with pytest.raises(FeatureStoreError, match="revision is '1', now '2'"):
        Extraction(folder, clips(), SETTINGS | {"revision": "2"}, 3)
    busy = pytest.raises(FeatureStoreError, match="process 0 of 1 is already running")
    with Extraction(folder, clips(), SETTINGS, 3), busy:
        Extraction(folder, clips(), SETTINGS, 3)
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(FeatureStoreError, match="not started by an extraction"):
        Extraction(tmp_path / "other", clips(), SETTINGS, 3)


def test_a_shard_beyond_the_limit_of_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "MAX_SHARD_VALUES", 20)
    assert features.MAX_SHARD_VALUES > 20
    with pytest.raises(FeatureStoreError, match="smaller shard_size"):
        extract(tmp_path / "store", clips(), tmp_path / "log")


def test_clips_are_read_while_others_are_encoded(tmp_path):
    videos, batches = clips(12), []

    def slowly(steps):
        for pixels in steps:
            batches.append(len(pixels))
            time.sleep(0.2)
            yield pixels

    with WorkerPool(Reader(tmp_path / "log", 0.1), 1, 20) as pool:
        list(pool.map(videos[:1], ahead=1))  # the worker is up
        with Extraction(tmp_path / "store", videos, SETTINGS, 6) as whole_run:
            start = time.perf_counter()
            assert extraction.run(whole_run, pool, lambda steps: encode_batches(slowly(steps)), 4, 0, quiet=True)
            seconds = time.perf_counter() - start
    assert batches == [4] * 6  # 24 steps, 12 in each shard
    assert seconds < 2.1  # 1.2 for reading and 1.2 for encoding, one after the other 2.4


def test_a_clips_features_do_not_depend_on_its_neighbours_to_the_last_bit():
    shapes = set()

    def by_shape(pixels):  # as kernels do: another shape, another rounding
        shapes.add(pixels.shape)
        return pixels * np.float32(1 + len(pixels) * 1e-3)

    generator = np.random.default_rng(0)
    some = [(f"c{steps}", generator.standard_normal((steps, 3)).astype(np.float32)) for steps in (3, 1, 7, 2)]
    together = dict(extraction.encode_clips(some, partial(map, by_shape), 4))
    for clip in some:
        ((name, alone),) = extraction.encode_clips([clip], partial(map, by_shape), 4)
        assert np.array_equal(alone, together[name])
    assert shapes == {(4, 3)}
