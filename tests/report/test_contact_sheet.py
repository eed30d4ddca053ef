"""`modeling_mmt.report.contact_sheet` and `lettering`: pictures in their places, and text of every script."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_mmt.report import contact_sheet as sheets
from modeling_mmt.report import lettering
from modeling_mmt.report.contact_sheet import Cell, contact_sheet


def plain(colour, size=(160, 160)):
    return Image.new("RGB", size, colour)


def cell_of(picture, line, column):
    row_height = sheets.TITLE + sheets.CELL + sheets.CAPTION + sheets.GAP
    left = sheets.GAP + column * (sheets.CELL + sheets.GAP)
    upper = sheets.GAP + line * row_height + sheets.TITLE
    return picture.crop((left, upper, left + sheets.CELL, upper + sheets.CELL))


def test_each_picture_lies_in_its_place_and_moves_at_its_own_pace():
    found = [
        [Cell([plain("red")], ("1", "a")), Cell([plain("green"), plain("blue")], ("2", "b"))],
        [Cell([], ("1", "nothing to show"))],
    ]
    first, second = contact_sheet(["con chó", "собака"], found)
    assert first.size == second.size == sheets.sheet_size(2, 2) == (304, 448)
    for picture, colour in ((first, (0, 128, 0)), (second, (0, 0, 255))):
        assert cell_of(picture, 0, 0).getextrema() == ((255, 255), (0, 0), (0, 0))
        assert cell_of(picture, 0, 1).getextrema() == tuple((value, value) for value in colour)
        assert cell_of(picture, 1, 0).getextrema() == ((255, 255),) * 3


def test_a_picture_of_another_shape_is_fitted_into_the_middle():
    cell = np.asarray(cell_of(contact_sheet(["wide"], [[Cell([plain("red", (160, 80))], ("", ""))]])[0], 0, 0))
    middle, edges = cell[34:94], np.concatenate([cell[:30], cell[98:]])
    assert (middle == (255, 0, 0)).all() and (edges == 255).all()


def test_nothing_found_is_a_sheet_with_a_title():
    (picture,) = contact_sheet(["no such thing"], [[]])
    assert picture.size == sheets.sheet_size(1, 1) and picture.convert("L").getextrema()[0] < 128


def test_a_title_wider_than_the_sheet_is_cut():
    (picture,) = contact_sheet(["dog " * 200], [[Cell([], ("", ""))]])
    right_margin = picture.crop((sheets.GAP + sheets.CELL + 2, 0, *picture.size))
    assert right_margin.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("name", ["found.bmp", "found", "found.png.exe"])
def test_a_file_of_another_kind_is_refused_before_anything_is_drawn(name):
    with pytest.raises(ValueError, match="choose .png, or .gif or .webp"):
        sheets.check_ending(name)


@pytest.mark.parametrize(
    "text", ["con chó, người đi xe đạp", "пожарная машина", "ležící pes, zákaz vstupu chodců", "ß"]
)
def test_vietnamese_russian_czech_and_german_need_no_font_but_matplotlibs(text, capsys):
    lettering.font_for.cache_clear()
    assert Path(lettering.font_for(text)).name == "DejaVuSans.ttf"
    assert capsys.readouterr().err == ""


def test_a_font_that_is_named_is_asked_before_the_installed_ones(monkeypatch):
    has = {"mine.ttf": "狗", "installed.otf": "狗"}
    monkeypatch.setattr(lettering.font_manager, "findSystemFonts", lambda: ["installed.otf"])
    monkeypatch.setattr(lettering, "find_spec", lambda name: None)
    monkeypatch.setattr(lettering, "characters_of", lambda file: frozenset(map(ord, has.get(Path(file).name, "dog"))))
    lettering.font_for.cache_clear()
    assert lettering.font_for("狗") == "installed.otf"
    assert lettering.font_for("狗", "mine.ttf") == "mine.ttf"
    assert Path(lettering.font_for("dog", "mine.ttf")).name == "DejaVuSans.ttf"
    lettering.font_for.cache_clear()


def test_a_font_that_pip_brought_is_asked_before_the_systems(monkeypatch, tmp_path):
    (tmp_path / "pip_fonts").mkdir()
    for name in ("__init__.py", "SomeSans-Regular.otf", "SomeSerif-Regular.otf"):
        (tmp_path / "pip_fonts" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(lettering, "FONT_PACKAGE", "pip_fonts")
    monkeypatch.setattr(lettering.font_manager, "findSystemFonts", lambda: ["system.otf"])
    assert [Path(file).name for file in lettering.font_files(None)] == [
        "DejaVuSans.ttf",
        "SomeSans-Regular.otf",
        "system.otf",
    ]


def test_characters_that_no_font_has_are_named_in_a_note(monkeypatch, capsys):
    monkeypatch.setattr(lettering.font_manager, "findSystemFonts", lambda: [])
    monkeypatch.setattr(lettering, "find_spec", lambda name: None)
    lettering.font_for.cache_clear()
    assert Path(lettering.font_for("狗 dog")).name == "DejaVuSans.ttf"
    assert "no installed font has 狗;" in capsys.readouterr().err
    lettering.font_for.cache_clear()
