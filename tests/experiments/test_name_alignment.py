"""`experiments/name_alignment.py`: which names a text encoder finds in English."""

import sys
from pathlib import Path

import torch
from datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import name_alignment  # noqa: E402

from modeling_mmt.data.languages import LANGUAGES  # noqa: E402


def test_a_name_is_found_where_its_own_english_name_is_the_nearest_by_cosine():
    english = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    states = dict.fromkeys(LANGUAGES, english) | {
        "de": torch.tensor([[2.0, 1.0], [5.0, 4.0]]),  # the second is nearer to the first's
        "sw": english.flip(0),
    }
    found = name_alignment.found_in_english(states)
    assert found == dict.fromkeys(LANGUAGES[1:], 100.0) | {"de": 50.0, "sw": 0.0}


def test_a_concept_of_many_photographs_is_one_name(monkeypatch):
    rows = [{f"name_{language}": f"{thing} {language}" for language in LANGUAGES} for thing in ("ant", "cup", "ant")]
    monkeypatch.setattr(name_alignment, "read_split", lambda *_: Dataset.from_list(rows))
    names = name_alignment.names_of("photo9", "test")
    assert names["en"] == ["ant en", "cup en"] and names["sw"] == ["ant sw", "cup sw"]
