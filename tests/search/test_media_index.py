"""An index of a folder of media: what its rows are, and how it follows the folder."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing import forkserver

import numpy as np
import pytest
import torch
from tiny_media import (
    InThisProcess,
    build_media,
    content_of,
    save_encoder,
    save_feature_checkpoint,
    save_pixel_checkpoint,
    vectors_of,
    write_film,
    write_picture,
)

from modeling_mmt.data.errors import InputError
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.files import locked
from modeling_mmt.evaluation.embedding import embed_images, embed_videos
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.extraction.encoders import StepEncoder
from modeling_mmt.extraction.extract import extract
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.search import index_folder, media_encoding, media_update
from modeling_mmt.search.excerpts import media_file
from modeling_mmt.search.index import SearchIndex, SearchIndexError
from modeling_mmt.search.index_folder import IndexFolder
from modeling_mmt.search.manifest import INDEX, SEGMENTS, SOURCE, Manifest
from modeling_mmt.search.media_index import LOCK, IndexOptions, index_status, update_index
from modeling_mmt.search.media_windows import steps_of
from modeling_mmt.video_decoding_mmt import read_clip

ROWS = {"a.mp4": 3, "cat.gif": 1, "kitchen/cup.png": 1, "kitchen/kettle.mp4": 1, "photo.png": 1, "z.mkv": 5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_pixel_checkpoint(tmp_path_factory.mktemp("media_index") / "model")


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """Media, and an index of them by real worker processes; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    media = build_media(folder / "media")
    update_index(media, folder / "index", IndexOptions(model=str(checkpoint), window=8.0, num_workers=2))
    return folder


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """The same, to be changed; updates decode in this process."""
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    return shutil.copytree(made / "media", tmp_path / "media"), shutil.copytree(made / "index", tmp_path / "index")


@pytest.fixture
def moved_index(copied):
    """`copied`, whose index knows that it is of the copied folder."""
    media, index = copied
    source = json.loads((index / "source.json").read_text())
    (index / "source.json").write_text(json.dumps(source | {"media_folder": str(media)}))
    return copied


def update(media, index, **options):
    return update_index(media, index, IndexOptions(**options))


@pytest.mark.parametrize(
    ("options", "spans"),
    [
        ({}, ["0.0-4.0", "4.0-8.0", "8.0-12.0", "12.0-13.0"]),
        ({"window": 6.0}, ["0.0-6.0", "4.0-10.0", "8.0-13.0"]),
        ({"window": 2.0}, [f"{start}.0-{min(start + 2, 13)}.0" for start in range(0, 13, 2)]),
    ],
)
def test_windows_are_of_4_seconds_and_begin_every_4_unless_shorter(checkpoint, tmp_path, monkeypatch, options, spans):
    """The best fixed windows of film9's validation films: results/film9."""
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    write_film(tmp_path / "media" / "a.mp4", 13)
    update(tmp_path / "media", tmp_path / "index", model=str(checkpoint), **options)
    assert SearchIndex.load(tmp_path / "index").clips["video_id"][:] == [f"a.mp4#{span}" for span in spans]


