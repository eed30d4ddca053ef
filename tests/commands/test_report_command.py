"""`mmt report` on an untrained checkpoint: what it prints, names and refuses."""

import json
from pathlib import Path

import pytest
from command_line import build_checkpoint, call

from modeling_mmt.commands import report


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    return build_checkpoint(corpus, tmp_path_factory.mktemp("cli_report") / "untrained")


def test_report_says_where_the_page_is_and_prints_its_numbers(checkpoint, tmp_path, capsys):
    code, out, _ = call(capsys, "report", checkpoint, "--output_dir", tmp_path / "r")
    assert code == 0 and Path(out.strip()).is_file()
    printed = json.loads(call(capsys, "report", checkpoint, "--output_dir", tmp_path / "r", "--json")[1])
    assert printed == json.loads((tmp_path / "r" / "report.json").read_text("utf-8"))
    page = (tmp_path / "r" / "report.html").read_text("utf-8")
    assert f"mmt report {checkpoint} --output_dir {tmp_path / 'r'}" in page
    assert f"mmt train {checkpoint}/recipe.json --seed 0" in page


def test_one_end_of_a_gap_is_not_enough(checkpoint, capsys):
    code, _, err = call(capsys, "report", checkpoint, "--zero_shot", checkpoint)
    assert code == 2 and "give both or neither" in err


def test_a_file_where_the_report_should_go_is_refused_before_anything_is_measured(checkpoint, tmp_path, capsys):
    (tmp_path / "r").write_text("here")
    code, _, err = call(capsys, "report", checkpoint, "--output_dir", tmp_path / "r")
    assert code == 2 and err == f"mmt: --output_dir {tmp_path / 'r'} is a file; name a folder\n"


def test_checkpoints_are_called_by_what_their_paths_do_not_share():
    assert report.label(["runs/table/mmp_en/seed0", "runs/table/none_en/seed0"]) == {
        "runs/table/mmp_en/seed0": "mmp_en",
        "runs/table/none_en/seed0": "none_en",
    }
    assert report.label(["runs/mmp_en/"]) == {"runs/mmp_en/": "mmp_en"}
    assert report.label(["MMP / en=a/b", "a/c"]) == {"MMP / en=a/b": "MMP / en", "a/c": "c"}
    assert report.label(["a/seed0", "a/seed1"]) == {"a/seed0": "seed0", "a/seed1": "seed1"}
    with pytest.raises(ValueError, match="two checkpoints are called 'x'"):
        report.label(["x=a", "x=b"])
