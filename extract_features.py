"""Clips to a feature store: every frame through a frozen image encoder.

    python extract_features.py --dataset datasets_scripts/emoji9 --encoder efficientnet-lite0 \
        --image_size 128 --output_dir features/emoji9-lite0-128

Any `AutoModel` image encoder works, from the Hub, a folder or a package (`modeling_mmt.packaged_encoders`). Frames are
resized to `--image_size`, scaled to [0, 1] and normalised with the encoder's own mean and standard deviation. Running
it twice with two encoders or sizes gives two streams. An interrupted run goes on where it stopped; a finished one with
the same settings is found and kept.
"""

import argparse
import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModel, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

import modeling_mmt  # noqa: F401  registers the packaged image encoder with AutoModel
from datasets_scripts.emoji9 import frames_of
from datasets_scripts.features import MANIFEST, FeatureStore, FeatureStoreWriter
from modeling_mmt.packaged_encoders import resolve_encoder

CLIPS_PER_SHARD = 256  # an interrupted run loses at most so many clips


class FrameEncoder:
    """A frozen image encoder: pictures in, one vector a picture out.

    Args:
        name: a packaged encoder, a Hub id or a folder.
        image_size: side in pixels that frames are resized to.
        device: where it runs.

    Raises:
        ValueError: the encoder does not say how its pictures are normalised.
    """

    def __init__(self, name: str, image_size: int, device: str | torch.device = "cpu"):
        path = resolve_encoder(name)
        self.image_size, self.device = image_size, torch.device(device)
        self.model: PreTrainedModel = AutoModel.from_pretrained(path)
        self.model.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.revision = encoder_revision(path, self.model)
        mean, std = image_statistics(path)
        self.mean = torch.tensor(mean, device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=self.device).view(1, -1, 1, 1)

    def prepare(self, frames: Sequence[Image.Image]) -> torch.Tensor:
        """RGB pictures of any size to `(B, 3, image_size, image_size)` uint8, resized bicubically."""
        size = (self.image_size, self.image_size)
        resized = [frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC) for frame in frames]
        pixels = np.stack([np.asarray(frame.convert("RGB")) for frame in resized])  # (B, S, S, 3)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)  # channels last in memory, as the convolutions like it

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> np.ndarray:
        """`(B, 3, S, S)` uint8 to `(B, D_v)` float32: the pooled output, or without one the mean over positions."""
        pixel_values = (pixels.to(self.device).float() / 255 - self.mean) / self.std
        output = self.model(pixel_values=pixel_values)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            hidden = output.last_hidden_state  # (B, C, H, W) of a convolutional network, (B, L, D) of a transformer
            pooled = hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden.mean(dim=1)
        return pooled.flatten(1).float().cpu().numpy()


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


