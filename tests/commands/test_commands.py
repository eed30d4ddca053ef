"""`mmt` in this process on an untrained checkpoint of `tiny_corpus.py`; the last test installs the wheel."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import build_checkpoint, call
from datasets import load_dataset
from tiny_corpus import write_split

import mmt
from modeling_mmt.commands import cli
from modeling_mmt.data.feature_writer import write_feature_store
from modeling_mmt.data.features import FeatureStores
from modeling_mmt.evaluation.evaluate import Question, evaluate, open_checkpoint, open_corpus

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    return build_checkpoint(corpus, tmp_path_factory.mktemp("cli") / "untrained")


# What it says


def test_evaluate_prints_as_json_the_figures_of_an_evaluation(checkpoint, capsys):
    code, out, err = call(capsys, "evaluate", checkpoint, "--json")
    assert (code, err) == (0, "")
    corpus = open_corpus(Question.of_checkpoint(checkpoint), FeatureStores)
    expected = evaluate(*open_checkpoint(str(checkpoint)), corpus).figures
    told = json.loads(out)
    assert told["figures"] == json.loads(json.dumps(expected))
    assert set(told["figures"]) == {"all", "without_is_flag"}
    assert (told["n_clips"], told["n_queries"]) == (12, {"en": 12, "de": 12})


def test_evaluate_prints_a_table_without_colours_into_a_pipe(checkpoint, capsys):
    code, out, _ = call(capsys, "evaluate", checkpoint)
    figures = json.loads(call(capsys, "evaluate", checkpoint, "--json")[1])["figures"]["all"]["t2v"]["de"]
    assert code == 0 and "\033" not in out
    line = next(line for line in out.splitlines() if line.startswith("de "))
    assert [float(word) for word in line.split()[1:]] == [round(figures[m], 1) for m in cli.METRICS]
    assert "untrained on" in out and "12 clips, 12 queries (caption) a language" in out
    assert "all but en" in out and "without is_flag" in out


def test_options_go_over_the_recipe(checkpoint, capsys):
    told = json.loads(call(capsys, "evaluate", checkpoint, "--json", "--languages", "de", "--split", "validation")[1])
    assert (told["split"], list(told["n_queries"])) == ("validation", ["de"])
    told = json.loads(call(capsys, "evaluate", checkpoint, "--json", "--text_column", "keywords")[1])
    assert told["n_queries"] == {"en": 24, "de": 24}  # each list's keywords are captions


def test_another_dataset_takes_nothing_from_the_recipe(checkpoint, corpus, capsys):
    given = ["--dataset", corpus / "corpus_with_features", "--languages", "en"]
    told = json.loads(call(capsys, "evaluate", checkpoint, "--json", *given)[1])
    same = json.loads(call(capsys, "evaluate", checkpoint, "--json", "--languages", "en")[1])
    assert set(told["figures"]) == {"all"}  # no excluded column
    assert told["figures"]["all"]["t2v"]["en"]["MRR"] == pytest.approx(
        same["figures"]["all"]["t2v"]["en"]["MRR"], 0.05
    )


def test_report_says_where_the_page_is_and_prints_its_numbers(checkpoint, tmp_path, capsys):
    code, out, _ = call(capsys, "report", checkpoint, "--output_dir", tmp_path / "r")
    assert code == 0 and Path(out.strip()).is_file()
    told = json.loads(call(capsys, "report", checkpoint, "--output_dir", tmp_path / "r", "--json")[1])
    assert told == json.loads((tmp_path / "r" / "report.json").read_text("utf-8"))


@pytest.mark.parametrize("command", [[], ["evaluate"], ["search"], ["report"], ["publish"]])
def test_help_has_examples_that_parse(command, capsys):
    code, out, _ = call(capsys, *command, "--help")
    examples = [line.split("   ")[0].strip() for line in out.splitlines() if line.startswith("  mmt ")]
    assert code == 0 and examples
    assert all(example.split()[1] in (command or ("evaluate", "search", "report", "publish")) for example in examples)


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["search", "--help"], 0), (["search"], 2), (["nothing"], 2)]
)
def test_help_and_a_wrong_option_import_neither_torch_nor_transformers(words, code):
    script = "import atexit, sys, mmt; atexit.register(lambda: print(*sys.modules)); mmt.main()"
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert done.returncode == code and "mmt" in imported
    assert not imported & {"torch", "transformers", "datasets", "numpy", "modeling_mmt"}


def test_the_bundled_corpus_is_called_by_its_name():
    assert Path(cli.bundled("emoji9")).is_dir() and Path(cli.bundled("emoji9")).name == "emoji9"
    for other in ("org/name", "../emoji9", "nothing", None):
        assert cli.bundled(other) == other


# What it refuses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--languages", "en", "xx"], "no caption in language 'xx'; there are en, de"),
        (["--text_column", "title"], "no column title_<language>; found"),
        (["--exclude_column", "is_long"], "no column is_long; found"),
        (["--features", "nowhere"], "nowhere is no finished feature store"),
        (["--dataset", "no/where/at/all"], "no/where/at/all"),
        (["--split", "dev"], "dev"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_what_is_not_there_is_one_line_and_exit_code_2(
    checkpoint, capsys, tmp_path, monkeypatch, command, options, words
):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, command, checkpoint, *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("mmt: ") and words in err
    assert not list(tmp_path.iterdir())


def test_no_checkpoint_is_one_line_and_exit_code_2(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "nothing"):
        code, _, err = call(capsys, "evaluate", folder, "--dataset", "emoji9")
        assert code == 2 and err.count("\n") == 1 and "train.py writes one" in err


def test_a_checkpoint_without_a_recipe_asks_for_a_dataset(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint, tmp_path / "bare")
    (tmp_path / "bare" / "recipe.json").unlink()
    code, _, err = call(capsys, "evaluate", tmp_path / "bare")
    assert code == 2 and "name one with --dataset" in err


def change(name, **fields):
    """A change of a checkpoint's JSON file."""

    def write(folder):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | fields), encoding="utf-8")

    return write


