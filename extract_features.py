"""Clips to a feature store: every frame, or every run of frames, through a frozen encoder.

    python extract_features.py --videos my_videos --encoder efficientnet-lite0 --num_frames 8 \
        --output_dir features/my_videos
    python extract_features.py --videos list.csv --encoder s3d_howto100m.pth --frames_per_second 10 ...
    python extract_features.py --dataset datasets_scripts/emoji9 --encoder efficientnet-lite0 --image_size 128 \
        --output_dir features/emoji9-lite0-128
    torchrun --nproc_per_node 8 extract_features.py ...         (or accelerate launch; any number of machines)

`--videos` is a folder or a list (`datasets_scripts/video_lists.py`), `--dataset` a dataset with a column of videos, or
with film strips as emoji9's. An encoder is any `AutoModel` image encoder, from the Hub, a folder or a package
(`modeling_mmt.packaged_encoders`), or a published file of S3D or R(2+1)D (`modeling_mmt.video_backbones`). Running it
twice with two encoders gives two streams.

Frames are decoded ahead of the encoder, in processes that may crash or hang: such a file, and one that cannot be
decoded, is listed in `failures.jsonl` with the reason, and the rest goes on, up to `--max_failures`; beyond, the exit
code is 3. Killed at any point, the same command goes on where it stopped, with more processes or fewer. The processes
share the output's folder and nothing else; each does the shards of its number (`datasets_scripts/extraction.py`).
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

import modeling_mmt  # noqa: F401  registers the packaged image encoder with AutoModel
from datasets_scripts.emoji9 import frames_of
from datasets_scripts.extraction import Extraction, TooManyFailuresError, run
from datasets_scripts.features import MANIFEST, FeatureStore
from datasets_scripts.video_lists import Video, check_ids, find_videos, fingerprint
from datasets_scripts.worker_pool import WorkerPool
from modeling_mmt.packaged_encoders import resolve_encoder
from modeling_mmt.video_backbones import VideoBackbone, load_backbone
from modeling_mmt.video_decoding_mmt import FrameSampling, read_clip

TOO_MANY_FAILURES = 3  # the exit code
FILMSTRIP_COLUMNS = ("video_id", "frames", "num_frames")
FILMSTRIP_SIZE = 128  # emoji9's frames as they are

# --- encoders


class Encoder(Protocol):
    """What extraction asks of an encoder.

    Attributes:
        image_size: side in pixels of its frames.
        frames_per_step: how many frames make one vector.
        revision: which weights these are.
    """

    image_size: int
    frames_per_step: int
    revision: str

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Steps of pixels, as `PixelPreparation` makes them, to `(B, D_v)` float32."""


class FrameEncoder:
    """A frozen image encoder: pictures in, one vector a picture out.

    Args:
        name: a packaged encoder, a Hub id or a folder.
        image_size: side in pixels of its frames; None means what its config says, or 224.
        device: where it runs.

    Raises:
        ValueError: the encoder does not say how its pictures are normalised.
    """

    frames_per_step = 1

    def __init__(self, name: str, image_size: int | None = None, device: str | torch.device = "cpu"):
        path = resolve_encoder(name)
        self.device = torch.device(device)
        self.model: PreTrainedModel = AutoModel.from_pretrained(path)
        self.model.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        own_size = getattr(self.model.config, "image_size", None)
        self.image_size = image_size or (own_size if isinstance(own_size, int) else 224)
        self.revision = encoder_revision(path, self.model)
        mean, std = image_statistics(path)
        self.mean = torch.tensor(mean, device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, -1, 1, 1)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """`(B, S, S, 3)` uint8 to `(B, D_v)` float32: the pooled output, or without one the mean over positions."""
        frames = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # channels last in memory, as the convolutions like it
        pixel_values = (frames.to(self.device).float() / 255 - self.mean) / self.std
        output = self.model(pixel_values=pixel_values)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            hidden = output.last_hidden_state  # (B, C, H, W) of a convolutional network, (B, L, D) of a transformer
            pooled = hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden.mean(dim=1)
        return pooled.flatten(1).float().cpu().numpy()


