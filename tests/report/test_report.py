"""The report of a checkpoint trained on `tiny_corpus.py`, then of made-up embeddings: figures, page, corner cases."""

import json
import re

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from PIL import Image
from tiny_corpus import write_recipe

import mmt
from modeling_mmt.commands import train
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.evaluation.evaluate import Corpus, EvalSpec, Evaluation
from modeling_mmt.evaluation.ranks import ranks_by_language
from modeling_mmt.evaluation.relevance import relevance_by_language
from modeling_mmt.report import figures as report_figures
from modeling_mmt.report.measures import hits_by_clip, measure
from modeling_mmt.report.page import Card, Clip, Figure, Gallery, Heading, Page, Table, Text, Words
from modeling_mmt.report.published_results import MULTI_MSRVTT
from modeling_mmt.report.sections import Reporter

NEEDED = ("R@1", "R@5", "R@10", "MedR", "MRR")


@pytest.fixture(scope="module")
def checkpoints(corpus, tmp_path_factory):
    """Two trained folders and the metrics of each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    metrics = {}
    short = {"pretraining": None, "finetuning.num_train_epochs": 1, "finetuning.evaluations": 1}
    for name, changes in (("ours", short), ("zero_shot", short | {"seed": 1})):
        metrics[name] = train.main([write_recipe(corpus, folder, changes, name)])
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
    return folder, metrics


@pytest.fixture(scope="module")
def written(checkpoints):
    """A report that compares the two, and its folder."""
    folder, _ = checkpoints
    ours, zero_shot = str(folder / "ours"), str(folder / "zero_shot")
    # the same folder under two names: a translate-train end for the gap
    options = [
        "--zero_shot",
        zero_shot,
        "--translate_train",
        f"all={zero_shot}",
        "--output_dir",
        str(folder / "report"),
    ]
    assert mmt.main(["report", ours, *options]) == 0
    return folder / "report", json.loads((folder / "report" / "report.json").read_text("utf-8"))


def made_up(num_clips=30, languages=("en", "de", "sw"), seed=0, width=8, noise=0.8, name="made up", several=False):
    """A corpus and an evaluation without a model; `several` gives clips two captions, and German none for one clip."""
    rng = np.random.default_rng(seed)
    captions, clip_of = {}, {}
    for language in languages:
        owners = [row for row in range(num_clips) for _ in range(1 + several)]
        if several and language == "de":
            owners = owners[2:]
        clip_of[language] = owners
        captions[language] = [f"{language} {row}" for row in owners]
    rows = Dataset.from_list([{"video_id": f"clip-{row}"} for row in range(num_clips)])
    parts = {"all": np.zeros(num_clips, dtype=bool)}
    corpus = Corpus(EvalSpec("made/up", languages=languages), rows, captions, clip_of, [], parts)
    videos = F.normalize(torch.tensor(rng.standard_normal((num_clips, width)), dtype=torch.float32), dim=1)
    texts = {
        language: F.normalize(videos[owners] + noise * torch.tensor(rng.standard_normal((len(owners), width))), dim=1)
        for language, owners in clip_of.items()
    }
    texts = {language: of.float() for language, of in texts.items()}
    ranks = {"all": ranks_by_language(texts, videos, clip_of)}
    tokens = {language: rng.integers(4, 20, len(owners)) for language, owners in clip_of.items()}
    return corpus, Evaluation(name, texts, videos, ranks, 16, tokens)


def page_of(corpus, *evaluations, num_samples=200, **options):
    measures = measure(evaluations, corpus, num_samples=num_samples, **options)
    return measures, Reporter(measures, evaluations, corpus, lambda row: None, {"command": "made up"}).page()


# Against train.py


def test_the_reports_figures_are_those_that_training_wrote(checkpoints, written):
    _, metrics = checkpoints
    _, measures = written
    for name, of_run in metrics.items():
        for part, ways in of_run["figures"]["test"].items():
            for way, by_language in ways.items():
                for language, figures in by_language.items():
                    for metric in NEEDED:
                        cell = measures["checkpoints"][name]["figures"][part][way][metric][language]
                        assert cell["value"] == figures[metric], (name, part, way, language, metric)
                        assert cell["ci95"][0] <= cell["value"] <= cell["ci95"][1]


# What is written


def test_the_html_fetches_nothing_and_runs_nothing(written):
    folder, _ = written
    text = (folder / "report.html").read_text("utf-8")
    assert "<script" not in text and "javascript:" not in text and "@import" not in text and "url(" not in text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses and all(address.startswith(("data:image/", "#")) for address in addresses)
    assert set(re.findall(r'href="#(.*?)"', text)) == set(re.findall(r'<h2 id="(.*?)"', text))
    assert len(text) < 3e6


def test_the_markdown_names_every_figure_and_the_same_numbers(written):
    folder, measures = written
    text = (folder / "README.md").read_text("utf-8")
    figures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(figures) >= 6
    for name in figures:
        with Image.open(folder / name) as picture:
            assert picture.width > 400
    html = (folder / "report.html").read_text("utf-8")
    for language in measures["languages"]:
        cell = measures["checkpoints"]["ours"]["figures"]["all"]["t2v"]["R@1"][language]
        shown = f"{cell['value']:.1f} [{cell['ci95'][0]:.1f}, {cell['ci95'][1]:.1f}]"
        assert shown in html
        assert shown.replace("[", "\\[").replace("]", "\\]") in text


def test_the_same_command_writes_the_same_bytes(checkpoints, written, tmp_path):
    folder, _ = checkpoints
    for number in (1, 2):
        assert mmt.main(["report", str(folder / "ours"), "--output_dir", str(tmp_path / "again")]) == 0
        found = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
        if number == 1:
            first = found
    assert found == first


def test_text_of_a_dataset_is_shown_and_not_obeyed():
    corpus, evaluation = made_up()
    corpus.captions["en"][3] = "<img src=x onerror=alert(1)> | **bold**\x1b[31m"
    _, page = page_of(corpus, evaluation)
    evil = Card([Clip(None, corpus.captions["en"][3])], [("en", Words(corpus.captions["en"][3], "en"))])
    page.blocks.append(Gallery([evil]))
    assert "<img src=x" not in page.html()
    assert "&lt;img src=x onerror" in page.html()
    assert "\\<img src=x onerror=alert(1)\\> \\| \\*\\*bold\\*\\*" in page.markdown()


def test_words_say_their_language_so_that_the_reader_has_a_font():
    page = Page("t", ["s"], [Gallery([Card([Clip(None, "cat")], [("zh", Words("猫", "zh"))])])])
    assert '<dd lang="zh" dir="auto">猫</dd>' in page.html()


def test_both_twins_have_every_block():
    blocks = [
        Heading("A heading"),
        Text("A text."),
        Table(["a", "b"], [["x", None], [Words("y", "de"), "1"]], [1], "A note."),
        Figure("drawn", report_figures.token_ranges({"en": np.array([3, 4])}, 9), "An alt text", "A caption."),
        Gallery([Card([Clip(Image.new("RGB", (9, 9)), "one"), Clip(None, "two", "line")], note="noted")], "→"),
    ]
    page = Page("A title", ["A sentence."], blocks)
    for text in (page.html(), page.markdown()):
        for words in ("A title", "A sentence.", "A heading", "A text.", "A note.", "An alt text", "A caption.", "–"):
            assert words in text
        assert "noted" in text and "one" in text and "two" in text
    assert "**y** | **1**" in page.markdown()


# The numbers


def test_a_perfect_model_is_consistent_has_no_hub_and_confuses_nothing():
    corpus, evaluation = made_up(noise=0.0)
    measures, page = page_of(corpus, evaluation)
    mine = measures["checkpoints"]["made up"]
    assert all(cell["value"] == 100 for cell in mine["figures"]["all"]["t2v"]["R@1"].values())
    assert mine["consistency"]["unanimity"] == 100 and mine["consistency"]["mean_rank_variance"] == 0
    np.testing.assert_allclose(mine["consistency"]["overlap"], 100)
    np.testing.assert_allclose(mine["text_similarity"]["same_clip"], 1, atol=1e-6)
    assert mine["confusions"] == [] and mine["gap_to_english"]["t2v"] == {"de": 0.0, "sw": 0.0}
    assert "Confusions" in page.html()


def test_a_checkpoint_that_is_the_translate_train_end_closes_the_whole_gap():
    corpus, low = made_up(noise=2.0, name="low")
    _, high = made_up(noise=0.3, name="high")
    _, same = made_up(noise=0.3, name="same")
    measures, page = page_of(corpus, same, low, high, zero_shot="low", translate_train="high", num_samples=2000)
    assert measures["gap_closed"]["t2v"]["average"] == pytest.approx(100)
    assert measures["gap_closed"]["t2v"]["ci95"] == pytest.approx((100, 100))
    tests = {(test["a"], test["b"], test["way"], test["scope"]): test for test in measures["comparisons"]}
    assert len(tests) == 3 * 2 * 2
    assert tests["same", "high", "t2v", "all but en"]["difference"] == 0
    assert tests["same", "low", "t2v", "all but en"]["p_holm"] < 0.05
    assert tests["same", "low", "t2v", "en"]["p_holm"] >= tests["same", "low", "t2v", "en"]["p"]
    assert "It closes 100\u00a0% [100, 100]" in page.summary[1]


def test_several_captions_a_clip_and_a_clip_without_one_are_reported():
    corpus, evaluation = made_up(several=True)
    measures, page = page_of(corpus, evaluation)
    mine = measures["checkpoints"]["made up"]
    cells = mine["figures"]["all"]["t2v"]["R@1"]
    assert cells["en"]["ci95"] is not None and cells["avg"]["ci95"] is None
    assert mine["n_aligned"] == 29 and measures["n_queries"] == {"en": 60, "de": 58, "sw": 60}
    for language, figures in evaluation.figures["all"]["v2t"].items():
        assert mine["figures"]["all"]["v2t"]["R@1"][language]["value"] == figures["R@1"]
    page.html()


def test_queries_with_many_right_answers_are_reported_with_what_counts_them_all():
    corpus, evaluation = made_up(noise=2.0)
    rows = corpus.rows.add_column("concept", [f"thing {row % 10}" for row in range(30)])
    owners = {language: list(range(10)) for language in corpus.languages}
    captions = {language: of[:10] for language, of in corpus.captions.items()}
    corpus = Corpus(corpus.spec, rows, captions, owners, [], corpus.parts)
    texts = {language: of[:10] for language, of in evaluation.texts.items()}
    evaluation = Evaluation(
        "made up",
        texts,
        evaluation.videos,
        {"all": ranks_by_language(texts, evaluation.videos, corpus.answers)},
        16,
        {language: of[:10] for language, of in evaluation.tokens.items()},
        {"all": relevance_by_language(texts, evaluation.videos, corpus.answers, corpus.parts["all"])},
    )
    assert corpus.answers["sw"][3] == [3, 13, 23]
    measures, page = page_of(corpus, evaluation)
    figures = measures["checkpoints"]["made up"]["figures"]["all"]
    assert figures["t2v"]["mAP"]["en"]["value"] == pytest.approx(evaluation.relevance["all"]["en"]["mAP"].mean())
    low, high = figures["t2v"]["mAP"]["en"]["ci95"]
    assert low < figures["t2v"]["mAP"]["en"]["value"] < high and "mAP" not in figures["v2t"]
    for pair in measures["checkpoints"]["made up"]["confusions"]:
        assert pair["asked"] % 10 != pair["found"] % 10
    assert "nDCG@10" in page.html() and "nDCG@10" in page.markdown()


def test_a_clips_hits_are_the_mean_over_its_captions():
    corpus, evaluation = made_up(several=True)
    rows, _ = corpus.aligned
    for language, hits in hits_by_clip(evaluation, corpus, "t2v").items():
        found = list(zip(evaluation.ranks["all"]["t2v"][language], corpus.clip_of[language], strict=True))
        expected = [100.0 * np.mean([rank <= 1 for rank, owner in found if owner == row]) for row in rows]
        np.testing.assert_allclose(hits, expected)


@pytest.mark.parametrize(
    ("num_clips", "languages"), [(1, ("en", "de")), (2, ("en",)), (3, ("de", "sw")), (1, ("sw",))]
)
def test_a_corpus_of_one_and_a_single_language_have_a_report(num_clips, languages):
    corpus, evaluation = made_up(num_clips, languages)
    measures, page = page_of(corpus, evaluation)
    json.dumps(measures, allow_nan=False)
    assert page.html() and page.markdown()


def test_moments_are_reported_where_the_corpus_says_where_its_clips_lie():
    corpus, evaluation = made_up(noise=0.0)
    assert page_of(corpus, evaluation)[0]["checkpoints"]["made up"]["moments"] == {}
    places = {"file": ["a.mp4", "b.mp4"] * 15, "start": [10 * row for row in range(30)]}
    places["end"] = [start + 4 for start in places["start"]]
    for name, values in places.items():
        corpus.rows = corpus.rows.add_column(name, values)
    measures, page = page_of(corpus, evaluation)
    moments = measures["checkpoints"]["made up"]["moments"]
    assert list(moments) == ["en", "de", "sw"]
    assert moments["sw"]["R@1 IoU=0.7"] == 100.0 and moments["sw"]["start_error"] == 0.0  # each text is its clip
    table = next(b for b in page.blocks if isinstance(b, Table) and "R@1 IoU=0.5" in b.columns)
    assert [row[0] for row in table.rows] == ["en", "de", "sw", "all", "all but en"]
    assert page.html()


def test_cut_captions_are_counted():
    corpus, evaluation = made_up()
    evaluation.tokens["sw"] = np.array([16, 17, 18, 4] + [5] * 26)
    measures, _ = page_of(corpus, evaluation)
    assert measures["checkpoints"]["made up"]["tokens"]["sw"]["cut"] == pytest.approx(100 * 2 / 30)
    assert measures["checkpoints"]["made up"]["tokens"]["sw"]["longest"] == 18


def test_published_figures_are_marked_and_average_to_what_was_published():
    for values in MULTI_MSRVTT.values():
        assert len(values) == len(LANGUAGES) + 1
        assert np.mean(values[:-1]) == pytest.approx(values[-1], abs=0.11)
    corpus, evaluation = made_up()
    _, page = page_of(corpus, evaluation)
    table = next(b for b in page.blocks if isinstance(b, Table) and b.columns[:2] == ["model", "from"])
    assert [row[1] for row in table.rows] == ["this report"] + ["published"] * len(MULTI_MSRVTT)
    assert "other people's figures on other data" in page.markdown()


# The pictures


def test_labels_stand_apart_in_their_order_and_stay_where_there_is_room():
    assert report_figures.spread([1.0, 5.0, 9.0], 2) == [1.0, 5.0, 9.0]
    places = report_figures.spread([3.0, 1.0, 3.1, 3.0], 1)
    assert np.diff(np.sort(places)).min() >= 1 - 1e-9
    assert sorted(range(4), key=lambda i: places[i]) == [1, 0, 3, 2]
    assert np.mean([places[i] for i in (0, 2, 3)]) == pytest.approx(np.mean([3.0, 3.1, 3.0]), abs=0.5)


def test_a_figure_is_the_same_text_twice_and_holds_no_font_name():
    figures = [
        report_figures.heat_map(np.eye(3), ["en", "de", "sw"], "t", 2, False),
        report_figures.recall_curves({"en": np.array([1.0, 2.0]), "de": np.array([3.0, 1.5])}, 3),
        report_figures.occurrence_histogram({"en": np.array([0, 1, 5])}, 2, 3),
    ]
    for figure in figures:
        assert report_figures.as_svg(figure) == report_figures.as_svg(figure)


def test_text_colours_are_dark_enough_to_read():
    for colour in (report_figures.BLUE, *(colour for colour, _ in report_figures.OTHERS)):
        red, green, blue = matplotlib.colors.to_rgb(report_figures._dark(colour))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (luminance + 0.05) >= 4.5, colour  # WCAG AA
