"""Which files the page of an index serves; the browser's part is in `test_media_page_system.py`."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the Space has an environment of its own: make test-system")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "space"))
from media_page import MediaPage  # noqa: E402


@pytest.mark.parametrize(
    ("name", "is_served"),
    [("film.mp4", True), ("cup.PNG", True), ("page.html", False), ("id_rsa", False), ("link.mp4", False)],
)
def test_only_videos_and_pictures_are_served_whatever_a_stranger_s_index_lists(tmp_path, name, is_served):
    (tmp_path / "secret").write_bytes(b"content")
    if name == "link.mp4":
        (tmp_path / name).symlink_to("secret")
    else:
        (tmp_path / name).write_bytes(b"content")
    page = MediaPage.__new__(MediaPage)  # no model is needed
    page.media = tmp_path.resolve()
    page.index = type("Index", (), {"__len__": lambda _: 1, "clips": [{"file": name}]})()
    assert (page.file(0) is not None) == is_served
