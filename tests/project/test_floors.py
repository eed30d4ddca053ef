"""What `make test-floors` installs: the floor of every requirement of setup.py, read without running it."""

import re
from pathlib import Path

import floors
import pytest

MAKEFILE = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
EXTRAS = re.search(r"floors\.py (\S+)", MAKEFILE)[1].split(",")


@pytest.mark.parametrize(
    ("requirement", "wanted"),
    [
        ("torch>=2.6", "torch==2.6"),
        ("qdrant-client[fastembed]>=1.13", "qdrant-client==1.13"),
        ("av >= 17.0, <19 ; python_version < '3.14'", "av==17.0"),
        ("types-tqdm", None),
    ],
)
def test_a_floor_is_what_stands_behind_at_least(requirement, wanted):
    assert floors.floor(requirement) == wanted


def test_every_requirement_of_what_make_installs_has_a_floor():
    (installed,) = re.findall(r'-c \.venv-floors/constraints\.txt -e "\.\[(.+?)\]"', MAKEFILE)
    assert installed.split(",") == EXTRAS
    lines = floors.requirements(EXTRAS)
    assert {"transformers", "pytest"} <= {re.match(r"[\w-]+", line)[0] for line in lines}
    assert [line for line in lines if floors.floor(line) is None] == []


def test_an_extra_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match="no extra 'trains'"):
        floors.requirements(["trains"])
