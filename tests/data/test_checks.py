"""Rows that cannot be learned from or searched are named by their ids, before anything is trained."""

import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from command_line import build_checkpoint, call
from conftest import FEATURE_DIMS
from datasets import Array2D, Dataset, Features, List, Value, load_dataset
from tiny_corpus import write_recipe, write_split

from modeling_mmt.commands import train
from modeling_mmt.data.checks import blank_texts, cue_problems, feature_problems, id_problems
from modeling_mmt.data.clips import ClipColumn
from modeling_mmt.data.collator import MMTDataCollator
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.reading import load_split
from modeling_mmt.data.sources import Tally, clean_text
from modeling_mmt.data.tokenized import TokenizedOnce
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos
from modeling_mmt.inputs_mmt import ItemError, clean_caption, is_blank
from modeling_mmt.pipeline_mmt import MMTSearchPipeline
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.training.checks import check_recipe
from modeling_mmt.training.recipe import RecipeError
from modeling_mmt.training.recipe_reading import load_recipe

INVISIBLE = ["\u200b", "\ufeff", "\u200e", "\u200b \u2060", "\u00ad\u200d", " \t\n", ""]
GOOD = [[1.0, 2.0], [3.0, 4.0]]
ROW_FAULTS = [  # a row's features -> what is said of it
    (None, "1 clips have no video_features (null, or no steps)"),
    ([], "1 clips have no video_features (null, or no steps)"),
    ([[1.0, float("nan")]], "1 clips have NaN, infinity or null in video_features"),
    ([[1.0, float("inf")]], "1 clips have NaN, infinity or null in video_features"),
    ([[1.0, None]], "1 clips have NaN, infinity or null in video_features"),
    ([[1.0, 2.0, 3.0]], "1 clips have video_features of another width than 2"),
    ([[1.0, 2.0], [1.0]], "1 clips have video_features of another width than 2"),
    ([[1.0, 2.0], None], "1 clips have video_features of another width than 2"),
    ([[1.0, 2.0], []], "1 clips have video_features of another width than 2"),
]


def rows_of(features, dtype="float32"):
    kinds = Features({"video_id": Value("string"), "video_features": List(List(Value(dtype)))})
    return Dataset.from_dict({"video_id": [f"v{n}" for n in range(len(features))], "video_features": features}, kinds)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("features", "problem"), ROW_FAULTS)
def test_a_row_whose_features_cannot_be_read_is_counted_and_named(features, problem, dtype):
    rows = rows_of([GOOD, GOOD, features, GOOD], dtype)
    assert list(feature_problems(rows)) == [f"{problem}, the first 'v2'; extract their features again, or drop them"]
    assert list(feature_problems(rows.select([0, 1, 3]))) == []


def test_the_faults_of_a_hundred_thousand_rows_are_those_of_a_naive_count():
    generator = np.random.default_rng(0)
    faults = [None, [], [[1.0, float("nan")]], [[1.0]], [[1.0, 2.0, 3.0]]]
    chosen = [int(kind) for kind in generator.integers(0, 40, 3000)]
    rows = rows_of([faults[kind] if kind < len(faults) else GOOD for kind in chosen])
    naive = {
        "no video_features": [n for n, kind in enumerate(chosen) if kind in (0, 1)],
        "NaN": [n for n, kind in enumerate(chosen) if kind == 2],
        "another width": [n for n, kind in enumerate(chosen) if kind in (3, 4)],
    }
    problems = list(feature_problems(rows, 2))
    assert len(problems) == 3
    for name, numbers in naive.items():
        (problem,) = [problem for problem in problems if name in problem]
        assert problem.startswith(f"{len(numbers):,} clips have") and f"the first 'v{numbers[0]}'" in problem


def test_every_way_to_hold_features_is_understood():
    ids = {"video_id": ["a", "b"]}
    square = Features({"video_id": Value("string"), "video_features": Array2D((2, 2), "float32")})
    assert list(feature_problems(Dataset.from_dict({**ids, "video_features": [GOOD, GOOD]}, square))) == []
    for inner in (
        pa.list_(pa.list_(pa.float16(), 2)),
        pa.large_list(pa.large_list(pa.float32())),
        pa.list_(pa.list_(pa.int8())),
    ):
        table = pa.table(
            {"video_id": ["a", "b"], "video_features": pa.array([[[1, 2]], [[3, 4], [5, 6]]]).cast(inner)}
        )
        assert list(feature_problems(Dataset(table), 2)) == []
    for values, kind in (([1.0, 2.0], "double"), ([[1.0], [2.0]], "list<"), (["a", "b"], "string")):
        (problem,) = feature_problems(Dataset(pa.table({**ids, "video_features": values})))
        assert f"video_features is a column of {kind}" in problem and "give lists of steps" in problem
    (problem,) = feature_problems(Dataset(pa.table({**ids, "video_features": pa.nulls(2)})))
    assert "2 clips have no video_features" in problem