def change_data(folder, **fields):
    data = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["data"]
    change("recipe.json", data=data | fields)(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("config.json", projection_dim=6), "config.json does not fit the weights"),
        (change("config.json", pooling="frist"), "expected one of .*frist"),
        (change("config.json", num_hidden_layers=9), "the checkpoint lacks"),
        (lambda folder: (folder / "config.json").write_text("[]"), "broken.*; download or save"),
        (lambda folder: (folder / "config.json").write_text('{"a":'), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "processor_config.json").unlink(), "processor"),
        (lambda folder: (folder / "processor_config.json").write_text("{"), "processor_config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: (folder / "recipe.json").write_text("[]"), "recipe.json: no data.dataset"),
        (lambda folder: (folder / "recipe.json").write_text("{"), "recipe.json: not JSON"),
        (change("recipe.json", data={"dataset": "x"}), "recipe.json: no data.revision"),
        (lambda folder: change_data(folder, dataset=3), "recipe.json: data.dataset is 3, no str; "),
        (lambda folder: change_data(folder, languages="en"), "recipe.json: data.languages is 'en', no list; "),
        (lambda folder: (folder / "config.json").write_text("3"), "/config.json holds no JSON object: "),
        (lambda folder: (folder / "processor_config.json").write_text("[]"), "/processor_config.json holds no JSON"),
        (lambda folder: (folder / "processor_config.json").unlink(), "/processor_config.json is not there: "),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "/tokenizer.json is not JSON: "),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "/tokenizer_config.json holds no JSON"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "/tokenizer_config.json is not there: .*pad"),
    ],
)
def test_a_checkpoint_whose_files_do_not_fit_is_refused_by_name(checkpoint, tmp_path, capsys, damage, message):
    shutil.copytree(checkpoint, tmp_path / "broken")
    damage(tmp_path / "broken")
    code, out, err = call(capsys, "evaluate", tmp_path / "broken")
    assert (code, out) == (2, "") and "Traceback" not in err
    told = err.splitlines()[-1]
    assert told.startswith("mmt: ") and str(tmp_path / "broken") in told
    assert re.search(message, told)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (3, "caption_en is a column of int64; give one of texts, or of lists of texts"),
        ([3], "caption_en is a column of List.*; give one of texts"),
        (" ", "12 texts of caption_en are blank, the first of clip 'clip-52'; fill them"),
    ],
)
def test_a_column_without_texts_is_refused_by_name(checkpoint, corpus, tmp_path, capsys, column, message):
    rows = load_dataset(str(corpus / "corpus"), split="test").to_list()
    write_split(tmp_path / "rows", "test", [row | {"caption_en": column} for row in rows])
    stores = [corpus / name for name in ("colours", "animals")]
    code, out, err = call(capsys, "evaluate", checkpoint, "--dataset", tmp_path / "rows", "--features", *stores)
    assert (code, out) == (2, "") and re.search(rf"rows \(test\): {message}", err) and err.count("\n") == 1