class BackboneEncoder:
    """A published video network: `frames_per_step` frames in, one vector out.

    Args:
        path: of its weight file.
        image_size: side in pixels of its frames; None means its own.
        device: where it runs.
    """

    def __init__(self, path: str, image_size: int | None = None, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.model: VideoBackbone = load_backbone(path).eval().requires_grad_(False).to(self.device)
        self.image_size, self.frames_per_step = image_size or self.model.image_size, self.model.frames_per_step
        with open(path, "rb") as weights:
            self.revision = f"sha256:{hashlib.file_digest(weights, 'sha256').hexdigest()}"

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """`(B, T, S, S, 3)` uint8 to `(B, D_v)` float32."""
        frames = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).to(self.device)
        return self.model(self.model.normalize(frames.float() / 255)).float().cpu().numpy()


def load_encoder(name: str, image_size: int | None, device: str | torch.device) -> Encoder:
    """The encoder of a name, or of a weight file that ends in `.pth`."""
    return (BackboneEncoder if name.endswith(".pth") else FrameEncoder)(name, image_size, device)


def image_statistics(path: str) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation that the encoder at `path` normalises pictures in [0, 1] with.

    Raises:
        ValueError: neither its `preprocessor_config.json` nor a timm `pretrained_cfg` says.
    """
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except OSError:
        settings = {}
    if settings.get("do_normalize", True) and "image_mean" in settings and "image_std" in settings:
        return list(settings["image_mean"]), list(settings["image_std"])
    pretrained = settings.get("pretrained_cfg", {})  # timm's way
    if "mean" in pretrained and "std" in pretrained:
        return list(pretrained["mean"]), list(pretrained["std"])
    raise ValueError(
        f"encoder {path}: no image_mean and image_std in its preprocessor_config.json; save its image processor there"
    )


def encoder_revision(path: str, model: PreTrainedModel) -> str:
    """The Hub commit that the weights came from, or a folder's weights' SHA-256."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return commit
    digest = hashlib.sha256()
    for file in sorted(Path(path).glob("*.safetensors")):
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


# --- reading, in the workers