def test_ids_that_are_missing_or_no_texts_are_named_by_their_rows():
    assert list(id_problems(Dataset.from_dict({"video_id": ["a", "b"]}))) == []
    (problem,) = id_problems(Dataset.from_dict({"video_id": ["a", None, "", "d"]}))
    assert problem == "2 rows have no video_id, the first is row 1 from 0; give each clip an id"
    (problem,) = id_problems(Dataset.from_dict({"video_id": [1, 2]}))
    assert "column video_id is int64, and ids are texts" in problem


@pytest.mark.parametrize("blank", [None, *INVISIBLE])
def test_a_text_of_nothing_that_can_be_seen_is_found_in_a_list(blank):
    rows = Dataset.from_dict({"video_id": ["a", "b"], "caption_en": [["dog"], [blank, "dog"]]})
    (problem,) = blank_texts(rows, "caption_en")
    assert problem == "1 texts of caption_en are blank or null, the first of clip 'b'; fill or remove them"


@pytest.mark.parametrize("blank", INVISIBLE)
def test_every_reader_of_texts_agrees_on_what_is_blank(blank):
    assert is_blank(blank)
    with pytest.raises(ItemError, match="caption 7 is empty"):
        clean_caption(blank, 7)
    tally = Tally()
    assert clean_text(blank, tally) is None and tally.counts["empty"] == 1


def test_joiners_inside_a_text_stay():
    for text in ("می\u200cخواهم", "👨\u200d👩\u200d👧", "क्\u200dष", "\u200fשלום", "a"):
        assert not is_blank(text) and clean_caption(text) == text == clean_text(text, Tally())


def cues(**changes):
    row = {"video_id": "v", "text_en": ["a", "b"], "start_en": [0.0, 1.0], "end_en": [1.0, 2.0]} | changes
    return Dataset.from_list([{"video_id": "u", "text_en": None, "start_en": None, "end_en": None}, row])


def test_cues_that_do_not_fit_together_are_named():
    assert list(cue_problems(cues(), "text", "en")) == []
    (problem,) = cue_problems(cues(start_en=[0.0]), "text", "en")
    assert "1 clips have not as many text_en as start_en and end_en, the first 'v'" in problem
    for change in ({"text_en": ["a", None]}, {"start_en": [0.0, None]}, {"end_en": [1.0, float("nan")]}):
        (problem,) = cue_problems(cues(**change), "text", "en")
        assert "1 clips have null or NaN in text_en, start_en, end_en, the first 'v'" in problem


def test_clips_without_anything_to_open_are_named(tmp_path):
    (tmp_path / "a.png").touch()
    rows = Dataset.from_dict({"video_id": ["a", "b", "c"], "file": ["a.png", None, "nowhere.mp4"]})
    assert list(ClipColumn(rows, "file", tmp_path).problems()) == [
        "1 clips have nothing in file, the first 'b'; correct or drop them",
        "1 clips name a file in file that does not exist, the first 'c'; correct or drop them",
    ]


# The programs


@pytest.fixture
def damaged(corpus, tmp_path):
    """The tiny corpus with its features in the rows, some of them damaged; and the recipe's changes to read it."""
    changes = {
        5: {"video_features": None},
        7: {"video_features": []},
        9: {"caption_en": "\u200b"},
    }
    for split in ("train", "validation", "test"):
        rows = load_dataset(str(corpus / "corpus_with_features"), split=split).to_list()
        if split == "train":
            rows = [row | changes.get(number, {}) for number, row in enumerate(rows)]
            rows[11]["video_features"][0][0] = float("nan")
            rows[13]["video_features"][0].append(1.0)
        write_split(tmp_path / "damaged", split, rows)
    ids = load_dataset(str(tmp_path / "damaged"), split="train")["video_id"]
    changes = {"data.dataset": str(tmp_path / "damaged"), "data.features": [], "pretraining": None}
    return ids, changes | {"model.config.video_feature_dims": [6, 6], "model.standardize_inputs": False}


def test_a_dry_run_says_all_of_it_and_a_run_the_first(corpus, tmp_path, damaged):
    ids, changes = damaged
    path = write_recipe(corpus, tmp_path, changes)
    problems = check_recipe(load_recipe([path], ""))["problems"]
    for number, fault in ((5, "2 clips have no video_features"), (9, "1 texts of caption_en are blank or null")):
        assert any(fault in line and repr(ids[number]) in line for line in problems), problems
    assert any("1 clips have NaN" in line and repr(ids[11]) in line for line in problems)
    assert any("another width than 12" in line and repr(ids[13]) in line for line in problems)
    with pytest.raises(RecipeError, match=re.escape(problems[0])):
        train.main([path])


