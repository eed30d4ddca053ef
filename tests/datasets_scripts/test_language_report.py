"""The language report on captions whose tokens can be counted by eye."""

import datasets
import official_files
import pytest
from conftest import build_tokenizer

from datasets_scripts import language_report
from datasets_scripts.language_report import report
from modeling_mmt.commands.build import build
from modeling_mmt.data.sources import SourceError


def test_each_figure_is_what_counting_by_hand_gives():
    columns = {
        "en": [["red dog", "red dog"], ["dog runs fast home"], None, []],
        "de": ["roter Hund", None, "Hund was ist das", ""],
    }
    en, de = report(columns, {"tiny": build_tokenizer()}, max_text_length=4)
    assert (en.captions, en.captions_per_clip, en.clips_without) == (3, 1.5, 2)
    assert en.duplicates == pytest.approx(1 / 3)
    assert en.tokens == pytest.approx((4 + 4 + 6) / 3) and en.tokens_p95 == 6
    assert en.truncated == pytest.approx(1 / 3) and en.unknown == 0
    assert (de.captions, de.captions_per_clip, de.clips_without) == (2, 1, 2)
    assert de.unknown == pytest.approx(3 / 6) and de.truncated == 0.5


def test_a_language_without_captions_is_a_row_of_zeros():
    (row,) = report({"sw": [None, []]}, {"tiny": build_tokenizer()}, 4)
    assert (row.captions, row.clips_without, row.tokens, row.unknown) == (0, 2, 0, 0)


def test_tokens_do_not_depend_on_how_many_captions_go_together(monkeypatch):
    columns = {"en": [[f"red dog {n}" for n in range(number)] for number in range(9)]}
    whole = report(columns, {"tiny": build_tokenizer()}, 4)
    monkeypatch.setattr(language_report, "CHUNK", 5)
    assert report(columns, {"tiny": build_tokenizer()}, 4) == whole


def test_the_command_prints_the_table_and_puts_it_into_the_card_again_and_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    official_files.own(tmp_path / "source")
    build("own_clips", ["--data_dir", str(tmp_path / "source"), "--output_dir", str(tmp_path / "out")])
    build_tokenizer().save_pretrained(tmp_path / "tiny")
    argv = ["--dataset", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tiny"), "--max_text_length"]
    rows = build("language_report", [*argv, "5"])
    assert [(row["language"], row["captions"]) for row in rows] == [("en", 5), ("sw", 5)]
    row = "| en | tiny | 5 | 1.00 | 0 | 0.0% | 5.0 | 5 | 0.00% |"
    card = tmp_path / "out/README.md"
    assert row in capsys.readouterr().out and row in card.read_text()
    before = card.read_text()
    build("language_report", [*argv, "4"])
    assert card.read_text().count("| en | tiny |") == 1 and card.read_text() != before
    assert card.read_text().count(language_report.REPORT_MARK) == 2
    with pytest.raises(SourceError, match="no column name_<language>; it has video_id, caption_en"):
        build("language_report", [*argv, "4", "--text_column", "name"])