class PixelPreparation:
    """Frames to what an encoder's `encode` takes.

    Args:
        image_size: side S in pixels that frames are resized to, bicubically.
        frames_per_step: T; runs of so many frames make a step. The last run is filled up with its last frame; if
            less than half of it is there, and it is not the only one, it is left out.
    """

    def __init__(self, image_size: int, frames_per_step: int = 1):
        self.image_size, self.frames_per_step = image_size, frames_per_step

    def __call__(self, frames: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size to `(F, S, S, 3)` uint8, or for T > 1 to `(N, T, S, S, 3)`."""
        size, steps = (self.image_size, self.image_size), self.frames_per_step
        resized = [frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC) for frame in frames]
        pixels = np.stack([np.asarray(frame.convert("RGB")) for frame in resized])
        if steps == 1:
            return pixels
        whole, rest = divmod(len(pixels), steps)
        if not whole or 2 * rest >= steps:
            whole += 1
        last = np.repeat(pixels[-1:], max(whole * steps - len(pixels), 0), axis=0)
        return np.concatenate([pixels, last])[: whole * steps].reshape(whole, steps, *pixels.shape[1:])


class FilmstripReader:
    """Reads film strips, rows as `frames_of` takes them."""

    def __init__(self, prepare: PixelPreparation):
        self.prepare = prepare

    def __call__(self, video: Video) -> np.ndarray:
        """The pixels of a strip."""
        row = dict(video.source)
        if isinstance(row["frames"], Mapping) and not row["frames"]["bytes"]:
            row["frames"] = Image.open(row["frames"]["path"])
        return self.prepare(frames_of(row))


class VideoReader:
    """Reads videos, animations and pictures: the square in the middle of each frame.

    Args:
        prepare: makes pixels of frames.
        sampling: which frames.
        decoder: as in `read_clip`.
    """

    def __init__(self, prepare: PixelPreparation, sampling: FrameSampling, decoder: str | None = None):
        self.prepare, self.sampling, self.decoder = prepare, sampling, decoder

    def __call__(self, video: Video) -> np.ndarray:
        """The pixels of a video.

        Raises:
            VideoDecodingError: it cannot be decoded.
            ValueError: it has too many frames at this rate.
        """
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # a worker is a core's work
        most = 4 * self.prepare.image_size  # a frame's longer side, while many wait to be resized
        source, start, end = video.source, video.start, video.end
        clip = read_clip(source, self.sampling, start=start, end=end, max_side=most, decoder=self.decoder)
        rate = self.sampling.frames_per_second
        if rate and clip.duration and clip.duration * rate > self.sampling.max_frames + 1:
            raise ValueError(
                f"{clip.duration:.0f} seconds are {clip.duration * rate:.0f} frames at {rate:g} a second, more than "
                f"--max_frames {self.sampling.max_frames}; raise it, or cut the video by start and end in a list"
            )
        side, (height, width) = min(clip.frames.shape[2:]), clip.frames.shape[2:]
        top, left = (height - side) // 2, (width - side) // 2
        square = clip.frames[:, :, top : top + side, left : left + side].permute(0, 2, 3, 1)
        return self.prepare([Image.fromarray(frame.numpy()) for frame in square.contiguous()])


# --- what there is to read


class Clips:
    """What a run extracts from.

    Args:
        videos: one each clip; what `load` makes of one is what a reader gets.
        source: for the manifest.
        are_filmstrips: whether they are read as film strips.
        load: fetches a clip's bytes, for those that do not lie in files.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        source: dict[str, Any],
        are_filmstrips: bool = False,
        load: Callable[[Video], Video] | None = None,
    ):
        self.videos, self.source, self.are_filmstrips = videos, source, are_filmstrips
        self.load = load


def clips_of_folder_or_list(place: str, limit: int | None) -> Clips:
    """The videos of `--videos`."""
    videos = find_videos(place)[:limit]
    folder = Path(place) if Path(place).is_dir() else Path(place).parent
    return Clips(videos, {"videos": Path(place).name, "fingerprint": fingerprint(videos, folder)})


def clips_of_dataset(name: str, limit: int | None) -> Clips:
    """The clips of `--dataset`: film strips, or the first column of videos.

    Raises:
        ValueError: it has neither, or a split lacks a column.
    """
    dataset = datasets.load_dataset(name)
    first = next(iter(dataset.values()))
    column = next((key for key, kind in first.features.items() if isinstance(kind, datasets.Video)), None)
    columns = [key for key in ("video_id", column) if key in first.column_names] if column else FILMSTRIP_COLUMNS
    for split, part in dataset.items():
        absent = set(columns) - set(part.column_names)
        if absent:
            raise ValueError(f"--dataset {name}: split {split!r} has no column {sorted(absent)[0]!r}")
    undecoded = datasets.Video(decode=False) if column else datasets.Image(decode=False)
    parts = {
        split: part.select_columns(list(columns)).cast_column(column or "frames", undecoded)
        for split, part in dataset.items()
    }

    def ids_of(part: datasets.Dataset) -> list[str]:
        if "video_id" in columns:
            return list(part["video_id"])
        return [Path(row[column]["path"] or str(number)).stem for number, row in enumerate(part)]

    ids = {split: ids_of(part) for split, part in parts.items()}
    videos = [Video(video_id, (split, row)) for split in parts for row, video_id in enumerate(ids[split][:limit])]
    check_ids(videos, f"--dataset {name}")

    def load(video: Video) -> Video:
        split, number = video.source
        row = parts[split][number]
        return video._replace(source=row[column] if column else row)

    if column:
        of_ids = {split: hashlib.sha256(json.dumps(ids[split]).encode()).hexdigest() for split in parts}
        return Clips(videos, {"dataset": Path(name).name, "fingerprints": of_ids, "limit": limit}, load=load)
    prints = {split: clips_fingerprint(part) for split, part in dataset.items()}
    return Clips(videos, {"dataset": Path(name).name, "fingerprints": prints, "limit": limit}, True, load)