def test_a_name_that_is_not_utf8_is_written_out_and_leads_to_its_file(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    media, odd = tmp_path / "media", os.fsdecode(b"caf\xe9")
    pictures = [write_picture(media / "a.png"), write_picture(media / odd / "b.png", 9)]
    (media / f"{odd}.mp4").write_bytes(b"nothing")
    update(media, tmp_path / "index", model=str(checkpoint))
    index = SearchIndex.load(tmp_path / "index")
    assert index.clips["file"][:] == ["a.png", r"caf\udce9/b.png"]
    assert [media_file(index, file) for file in index.clips["file"]] == pictures
    status = index_status(media, tmp_path / "index")
    assert status.is_current and status.failed[r"caf\udce9.mp4"].startswith(r"caf\udce9.mp4 is not a supported video")
    write_picture(media / r"caf\udce9" / "b.png", 3)
    with pytest.raises(SearchIndexError, match="two files have the name .*; rename the one that is not UTF-8"):
        update(media, tmp_path / "index")


def test_every_file_has_its_windows_in_order_and_what_cannot_be_read_is_listed(made):
    index = SearchIndex.load(made / "index")
    files = index.clips["file"][:]
    assert {file: files.count(file) for file in files} == ROWS and files == sorted(files)
    assert index.clips["video_id"][:3] == ["a.mp4#0.0-8.0", "a.mp4#4.0-12.0", "a.mp4#8.0-13.0"]
    assert index.clips[0]["start"] == 0 and index.clips[2]["end"] == 13
    photo = index.clips[index.row("photo.png")]
    assert (photo["start"], photo["end"]) == (None, None)
    assert all(index.thumbnail(row).startswith(b"\xff\xd8\xff") for row in range(len(index)))
    assert index.media_folder == str(made / "media")
    status = index_status(made / "media", made / "index")
    assert (status.files, status.rows, status.is_current) == (6, sum(ROWS.values()), True)
    assert list(status.failed) == ["broken.mp4"] and "not a supported video" in status.failed["broken.mp4"]


def test_a_row_is_what_the_model_makes_of_the_window_s_frames(made, checkpoint):
    model, processor = open_checkpoint(str(checkpoint))
    vectors = vectors_of(made / "index")
    sampling = FrameSampling(num_frames=None, frames_per_second=2.0)
    settings = PixelSettings(**processor.feature_extractor.pixels[0])
    for name, (start, end) in (("z.mkv", (8.0, 16.0)), ("a.mp4", (8.0, 13.0)), ("cat.gif", (0.0, 5.0))):
        frames = read_clip(made / "media" / name, sampling, start=start, end=end).frames
        with torch.no_grad():
            pixels = processor.feature_extractor.collate([[settings.resized(frames)]])
            expected = torch.nn.functional.normalize(model.get_video_features(**pixels).pooler_output, dim=-1)[0]
        np.testing.assert_allclose(vectors[f"{name}#{start}-{end}"], expected, atol=1e-5)
    (expected,) = embed_images(model, processor, [str(made / "media" / "photo.png")])
    np.testing.assert_allclose(vectors["photo.png"], expected, atol=1e-5)


def test_a_checkpoint_from_features_has_rows_of_the_extracted_features(tmp_path, monkeypatch):
    media, encoder = build_media(tmp_path / "media"), save_encoder(tmp_path / "lite")
    checkpoint = save_feature_checkpoint(tmp_path / "model")
    (media / "broken.mp4").unlink()
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    with pytest.raises(InputError, match="does not say of which encoder; name it with --encoder and --image_size"):
        update(media, tmp_path / "index", model=str(checkpoint))
    update(media, tmp_path / "index", model=str(checkpoint), encoders=(str(encoder),), window=8.0)
    extract(media, tmp_path / "store", encoder=str(encoder), frames_per_second=2.0, num_workers=0, timeout=60)
    store, vectors = FeatureStore(tmp_path / "store"), vectors_of(tmp_path / "index")
    model, processor = open_checkpoint(str(checkpoint))
    for name, span in (("a.mp4", (4.0, 12.0)), ("z.mkv", (16.0, 21.0)), ("cat.gif", (0.0, 5.0))):
        features = store[name.partition(".")[0]]
        (expected,) = embed_videos(model, processor, [features[steps_of(span, 2.0, len(features))]])
        np.testing.assert_allclose(vectors[f"{name}#{span[0]}-{span[1]}"], expected, atol=2e-2)  # stored in 16 bits


def test_a_checkpoint_s_recipe_tells_its_encoder_and_another_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    media, encoder = tmp_path / "media", save_encoder(tmp_path / "lite")
    write_picture(media / "a.png", 5)
    extract(media, tmp_path / "store", encoder=str(encoder), num_frames=1, num_workers=0, timeout=60)
    checkpoint = save_feature_checkpoint(tmp_path / "model")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    manifest["extractor"] = str(encoder)  # which a packaged encoder's name needs not
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    data = {"dataset": "x", "revision": None, "features": [str(tmp_path / "store")], "text_column": "name"}
    data |= {"languages": [], "test_split": None, "exclude_column": None}
    (checkpoint / "recipe.json").write_text(json.dumps({"data": data}))
    update(media, tmp_path / "index", model=str(checkpoint))
    (recorded,) = Manifest.read(tmp_path / "index").settings["encoders"]
    assert recorded["revision"] == manifest["revision"] and recorded["image_size"] == 16 and recorded["crop"]
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest | {"revision": "sha256:other"}))
    with pytest.raises(InputError, match="and the checkpoint's features are of sha256:other"):
        update(media, tmp_path / "again", model=str(checkpoint))
    write_picture(media / "b.png", 6)
    assert update(media, tmp_path / "index").added == 1  # the index knows its encoder itself
    with pytest.raises(SearchIndexError, match="was made with the encoders .* leave --encoder and --image_size out"):
        update(media, tmp_path / "index", encoders=(str(encoder),), image_size=8)


