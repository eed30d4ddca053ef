"""Extraction: clips to a feature store, through a frozen encoder.

At `frames_per_second` a clip has a row for every sampling time (for every T of them, where an encoder's step is T
frames); a frame that is shown for longer is repeated, so that row n is second n / rate. The processor, which gives a
model its frames, takes such a frame once.

An encoder is any `AutoModel` image encoder, from the Hub, a folder or a package (`packaged_encoders.py`), or a
published file of S3D or R(2+1)D (`video_backbones.py`). Two extractions with two encoders give two streams.

Frames are decoded ahead of the encoder, in processes that may crash or hang: such a file, and one that cannot be
decoded, is listed in `failures.jsonl` with the reason, and the rest goes on, up to `max_failures`. Killed at any
point, the same call continues where it stopped, with more processes or fewer. The processes, whose number and count
torchrun's variables say, share the output's folder and nothing else; each does the shards of its number (`shards.py`).
Or the nodes of a Ray cluster read and encode, a task a shard, and this process writes (`remote_shards.py`).
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from modeling_mmt.data.cluster import ClusterPool, check_answers
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.extractors import encoder_name
from modeling_mmt.data.feature_store import MANIFEST, FeatureStore
from modeling_mmt.data.limits import check_numbers
from modeling_mmt.data.reading import dataset_folder
from modeling_mmt.data.video_lists import LISTS, MEDIA_SUFFIXES
from modeling_mmt.data.wording import counted
from modeling_mmt.extraction.clips import Clips, clips_of_dataset, clips_of_folder_or_list, filmstrip_frames
from modeling_mmt.extraction.encoders import StepEncoder, VideoReader, load_encoder
from modeling_mmt.extraction.remote_shards import ShardEncoder, run_on_cluster
from modeling_mmt.extraction.shards import FAILURES, Extraction, run
from modeling_mmt.extraction.workers import WorkerPool, start_imports
from modeling_mmt.frames_mmt import FrameSampling

FILMSTRIP_SIZE = 128  # emoji9's frames as they are
EVERY_FRAME = FrameSampling(num_frames=None, frames_per_second=1.0, max_frames=2**20)  # of a list, which has no times


def extract(
    source: str | Path,
    output_dir: str | Path,
    *,
    dataset_revision: str | None = None,
    encoder: str | Path = "efficientnet-lite0",
    image_size: int | None = None,
    num_frames: int | None = None,
    frames_per_second: float | None = None,
    max_frames: int = 4096,
    batch_size: int = 16,
    limit: int | None = None,
    device: str = "cpu",
    num_workers: int | None = None,
    timeout: float = 300.0,
    decoder: str | None = None,
    shard_size: int = 256,
    max_failures: int | float = 0.05,
    cluster: str | None = None,
) -> FeatureStore | None:
    """Extract the features of clips.

    Args:
        source: folder of videos and pictures, list of them, or a dataset (`is_dataset`) with a column of videos or
            film strips.
        output_dir: folder of the store.
        dataset_revision: tag, branch or commit of a dataset on the Hub.
        encoder: packaged encoder, name on the Hub, folder or `.pth` file.
        image_size: side of a frame in pixels; None is the encoder's own, 128 for film strips.
        num_frames: of a video, spread evenly; None with `frames_per_second` None is 8 steps' worth.
        frames_per_second: or: frames per second of video.
        max_frames: with `frames_per_second`: a longer video fails.
        batch_size: steps that go through the encoder together.
        limit: clips of each split, or videos; None for all.
        device: where the encoder runs; `cuda` is each process's own.
        num_workers: processes that decode; None for one a core, and on a cluster for one a task, which takes as many
            cores.
        timeout: seconds that a clip's decoding may take.
        decoder: `torchcodec` or `pyav`; None takes PyAV where it is installed.
        shard_size: clips a shard; a killed run loses at most one.
        max_failures: clips that may fail: a count, or as a float a share of all.
        cluster: a Ray cluster whose nodes read and encode, as in `ClusterPool`; None for this process.

    Returns:
        The store; None where other processes are still at it.

    Raises:
        InputError: an option is out of range, the clips are not usable, or the folder holds other features.
        FileNotFoundError: no such folder or list.
        ClusterError: the cluster cannot be used.
        TooManyFailuresError: more clips failed than may.
    """
    whole = {"image_size": image_size, "num_frames": num_frames, "frames_per_second": frames_per_second}
    whole |= {"max_frames": max_frames, "batch_size": batch_size, "limit": limit, "timeout": timeout}
    check_numbers(whole | {"shard_size": shard_size, "num_workers": num_workers or None})
    if num_frames and frames_per_second:
        raise InputError(f"num_frames is {num_frames} and frames_per_second {frames_per_second}; give one of them")
    if not 0 <= max_failures or (isinstance(max_failures, float) and max_failures > 1):
        raise InputError(f"max_failures is {max_failures}; give a number such as 10, or a share such as 0.05")

    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, on_machine = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if cluster is not None and num_processes > 1:
        raise InputError("--cluster has processes of its own; start mmt extract once, without torchrun")
    place, folder = str(source), Path(output_dir)
    if is_dataset(place):
        clips = clips_of_dataset(dataset_folder(place), limit, dataset_revision)
    elif dataset_revision is None:
        clips = clips_of_folder_or_list(place, limit)
    else:
        raise InputError(f"dataset_revision is {dataset_revision}, and {place} is not a dataset; leave it out")
    if clips.summary and rank == 0:
        print(clips.summary)
    if cluster is None:
        start_imports(VideoReader)
    elif not (folder / MANIFEST).is_file():
        check_answers(cluster)
    here = "cpu" if cluster else f"cuda:{local_rank}" if device == "cuda" else device
    steps = _encoder_of(clips, str(encoder), image_size, here)
    reader, timing = _reader_of(clips, steps, num_frames, frames_per_second, max_frames, decoder)
    settings = _settings(str(encoder), steps, clips, timing)
    if (folder / MANIFEST).is_file():
        return finished_store(folder, settings)
    allowed = max_failures * len(clips.videos) if isinstance(max_failures, float) else max_failures
    name = settings["extractor"] + (f", process {rank} of {num_processes}" if num_processes > 1 else "")
    cards = int(device.startswith("cuda"))
    connection = ClusterPool(cluster, num_workers or 1, cards) if cluster is not None else nullcontext()
    try:
        with (
            connection as nodes,
            Extraction(folder, clips.videos, settings, shard_size, rank, num_processes) as extraction,
        ):
            start, num_clips = time.perf_counter(), extraction.num_own_clips(extraction.own_missing())
            if nodes is not None:
                on_node = "cuda" if cards else device  # a task sees its own card alone
                shards = ShardEncoder(reader, steps, on_node, batch_size, nodes.num_cpus, timeout, settings["dtype"])
                is_whole = run_on_cluster(extraction, nodes, shards, allowed, clips.load, name)
            else:
                workers = max(1, (os.cpu_count() or 1) // on_machine) if num_workers is None else num_workers
                with WorkerPool(reader, workers, timeout) as pool:
                    shown = {"description": name, "quiet": local_rank != 0}
                    is_whole = run(extraction, pool, steps.encode_batches, batch_size, allowed, clips.load, **shown)
    except (FileExistsError, FileNotFoundError):  # this process had nothing to do, and came when all was done
        if not (folder / MANIFEST).is_file():
            raise
        return finished_store(folder, settings)
    seconds = time.perf_counter() - start
    print(f"{name}: {counted(num_clips, 'clip')} in {seconds:.1f} s, {num_clips / seconds:.1f} per second")
    if not is_whole:
        print(f"{name}: its shards are done; the last process puts the store together, or this command again")
        return None
    print(f"{folder}: {outcome(folder)}")
    return FeatureStore(folder)


def is_dataset(source: str) -> bool:
    """Whether a source is a dataset, and no folder or list of videos.

    A folder is one if it holds `.parquet` files, itself or below, or a dataset card: a `README.md` that begins with
    `---`. A name without a folder is one if it is a corpus of the package, or of the form `org/name`, as on the Hub.
    """
    place = Path(source)
    if place.is_dir():
        card = place / "README.md"
        has_card = card.is_file() and card.read_text(encoding="utf-8", errors="replace").startswith("---")
        return has_card or next(place.rglob("*.parquet"), None) is not None
    is_file = place.suffix.lower() in {*LISTS, *MEDIA_SUFFIXES}
    is_name = source.count("/") == 1 and not source.startswith((".", "~", "/")) and not is_file
    return not place.exists() and (dataset_folder(source) != source or is_name)


def _encoder_of(clips: Clips, name: str, image_size: int | None, device: str) -> StepEncoder:
    if clips.are_filmstrips:
        return load_encoder(name, image_size or FILMSTRIP_SIZE, device, crop=False)
    return load_encoder(name, image_size, device)


def _reader_of(
    clips: Clips,
    encoder: StepEncoder,
    num_frames: int | None,
    frames_per_second: float | None,
    max_frames: int,
    decoder: str | None,
) -> tuple[VideoReader, dict[str, Any]]:
    """What reads the encoder's pixels, and what the manifest says of when they are shown."""
    if clips.are_filmstrips:
        return VideoReader(encoder.prepare, EVERY_FRAME, unpack=filmstrip_frames), {}
    if frames_per_second is None and num_frames is None:
        num_frames = 8 * encoder.frames_per_step
    timing: dict[str, Any] = {"num_frames": num_frames, "frames_per_second": frames_per_second}
    if frames_per_second is not None:
        timing["held_frames"] = "repeated"  # shards of a version that took them once are refused
    sampling = FrameSampling(num_frames, frames_per_second, max_frames)
    return VideoReader(encoder.prepare, sampling, decoder), timing


