"""`mmt search` on an untrained checkpoint: its results are those of the index, kept and read again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import build_checkpoint, call
from datasets import Dataset

from modeling_mmt.commands.errors import printable
from modeling_mmt.commands.search import check_query, conditions_of
from modeling_mmt.data.files import write_json
from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.evaluation.evaluate import EvalSpec, evaluate, open_checkpoint, open_corpus
from modeling_mmt.search import index as searching

QUERIES = ["red dog", "weißer Wal"]


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    return build_checkpoint(corpus, tmp_path_factory.mktemp("cli_search") / "untrained")


def test_search_finds_the_clips_of_a_naive_computation_with_and_without_an_index(checkpoint, tmp_path, capsys):
    corpus = open_corpus(EvalSpec.of_checkpoint(checkpoint))
    model, processor = open_checkpoint(str(checkpoint))
    scores = embed_texts(model, processor, QUERIES) @ evaluate(model, processor, corpus).videos.T
    ids = corpus.rows["video_id"]
    expected = [[ids[row] for row in line.argsort(descending=True)[:3].tolist()] for line in scores]
    plain = ["search", checkpoint, *QUERIES, "--top", "3", "--json"]
    kept = [*plain, "--index", tmp_path / "index"]
    for options in (plain, kept, kept):  # searched, built and kept, read again
        code, out, _ = call(capsys, *options)
        told = json.loads(out)
        assert code == 0 and [result["query"] for result in told] == QUERIES
        assert [[hit["video_id"] for hit in result["hits"]] for result in told] == expected
    assert told[0]["hits"][0]["score"] == pytest.approx(scores[0].max().item(), abs=1e-3)
    names = dict(zip(ids, corpus.rows["caption_en"], strict=True))
    assert all(hit["name"] == names[hit["video_id"]] for result in told for hit in result["hits"])


def test_search_imports_what_it_needs(checkpoint):
    script = "import sys, mmt; mmt.main(); print(*sys.modules)"
    words = ["search", str(checkpoint), "red dog"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "modeling_mmt.search.index" in imported
    assert not imported & {f"modeling_mmt.{name}" for name in ("hub", "report", "training", "plugins", "extraction")}
    assert not imported & {
        "matplotlib",
        "faiss",
        "qdrant_client",
        "evaluate",
        "pydantic",
        "sentence_transformers",
    }


def test_filters_leave_only_clips_of_which_they_hold(checkpoint, capsys):
    code, out, _ = call(capsys, "search", checkpoint, "red dog", "--top", "12", "--where", "is_flag=true", "--json")
    found = [hit["video_id"] for hit in json.loads(out)[0]["hits"]]
    assert code == 0
    assert found and all(int(video_id.removeprefix("clip-")) % 6 == 0 for video_id in found)  # tiny_corpus's flags


def test_the_table_is_for_people(checkpoint, capsys):
    code, out, _ = call(capsys, "search", checkpoint, "red\x1b[2J dog", "--top", "2")
    assert code == 0 and "\x1b" not in out
    assert out.splitlines()[0] == "red [2J dog" and len(out.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["", "--top", "2"], "query 1 is empty"),
        (["a" * 2**20], "at most 10,000"),
        (["dog", "--top", "0"], "--top is 0; give a number from 1"),
        (["dog", "--where", "colour=red"], "colour"),
        (["dog", "--languages", "xx"], "no caption in language 'xx'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(checkpoint, capsys, words, message):
    code, out, err = call(capsys, "search", checkpoint, *words)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_an_index_of_another_model_is_refused(checkpoint, corpus, tmp_path, capsys):
    assert call(capsys, "search", checkpoint, "dog", "--index", tmp_path / "index")[0] == 0
    model, processor = open_checkpoint(str(checkpoint))
    next(p for name, p in model.named_parameters() if name.startswith("video_projection")).data.mul_(1.01)
    other = build_checkpoint(corpus, tmp_path / "other")
    model.save_pretrained(other)
    code, _, err = call(capsys, "search", other, "dog", "--index", tmp_path / "index")
    assert code == 2 and "fingerprint" in err and err.count("\n") == 1


def test_an_index_of_other_clips_than_the_options_name_is_refused(checkpoint, corpus, tmp_path, capsys):
    index = tmp_path / "index"
    assert call(capsys, "search", checkpoint, "dog", "--index", index, "--split", "validation")[0] == 0
    for options in ([], ["--split", "validation"], ["--dataset", corpus / "corpus", "--split", "validation"]):
        assert call(capsys, "search", checkpoint, "dog", "--index", index, *options)[0] == 0
    for options, told in (
        (["--split", "test"], "built from split validation, and --split is test; leave --split out"),
        (["--features", corpus / "colours"], "--features is"),
        (["--dataset", corpus / "corpus_with_features"], "--dataset is"),
    ):
        code, out, err = call(capsys, "search", checkpoint, "dog", "--index", index, *options)
        assert (code, out) == (2, "") and told in err and err.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[]x", "3"])
def test_a_broken_record_of_an_index_is_named(checkpoint, tmp_path, capsys, content):
    index = tmp_path / "index"
    assert call(capsys, "search", checkpoint, "dog", "--index", index)[0] == 0
    (index / "source.json").write_text(content)
    for options in ([], ["--split", "test"]):
        code, out, err = call(capsys, "search", checkpoint, "dog", "--index", index, *options)
        assert (code, out) == (
            2,
            "",
        ) and f"{index / 'source.json'}: not the JSON that `mmt search` or `mmt index` writes" in err


def test_a_search_that_is_killed_before_its_index_s_last_file_leaves_none_and_can_be_repeated(
    checkpoint, tmp_path, capsys, monkeypatch
):
    """The folder was whole but for `source.json`, and the same command failed for ever."""
    index, command = tmp_path / "index", ("search", checkpoint, "dog", "--split", "validation", "--index")

    def killed(path, value):
        if Path(path).name == "source.json":
            raise KeyboardInterrupt
        write_json(path, value)

    monkeypatch.setattr(searching, "write_json", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        call(capsys, *command, index)
        raise SystemExit
    monkeypatch.undo()
    assert not index.exists()
    assert [call(capsys, *command, index)[0] for _ in range(2)] == [0, 0]


def test_an_index_of_a_dataset_that_was_built_again_is_refused(checkpoint, corpus, tmp_path, capsys):
    clips, index = shutil.copytree(corpus / "corpus_with_features", tmp_path / "clips"), tmp_path / "index"
    command = ("search", checkpoint, "dog", "--dataset", clips, "--languages", "en", "--index", index)
    assert [call(capsys, *command)[0] for _ in range(2)] == [0, 0]
    (path,) = clips.rglob("*test*.parquet")
    Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).select(range(11)).to_parquet(str(path))
    for words in (command, ("search", checkpoint, "dog", "--index", index)):
        code, out, err = call(capsys, *words)
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert f"{clips} has changed since {index} was built from it; delete the index to build it again" in err
    shutil.rmtree(index)
    assert call(capsys, *command)[0] == 0


@pytest.mark.parametrize(
    ("query", "words"),
    [("", "query 1 is empty: ''"), (" \t\x00\x1b", "query 1 is empty"), ("a" * 2**20, "at most 10,000 are allowed")],
)
def test_a_query_with_nothing_in_it_or_too_much_is_refused(query, words):
    with pytest.raises(ValueError, match=words):
        check_query(query, 1)


def test_control_characters_reach_neither_the_model_nor_the_terminal():
    assert check_query("a\x00 \x1b[2Jdog\n", 1) == "a [2Jdog"
    assert "\x1b" not in printable("a\x1b[2J\u202edog") and "\u202e" not in printable("\u202e")


def test_conditions_on_one_column_are_alternatives():
    """JSON made a number of `year=2020`, which no text is; and of two conditions on a column the first was lost."""
    assert conditions_of(["year=2020", "emoji=🚁", "year=2021"]) == {"year": ["2020", "2021"], "emoji": ["🚁"]}
    assert conditions_of(["title=a=b", "title="]) == {"title": ["a=b", ""]}
    with pytest.raises(ValueError, match="write COLUMN=VALUE"):
        conditions_of(["is_flag"])


def test_conditions_may_be_given_in_turn_and_queries_on_both_sides_of_options(checkpoint, capsys):
    plain = call(capsys, "search", checkpoint, "dog", "cat", "--where", "is_flag=true", "video_id=clip-54", "--json")
    apart = ["--where", "is_flag=true", "--json", "--where", "video_id=clip-54", "--top", "5", "cat"]
    assert plain[0] == 0 and call(capsys, "search", checkpoint, "dog", *apart) == plain
    code, _, err = call(capsys, "search", checkpoint, "dog", "--no_such_option")
    assert code == 2 and "unrecognized arguments: --no_such_option" in err


def test_a_top_beyond_the_clips_gives_them_all(checkpoint, capsys):
    for options in ([], ["--windows"]):
        code, out, _ = call(capsys, "search", checkpoint, "dog", "--top", "99", "--json", *options)
        assert code == 0 and len(json.loads(out)[0]["hits"]) == 12


def test_the_folder_of_an_index_tells_its_checkpoint_and_its_clips(checkpoint, tmp_path, capsys):
    index = tmp_path / "index"
    built = call(capsys, "search", checkpoint, *QUERIES, "--index", index, "--split", "validation", "--json")
    assert call(capsys, "search", index, *QUERIES, "--json") == built
    code, out, err = call(capsys, "search", index, "dog", "--split", "test")
    assert (code, out) == (2, "") and "was built from split validation" in err
    code, out, err = call(capsys, "search", index, "dog", "--languages", "sw")
    assert (code, out) == (2, "") and "--languages is ['sw']; leave --languages out" in err
    code, out, err = call(capsys, "search", index, "dog", "--index", index)
    assert (code, out) == (2, "") and "is an index already" in err
