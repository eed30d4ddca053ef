"""`mmt evaluate` (and `mmt report`, which opens the same) on an untrained checkpoint of `tiny_corpus.py`."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from command_line import build_checkpoint, call
from datasets import load_dataset
from tiny_corpus import write_split

from modeling_mmt.data.feature_store_writer import write_feature_store
from modeling_mmt.evaluation.embedding import embed_texts, embed_videos
from modeling_mmt.evaluation.evaluate import EvalSpec, evaluate, open_checkpoint, open_corpus
from modeling_mmt.evaluation.metrics import SHOWN_METRICS
from modeling_mmt.evaluation.ranks import ranks
from modeling_mmt.evaluation.relevance import relevance


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    return build_checkpoint(corpus, tmp_path_factory.mktemp("cli") / "untrained")


# What it says


def test_evaluate_prints_as_json_the_figures_of_an_evaluation(checkpoint, capsys):
    code, out, err = call(capsys, "evaluate", checkpoint, "--json")
    assert (code, err) == (0, "")
    corpus = open_corpus(EvalSpec.of_checkpoint(checkpoint))
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
    assert [float(word) for word in line.split()[1:]] == [round(figures[m], 1) for m in SHOWN_METRICS]
    assert "untrained on" in out and "12 clips, 12 queries (caption) a language" in out
    assert "all but en" in out and "without is_flag" in out


@pytest.fixture(scope="module")
def animals(corpus, tmp_path_factory):
    """The test clips with their animal for a caption, so that a query has several right answers."""
    folder = tmp_path_factory.mktemp("animals")
    rows = load_dataset(str(corpus / "corpus_with_features"), split="test").to_list()
    for row in rows:
        row |= {f"caption_{language}": row[f"caption_{language}"].split()[1] for language in ("en", "de")}
        row["concept"] = row["caption_en"]
    write_split(folder, "test", rows)
    return folder, rows


def test_with_a_column_concept_a_name_is_asked_once_and_every_clip_of_it_is_right(checkpoint, animals, capsys):
    folder, rows = animals
    told = json.loads(call(capsys, "evaluate", checkpoint, "--json", "--dataset", folder)[1])
    names = list(dict.fromkeys(row["concept"] for row in rows))
    assert told["n_queries"] == {"en": len(names), "de": len(names)} and len(names) < len(rows)
    model, processor = open_checkpoint(str(checkpoint))
    texts = embed_texts(model, processor, names)
    clips = embed_videos(model, processor, [row["video_features"] for row in rows])
    answers = [[number for number, row in enumerate(rows) if row["concept"] == name] for name in names]
    figures = told["figures"]["all"]
    expected = {metric: pytest.approx(of.mean()) for metric, of in relevance(texts, clips, answers).items()}
    assert {metric: figures["t2v"]["en"][metric] for metric in expected} == expected
    assert figures["t2v"]["en"]["R@1"] == pytest.approx(100 * np.mean(ranks(texts, clips, answers) <= 1))
    named = (clips @ texts.T).argmax(1)
    accuracy = 100 * np.mean([names[name] == row["concept"] for name, row in zip(named, rows, strict=True)])
    assert figures["v2t"]["en"]["R@1"] == pytest.approx(accuracy) and "mAP" not in figures["v2t"]["en"]


def test_clips_left_out_are_no_answers(checkpoint, animals, tmp_path, capsys):
    _, rows = animals
    kept = [row for row in rows if not row["is_flag"]]
    write_split(tmp_path / "all", "test", rows)
    write_split(tmp_path / "kept", "test", kept)
    options = ("evaluate", checkpoint, "--json", "--exclude_column", "is_flag", "--dataset")
    part = json.loads(call(capsys, *options, tmp_path / "all")[1])["figures"]["without_is_flag"]
    whole = json.loads(call(capsys, *options, tmp_path / "kept")[1])["figures"]["all"]
    assert part["t2v"]["de"] == pytest.approx(whole["t2v"]["de"]) and part["v2t"]["de"] == whole["v2t"]["de"]


def test_the_table_shows_what_counts_all_right_answers(checkpoint, animals, capsys):
    _, out, _ = call(capsys, "evaluate", checkpoint, "--dataset", animals[0])
    heads = [line.split() for line in out.splitlines() if "R@1" in line]
    assert [head[-2:] for head in heads] == [["mAP", "nDCG@10"], ["MedR", "MRR"]]


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


# What it refuses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--languages", "en", "xx"], "no caption in language 'xx'; there are en, de"),
        (["--text_column", "title"], "no column title_<language>; found"),
        (["--exclude_column", "is_long"], "no column is_long; found"),
        (["--features", "nowhere"], "nowhere is not a finished feature store"),
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
        assert code == 2 and err.count("\n") == 1
        assert "the folder that `mmt train`, `mmt import` or `mmt demo` writes" in err


def test_a_checkpoint_without_a_recipe_asks_for_a_dataset(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint, tmp_path / "bare")
    (tmp_path / "bare" / "recipe.json").unlink()
    code, _, err = call(capsys, "evaluate", tmp_path / "bare")
    assert code == 2 and "that names one; give --dataset" in err


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
        (lambda folder: (folder / "config.json").write_text("3"), "/config.json is not a JSON object: "),
        (lambda folder: (folder / "processor_config.json").write_text("[]"), "/processor_config.json is not a JSON"),
        (lambda folder: (folder / "processor_config.json").unlink(), "/processor_config.json does not exist: "),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "/tokenizer.json is not JSON: "),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "/tokenizer_config.json is not a JSON"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "/tokenizer_config.json does not exist: .*pad"),
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
        (" ", "12 texts of caption_en are blank or null, the first of clip 'clip-52'; fill or remove them"),
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
    assert (code, out) == (2, "") and f"video_id '{rows[3]['video_id']}' is in 2 rows; give a clip one row" in err


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


# From any folder


@pytest.fixture
def run_folder(corpus, tmp_path):
    """A folder that a run was started in: its recipe names everything by relative paths."""
    for name in ("corpus", "colours", "animals"):
        shutil.copytree(corpus / name, tmp_path / "clone" / name)
    names = {"dataset": "corpus", "features": ["colours", "animals"]}
    folder = build_checkpoint(corpus, tmp_path / "clone" / "runs" / "mine", **names)
    change("recipe.json", output_dir="runs/mine")(folder)
    return tmp_path / "clone"


def test_a_checkpoint_is_evaluated_from_any_folder(checkpoint, run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(run_folder)
    here = json.loads(call(capsys, "evaluate", "runs/mine", "--json")[1])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = call(capsys, "evaluate", run_folder / "runs" / "mine", "--json")
    assert (code, err) == (0, "") and json.loads(out)["figures"] == here["figures"]


def test_a_published_checkpoint_is_evaluated_as_its_own_recipe_says(hub, run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(run_folder)
    expected = json.loads(call(capsys, "evaluate", "runs/mine", "--json")[1])["figures"]
    (run_folder / "runs" / "mine" / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    assert call(capsys, "publish", "runs/mine", "org/mine", "--tag", "v1.0")[0] == 0
    change_data(run_folder / "runs" / "mine", languages=["de"])
    assert call(capsys, "publish", "runs/mine", "org/mine")[0] == 0
    shutil.rmtree(run_folder / "runs")
    code, out, _ = call(capsys, "evaluate", "org/mine", "--revision", "v1.0", "--json")
    assert code == 0 and json.loads(out)["figures"] == expected
    assert list(json.loads(call(capsys, "evaluate", "org/mine", "--json")[1])["n_queries"]) == ["de"]
    monkeypatch.chdir(tmp_path)  # where there is no such feature store
    code, out, err = call(capsys, "evaluate", "org/mine", "--dataset", run_folder / "corpus", "--languages", "en")
    assert (code, out) == (2, "") and "no column video_features" in err


def test_a_published_checkpoint_without_a_recipe_asks_for_a_dataset(hub, run_folder, capsys, monkeypatch):
    monkeypatch.chdir(run_folder)
    (run_folder / "runs" / "mine" / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    (run_folder / "runs" / "mine" / "recipe.json").unlink()
    assert call(capsys, "publish", "runs/mine", "org/bare")[0] == 0
    code, _, err = call(capsys, "evaluate", "org/bare")
    assert code == 2 and "no dataset: org/bare has no recipe.json that names one; give --dataset" in err
    assert call(capsys, "evaluate", "org/absent")[0] == 2
