"""Frames through an image encoder into a store, with tiny random encoders and tiny videos."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import av
import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel, Siglip2VisionConfig, Siglip2VisionModel
from video_files import number_frame, numbers_of
from video_files import write_video as write_frames

import mmt
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.video_lists import Video
from modeling_mmt.extraction import encoders as feature_extraction
from modeling_mmt.extraction.encoders import StepEncoder, StepPreparation, VideoReader, load_encoder
from modeling_mmt.extraction.extract import extract, is_dataset
from modeling_mmt.extraction.shards import TooManyFailuresError, encode_clips
from modeling_mmt.extraction.video_backbones import VideoBackbone
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.video_decoding_mmt import read_clip
from modeling_mmt.vision_encoders_mmt import MMTVisionEncoder

SIZE = 32
STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}
NUMBERS_STAY = PixelSettings(SIZE, SIZE, (SIZE, SIZE), (0.0,) * 3, (1.0,) * 3)
OWN_PREPARATION = STATISTICS | {"size": {"height": SIZE, "width": SIZE}, "resample": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


def clip_row(number: int, num_frames: int) -> dict:
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, num_frames * SIZE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    strip = {"bytes": buffer.getvalue(), "path": None}
    return {"video_id": f"clip{number}", "frames": strip, "num_frames": num_frames, "name_en": "a name"}


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    (folder / "data").mkdir()
    rows = [clip_row(number, num_frames) for number, num_frames in enumerate([1, 8, 3, 1, 1, 5])]
    for split, part in (("train", rows[:4]), ("test", rows[4:])):
        columns = {key: [row[key] for row in part] for key in part[0]}
        table = datasets.Dataset.from_dict(columns).cast_column("frames", datasets.Image())
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("resnet")
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(OWN_PREPARATION))
    return folder


def options(source, encoder_folder, output_dir, **more):
    sources = {"source": source, "output_dir": output_dir, "encoder": encoder_folder}
    return sources | {"image_size": SIZE, "num_workers": 0} | more


def test_a_frames_features_are_the_pooled_output_of_its_normalised_pixels(clips_folder, encoder_folder, tmp_path):
    store = extract(**options(clips_folder, encoder_folder, tmp_path / "store", batch_size=3))
    assert {video_id: len(store[video_id]) for video_id in store} == {
        "clip0": 1, "clip1": 8, "clip2": 3, "clip3": 1, "clip4": 1, "clip5": 5,
    }  # fmt: skip
    assert store.dim == 12 and store.manifest["source"]["image_size"] == SIZE
    model = ResNetModel.from_pretrained(encoder_folder).eval()
    strip = Image.open(io.BytesIO(clip_row(1, 8)["frames"]["bytes"]))
    for step in range(8):
        pixels = torch.from_numpy(np.array(strip.crop((step * SIZE, 0, step * SIZE + SIZE, SIZE)))).permute(2, 0, 1)
        mean, std = (torch.tensor(STATISTICS[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
        with torch.no_grad():
            pooled = model(((pixels / 255 - mean) / std)[None]).pooler_output.flatten()
        assert np.allclose(store["clip1"][step], pooled.numpy(), atol=2e-3)


def test_the_batch_size_changes_no_feature(clips_folder, encoder_folder):
    encoder = load_encoder(str(encoder_folder), SIZE)
    generator = np.random.default_rng(0)
    clips = [(f"c{n}", generator.integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8)) for n in (3, 1, 7, 2)]
    alone = dict(encode_clips(clips, encoder.encode_batches, 1))
    for batch_size in (2, 5, 100):
        together = list(encode_clips(clips, encoder.encode_batches, batch_size))
        assert [video_id for video_id, _ in together] == ["c3", "c1", "c7", "c2"]
        assert all(np.allclose(features, alone[video_id], atol=1e-5) for video_id, features in together)


def test_a_finished_store_is_kept_and_another_setting_is_refused(
    clips_folder, encoder_folder, tmp_path, monkeypatch, capsys
):
    command = options(clips_folder, encoder_folder, tmp_path / "store")
    extract(**command)
    before = (tmp_path / "store" / "manifest.json").stat().st_mtime_ns
    assert len(extract(**command)) == 6 and "already holds" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "store")
    assert len(extract(**command | {"output_dir": "."})) == 6
    assert (tmp_path / "store" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds other features: source"):
        extract(**command | {"image_size": 64})


def test_an_interrupted_run_encodes_only_what_is_missing(clips_folder, encoder_folder, tmp_path, monkeypatch):
    whole = StepEncoder.encode
    calls = []

    def stops(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 14:
            raise KeyboardInterrupt
        return whole(self, pixels)

    monkeypatch.setattr(StepEncoder, "encode", stops)
    command = options(clips_folder, encoder_folder, tmp_path / "store", batch_size=1, shard_size=2)
    with pytest.raises(KeyboardInterrupt):
        extract(**command)
    assert not (tmp_path / "store").exists()
    num_calls = len(calls)
    store = extract(**command)
    assert len(store) == 6 and len(calls) - num_calls == 19 - 13  # clips 0 to 3, of 13 frames, were stored
    monkeypatch.setattr(StepEncoder, "encode", whole)
    fresh = extract(**options(clips_folder, encoder_folder, tmp_path / "fresh", batch_size=1))
    assert all(np.array_equal(store[video_id], fresh[video_id]) for video_id in fresh)


def test_limit_takes_the_first_clips_of_each_split(clips_folder, encoder_folder, tmp_path):
    store = extract(**options(clips_folder, encoder_folder, tmp_path / "store", limit=1))
    assert set(store) == {"clip0", "clip4"}
    assert set(FeatureStore(tmp_path / "store")) == set(store)


@pytest.mark.parametrize("size", [SIZE, 24])
def test_a_film_strips_frames_are_resized_whole(clips_folder, encoder_folder, tmp_path, size):
    """An encoder that crops to the middle sees all of a drawing."""
    for file in encoder_folder.iterdir():
        shutil.copy(file, tmp_path)
    cropping = {"size": {"shortest_edge": 2 * SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(OWN_PREPARATION | cropping | {"do_center_crop": True})
    )
    store = extract(**options(clips_folder, tmp_path, tmp_path / "store", image_size=size))
    strip = Image.open(io.BytesIO(clip_row(2, 3)["frames"]["bytes"]))
    frames = [strip.crop((step * SIZE, 0, step * SIZE + SIZE, SIZE)).resize((size, size), 3) for step in range(3)]
    mean, std = (np.array(STATISTICS[key]) for key in ("image_mean", "image_std"))
    pixels = (np.stack([np.asarray(frame) for frame in frames]) / 255 - mean) / std
    with torch.no_grad():
        expected = MMTVisionEncoder.from_pretrained(encoder_folder)(torch.tensor(pixels).permute(0, 3, 1, 2).float())
    assert np.allclose(store["clip2"], expected.numpy(), atol=5e-3)


def test_an_encoder_that_does_not_say_its_statistics_is_refused(tmp_path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image_mean and image_std"):
        load_encoder(str(tmp_path), SIZE)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"limit": -1}, "limit is -1"),
        ({"max_failures": 1.5}, "max_failures is 1.5"),
        ({"max_failures": float("nan")}, "max_failures is nan"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"num_frames": 4, "frames_per_second": 2.0}, "num_frames is 4 and frames_per_second 2.0; give one of them"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_opened(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        extract(tmp_path / "nothing", tmp_path / "store", **option)


def test_a_dataset_without_clips_is_refused(encoder_folder, tmp_path):
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_dict({"video_id": ["a"]}).to_parquet(tmp_path / "other" / "train.parquet")
    with pytest.raises(ValueError, match="other: split 'train' has no column 'frames'"):
        extract(**options(tmp_path / "other", encoder_folder, tmp_path / "store"))


def test_a_source_is_a_dataset_by_its_files_or_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("videos", "rows/data", "card", "readme"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "rows/data/train.parquet").write_bytes(b"")
    (tmp_path / "card/README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "readme/README.md").write_text("# My videos\n")
    (tmp_path / "videos.csv").write_text("file_name\n")
    sources = ("rows", "card", "emoji9", "datasets_scripts/emoji9", "org/name", "org/name-v1.0")
    assert [source for source in sources if not is_dataset(source)] == []
    others = ("videos", "readme", "videos.csv", "nothing", "no/list.csv", "no/cat.mp4", "./no", "/no/where", "~/no")
    assert [source for source in others if is_dataset(source)] == []


def write_video(path, brightness, num_frames=12):
    """A grey mp4 of 10 frames a second and 48 x 32 pixels, each frame a little lighter than the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(num_frames):
            pixels = np.full((32, 48, 3), brightness + 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def videos_folder(tmp_path_factory):
    """Seven videos, and among them one that is cut and one that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"part{number % 2}" / f"clip{number}.mp4", 20 * number) for number in range(7)]
    (folder / "part0" / "cut.mp4").write_bytes(paths[0].read_bytes()[:700])
    (folder / "part1" / "empty.webm").write_bytes(b"")
    (folder / "notes.txt").write_text("no video")
    return folder


def video_options(videos, encoder_folder, output_dir, **more):
    few = {"num_frames": 3, "max_failures": 2, "shard_size": 2}
    return options(videos, encoder_folder, output_dir, **few | more)


def test_a_folder_of_videos_becomes_a_store_and_a_list_of_failures(videos_folder, encoder_folder, tmp_path):
    store = extract(**video_options(videos_folder, encoder_folder, tmp_path / "store"))
    assert list(store) == [
        "part0/clip0", "part0/clip2", "part0/clip4", "part0/clip6", "part1/clip1", "part1/clip3", "part1/clip5",
    ]  # fmt: skip
    assert store.manifest["rate"] is None and store.manifest["source"]["num_frames"] == 3
    failures = [json.loads(line) for line in (tmp_path / "store" / "failures.jsonl").read_text().splitlines()]
    assert [failure["video_id"] for failure in failures] == ["part0/cut", "part1/empty"]
    assert "is empty" in failures[1]["reason"] and failures[1]["source"] == str(videos_folder / "part1/empty.webm")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == sorted(
        ["failures.jsonl", "manifest.json", *(shard["file"] for shard in store.manifest["shards"])]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    # the frames at 1/6, 3/6 and 5/6 of 1.2 seconds, through the encoder one by one
    encoder, settings = MMTVisionEncoder.from_pretrained(encoder_folder), PixelSettings.from_pretrained(encoder_folder)
    frames = torch.stack([torch.full((3, 32, 48), 20 * 3 + 4 * number, dtype=torch.uint8) for number in (2, 6, 10)])
    with torch.no_grad():
        expected = encoder(settings.prepare(frames)).numpy()
    assert np.allclose(store["part1/clip3"], expected, atol=0.02)
    assert not np.allclose(store["part1/clip3"], store["part1/clip5"], atol=0.02)


def test_features_are_those_of_a_model_that_takes_the_pixels(videos_folder, encoder_folder, tmp_path):
    store = extract(**video_options(videos_folder, encoder_folder, tmp_path / "store"))
    encoder, settings = MMTVisionEncoder.from_pretrained(encoder_folder), PixelSettings.from_pretrained(encoder_folder)
    clip = read_clip(videos_folder / "part0/clip4.mp4", FrameSampling(num_frames=3))
    with torch.no_grad():
        expected = encoder(settings.prepare(clip.frames)).numpy()
    assert np.allclose(store["part0/clip4"], expected, rtol=1e-3, atol=1e-5)


def slides_then_motion(path):
    """A frame a second for 8 seconds, then ten a second for 2.5; they say their number."""
    begins = [1000 * number for number in range(8)] + [8000 + 100 * number for number in range(25)]
    return write_frames(path, len(begins), times=begins), [begin / 1000 for begin in begins]


def read_at(path, rate, start=0.0, end=None):
    """The numbers that the rows say of a video of `video_files`, read at a rate."""
    sampling = FrameSampling(num_frames=None, frames_per_second=rate)
    reader = VideoReader(StepPreparation(NUMBERS_STAY), sampling)
    return numbers_of(torch.from_numpy(reader(Video("a", path, start, end))))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_each_row_is_the_frame_of_its_second_where_the_frame_rate_varies(tmp_path, suffix):
    path, begins = slides_then_motion(tmp_path / f"slides.{suffix}")
    for rate, start, end in [(4.0, 0.0, 10.0), (0.5, 0.0, 10.0), (10.0, 0.0, 10.0), (4.0, 2.3, 9.3), (20.0, 7.1, 8.6)]:
        seconds = [start + (row + 0.5) / rate for row in range(round((end - start) * rate))]
        shown = [max(number for number, begin in enumerate(begins) if begin <= second) for second in seconds]
        assert read_at(path, rate, start, end) == shown


def test_a_video_that_holds_still_has_a_row_for_every_sampling_time(tmp_path):
    frames = [number_frame(0)] * 150 + [number_frame(200)] * 50  # at 10 a second
    path = write_frames(tmp_path / "still.mp4", frames, rate=10)
    assert read_at(path, 10.0) == [0] * 150 + [200] * 50
    assert read_at(path, 5.0) == [0] * 75 + [200] * 25
    assert read_at(path, 25.0) == [0] * 375 + [200] * 125


def test_an_animation_has_rows_for_as_long_as_it_shows_a_frame_and_a_picture_has_one(tmp_path):
    pictures = [Image.fromarray(number_frame(number)) for number in (17, 34, 51)]
    pictures[0].save(
        tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=[500, 100, 900], lossless=True
    )
    pictures[0].save(tmp_path / "a.png")
    assert read_at(tmp_path / "a.webp", 10.0) == [17] * 5 + [34] + [51] * 9
    assert read_at(tmp_path / "a.png", 10.0) == [17]


def test_the_rows_are_the_pixels_of_the_clip_read_whole(videos_folder, tmp_path, encoder_folder):
    preparation = StepPreparation(PixelSettings.from_pretrained(encoder_folder))
    slides, _ = slides_then_motion(tmp_path / "slides.mp4")
    # a grey one of 1.2 seconds at 10 frames a second, whose frames are shown once, twice or never
    even = videos_folder / "part1/clip3.mp4"
    clips = [(even, rate, start) for rate in (4.0, 7.0, 10.0, 15.0, 20.0) for start in (0, 0.2)]
    for path, rate, start in [*clips, (slides, 4.0, 0), (slides, 3.0, 0.7)]:
        sampling = FrameSampling(num_frames=None, frames_per_second=rate)
        clip = read_clip(path, sampling, start=start)
        begun = clip.timestamps[None] <= torch.tensor(sampling.times(clip.duration))[:, None] + 1e-6
        shown = begun.sum(dim=1) - 1
        found = VideoReader(preparation, sampling)(Video("a", str(path), start))
        assert np.array_equal(found, preparation(clip.frames)[shown].numpy())


@pytest.mark.parametrize("suffix", ["mp4", "ts"])  # with an index, and without: decoded from the start
def test_a_long_video_is_decoded_once(tmp_path, monkeypatch, suffix):
    path = write_frames(tmp_path / f"long.{suffix}", 240, rate=24, options={"preset": "ultrafast"})
    opened, whole = [], av.open
    monkeypatch.setattr(av, "open", lambda *given, **how: opened.append(given) or whole(*given, **how))
    assert read_at(path, 24.0) == list(range(240))
    assert len(opened) <= 2  # for its length, and to decode it


def test_frames_per_second_is_the_rate_and_long_videos_fail(videos_folder, encoder_folder, tmp_path):
    (tmp_path / "list.csv").write_text(
        "file_name,video_id,start,end\n"
        f"{videos_folder}/part0/clip0.mp4,whole,,\n{videos_folder}/part0/clip0.mp4,end,0.8,\n"
    )
    command = video_options(tmp_path / "list.csv", encoder_folder, tmp_path / "store")
    command |= {"num_frames": None, "frames_per_second": 5}
    store = extract(**command)
    assert store.manifest["rate"] == 5 and {key: len(store[key]) for key in store} == {"whole": 6, "end": 2}
    assert np.array_equal(store["whole"][4:], store["end"])
    assert store.manifest["source"]["held_frames"] == "repeated"  # what held them once is refused as another store
    short = extract(**command | {"output_dir": tmp_path / "short", "max_frames": 3})
    assert list(short) == ["end"] and "--max_frames 3" in (tmp_path / "short" / "failures.jsonl").read_text()


def test_too_many_failures_stop_the_extraction_which_may_go_on(videos_folder, encoder_folder, tmp_path, capsys):
    command = video_options(videos_folder, encoder_folder, tmp_path / "store")
    with pytest.raises(TooManyFailuresError, match="2 of 9 clips failed"):
        extract(**command | {"max_failures": 0.2})  # of nine: one may
    assert len(extract(**command)) == 7
    for _ in range(2):
        assert (
            capsys.readouterr().out.rstrip().endswith(f"7 clips; 2 failed, listed in {tmp_path}/store/failures.jsonl")
        )
        extract(**command)


def test_a_dataset_of_videos_is_read_by_its_bytes(videos_folder, encoder_folder, tmp_path):
    paths = [videos_folder / f"part0/clip{number}.mp4" for number in (2, 0, 4)]
    rows = {
        "video_id": ["two", "zero", "four"],
        "clip": [{"bytes": path.read_bytes(), "path": None} for path in paths],
    }
    features = datasets.Features({"video_id": datasets.Value("string"), "clip": datasets.Video(decode=False)})
    (tmp_path / "videos").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "videos" / "test.parquet")
    command = options(tmp_path / "videos", encoder_folder, tmp_path / "store", num_frames=3)
    store = extract(**command)
    files = extract(**video_options(videos_folder, encoder_folder, tmp_path / "files"))
    assert list(store) == ["two", "zero", "four"]
    assert np.allclose(store["zero"], files["part0/clip0"], atol=1e-3)
    assert np.allclose(store["four"], files["part0/clip4"], atol=1e-3)


@pytest.mark.parametrize("in_files", [False, True])
def test_a_replaced_video_of_a_dataset_does_not_keep_the_features_of_the_old_one(
    videos_folder, encoder_folder, tmp_path, capsys, in_files
):
    place = tmp_path / "videos"

    def write(number):
        paths = [videos_folder / f"part0/clip{i}.mp4" for i in (0, number)]
        place.mkdir(exist_ok=True)
        if in_files:
            for name, path in zip("ab", paths, strict=True):
                (place / f"{name}.mp4").write_bytes(path.read_bytes())
            return
        features = datasets.Features({"video_id": datasets.Value("string"), "clip": datasets.Video(decode=False)})
        rows = {"video_id": ["a", "b"], "clip": [{"bytes": path.read_bytes(), "path": None} for path in paths]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(place / "test.parquet")

    write(2)
    command = options(place, encoder_folder, tmp_path / "store", num_frames=1)
    old = extract(**command)["b"]
    assert np.array_equal(extract(**command)["b"], old)
    write(4)
    with pytest.raises(ValueError, match="store holds other features: source is"):
        extract(**command)


def test_a_published_networks_steps_are_runs_of_frames(videos_folder, tmp_path, monkeypatch):
    class Steps(VideoBackbone):
        """Says what it is given."""

        image_size, frames_per_step, mean, std = 16, 5, (0.5,) * 3, (0.25,) * 3

        def forward(self, pixel_values):
            assert pixel_values.shape[1:] == (5, 3, 16, 16)
            return pixel_values.mean(dim=(2, 3, 4)) * 0.25 * 255 + 127.5

    (tmp_path / "weights.pth").write_bytes(b"here")
    monkeypatch.setattr(feature_extraction, "load_backbone", lambda name: Steps())
    command = video_options(videos_folder, tmp_path / "weights.pth", tmp_path / "store")
    command |= {"image_size": None, "num_frames": None, "frames_per_second": 10}
    store = extract(**command)
    assert store.manifest["rate"] == 2 and store.manifest["extractor"] == "weights.pth"
    grey = [60 + 4 * min(number, 11) for number in range(15)]  # 12 frames, the last one repeated to fill
    assert np.allclose(store["part1/clip3"], np.reshape(grey, (3, 5)), atol=3)
    # each frame is shown five times: a run of its own
    store = extract(**command | {"frames_per_second": 50, "output_dir": tmp_path / "slow"})
    assert store.manifest["rate"] == 10
    assert np.allclose(store["part1/clip3"], [[60 + 4 * number] * 5 for number in range(12)], atol=3)


def test_a_reader_can_be_sent_to_a_worker(videos_folder):
    settings = PixelSettings(SIZE, SIZE, SIZE, (0.0,) * 3, (1.0,) * 3)
    reader = VideoReader(StepPreparation(settings), FrameSampling(num_frames=3))
    sent = ForkingPickler.loads(ForkingPickler.dumps(reader))
    video = Video("a", str(videos_folder / "part0" / "clip2.mp4"))
    assert np.array_equal(sent(video), reader(video)) and sent(video).shape == (3, 3, SIZE, SIZE)


@pytest.mark.slow
def test_torchrun_killed_and_resumed_gives_the_store_of_one_process(videos_folder, encoder_folder, tmp_path):
    command = video_options(videos_folder, encoder_folder, tmp_path / "store", num_workers=1)
    words = [str(command.pop("source")), *(f"--{key}={value}" for key, value in command.items())]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = Path(__file__).resolve().parents[2] / "extract_features.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([*torchrun, str(program), *words], env=environment, start_new_session=True)
    while run.poll() is None and not list(tmp_path.glob("store.partial/features-*")):
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    subprocess.run([*torchrun, str(program), *words], env=environment, check=True)
    one = extract(**video_options(videos_folder, encoder_folder, tmp_path / "one"))
    assert FeatureStore(tmp_path / "store").manifest == one.manifest


def naflex_folder(folder, **own):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    Siglip2VisionModel(Siglip2VisionConfig(**sizes, patch_size=8, num_patches=4)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(STATISTICS | own))
    return folder


def test_a_naflex_encoder_extracts(clips_folder, tmp_path):
    folder = naflex_folder(tmp_path / "siglip2", max_num_patches=4, patch_size=8)
    store = extract(**options(clips_folder, folder, tmp_path / "store", image_size=16))
    assert store.dim == 16 and len(store) == 6


def test_an_encoder_without_a_size_is_refused_in_one_line(clips_folder, tmp_path, capsys):
    folder = naflex_folder(tmp_path / "siglip2")
    words = ["extract", clips_folder, "--encoder", folder, "--output_dir", tmp_path / "store"]
    assert mmt.main([str(word) for word in words]) == 2
    *bars, line = filter(None, capsys.readouterr().err.splitlines())
    assert "size is None; expected {'height': ..., 'width': ...}" in line and "Traceback" not in "".join(bars)
