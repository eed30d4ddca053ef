"""Clips to a feature store: every frame, or every run of frames, through a frozen encoder.

    python extract_features.py --videos my_videos --encoder efficientnet-lite0 --num_frames 8 \
        --output_dir features/my_videos
    python extract_features.py --videos list.csv --encoder s3d_howto100m.pth --frames_per_second 10 ...
    python extract_features.py --dataset datasets_scripts/emoji9 --encoder efficientnet-lite0 --image_size 128 \
        --output_dir features/emoji9-lite0-128
    torchrun --nproc_per_node 8 extract_features.py ...         (or accelerate launch; any number of machines)

With `--frames_per_second` a clip has a row for every sampling time (for every T of them, where an encoder's step is T
frames); a frame that is shown for longer is repeated, so that row n is second n / rate. The processor, which gives a
model its frames, takes such a frame once.

`--videos` is a folder or a list (`video_lists.py`), `--dataset` a dataset with a column of videos, or
with film strips as emoji9's. An encoder is any `AutoModel` image encoder, from the Hub, a folder or a package
(`packaged_encoders.py`), or a published file of S3D or R(2+1)D (`video_backbones.py`). Running it
twice with two encoders gives two streams.

Frames are decoded ahead of the encoder, in processes that may crash or hang: such a file, and one that cannot be
decoded, is listed in `failures.jsonl` with the reason, and the rest goes on, up to `--max_failures`; beyond, the exit
code is 3. Killed at any point, the same command goes on where it stopped, with more processes or fewer. The processes
share the output's folder and nothing else; each does the shards of its number (`modeling_mmt/extraction/shards.py`).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from modeling_mmt.data.features import MANIFEST, FeatureStore
from modeling_mmt.extraction.clips import Clips, clips_of_dataset, clips_of_folder_or_list, filmstrip_frames
from modeling_mmt.extraction.encoders import StepEncoder, VideoReader, load_encoder
from modeling_mmt.extraction.shards import FAILURES, Extraction, TooManyFailuresError, run
from modeling_mmt.extraction.workers import WorkerPool
from modeling_mmt.video_decoding_mmt import FrameSampling

TOO_MANY_FAILURES = 3  # the exit code
FILMSTRIP_SIZE = 128  # emoji9's frames as they are
EVERY_FRAME = FrameSampling(num_frames=None, frames_per_second=1.0, max_frames=2**20)  # of a list, which has no times


def main(argv: Sequence[str] | None = None) -> FeatureStore | None:
    """Extracts the features of clips; returns the store, or None where other processes are still at it."""
    arguments = arguments_of(argv)
    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, on_machine = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    try:
        if arguments.videos is not None:
            clips = clips_of_folder_or_list(arguments.videos, arguments.limit)
        else:
            clips = clips_of_dataset(arguments.dataset, arguments.limit)
    except (ValueError, FileNotFoundError) as error:
        _refuse(str(error))
    encoder, reader, settings = prepared(arguments, clips, local_rank)
    if (arguments.output_dir / MANIFEST).is_file():
        return kept_store(arguments.output_dir, settings)
    workers = arguments.num_workers
    if workers is None:
        workers = max(1, (os.cpu_count() or 1) // on_machine)
    allowed = float(arguments.max_failures)
    if "." in arguments.max_failures:
        allowed *= len(clips.videos)
    name = settings["extractor"]
    if num_processes > 1:
        name = f"{name}, process {rank} of {num_processes}"
    try:
        with (
            Extraction(
                arguments.output_dir, clips.videos, settings, arguments.shard_size, rank, num_processes
            ) as extraction,
            WorkerPool(reader, workers, arguments.timeout) as pool,
        ):
            start, num_clips = time.perf_counter(), extraction.num_own_clips(extraction.own_missing())
            is_whole = run(
                extraction,
                pool,
                encoder.encode,
                arguments.batch_size,
                allowed,
                load=clips.load,
                description=name,
                quiet=local_rank != 0,
            )
    except TooManyFailuresError as error:
        print(error, file=sys.stderr)
        raise SystemExit(TOO_MANY_FAILURES) from error
    except (FileExistsError, FileNotFoundError):  # this process had nothing to do, and came when all was done
        if not (arguments.output_dir / MANIFEST).is_file():
            raise
        return kept_store(arguments.output_dir, settings)
    seconds = time.perf_counter() - start
    print(f"{name}: {num_clips} clips in {seconds:.1f} s, {num_clips / seconds:.1f} a second")
    if not is_whole:
        print(f"{name}: its shards are done; the last process puts the store together, or this command again")
        return None
    print(f"{arguments.output_dir}: {of_how_many(arguments.output_dir)}")
    return FeatureStore(arguments.output_dir)


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    clips = parser.add_mutually_exclusive_group(required=True)
    clips.add_argument("--videos", help="folder of videos, or a list: .txt, .csv, .tsv, .jsonl")
    clips.add_argument("--dataset", help="folder or Hub id, with a column of videos or video_id, frames, num_frames")
    parser.add_argument(
        "--encoder", default="efficientnet-lite0", help="packaged encoder, Hub id, folder or .pth file"
    )
    parser.add_argument("--image_size", type=int, help="side of a frame; the encoder's own, 128 for film strips")
    parser.add_argument("--output_dir", required=True, type=Path, help="of the feature store")
    parser.add_argument("--num_frames", type=int, help="frames of a video, spread evenly (default 8)")
    parser.add_argument("--frames_per_second", type=float, help="or: frames per second of video")
    parser.add_argument("--max_frames", type=int, default=4096, help="with --frames_per_second: longer videos fail")
    parser.add_argument("--batch_size", type=int, default=16, help="steps that go through the encoder together")
    parser.add_argument("--limit", type=int, help="clips of each split, or videos; all by default")
    parser.add_argument("--device", default="cpu", help="where the encoder runs; cuda: each process has its own")
    parser.add_argument("--num_workers", type=int, help="processes that decode; by default one a core")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that a clip's decoding may take")
    parser.add_argument("--decoder", choices=["torchcodec", "pyav"], help="of videos; PyAV where it is installed")
    parser.add_argument("--shard_size", type=int, default=256, help="clips a shard; a killed run loses at most one")
    parser.add_argument(
        "--max_failures", default="0.05", help="clips that may fail: a number, or with a point a share of all"
    )
    arguments = parser.parse_args(argv)
    for name in ("image_size", "batch_size", "limit", "num_frames", "frames_per_second", "max_frames", "timeout",
                 "shard_size"):  # fmt: skip
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} is {value}; it must be at least 1")
    if arguments.num_frames and arguments.frames_per_second:
        parser.error("--num_frames and --frames_per_second are both given; choose one")
    if arguments.num_workers is not None and arguments.num_workers < 0:
        parser.error(f"--num_workers is {arguments.num_workers}; it must be at least 0")
    try:
        share = float(arguments.max_failures)
    except ValueError:
        share = -1.0
    if not share >= 0 or ("." in arguments.max_failures and share > 1):
        parser.error(f"--max_failures is {arguments.max_failures}; give a number such as 10, or a share such as 0.05")
    return arguments


def prepared(
    arguments: argparse.Namespace, clips: Clips, local_rank: int
) -> tuple[StepEncoder, VideoReader, dict[str, Any]]:
    """The encoder, what reads its pixels, and the settings that make a store of theirs."""
    device = f"cuda:{local_rank}" if arguments.device == "cuda" else arguments.device
    source, rate = dict(clips.source), None
    if clips.are_filmstrips:
        encoder = load_encoder(arguments.encoder, arguments.image_size or FILMSTRIP_SIZE, device, crop=False)
        reader = VideoReader(encoder.prepare, EVERY_FRAME, unpack=filmstrip_frames)
    else:
        encoder = load_encoder(arguments.encoder, arguments.image_size, device)
        num_frames, frames_per_second = arguments.num_frames, arguments.frames_per_second
        if frames_per_second is None and num_frames is None:
            num_frames = 8 * encoder.frames_per_step
        rate = frames_per_second and frames_per_second / encoder.frames_per_step
        source |= {"num_frames": num_frames, "frames_per_second": frames_per_second}
        if frames_per_second is not None:
            source["held_frames"] = "repeated"  # shards of a version that took them once are refused
        sampling = FrameSampling(num_frames, frames_per_second, arguments.max_frames)
        reader = VideoReader(encoder.prepare, sampling, arguments.decoder)
    source["image_size"] = encoder.image_size
    is_path = Path(arguments.encoder).is_dir() or arguments.encoder.endswith(".pth")
    settings = {
        "extractor": Path(arguments.encoder).name if is_path else arguments.encoder,
        "revision": encoder.revision,
        "rate": rate,
        "dtype": "float16",
        "source": json.loads(json.dumps(source)),
    }
    return encoder, reader, settings


def kept_store(folder: Path, settings: Mapping[str, Any]) -> FeatureStore:
    """A finished store, if it holds what is asked for; else the program ends."""
    Extraction.clean(folder)
    store = FeatureStore(folder)
    for field, value in settings.items():
        if store.manifest.get(field) != value:
            _refuse(
                f"--output_dir {folder} holds other features: {field} is {store.manifest.get(field)!r}, now "
                f"{value!r}; choose another folder or delete it"
            )
    print(f"{folder} already holds these features: {of_how_many(folder)}")
    return store


def of_how_many(folder: Path) -> str:
    """The clips of a finished store, and those that failed."""
    listed, clips = folder / FAILURES, f"{len(FeatureStore(folder)):,} clips"
    if not listed.is_file():
        return clips
    return f"{clips}; {len(listed.read_text(encoding='utf-8').splitlines()):,} failed, listed in {listed}"


def _refuse(message: str) -> NoReturn:
    print(f"extract_features.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)
