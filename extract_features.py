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
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.packaged_encoders import resolve_encoder
from modeling_mmt.video_backbones import load_backbone
from modeling_mmt.video_decoding_mmt import Clip, FrameSampling, read_clip
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder

TOO_MANY_FAILURES = 3  # the exit code
FILMSTRIP_COLUMNS = ("video_id", "frames", "num_frames")
FILMSTRIP_SIZE = 128  # emoji9's frames as they are
FRAMES_PER_PIECE = 64  # of a long video, decoded at once
MAX_SIDE = 1920  # of a frame before it is resized, as the processor's: 64 frames take 400 MB

# --- encoders


class Encoder(Protocol):
    """What extraction asks of an encoder.

    Attributes:
        image_size: side in pixels of its frames.
        frames_per_step: how many frames make one vector.
        revision: which weights these are.
        prepare: frames to its pixels, sent to the workers.
    """

    image_size: int
    frames_per_step: int
    revision: str
    prepare: Any

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Steps of what `prepare` gives to `(B, D_v)` float32."""


class FrameEncoder:
    """A frozen image encoder for film strips: pictures in, one vector a picture out.

    Args:
        name: a packaged encoder, a Hub id or a folder.
        image_size: side in pixels of its frames.
        device: where it runs.

    Raises:
        ValueError: the encoder does not say how its pictures are normalised.
    """

    frames_per_step = 1

    def __init__(self, name: str, image_size: int, device: str | torch.device = "cpu"):
        path = resolve_encoder(name)
        self.device = torch.device(device)
        self.model: PreTrainedModel = AutoModel.from_pretrained(path)
        self.model.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.image_size, self.prepare = image_size, FramePreparation(image_size)
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


class StepEncoder:
    """A frozen encoder of videos' pixels, as a model with `vision_config` has it inside: the features are the same.

    Args:
        model: `(B, 3, S, S)` normalised pixels, or `(B, T, 3, S, S)`, to `(B, D_v)`.
        settings: how its pixels are made.
        revision: which weights these are.
        device: where it runs.
    """

    def __init__(
        self, model: torch.nn.Module, settings: PixelSettings, revision: str, device: str | torch.device = "cpu"
    ):
        self.model, self.device = model.eval().requires_grad_(False).to(device), torch.device(device)
        self.settings, self.prepare, self.revision = settings, StepPreparation(settings), revision
        self.image_size, self.frames_per_step = settings.height, settings.frames_per_step or 1

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 `(B, 3, S, S)`, or `(B, T, 3, S, S)`, to `(B, D_v)` float32."""
        steps = self.settings.normalized(torch.from_numpy(pixels).to(self.device))
        return self.model(steps).float().cpu().numpy()


def load_encoder(name: str, image_size: int | None, device: str | torch.device) -> StepEncoder:
    """The encoder of a name or folder, or the published network of a weight file that ends in `.pth`.

    Args:
        name: as `--encoder`.
        image_size: side in pixels of its frames; None means its own.
        device: where it runs.
    """
    model: torch.nn.Module
    if name.endswith(".pth"):
        model, side = load_backbone(name), image_size
        own = {"height": model.image_size, "width": model.image_size, "resize": model.image_size}
        settings = PixelSettings(
            **own, mean=model.mean, std=model.std, resample="bilinear", frames_per_step=model.frames_per_step
        )
        with open(name, "rb") as weights:
            revision = f"sha256:{hashlib.file_digest(weights, 'sha256').hexdigest()}"
    else:
        path, side = resolve_encoder(name), image_size
        model = MMTVisionEncoder.from_pretrained(path)
        settings = PixelSettings.from_pretrained(path, frames_per_step=model.frames_per_step)
        revision = encoder_revision(path, model.encoder)
    return StepEncoder(model, settings if side is None else settings.at(side), revision, device)


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


class FramePreparation:
    """Film strips' frames, squares that need no cutting, resized by Pillow's bicubic rule.

    Args:
        image_size: side S in pixels.
    """

    def __init__(self, image_size: int):
        self.image_size = image_size

    def __call__(self, frames: Sequence[Image.Image]) -> np.ndarray:
        """RGB pictures of any size to `(F, S, S, 3)` uint8."""
        size = (self.image_size, self.image_size)
        resized = [frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC) for frame in frames]
        return np.stack([np.asarray(frame.convert("RGB")) for frame in resized])