def test_a_torn_dataset_is_refused_by_name(checkpoint, corpus, tmp_path, capsys):
    shutil.copytree(corpus / "corpus", tmp_path / "torn")
    (path,) = tmp_path.glob("torn/data/test-*")
    path.write_bytes(path.read_bytes()[:300])
    code, out, err = call(capsys, "evaluate", checkpoint, "--dataset", tmp_path / "torn", "--features", "x")
    assert (code, out) == (2, "") and f"mmt: {tmp_path / 'torn'}: a file cannot be read (" in err.splitlines()[-1]


def test_a_row_a_caption_is_refused(checkpoint, corpus, tmp_path, capsys):
    """Each clip would be its own rival: R@5 of 92 became 33."""
    rows = load_dataset(str(corpus / "corpus"), split="test").to_list()
    write_split(tmp_path / "rows", "test", [*rows, rows[3]])
    code, out, err = call(capsys, "evaluate", checkpoint, "--dataset", tmp_path / "rows", "--features",
                          *(corpus / name for name in ("colours", "animals")))  # fmt: skip
    assert (code, out) == (2, "") and f"video_id '{rows[3]['video_id']}' stands in 2 rows; give a clip one row" in err


def test_clips_are_not_left_out_by_a_column_of_texts(checkpoint, capsys):
    """Every text that is not empty would be taken for true."""
    code, out, err = call(capsys, "evaluate", checkpoint, "--exclude_column", "caption_en")
    assert (code, out) == (2, "")
    assert "(test): caption_en, of clips to leave out, is a column of string; give one of true and false" in err


def test_a_dataset_named_by_another_path_is_still_the_recipes(checkpoint, corpus, capsys, monkeypatch):
    monkeypatch.chdir(corpus)
    expected = call(capsys, "evaluate", checkpoint, "--json")[1]
    code, out, _ = call(capsys, "evaluate", checkpoint, "--json", "--dataset", "./corpus")
    assert code == 0 and json.loads(out)["figures"] == json.loads(expected)["figures"]


def test_weights_that_are_not_finite_are_named(corpus, checkpoint, tmp_path, capsys):
    model, processor = open_checkpoint(str(checkpoint))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.startswith("text_projection")).fill_(float("nan"))
    shutil.copytree(checkpoint, tmp_path / "broken")
    model.save_pretrained(tmp_path / "broken")
    for command in (["evaluate"], ["report", "--output_dir", tmp_path / "r"]):
        code, out, err = call(capsys, *command[:1], tmp_path / "broken", *command[1:])
        assert (code, out) == (2, "") and "Traceback" not in err
        assert "text_projection.output.weight holds NaN or infinity" in err.splitlines()[-1]


def test_features_of_another_extractor_are_refused_by_their_width(checkpoint, corpus, capsys):
    code, _, err = call(capsys, "evaluate", checkpoint, "--features", corpus / "colours")
    assert code == 2 and "expected (steps, 12)" in err


