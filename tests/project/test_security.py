"""SECURITY.md states the ceilings that the code keeps."""

from pathlib import Path

import pytest

from modeling_mmt import configuration_mmt, frames_mmt, pictures_mmt, video_streams_mmt
from modeling_mmt.commands import search
from modeling_mmt.data import sources

ROOT = Path(__file__).resolve().parents[2]
ROWS = [line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]


@pytest.mark.parametrize(
    ("row", "ceiling"),
    [
        ("side of a picture or frame", frames_mmt.MAX_SIDE),
        ("picture, or frame of a video", frames_mmt.MAX_PIXELS),
        ("frame of an animation", pictures_mmt.MAX_COMPOSED_PIXELS),
        ("all frames of an animation", pictures_mmt.MAX_ANIMATION_PIXELS),
        ("file of a picture", pictures_mmt.MAX_PICTURE_BYTES),
        ("what a video's decoder", video_streams_mmt.MAX_DECODER_BYTES),
        ("parameters", configuration_mmt.MAX_PARAMETERS),
        ("caption that a builder takes", sources.MAX_CAPTION),
        ("caption that a builder takes", search.MAX_QUERY),
    ],
)
def test_a_stated_ceiling_is_the_one_that_is_kept(row, ceiling):
    (line,) = (line for line in ROWS if line.startswith(f"| {row}"))
    assert f" {ceiling:,} " in line


def test_the_readme_leads_to_it():
    assert "`SECURITY.md`" in (ROOT / "README.md").read_text(encoding="utf-8")
