"""The list of ImageNet's classes: their names, what lies above them, what they are, and related concepts of photo9.

    apt-get install wordnet-base            # WordNet 3.0, /usr/share/wordnet
    pip download --no-deps timm==1.0.31     # ImageNet's order and names
    python experiments/imagenet_classes.py --photo9 PHOTO9/photo9.jsonl --timm timm-1.0.31-py3-none-any.whl

writes `modeling_mmt/data/imagenet_classes.jsonl`, which the package reads: it needs neither.

A class is related to a concept if it is equal to it, above it or below it in WordNet, for any noun sense of the
concept's English name or of an alias; if a name of it has the concept's for a word; or if the same thing has another
synset (`SAME`), found by reading the list.
"""

import argparse
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

OUTPUT = Path(__file__).resolve().parents[1] / "modeling_mmt" / "data" / "imagenet_classes.jsonl"
INFO = "timm/data/_info/imagenet_"
WIDEST = 200  # of what lies above, nothing with more classes below it: "artifact" says little
ALIASES = {  # what WordNet, or the source of the photos, calls a concept
    "automobile": ["car"],
    "courgette": ["zucchini"],
    "dollar banknote": ["dollar"],
    "ginger root": ["ginger", "gingerroot"],
    "headphone": ["earphone"],
    "kiwi fruit": ["kiwi"],
    "lotus": ["sacred lotus"],
    "manual wheelchair": ["wheelchair"],
    "mobile phone": ["cellular telephone"],
    "nautilus": ["chambered nautilus"],
    "roller skate": ["in-line skate"],
    "sailboat": ["ketch"],
    "sea horse": ["seahorse"],
    "stop sign": ["street sign"],
    "t-shirt": ["jersey"],
    "turtle": ["hawksbill turtle"],
    "yin yang": ["yin and yang"],
}
SAME = {  # classes whose photos show the concept, though WordNet puts them elsewhere
    "airplane": ["n04552348"],  # warplane
    "elephant": ["n01871265"],  # tusker
    "laptop": ["n03832673"],  # notebook
    "rooster": ["n01514668"],  # cock
    "sailboat": ["n04147183", "n04612504"],  # schooner, yawl
}


class WordNet:
    """The nouns of WordNet's database files.

    Args:
        folder: that holds `data.noun`.
    """

    def __init__(self, folder: Path):
        self.parents: dict[str, set[str]] = {}
        self.synsets: dict[str, set[str]] = defaultdict(set)
        self.names: dict[str, str] = {}
        self.glosses: dict[str, str] = {}
        for line in (folder / "data.noun").read_text(encoding="latin-1").splitlines():
            if line.startswith(" "):  # the licence
                continue
            data, _, gloss = line.partition(" | ")
            fields = data.split()
            offset, num_words = fields[0], int(fields[3], 16)
            for word in fields[4 : 4 + 2 * num_words : 2]:
                self.synsets[word.replace("_", " ").lower()].add(offset)
            self.names[offset] = fields[4].replace("_", " ")
            self.glosses[offset] = gloss.partition('; "')[0].strip()  # without examples of its use
            pointers = fields[5 + 2 * num_words :]
            self.parents[offset] = {pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i")}

    def closure(self, offsets: Iterable[str]) -> set[str]:
        """The synsets and all above them."""
        found: set[str] = set()
        waiting = list(offsets)
        while waiting:
            offset = waiting.pop()
            if offset not in found:
                found.add(offset)
                waiting += self.parents[offset]
        return found


def above(classes: Iterable[str], wordnet: WordNet) -> dict[str, list[str]]:
    """The first lemma of each synset above a class that has few classes below it, the nearest first.

    Args:
        classes: synset ids, as ImageNet writes them.
        wordnet: where they lie.
    """
    closures = {synset: wordnet.closure([synset[1:]]) - {synset[1:]} for synset in classes}
    below = Counter(offset for closure in closures.values() for offset in closure)
    return {
        synset: [
            wordnet.names[offset]
            for offset in sorted(closure, key=lambda offset: (below[offset], offset))
            if below[offset] <= WIDEST
        ]
        for synset, closure in closures.items()
    }


def related(concept: str, classes: Mapping[str, Sequence[str]], wordnet: WordNet) -> set[str]:
    """The classes that are the concept, or lie above or below it.

    Args:
        concept: its English name.
        classes: synset id, as ImageNet writes it, to names.
        wordnet: where they lie.
    """
    words = [concept.lower(), *ALIASES.get(concept, ())]
    senses = set().union(*(wordnet.synsets.get(word, set()) for word in words))
    above = wordnet.closure(senses)
    word = re.compile(rf"\b({'|'.join(map(re.escape, words))})s?\b")
    return set(SAME.get(concept, ())) | {
        synset
        for synset, names in classes.items()
        if synset[1:] in above or wordnet.closure([synset[1:]]) & senses or word.search(", ".join(names).lower())
    }


def read_classes(wheel: Path) -> dict[str, list[str]]:
    """ImageNet's 1,000 classes in their order: synset id to names."""
    with zipfile.ZipFile(wheel) as archive:
        order = archive.read(f"{INFO}synsets.txt").decode().split()
        lines = archive.read(f"{INFO}synset_to_lemma.txt").decode().splitlines()
    names = dict(line.split("\t") for line in lines)
    return {synset: [name.strip() for name in names[synset].split(",")] for synset in order}


def main(argv: Sequence[str] | None = None):
    """Write the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo9", type=Path, required=True, help="photo9.jsonl")
    parser.add_argument("--timm", type=Path, required=True, help="timm's wheel")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder with data.noun")
    arguments = parser.parse_args(argv)
    classes, wordnet = read_classes(arguments.timm), WordNet(arguments.wordnet)
    photos = map(json.loads, arguments.photo9.read_text(encoding="utf-8").splitlines())
    of_class = defaultdict(list)
    for concept in sorted({photo["concept"] for photo in photos}):
        for synset in related(concept, classes, wordnet):
            of_class[synset].append(concept)
    higher = above(classes, wordnet)
    lines = [
        {
            "synset": synset,
            "names": names,
            "above": higher[synset],
            "gloss": wordnet.glosses[synset[1:]],
            "related": of_class[synset],
        }
        for synset, names in classes.items()
    ]
    OUTPUT.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{OUTPUT}: {len(lines)} classes, {sum(bool(line['related']) for line in lines)} related to a concept")


if __name__ == "__main__":
    main()