def test_a_recipe_whose_rows_have_no_id_is_one_line(corpus, tmp_path, capsys):
    for split in ("train", "validation", "test"):
        rows = load_dataset(str(corpus / "corpus_with_features"), split=split).to_list()
        rows[3]["video_id"] = None
        write_split(tmp_path / "anonymous", split, rows)
    changes = {"data.dataset": str(tmp_path / "anonymous"), "data.features": [], "pretraining": None}
    path = write_recipe(corpus, tmp_path, changes | {"model.config.video_feature_dims": [6, 6]})
    problems = check_recipe(load_recipe([path], ""))["problems"]
    assert sum("1 rows have no video_id, the first is row 3" in line for line in problems) == 3
    with pytest.raises(InputError, match="no video_id, the first is row 3"):
        load_split(str(tmp_path / "anonymous"), None, "train", [])
    folder = build_checkpoint(corpus, tmp_path / "checkpoint", dataset=str(tmp_path / "anonymous"), features=[])
    capsys.readouterr()
    code, out, err = call(capsys, "evaluate", folder)
    assert (code, out, err.count("\n")) == (2, "", 1) and "1 rows have no video_id, the first is row 3" in err


def test_evaluate_names_the_row_whose_features_cannot_be_read(corpus, tmp_path, capsys):
    rows = load_dataset(str(corpus / "corpus_with_features"), split="test").to_list()
    rows[2]["video_features"] = None
    write_split(tmp_path / "damaged", "test", rows)
    folder = build_checkpoint(corpus, tmp_path / "checkpoint", dataset=str(tmp_path / "damaged"), features=[])
    code, out, err = call(capsys, "evaluate", folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "1 clips have no video_features" in err and repr(rows[2]["video_id"]) in err


# Positions


def test_an_error_names_the_callers_position_and_not_that_in_a_sorted_batch(make_model, make_processor, make_clips):
    model, processor = make_model(), make_processor()
    texts = ["red dog runs fast home"] * 87 + ["\u200b"] + ["red dog runs fast"] * 12
    with pytest.raises(ValueError, match=r"^caption 87 is empty"):
        embed_texts(model, processor, texts)
    clips = make_clips((9,) * 70 + (1,) * 10)
    clips[60] = np.ones((9, 3), np.float32)
    with pytest.raises(ValueError, match=r"^clip 60 has shape \(9, 3\)"):
        embed_videos(model, processor, clips)
    clips[60] = np.full((9, sum(FEATURE_DIMS)), np.nan, np.float32)
    with pytest.raises(ValueError, match=r"^clip 60 holds a NaN"):
        embed_videos(model, processor, clips)


def test_an_index_and_a_collator_name_the_clip_by_its_id(make_model, make_processor, make_clips, make_rows):
    clips = dict(zip("abcd", make_clips(), strict=True)) | {"c": np.ones((1, 3), np.float32)}
    rows = Dataset.from_dict({"video_id": list(clips)})
    with pytest.raises(ValueError, match=r"^clip 'c' has shape \(1, 3\)"):
        SearchIndex.build(make_model(), make_processor(), rows, clips)
    rows = make_rows()
    rows[4]["video_features"] = np.full((2, sum(FEATURE_DIMS)), np.inf, np.float32)
    with pytest.raises(ValueError, match="^clip 'clip-4' holds a NaN"):
        MMTDataCollator(make_processor(), languages=["en"])(rows)
    rows = make_rows()
    rows[4]["caption_en"] = "\u200e"
    with pytest.raises(ValueError, match="^caption of clip 'clip-4' is empty"):
        MMTDataCollator(make_processor(), languages=["en"])(rows)


def test_a_pipeline_names_the_clip_by_its_id_and_the_query_by_its_text(make_model, make_processor, make_clips):
    search = MMTSearchPipeline(model=make_model(), processor=make_processor())
    clips = dict(zip("abcd", make_clips(), strict=True)) | {"d": np.ones((2, 3), np.float32)}
    with pytest.raises(ValueError, match=r"^clip 'd' has shape \(2, 3\)"):
        search.index(clips, batch_size=2)
    index = search.index({name: clips[name] for name in "abc"})
    with pytest.raises(ValueError, match=r"^query ' ' is empty"):
        search(["red dog", " "], index=index)


def test_captions_that_a_run_tokenizes_once_are_named_by_their_places(make_processor):
    tokenized = TokenizedOnce(make_processor())
    tokenized(["red", "dog"])
    with pytest.raises(ItemError, match="^caption 3 is empty"):
        tokenized(["dog", "red", "home", "\u200b", "fast"])


def test_an_embedding_that_is_not_finite_is_named_by_its_id(make_model, make_processor, make_clips):
    model = make_model()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.startswith("video_projection")).fill_(torch.nan)
    with pytest.raises(ValueError, match="^clip 'b' has an embedding that is not finite"):
        embed_videos(model, make_processor(), make_clips((4, 1)), ids=["a", "b"])
