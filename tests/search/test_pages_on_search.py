"""The blocks of the pages on the index and on moments run one after the other, on a folder of media."""

from readme_blocks import code_blocks
from tiny_media import InThisProcess, build_media, save_pixel_checkpoint

from modeling_mmt.search import media_update


def test_a_folder_is_indexed_and_searched_as_the_pages_say(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    monkeypatch.chdir(tmp_path)
    save_pixel_checkpoint(tmp_path / "runs" / "demo" / "mmp_en")
    build_media(tmp_path / "my_media")
    (on_the_index,) = code_blocks("python", "docs/how_it_works/media_index.md")
    (on_moments,) = code_blocks("python", "docs/how_it_works/moments.md")
    exec(on_the_index + on_moments, {})
    failed, moment = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "broken.mp4" in failed
    assert moment.split()[0] in {"a.mp4", "cat.gif", "kitchen/cup.png", "kitchen/kettle.mp4", "photo.png", "z.mkv"}