def clips_fingerprint(part: datasets.Dataset) -> str:
    """SHA-256 over the ids and stored pictures of a split, in order."""
    digest = hashlib.sha256()
    for row in part.select_columns(["video_id", "frames"]).cast_column("frames", datasets.Image(decode=False)):
        digest.update(row["video_id"].encode())
        digest.update(row["frames"]["bytes"] or b"")
    return digest.hexdigest()


# --- the program


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
    parser.add_argument("--max_frames", type=int, default=2048, help="with --frames_per_second: longer videos fail")
    parser.add_argument("--batch_size", type=int, default=16, help="steps that go through the encoder together")
    parser.add_argument("--limit", type=int, help="clips of each split, or videos; all by default")
    parser.add_argument("--device", default="cpu", help="where the encoder runs; cuda: each process has its own")
    parser.add_argument("--num_workers", type=int, help="processes that decode; by default one a core")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that a clip's decoding may take")
    parser.add_argument("--decoder", choices=["torchcodec", "pyav"], help="of videos; the first that is installed")
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

    device = f"cuda:{local_rank}" if arguments.device == "cuda" else arguments.device
    image_size = arguments.image_size or (FILMSTRIP_SIZE if clips.are_filmstrips else None)
    encoder = load_encoder(arguments.encoder, image_size, device)
    prepare = PixelPreparation(encoder.image_size, encoder.frames_per_step)
    source = {**clips.source, "image_size": encoder.image_size}
    rate: float | None = None
    reader: Callable[[Video], np.ndarray] = FilmstripReader(prepare)
    if not clips.are_filmstrips:
        frames_per_second, num_frames = arguments.frames_per_second, arguments.num_frames
        if frames_per_second is None and num_frames is None:
            num_frames = 8 * encoder.frames_per_step
        sampling = FrameSampling(num_frames, frames_per_second, arguments.max_frames)
        rate = frames_per_second and frames_per_second / encoder.frames_per_step
        source |= {"num_frames": num_frames, "frames_per_second": frames_per_second}
        reader = VideoReader(prepare, sampling, arguments.decoder)
    is_path = Path(arguments.encoder).is_dir() or arguments.encoder.endswith(".pth")
    extractor = Path(arguments.encoder).name if is_path else arguments.encoder
    settings = {
        "extractor": extractor,
        "revision": encoder.revision,
        "rate": rate,
        "dtype": "float16",
        "source": json.loads(json.dumps(source)),
    }

    if (arguments.output_dir / MANIFEST).is_file():
        return kept_store(arguments.output_dir, settings)
    workers = arguments.num_workers
    if workers is None:
        workers = max(1, (os.cpu_count() or 1) // on_machine)
    allowed = float(arguments.max_failures)
    if "." in arguments.max_failures:
        allowed *= len(clips.videos)
    try:
        with (
            Extraction(
                arguments.output_dir, clips.videos, settings, arguments.shard_size, rank, num_processes
            ) as extraction,
            WorkerPool(reader, workers, arguments.timeout) as pool,
        ):
            start, num_clips = time.perf_counter(), extraction.num_own_clips(extraction.own_missing())
            name = extractor if num_processes == 1 else f"{extractor}, process {rank} of {num_processes}"
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
    return FeatureStore(arguments.output_dir)


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
    print(f"{folder} already holds these features of {len(store)} clips")
    return store


def _refuse(message: str) -> NoReturn:
    print(f"extract_features.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
