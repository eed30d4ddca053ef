"""Which texts are drawn from: kinds, languages, keywords left out, and the clips whose names are seen."""

from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset, List, Value

from modeling_mmt.data.captions import CaptionColumns, keep_drawn, seeded_share

IDS = [f"clip-{number}" for number in range(1152)]


def test_a_share_of_the_clips_is_exact_to_one_clip():
    assert [int(seeded_share(IDS, share, 0).sum()) for share in (0.25, 0.5, 1.0)] == [288, 576, 1152]
    assert seeded_share(IDS[:3], 0.5, 0).sum() == 2  # rounded up: a share above nothing is some clip
    assert seeded_share(IDS[:10], 0.3, 0).sum() == 3  # which 0.3 * 10 in floats is not quite


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_smaller_share_lies_inside_a_larger_one(seed):
    shares = [seeded_share(IDS, share, seed) for share in (0.1, 0.25, 0.5, 1.0)]
    for smaller, larger in pairwise(shares):
        assert not (smaller & ~larger).any()


def test_a_share_is_of_its_clips_and_seed_in_whatever_order_they_come():
    order = np.random.default_rng(0).permutation(len(IDS))
    chosen = seeded_share(IDS, 0.25, 3)
    assert (seeded_share([IDS[row] for row in order], 0.25, 3) == chosen[order]).all()
    other = seeded_share(IDS, 0.25, 4)
    assert 40 < (chosen & other).sum() < 110  # 72 expected of two independent quarters


def test_the_kinds_and_languages_that_a_clip_has_are_found():
    columns = CaptionColumns(["name", "keywords"], ["en", "de", "fr"])
    row = {"name_en": "dog", "keywords_en": ["pet"], "name_de": None, "keywords_de": ["Tier"], "keywords_fr": []}
    assert columns.available(row) == {"en": ["name", "keywords"], "de": ["keywords"]}
    assert columns.names == [f"{kind}_{code}" for kind in ("name", "keywords") for code in ("en", "de", "fr")]


@pytest.mark.parametrize(
    ("languages", "left"),
    [((), ["fireman", "Fire engine", "Feuer", "hose"]), (("en",), ["Feuer", "hose"]), (("en", "de"), ["hose"])],
    ids=str,
)
def test_keywords_that_hold_the_name_in_a_language_named_are_left_out(languages, left):
    """A loop over keywords and names, written out."""
    row = {"name_en": "fire", "name_de": "Feuer", "keywords_en": ["fire", "fireman", "Fire engine", "Feuer", "hose"]}
    columns = CaptionColumns(["keywords"], ["en"], "name", languages)
    assert columns.texts(row, "keywords", "en") == left
    assert set(columns.names) == {"keywords_en", "name_en", *(f"name_{language}" for language in languages)}


def test_the_name_itself_is_drawn_where_keywords_that_are_it_are_not():
    row = {"name_en": ["fire", "blaze"], "keywords_en": ["Fire", "hose"]}
    columns = CaptionColumns(["name", "keywords"], ["en"], "name")
    assert columns.texts(row, "name", "en") == ["fire", "blaze"]
    assert columns.texts(row, "keywords", "en") == ["hose"]


def test_a_clip_whose_name_is_hidden_keeps_its_keywords_but_not_those_that_are_the_name():
    rows = Dataset.from_list(
        [
            {"video_id": "a", "name_en": "fire", "keywords_en": ["fire", "hose"], "other": 1},
            {"video_id": "b", "name_en": "dog", "keywords_en": ["dog", "pet"], "other": 2},
            {"video_id": "c", "name_en": "cat", "keywords_en": ["Cat"], "other": 3},
        ]
    )
    kept = keep_drawn(
        rows, CaptionColumns(["name", "keywords"], ["en"], "name"), "name", np.array([True, False, False])
    )
    assert kept.sort("video_id").to_list() == [
        {"video_id": "a", "name_en": "fire", "keywords_en": ["hose"], "other": 1},
        {"video_id": "b", "name_en": None, "keywords_en": ["pet"], "other": 2},
    ]
    assert kept.features == rows.features | {}
    assert kept.features["keywords_en"] == List(Value("string"))


def test_clips_without_a_name_are_not_drawn_by_a_source_of_names_alone():
    rows = Dataset.from_list([{"video_id": name, "name_en": name, "name_de": None} for name in IDS])
    named = seeded_share(IDS, 0.25, 0)
    kept = keep_drawn(rows, CaptionColumns(["name"], ["en"]), "name", named)
    assert kept["name_en"][:] == [name for name, is_named in zip(IDS, named, strict=True) if is_named]
