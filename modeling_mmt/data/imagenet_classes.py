"""ImageNet's 1,000 classes in WordNet: their names, what lies above them, and what they are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_suffix(".jsonl")  # experiments/imagenet_classes.py writes it


@dataclass(frozen=True)
class ImageNetClass:
    """One class.

    Args:
        synset: WordNet 3.0's, as ImageNet writes it.
        names: its lemmas, the usual one first.
        above: the first lemma of each synset above it that has at most 200 classes below it, the nearest first.
        gloss: what it is, in a sentence.
        related: the concepts of photo9 that are equal to it, above or below it.
    """

    synset: str
    names: tuple[str, ...]
    above: tuple[str, ...]
    gloss: str
    related: tuple[str, ...]


@cache
def read_classes() -> Sequence[ImageNetClass]:
    """The classes, in the order of every ImageNet classifier's outputs."""
    lines = map(json.loads, FILE.read_text(encoding="utf-8").splitlines())
    return tuple(
        ImageNetClass(of["synset"], tuple(of["names"]), tuple(of["above"]), of["gloss"], tuple(of["related"]))
        for of in lines
    )