class StepPreparation:
    """Frames as an encoder's own processor resizes and cuts them; normalised they are later, where it runs.

    Args:
        settings: of the encoder.
    """

    def __init__(self, settings: PixelSettings):
        self.settings = settings

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """`(F, 3, H, W)` uint8 to `(F, 3, S, S)` uint8."""
        return self.settings.resized(frames)

    def steps(self, pixels: torch.Tensor) -> np.ndarray:
        """`(F, 3, S, S)` to `(F, 3, S, S)`, or `(ceil(F / T), T, 3, S, S)`, the last frame repeated to fill."""
        length = self.settings.frames_per_step
        if length is None:
            return pixels.numpy()
        filled = torch.cat([pixels, pixels[-1:].expand(-len(pixels) % length, -1, -1, -1)])
        return filled.unflatten(0, (-1, length)).numpy()


class FilmstripReader:
    """Reads film strips, rows as `frames_of` takes them."""

    def __init__(self, prepare: FramePreparation):
        self.prepare = prepare

    def __call__(self, video: Video) -> np.ndarray:
        """The pixels of a strip."""
        row = dict(video.source)
        if isinstance(row["frames"], Mapping) and not row["frames"]["bytes"]:
            row["frames"] = Image.open(row["frames"]["path"])
        return self.prepare(frames_of(row))


class VideoReader:
    """Reads videos, animations and pictures.

    Args:
        prepare: makes pixels of frames.
        sampling: which frames.
        decoder: as in `read_clip`.
    """

    def __init__(self, prepare: StepPreparation, sampling: FrameSampling, decoder: str | None = None):
        self.prepare, self.sampling, self.decoder = prepare, sampling, decoder

    def __call__(self, video: Video) -> np.ndarray:
        """The pixels of a video.

        Raises:
            VideoDecodingError: it cannot be decoded.
            ValueError: it has too many frames at this rate.
        """
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # a worker is a core's work
        rate = self.sampling.frames_per_second
        parts: list[torch.Tensor] = []
        for start, end in [(video.start, video.end)] if rate is None else self._pieces(video, rate):
            frames = self._read(video.source, self.sampling, start, end).frames
            pixels = self.prepare(frames)
            is_shown_still = parts and torch.equal(parts[-1][-1], pixels[0])  # over the bound of two pieces
            parts.append(pixels[1:] if is_shown_still and len(pixels) > 1 else pixels)
        return self.prepare.steps(torch.cat(parts))

    def _pieces(self, video: Video, rate: float) -> Iterator[tuple[float, float | None]]:
        """Spans of so few frames that these fit in memory as they are decoded."""
        duration = self._read(video.source, FrameSampling(num_frames=1), video.start, video.end).duration
        if duration is None or math.isinf(duration):
            yield video.start, video.end
            return
        if duration * rate > self.sampling.max_frames + 0.5:
            raise ValueError(
                f"{duration:.0f} seconds are {duration * rate:.0f} frames at {rate:g} a second, more than "
                f"--max_frames {self.sampling.max_frames}; raise it, or cut the video by start and end in a list"
            )
        count = len(self.sampling.times(duration))
        for first in range(0, count, FRAMES_PER_PIECE):
            last = first + FRAMES_PER_PIECE
            yield video.start + first / rate, video.end if last >= count else video.start + last / rate

    def _read(self, source: Any, sampling: FrameSampling, start: float, end: float | None) -> Clip:
        return read_clip(source, sampling, start=start, end=end, max_side=MAX_SIDE, decoder=self.decoder)


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
    parser.add_argument("--max_frames", type=int, default=4096, help="with --frames_per_second: longer videos fail")
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
    rate: float | None = None
    encoder: Encoder
    reader: Callable[[Video], np.ndarray]
    source = dict(clips.source)
    if clips.are_filmstrips:
        frame_encoder = FrameEncoder(arguments.encoder, arguments.image_size or FILMSTRIP_SIZE, device)
        encoder, reader = frame_encoder, FilmstripReader(frame_encoder.prepare)
    else:
        encoder = load_encoder(arguments.encoder, arguments.image_size, device)
        num_frames, frames_per_second = arguments.num_frames, arguments.frames_per_second
        if frames_per_second is None and num_frames is None:
            num_frames = 8 * encoder.frames_per_step
        sampling = FrameSampling(num_frames, frames_per_second, arguments.max_frames)
        rate = frames_per_second and frames_per_second / encoder.frames_per_step
        source |= {"num_frames": num_frames, "frames_per_second": frames_per_second}
        reader = VideoReader(encoder.prepare, sampling, arguments.decoder)
    source["image_size"] = encoder.image_size
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