def test_an_update_adds_replaces_and_drops_and_touches_nothing_else(moved_index):
    media, folder = moved_index
    before = content_of(folder)
    write_film(media / "new.mp4", 9, first=120)
    write_picture(media / "photo.png", 99)
    (media / "z.mkv").unlink()
    write_picture(media / "broken.mp4", 3)  # a PNG, whatever it is called
    status = index_status(media, folder)
    assert (status.new, sorted(status.changed), status.gone) == (["new.mp4"], ["broken.mp4", "photo.png"], ["z.mkv"])
    report = update(media, folder)
    assert (report.added, report.replaced, report.dropped, report.recognised) == (1, 2, 1, 0)
    assert report.seconds_of_video == 9
    after = content_of(folder)
    assert set(after) - set(before) == {"new.mp4#0.0-8.0", "new.mp4#4.0-9.0", "broken.mp4"}
    assert set(before) - set(after) == {name for name in before if name.startswith("z.mkv")}
    assert after["photo.png"] != before["photo.png"]
    assert all(after[name] == before[name] for name in set(after) & set(before) - {"photo.png"})
    assert index_status(media, folder).is_current and not index_status(media, folder).failed


def test_a_file_that_moved_or_was_only_touched_is_known_by_its_content(moved_index, monkeypatch):
    media, folder = moved_index
    before = content_of(folder)
    (media / "kitchen" / "kettle.mp4").rename(media / "renamed.mp4")
    shutil.copy(media / "photo.png", media / "copy.png")
    os.utime(media / "z.mkv", ns=(5, 5))
    monkeypatch.setattr(media_encoding, "chunks_of", lambda *_: pytest.fail("decoded"))
    report = update(media, folder)
    assert (report.added, report.replaced, report.dropped, report.recognised) == (2, 1, 1, 3)
    after = content_of(folder)
    assert after["renamed.mp4#0.0-3.0"] == ("renamed.mp4", *before["kitchen/kettle.mp4#0.0-3.0"][1:])
    assert after["copy.png"][3:] == before["photo.png"][3:] and after["z.mkv#4.0-12.0"] == before["z.mkv#4.0-12.0"]
    assert "kitchen/kettle.mp4#0.0-3.0" not in after and index_status(media, folder).is_current


def test_a_second_run_over_an_unchanged_folder_neither_loads_the_model_nor_writes(moved_index, monkeypatch):
    media, folder = moved_index
    monkeypatch.setattr(media_update, "open_checkpoint", lambda *_: pytest.fail("loaded"))
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert update(media, folder).added == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == stamps


def test_what_cannot_be_read_is_tried_again_only_when_it_changes(moved_index, monkeypatch):
    media, folder = moved_index
    tried = []
    monkeypatch.setattr(
        media_update.MediaReader, "_plan", lambda self, path: tried.append(os.path.basename(path)) or 1 / 0
    )
    write_picture(media / "more.png", 1)
    with pytest.raises(ZeroDivisionError):
        update(media, folder)
    assert tried == ["more.png"]
    os.utime(media / "broken.mp4", ns=(7, 7))
    with pytest.raises(ZeroDivisionError):
        update(media, folder)
    assert tried == ["more.png", "broken.mp4"]


