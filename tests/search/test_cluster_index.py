"""An index by a Ray cluster of three nodes on this machine: what one process makes, whatever happens to a node."""

import json
import shutil

import pytest
from command_line import call
from ray_nodes import Killer, cluster_of
from tiny_media import build_media, content_of, save_pixel_checkpoint, write_film, write_picture

from modeling_mmt.search import media_encoding, media_update
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.media_encoding import groups_of
from modeling_mmt.search.media_files import MediaFile
from modeling_mmt.search.media_index import IndexOptions, index_status, update_index


def vectors_in_order(folder):
    return SearchIndex.load(folder).embeddings.numpy().tobytes()


@pytest.mark.slow
def test_a_node_that_is_killed_while_it_works_changes_no_embedding_and_an_update_follows(
    tmp_path, monkeypatch, capsys
):
    checkpoint = save_pixel_checkpoint(tmp_path / "model")
    media = build_media(tmp_path / "media")
    for number in range(24):
        write_picture(media / "more" / f"{number:02d}.png", number)
        write_film(media / "more" / f"film{number:02d}.mp4", 6, first=number)
    options = {"model": str(checkpoint), "window": 8.0, "num_workers": 1}
    monkeypatch.setattr(media_encoding, "FILES_A_GROUP", 2)
    update_index(media, tmp_path / "plain", IndexOptions(**options))

    taken, take = [], media_update._Update._take
    monkeypatch.setattr(media_update._Update, "_take", lambda self, *file: taken.append(file) or take(self, *file))
    with cluster_of(1, 1, 1) as cluster:
        with Killer(cluster, "GroupEncoder", lambda: len(taken) >= 2) as killer:
            words = [
                "index",
                media,
                "--output_dir",
                tmp_path / "index",
                "--model",
                checkpoint,
                "--window",
                8,
                "--json",
            ]
            code, out, _ = call(capsys, *words, "--cluster", cluster.address)
        assert killer.is_done and code == 0
        done = json.loads(out)["done"]  # though Ray tells of nodes that died on the standard output
        assert (done["added"], done["failed"]) == (54, 1) and len(taken) == 55
        assert vectors_in_order(tmp_path / "index") == vectors_in_order(tmp_path / "plain")
        assert content_of(tmp_path / "index") == content_of(tmp_path / "plain")
        statuses = [index_status(media, tmp_path / name) for name in ("index", "plain")]
        assert statuses[0].failed == statuses[1].failed and "broken.mp4" in statuses[0].failed

        shutil.copy(media / "z.mkv", media / "again.mkv")
        (media / "a.mp4").unlink()
        report = update_index(media, tmp_path / "index", IndexOptions(cluster=cluster.address))
    assert (report.added, report.recognised, report.dropped) == (1, 1, 1)
    assert index_status(media, tmp_path / "index").is_current
    nobody = IndexOptions(cluster="10.255.255.1:1", device="cuda")
    assert update_index(media, tmp_path / "index", nobody).added == 0
    (media / "again.mkv").unlink()
    report = update_index(media, tmp_path / "index", nobody)
    assert (report.added, report.dropped) == (0, 1) and index_status(media, tmp_path / "index").is_current


def test_files_of_a_group_are_few_or_of_few_bytes_and_keep_their_order(monkeypatch):
    monkeypatch.setattr(media_encoding, "FILES_A_GROUP", 3)
    monkeypatch.setattr(media_encoding, "VIDEO_BYTES_A_GROUP", 10)
    sizes = [1, 1, 1, 1, 9, 2, 8, 30, 1]
    files = [MediaFile(f"{number}.mp4", "", size, 0) for number, size in enumerate(sizes)]
    assert [[one.size for one in group] for group in groups_of(files)] == [[1, 1, 1], [1, 9], [2, 8], [30], [1]]
    assert [one for group in groups_of(files) for one in group] == files and not list(groups_of([]))
    pictures = [one._replace(file=f"{number}.JPG") for number, one in enumerate(files)]
    assert list(map(len, groups_of(pictures))) == [3, 3, 3]  # whatever their size: each has one step