def test_a_corpus_of_one_is_measured_and_reported(corpus, checkpoint, tmp_path, capsys):
    row = load_dataset(str(corpus / "corpus"), split="test")[0]
    write_split(tmp_path / "one", "test", [row])
    one = [(row["video_id"], np.ones((2, 12), dtype=np.float32))]
    write_feature_store(tmp_path / "store", one, extractor="made up", revision="1")
    given = ["--dataset", tmp_path / "one", "--features", tmp_path / "store"]
    told = json.loads(call(capsys, "evaluate", checkpoint, *given, "--json")[1])
    assert told["figures"]["all"]["t2v"]["en"] == {
        "R@1": 100,
        "R@5": 100,
        "R@10": 100,
        "MedR": 1,
        "MeanR": 1,
        "MRR": 100,
    }
    assert call(capsys, "report", checkpoint, *given, "--output_dir", tmp_path / "r")[0] == 0


def test_one_end_of_a_gap_is_not_enough(checkpoint, capsys):
    code, _, err = call(capsys, "report", checkpoint, "--zero_shot", checkpoint)
    assert code == 2 and "give both or neither" in err


@pytest.mark.parametrize(
    ("query", "words"),
    [("", "query 1 is empty: ''"), (" \t\x00\x1b", "query 1 is empty"), ("a" * 2**20, "at most 10,000 are taken")],
)
def test_a_query_with_nothing_in_it_or_too_much_is_refused(query, words):
    with pytest.raises(ValueError, match=words):
        cli.check_query(query, 1)


def test_control_characters_reach_neither_the_model_nor_the_terminal():
    assert cli.check_query("a\x00 \x1b[2Jdog\n", 1) == "a [2Jdog"
    assert "\x1b" not in cli.printable("a\x1b[2J\u202edog") and "\u202e" not in cli.printable("\u202e")


def test_filters_are_values_of_json_or_words():
    assert cli.check_filter("is_flag=false") == ("is_flag", False)
    assert cli.check_filter("emoji=🚁") == ("emoji", "🚁")
    assert cli.check_filter("num_frames=8") == ("num_frames", 8)
    with pytest.raises(ValueError, match="write COLUMN=VALUE"):
        cli.check_filter("is_flag")


def test_interrupted_is_130_and_a_bug_keeps_its_traceback(checkpoint, capsys, monkeypatch):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate_command", stop)
    assert call(capsys, "evaluate", checkpoint)[0] == 130

    def bug(arguments):
        raise AssertionError("a bug")

    monkeypatch.setattr(cli, "evaluate_command", bug)
    with pytest.raises(AssertionError, match="a bug"):
        mmt.main(["evaluate", str(checkpoint)])


def test_traceback_shows_where_bad_input_was_found(checkpoint):
    with pytest.raises(ValueError, match="no caption in language 'xx'"):
        mmt.main(["--traceback", "evaluate", str(checkpoint), "--languages", "xx"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_terminals_that_want_them():
    assert cli.Paint(Terminal(), {}).bold("x") == "\033[1mx\033[0m"
    for stream, environment in ((io.StringIO(), {}), (Terminal(), {"NO_COLOR": "1"}), (Terminal(), {"TERM": "dumb"})):
        assert cli.Paint(stream, environment).bold("x") == "x"


# Installed


@pytest.mark.slow
def test_the_installed_wheel_has_the_command_the_template_and_the_corpus(checkpoint, tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, tmp_path / "site", source], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    def installed(*words, code=0):
        command = [sys.executable, str(tmp_path / "site" / "bin" / "mmt"), *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr[-2000:]
        return done

    assert "mmt evaluate runs/demo/mmp_en" in installed("--help").stdout
    told = json.loads(installed("evaluate", checkpoint, "--json").stdout)
    assert told["n_clips"] == 12
    installed("report", checkpoint, "--output_dir", "r")
    assert (tmp_path / "r" / "report.html").stat().st_size > 50_000
    names = ["--dataset", "emoji9", "--text_column", "name", "--features", "nowhere"]
    refused = installed("evaluate", checkpoint, *names, code=2)
    assert "Traceback" not in refused.stderr
    assert "nowhere" in refused.stderr  # emoji9 itself was found
