"""`experiments/imagenet_classes.py`: the classes equal to, above or below a concept, in a WordNet of six nouns."""

import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import imagenet_classes as listing  # noqa: E402

# instrument > stringed instrument > guitar > acoustic guitar; fruit > lemon. Synsets are counted from 1.
NOUNS = """  1 a licence line
00000001 06 n 01 instrument 0 000 | what is played
00000002 06 n 01 stringed_instrument 0 001 @ 00000001 n 0000 | with strings
00000003 06 n 01 guitar 0 002 @ 00000002 n 0000 ~ 00000004 n 0000 | plucked
00000004 06 n 01 acoustic_guitar 0 001 @ 00000003 n 0000 | loud by itself
00000005 06 n 01 fruit 0 000 | what is eaten
00000006 06 n 02 lemon 0 lemon_tree 1 001 @ 00000005 n 0000 | sour
"""


@pytest.fixture
def wordnet(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS, encoding="latin-1")
    return listing.WordNet(tmp_path)


def test_a_class_above_below_and_equal_is_related_and_a_neighbour_is_not(wordnet):
    above_and_below = {"n00000002": [""], "n00000004": [""], "n00000006": [""]}
    assert listing.related("guitar", above_and_below, wordnet) == {"n00000002", "n00000004"}
    assert listing.related("lemon", above_and_below, wordnet) == {"n00000006"}
    assert listing.related("Fruit", above_and_below, wordnet) == {"n00000006"}


def test_a_class_that_has_the_name_for_a_word_is_related(wordnet):
    assert listing.related("guitar", {"n00000006": ["lime", "Guitars of lemon"]}, wordnet) == {"n00000006"}
    assert listing.related("guitar", {"n00000006": ["guitarist"]}, wordnet) == set()


def test_classes_come_in_imagenets_order_with_all_names(tmp_path):
    with zipfile.ZipFile(tmp_path / "timm.whl", "w") as wheel:
        wheel.writestr(f"{listing.INFO}synsets.txt", "n00000006\nn00000004\n")
        lemmas = "n00000004\tacoustic guitar\nn00000005\tfruit\nn00000006\tlemon, lemon tree\n"
        wheel.writestr(f"{listing.INFO}synset_to_lemma.txt", lemmas)
    found = listing.read_classes(tmp_path / "timm.whl")
    assert list(found.items()) == [("n00000006", ["lemon", "lemon tree"]), ("n00000004", ["acoustic guitar"])]


def test_what_lies_above_a_class_comes_nearest_first_without_what_has_many_classes_below(wordnet, monkeypatch):
    classes = ["n00000004", "n00000003", "n00000006"]
    guitar, strings = "guitar", "stringed instrument"
    assert listing.above(classes, wordnet)["n00000004"] == [guitar, "instrument", strings]
    monkeypatch.setattr(listing, "WIDEST", 1)
    assert listing.above(classes, wordnet) == {"n00000004": [guitar], "n00000003": [], "n00000006": ["fruit"]}


def test_a_gloss_has_no_examples_of_its_use(tmp_path):
    line = '00000001 06 n 01 mat 0 000 | what lies on a floor; "wipe your feet on the mat"\n'
    (tmp_path / "data.noun").write_text(line, encoding="latin-1")
    assert listing.WordNet(tmp_path).glosses == {"00000001": "what lies on a floor"}