def test_a_folder_of_nothing_readable_says_why(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    (tmp_path / "media").mkdir()
    with pytest.raises(SearchIndexError, match="holds no video or picture; give the folder"):
        update(tmp_path / "media", tmp_path / "index", model=str(checkpoint))
    (tmp_path / "media" / "a.mp4").write_bytes(b"text")
    for _ in range(2):
        with pytest.raises(InputError, match="none of the 1 files can be read; the first is a.mp4: a.mp4 is not"):
            update(tmp_path / "media", tmp_path / "index", model=str(checkpoint))
        os.utime(tmp_path / "media" / "a.mp4", ns=(7, 7))
    with pytest.raises(SearchIndexError, match="holds no row yet"):
        SearchIndex.load(tmp_path / "index")


def test_other_settings_models_and_folders_are_refused_by_name(moved_index, made, tmp_path):
    media, folder = moved_index
    other = save_pixel_checkpoint(tmp_path / "other", seed=1)
    cases = [
        ({"window": 10.0}, "was made with --window 8.0, and --window is 10.0"),
        ({"frames_per_second": 1.0}, "was made with --frames_per_second 2.0"),
        ({"shots": True}, "was made with --shots False"),
        ({"model": str(other)}, "this model's is"),
    ]
    for options, words in cases:
        with pytest.raises(SearchIndexError, match=words):
            update(media, folder, **options)
    with pytest.raises(SearchIndexError, match="indexes the media in .*; give that folder"):
        update(made / "media", folder)
    with pytest.raises(InputError, match="window is -1; give more than 0"):
        update(media, folder, window=-1)
    with pytest.raises(InputError, match="has its vision encoders inside; leave --encoder"):
        update(media, tmp_path / "new", model=str(other), encoders=("efficientnet-lite0",))
    with pytest.raises(InputError, match="name the checkpoint to build it with: --model"):
        update(media, tmp_path / "new")
    with pytest.raises(SearchIndexError, match="holds other files, such as a.mp4; name a new folder"):
        update(media, media, model=str(other))
    for path in [path for path in media.rglob("*") if path.is_file()]:
        path.unlink()
    with pytest.raises(SearchIndexError, match="no longer holds any video or picture; is its disk mounted"):
        update(media, folder)


def test_a_folder_may_move_and_a_model_may_too(copied, checkpoint, tmp_path):
    media, folder = copied
    source = json.loads((folder / "source.json").read_text())
    (folder / "source.json").write_text(json.dumps(source | {"media_folder": "/gone/elsewhere"}))
    moved = shutil.copytree(checkpoint, tmp_path / "moved_model")
    update(media, folder, model=str(moved))
    index = SearchIndex.load(folder)
    assert index.media_folder == str(media) and index.model == str(moved)


def test_two_at_once_are_refused_by_name(moved_index):
    media, folder = moved_index
    with locked(folder / LOCK), pytest.raises(SearchIndexError, match="another process is indexing there; wait"):
        update(media, folder)
    update(media, folder)


def test_segments_are_merged_so_that_few_remain_and_nothing_is_lost(moved_index, monkeypatch):
    media, folder = moved_index
    monkeypatch.setattr(index_folder, "FAN", 3)
    expected = content_of(folder)
    for number in range(20):
        write_picture(media / f"{number:02d}.png", number)
        update(media, folder)
        index = IndexFolder(folder)
        assert len(index.manifest.segments) <= 2 * 4  # two of each size below 3^4
        assert sorted(os.listdir(folder / SEGMENTS)) == sorted(one.name for one in index.manifest.segments)
    after = content_of(folder)
    assert len(after) == len(expected) + 20 and all(after[name] == row for name, row in expected.items())
    for number in range(20):
        (media / f"{number:02d}.png").unlink()
    update(media, folder)
    assert content_of(folder) == expected
    index = IndexFolder(folder)
    assert all(len(one.dropped) <= one.num_files / 4 for one in index.manifest.segments)


class Killed(BaseException):
    """In the place of a signal that nothing can catch."""


def test_killed_at_any_rename_an_index_is_whole_and_the_next_run_ends_as_an_undisturbed_one(
    made, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    whole = StepEncoder.encode

    def by_place(self, pixels):  # as kernels of some processors round
        features = whole(self, pixels)
        return features * (1 + 1e-3 * np.arange(len(features), dtype=np.float32)[:, None])

    monkeypatch.setattr(StepEncoder, "encode", by_place)
    monkeypatch.setattr(media_update, "ROWS_A_SEGMENT", 2)
    monkeypatch.setattr(media_encoding, "FILES_A_GROUP", 2)
    monkeypatch.setattr(index_folder, "FAN", 2)
    media, rename = made / "media", os.replace
    update(media, tmp_path / "whole", model=str(checkpoint), window=8.0)
    expected = content_of(tmp_path / "whole")
    for survived in range(100):
        left = [survived]

        def replace(source, target, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            rename(source, target)

        folder = tmp_path / str(survived)
        monkeypatch.setattr(os, "replace", replace)
        try:
            update(media, folder, model=str(checkpoint), window=8.0)
        except Killed:
            killed = True
        else:
            killed = False
        monkeypatch.setattr(os, "replace", rename)
        if killed:
            if (folder / INDEX).is_file() and IndexFolder(folder).num_clips:
                part = content_of(folder)
                assert all(expected[name] == row for name, row in part.items())
            update(media, folder, model=str(checkpoint), window=8.0)
        assert content_of(folder) == expected
        assert not [path for path in folder.rglob("*") if "partial" in path.name or path.name == LOCK]
        if not killed:
            break
    assert 10 < survived < 100


def test_interrupted_in_a_commit_no_row_is_written_twice(made, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(media_update, "WorkerPool", InThisProcess)
    monkeypatch.setattr(media_update, "ROWS_A_SEGMENT", 2)
    monkeypatch.setattr(media_encoding, "FILES_A_GROUP", 2)
    for place in ("_put", "_note_files"):
        folder, whole, calls = tmp_path / place, getattr(IndexFolder, place), []

        def interrupted(self, *words, whole=whole, calls=calls, place=place):
            if calls or (place == "_note_files" and not words[0]):  # or no segment is added
                return whole(self, *words)
            calls.append(place)
            if place == "_put":
                whole(self, *words)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(IndexFolder, place, interrupted)
            update(made / "media", folder, model=str(checkpoint), window=8.0)
        assert calls
        update(made / "media", folder, model=str(checkpoint), window=8.0)
        assert vectors_of(folder).keys() == vectors_of(made / "index").keys()


def _index(media, folder, checkpoint):
    """An update in a process that was forked: the fork server of the one before is not its own."""
    forkserver._forkserver.__init__()
    torch.set_num_threads(1)
    media_update.ROWS_A_SEGMENT, media_encoding.FILES_A_GROUP, index_folder.FAN = 2, 2, 2
    update(media, folder, model=checkpoint, window=8.0, num_workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_by_signal_at_10_random_moments_the_next_run_ends_as_an_undisturbed_one(
    made, checkpoint, tmp_path, seed
):
    context, generator = multiprocessing.get_context("fork"), random.Random(seed)

    def num_segments(folder):
        return len(os.listdir(folder / SEGMENTS)) if (folder / SEGMENTS).is_dir() else 0

    def index(folder, seconds=None, segments=0):
        """Its exit code; killed after so many seconds, once so many segments lie there."""
        process = context.Process(target=_index, args=(made / "media", folder, str(checkpoint)))
        process.start()
        while seconds is not None and process.exitcode is None and num_segments(folder) < segments:
            time.sleep(0.001)
        process.join(seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        return process.exitcode

    begin = time.monotonic()
    assert index(tmp_path / "whole") == 0
    seconds, codes, written, expected = time.monotonic() - begin, [], [], content_of(tmp_path / "whole")
    for number in range(10):
        folder, segments = tmp_path / str(number), generator.randint(1, 3) if number % 2 else 0
        codes.append(index(folder, generator.uniform(0, 0.05 if segments else seconds), segments))
        written.append(num_segments(folder))
        assert index(folder) == 0 and content_of(folder) == expected
    assert set(codes) <= {0, -signal.SIGKILL} and codes.count(-signal.SIGKILL) >= 5
    assert sum(map(bool, written)) >= 5  # were killed while, or after, they wrote


def test_a_folder_of_other_people_s_segments_is_refused_and_kept(checkpoint, tmp_path):
    write_picture(tmp_path / "media" / "a.png")
    others = tmp_path / "index" / SEGMENTS / "000001" / "film.ts"
    others.parent.mkdir(parents=True)
    others.write_bytes(b"film")
    with pytest.raises(SearchIndexError, match="holds other files, such as segments; name a new folder"):
        update(tmp_path / "media", tmp_path / "index", model=str(checkpoint))
    assert others.read_bytes() == b"film"


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_named(checkpoint, tmp_path, device):
    write_picture(tmp_path / "media" / "a.png")
    with pytest.raises(InputError, match=f"--device {device} cannot be used") as caught:
        update(tmp_path / "media", tmp_path / "index", model=str(checkpoint), device=device)
    assert "privateuseone" not in str(caught.value)  # torch lists every kind of device that it has ever had


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_a_timeout_longer_than_a_timer_takes_is_refused(timeout):
    with pytest.raises(InputError, match="timeout is .*; give at most"):
        IndexOptions(timeout=timeout)


@pytest.mark.parametrize("dim", [-5, 0, 10**30])
def test_a_manifest_of_an_impossible_width_is_refused(tmp_path, dim):
    Manifest("f" * 64, "org/name", None, dim).write(tmp_path)
    with pytest.raises(SearchIndexError, match="no width of embeddings"):
        SearchIndex.load(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("frames_per_second", 1e9), ("window", -1), ("stride", float("nan"))])
def test_a_manifest_of_impossible_windows_is_refused(moved_index, name, value):
    _, folder = moved_index
    manifest = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(manifest | {"settings": manifest["settings"] | {name: value}}))
    with pytest.raises(InputError, match=f"index.json, settings: {name} is .*; give"):
        SearchIndex.load(folder)


@pytest.mark.parametrize("place", [5, ["media"], {}])
def test_a_media_folder_that_is_no_text_is_refused(moved_index, place):
    _, index = moved_index
    (index / SOURCE).write_text(json.dumps({"media_folder": place}))
    with pytest.raises(SearchIndexError, match="media_folder is not a string"):
        SearchIndex.load(index)
