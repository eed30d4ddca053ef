"""`modeling_mmt.search.filters`: a filter compares as its column's type compares."""

import pytest
from datasets import Dataset

from modeling_mmt.search.filters import matching_rows

CLIPS = Dataset.from_dict(
    {
        "video_id": ["8", "08", "c", "d"],
        "year": ["2020", "2021", "2020", None],
        "length": [8, 3, 8, 5],
        "share": [0.5, 1.0, 0.25, None],
        "is_flag": [True, False, True, False],
        "tags": [["cat", "dog"], [], ["dog"], None],
    }
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"year": "2020"}, [0, 2]),
        ({"year": 2020}, [0, 2]),  # never matched a text column
        ({"video_id": "8"}, [0]),
        ({"video_id": 8}, [0]),
        ({"video_id": "08"}, [1]),
        ({"length": "8"}, [0, 2]),
        ({"length": 8}, [0, 2]),
        ({"length": ["3", 5]}, [1, 3]),
        ({"share": "1"}, [1]),
        ({"share": {0.5, 0.25}}, [0, 2]),
        ({"is_flag": "true"}, [0, 2]),
        ({"is_flag": False}, [1, 3]),
        ({"tags": {"cat"}}, [0]),  # "unhashable type: 'list'"
        ({"tags": "dog"}, [0, 2]),
        ({"tags": ["cat", "bird"]}, [0]),
        ({"tags": "bird"}, []),
        ({"year": None}, [3]),
        ({"year": "2020", "length": 8, "tags": "cat"}, [0]),
    ],
)
def test_a_filter_leaves_the_rows_with_a_value(where, rows):
    assert matching_rows(CLIPS, where).nonzero()[:, 0].tolist() == rows


def test_a_filter_follows_the_rows_of_a_selection():
    assert matching_rows(CLIPS.select([3, 2, 1]), {"length": 8}).tolist() == [False, True, False]


def test_no_filter_is_none():
    assert matching_rows(CLIPS, None) is None and matching_rows(CLIPS, {}) is None


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"length": "long"}, "column 'length' holds int64, and 'long' is none"),
        ({"is_flag": "perhaps"}, "column 'is_flag' holds bool, and 'perhaps' is none"),
        ({"colour": "red"}, "no column 'colour' to filter by; its columns are video_id, year"),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_refused_by_name(where, message):
    with pytest.raises(ValueError, match=message):
        matching_rows(CLIPS, where)