def encode_clips(
    clips: Iterable[tuple[str, Sequence[Image.Image]]], encoder: FrameEncoder, batch_size: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Runs clips through the encoder, in order: `(F, D_v)` float32 for a clip of F frames.

    Batches hold exactly `batch_size` frames, across clips, but for the last: a new batch shape costs the CPU kernels
    a new set-up each time. On CPU a small batch, whose activations stay in the cache, is the fastest.
    """
    lengths: deque[tuple[str, int]] = deque()
    frames: list[Image.Image] = []
    features: deque[np.ndarray] = deque()

    def whole_clips() -> Iterator[tuple[str, np.ndarray]]:
        while lengths and len(features) >= lengths[0][1]:
            video_id, num_frames = lengths.popleft()
            yield video_id, np.stack([features.popleft() for _ in range(num_frames)])

    for video_id, clip in clips:
        lengths.append((video_id, len(clip)))
        frames.extend(clip)
        while len(frames) >= batch_size:
            features.extend(encoder.encode(encoder.prepare(frames[:batch_size])))
            frames = frames[batch_size:]
        yield from whole_clips()
    if frames:
        features.extend(encoder.encode(encoder.prepare(frames)))
    yield from whole_clips()


def extract(
    dataset: datasets.DatasetDict,
    encoder: FrameEncoder,
    output_dir: str | Path,
    *,
    extractor: str,
    source: dict[str, Any],
    batch_size: int,
    limit: int | None,
) -> FeatureStore:
    """Runs the encoder over the clips of all splits that are not stored yet.

    Args:
        dataset: splits with the columns `video_id`, `frames` and `num_frames`.
        encoder: of `image_size` pictures.
        output_dir: of the store.
        extractor: its name in the manifest.
        source: goes into the manifest; a store with another one is not gone on with.
        batch_size: frames that go through the encoder together.
        limit: clips of each split, or None for all.
    """
    columns = ["video_id", "frames", "num_frames"]
    parts = {split: part.select_columns(columns) for split, part in dataset.items()}
    if limit is not None:
        parts = {split: part.select(range(min(limit, len(part)))) for split, part in parts.items()}
    with FeatureStoreWriter(
        output_dir,
        extractor=extractor,
        revision=encoder.revision,
        source=source,
        clips_per_shard=CLIPS_PER_SHARD,
        resume=True,
    ) as writer:
        num_frames, start = 0, time.perf_counter()
        with tqdm(total=sum(map(len, parts.values())), desc=f"{extractor} features", unit="clip") as progress:
            progress.update(len(writer.stored_ids))
            for part in parts.values():
                missing = [row for row, video_id in enumerate(part["video_id"]) if video_id not in writer.stored_ids]
                clips = ((row["video_id"], frames_of(row)) for row in part.select(missing))
                for video_id, features in encode_clips(clips, encoder, batch_size):
                    writer.add(video_id, features)
                    num_frames += len(features)
                    progress.update()
        seconds = time.perf_counter() - start
    if num_frames:
        print(f"{num_frames} frames in {seconds:.1f} s: {num_frames / seconds:.1f} frames/s")
    return FeatureStore(output_dir)


def main(argv: Sequence[str] | None = None) -> FeatureStore:
    """Extracts the features of a dataset's clips and returns the store."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--dataset", required=True, help="folder or Hub id, with video_id, frames and num_frames")
    parser.add_argument("--encoder", default="efficientnet-lite0", help="packaged encoder, Hub id or folder")
    parser.add_argument("--image_size", type=int, default=128, help="side of a frame in pixels")
    parser.add_argument("--output_dir", required=True, type=Path, help="of the feature store")
    parser.add_argument("--batch_size", type=int, default=16, help="frames that go through the encoder together")
    parser.add_argument("--limit", type=int, help="clips of each split; all by default")
    parser.add_argument("--device", default="cpu", help="where the encoder runs")
    arguments = parser.parse_args(argv)
    for name in ("image_size", "batch_size", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; it must be at least 1")

    dataset = datasets.load_dataset(arguments.dataset)
    for split, part in dataset.items():
        absent = {"video_id", "frames", "num_frames"} - set(part.column_names)
        if absent:
            parser.error(f"--dataset {arguments.dataset}: split {split!r} has no column {sorted(absent)[0]!r}")
    encoder = FrameEncoder(arguments.encoder, arguments.image_size, arguments.device)
    source = {
        "dataset": Path(arguments.dataset).name,
        "fingerprints": {split: clips_fingerprint(part) for split, part in dataset.items()},
        "image_size": arguments.image_size,
        "limit": arguments.limit,
    }
    extractor = Path(arguments.encoder).name if Path(arguments.encoder).is_dir() else arguments.encoder
    if (arguments.output_dir / MANIFEST).is_file():
        store = FeatureStore(arguments.output_dir)
        wanted = {"extractor": extractor, "revision": encoder.revision, "source": json.loads(json.dumps(source))}
        for field, value in wanted.items():
            if store.manifest.get(field) != value:
                parser.error(
                    f"--output_dir {arguments.output_dir} holds other features: {field} is "
                    f"{store.manifest.get(field)!r}, now {value!r}; choose another folder or delete it"
                )
        print(f"{arguments.output_dir} already holds these features of {len(store)} clips")
        return store
    return extract(
        dataset,
        encoder,
        arguments.output_dir,
        extractor=extractor,
        source=source,
        batch_size=arguments.batch_size,
        limit=arguments.limit,
    )


def clips_fingerprint(part: datasets.Dataset) -> str:
    """SHA-256 over the ids and stored pictures of a split, in order."""
    digest = hashlib.sha256()
    for row in part.select_columns(["video_id", "frames"]).cast_column("frames", datasets.Image(decode=False)):
        digest.update(row["video_id"].encode())
        digest.update(row["frames"]["bytes"] or b"")
    return digest.hexdigest()


if __name__ == "__main__":
    main()