def _settings(name: str, encoder: StepEncoder, clips: Clips, timing: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a store these features'."""
    rate = timing.get("frames_per_second")
    source = {**clips.source, **timing, "image_size": encoder.image_size}
    return {
        "extractor": encoder_name(name),
        "revision": encoder.revision,
        "rate": rate and rate / encoder.frames_per_step,
        "dtype": "float16",
        "source": json.loads(json.dumps(source)),
    }


def finished_store(folder: Path, settings: Mapping[str, Any]) -> FeatureStore:
    """A finished store that holds what is asked for.

    Raises:
        InputError: it holds other features.
    """
    Extraction.clean(folder)
    store = FeatureStore(folder)
    for field, value in settings.items():
        if store.manifest.get(field) != value:
            raise InputError(
                f"output_dir {folder} holds other features: {field} is {store.manifest.get(field)!r}, now {value!r}; "
                "choose another folder or delete it"
            )
    print(f"{folder} already holds these features: {outcome(folder)}")
    return store


def outcome(folder: Path) -> str:
    """The clips of a finished store, and those that failed."""
    listed, clips = folder / FAILURES, counted(len(FeatureStore(folder)), "clip")
    if not listed.is_file():
        return clips
    return f"{clips}; {len(listed.read_text(encoding='utf-8').splitlines()):,} failed, listed in {listed}"
