"""Frames at the times asked for, of every kind of source; what is damaged or absurd is named, at little cost."""

import gc
import importlib
import io
import itertools
import math
import shutil
import struct
import sys
import time
import types
import zlib
from collections import deque
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_files import number_frame, numbers_of, write_video

from modeling_mmt import frames_mmt, picture_formats_mmt, pictures_mmt, video_decoding_mmt, video_packets_mmt
from modeling_mmt import video_streams_mmt as streams
from modeling_mmt.frames_mmt import FrameSampling, VideoDecodingError
from modeling_mmt.video_decoding_mmt import clip_frames, read_clip

COUNT = 60
SOURCES = {  # name -> suffix, codec, options; the arguments of write_video
    "H.264, keyframe every 10": (".mp4", "libx264", {"g": "10", "keyint_min": "10"}),
    "H.264, one keyframe": (".mp4", "libx264", {"g": "600", "sc_threshold": "0"}),
    "H.264, no B-frames": (".mp4", "libx264", {"g": "12", "bf": "0"}),
    "H.264, pyramid of B-frames": (
        ".mp4",
        "libx264",
        {"bf": "7", "b_strategy": "0", "x264-params": "b-pyramid=normal"},
    ),
    "H.264, open GOPs": (".mp4", "libx264", {"x264-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0:scenecut=0"}),
    "H.264, intra refresh": (".mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
    "H.264 in mkv": (".mkv", "libx264", {"g": "10"}),
    "H.264 in MPEG-TS": (".ts", "libx264", {"g": "10"}),
    "H.264 in FLV": (".flv", "libx264", {"g": "10"}),
    "H.265": (".mp4", "libx265", {"x265-params": "keyint=10:log-level=none:pools=none:frame-threads=1"}),
    "VP9": (".webm", "libvpx-vp9", {"g": "10", "deadline": "realtime", "cpu-used": "8"}),
    "VP8 with hidden frames": (".webm", "libvpx", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "8"}),
    "AV1": (".mp4", "libsvtav1", {"g": "20", "preset": "12", "svtav1-params": "lp=1"}),
    "MPEG-4 with B-frames in AVI": (".avi", "mpeg4", {"bf": "2", "g": "12", "b": "4M", "qmax": "2"}),
    "MPEG-2": (".mpg", "mpeg2video", {"bf": "2", "g": "12", "b": "4M"}),
    "Motion JPEG": (".mov", "mjpeg", {"q": "2"}),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """Each of SOURCES, 60 frames at 25 a second that say their number."""
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: write_video(
            folder / f"{number}{suffix}",
            COUNT,
            codec=codec,
            options=options,
            pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p",
        )
        for number, (name, (suffix, codec, options)) in enumerate(SOURCES.items())
    }


def fixed(num_frames: int) -> FrameSampling:
    return FrameSampling(num_frames=num_frames)


def per_second(rate: float, max_frames: int = 512) -> FrameSampling:
    return FrameSampling(num_frames=None, frames_per_second=rate, max_frames=max_frames)


def shown_naively(path, times: list[float]) -> tuple[torch.Tensor, list[float]]:
    """Decode everything; at each time the last frame with an earlier pts."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sorted(container.decode(stream), key=lambda frame: frame.pts)
        seconds = [float((frame.pts - frames[0].pts) * stream.time_base) for frame in frames]
        chosen = sorted({max(k for k, second in enumerate(seconds) if second <= time + 1e-6) for time in times})
        pictures = [torch.from_numpy(frames[k].to_ndarray(format="rgb24")) for k in chosen]
    return torch.stack(pictures).permute(0, 3, 1, 2), [seconds[k] for k in chosen]


def peak_mib(function) -> float:
    """Megabytes that the process grows by, at most, while the function runs."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is read from /proc, which only Linux has")
    read = lambda name: next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS:")
    function()
    return (read("VmHWM:") - before) / 1024


# --- which frames


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("num_frames", [1, 7, 12, COUNT])
def test_frames_are_those_at_the_centres_of_equal_parts(videos, name, num_frames):
    clip = read_clip(videos[name], fixed(num_frames), decoder="pyav")
    expected = [int((k + 0.5) * COUNT / num_frames + 1e-4) for k in range(num_frames)]
    assert numbers_of(clip.frames) == expected
    assert clip.timestamps.tolist() == pytest.approx([number / 25 for number in expected], abs=2e-3)
    assert clip.duration == pytest.approx(COUNT / 25, abs=2e-3)
    assert (clip.frames.dtype, clip.timestamps.dtype) == (torch.uint8, torch.float64)


@pytest.mark.parametrize("name", SOURCES)
def test_shortcuts_give_the_bytes_that_decoding_everything_gives(videos, name):
    sampling = fixed(9)
    clip = read_clip(videos[name], sampling, decoder="pyav")
    frames, seconds = shown_naively(videos[name], sampling.times(clip.duration))
    assert torch.equal(clip.frames, frames)
    assert clip.timestamps.tolist() == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    "name", [name for name in SOURCES if not name.startswith(("VP8", "H.264, intra", "H.264, open"))]
)
def test_shortcuts_are_taken(videos, name, monkeypatch):
    monkeypatch.setattr(streams, "_one_by_one", lambda *arguments: pytest.fail("decoded everything"))
    assert len(read_clip(videos[name], fixed(5), decoder="pyav").frames) == 5


def test_a_jump_leaves_out_the_frames_between(videos, monkeypatch):
    met = []

    def noted(packets):
        for packet, shown_after in following(packets):
            met.append(round(float(packet.pts * packet.time_base * 25)))
            yield packet, shown_after

    following = streams.with_following
    monkeypatch.setattr(streams, "with_following", noted)
    read_clip(videos["H.264, keyframe every 10"], fixed(3), decoder="pyav")  # frames 10, 30, 50, all keyframes
    assert {10, 30, 50} <= set(met)
    assert len(met) <= 30  # at the worst a GOP more for each, where an index counts in dts


def test_a_shortcut_that_fails_on_its_way_costs_time_only(videos, monkeypatch):
    shortcuts = streams._by_shortcuts

    def lost(*arguments):
        yield from itertools.islice(shortcuts(*arguments), 3)
        raise streams.LostError("the third is the last")

    monkeypatch.setattr(streams, "_by_shortcuts", lost)
    clip = read_clip(videos["H.264, keyframe every 10"], fixed(6), decoder="pyav")
    assert numbers_of(clip.frames) == [5, 15, 25, 35, 45, 55]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".webm", "libvpx-vp9")])
def test_a_variable_frame_rate_shows_a_frame_until_the_next_one_begins(tmp_path, seed, suffix, codec):
    generator = np.random.default_rng(seed)
    times = np.cumsum(generator.choice([10, 33, 40, 400, 1500], 40)).tolist()
    options = {"g": "8", **({"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {})}
    path = write_video(tmp_path / f"varying{suffix}", 40, codec=codec, times=times, options=options)
    sampling = per_second(3.0)
    clip = read_clip(path, sampling, decoder="pyav")
    rising = np.array(times) - times[0]
    wanted = sorted(
        {int(np.searchsorted(rising / 1000, t + 1e-6, "right")) - 1 for t in sampling.times(clip.duration)}
    )
    assert numbers_of(clip.frames) == wanted
    assert torch.equal(clip.frames, shown_naively(path, sampling.times(clip.duration))[0])


def test_a_rate_gives_the_middle_of_every_period(videos):
    clip = read_clip(videos["H.264, one keyframe"], per_second(5.0))
    assert numbers_of(clip.frames) == [int((k + 0.5) * 5) for k in range(12)]
    assert numbers_of(read_clip(videos["H.264, one keyframe"], per_second(0.01)).frames) == [30]


def test_a_rate_never_gives_more_than_max_frames(videos):
    clip = read_clip(videos["H.264, one keyframe"], per_second(25.0, max_frames=6))
    assert numbers_of(clip.frames) == [5, 15, 25, 35, 45, 55]
    assert len(per_second(1e9).times(1e9)) == 512


def test_a_frame_is_given_once(tmp_path):
    path = write_video(tmp_path / "three.mp4", 3)
    assert numbers_of(read_clip(path, fixed(12)).frames) == [0, 1, 2]
    assert numbers_of(read_clip(path, per_second(1000.0)).frames) == [0, 1, 2]


def test_one_frame_is_a_clip(tmp_path):
    clip = read_clip(write_video(tmp_path / "one.mp4", [number_frame(77)]), fixed(8))
    assert (numbers_of(clip.frames), clip.timestamps.tolist()) == ([77], [0.0])


def test_start_and_end_cut_a_window_with_a_clock_of_its_own(videos):
    clip = read_clip(videos["H.264, keyframe every 10"], fixed(4), start=1.0, end=1.4)  # frames 25 to 34
    assert numbers_of(clip.frames) == [26, 28, 31, 33]
    assert clip.timestamps.tolist() == pytest.approx([0.04, 0.12, 0.24, 0.32])
    assert clip.duration == pytest.approx(0.4)
    late = read_clip(videos["H.264, keyframe every 10"], fixed(2), start=2.0, end=99.0)
    assert late.duration == pytest.approx(0.4)
    inside = read_clip(videos["H.264, keyframe every 10"], fixed(1), start=1.01, end=1.03)
    assert (numbers_of(inside.frames), inside.timestamps.tolist()) == ([25], [0.0])  # it was on at the start
    with pytest.raises(VideoDecodingError, match=r"lasts 2.4 seconds, so there is nothing at 3"):
        read_clip(videos["H.264, keyframe every 10"], fixed(2), start=3.0)


@pytest.mark.parametrize(
    "arguments",
    [{"num_frames": 8, "frames_per_second": 2.0}, {"num_frames": None}, {"num_frames": 0}, {"max_frames": -1}],
)
def test_a_sampling_without_meaning_is_refused(arguments):
    with pytest.raises(ValueError, match="num_frames|max_frames"):
        FrameSampling(**arguments)


@pytest.mark.parametrize("arguments", [{"start": -1.0}, {"start": 2.0, "end": 1.0}, {"max_side": 0}, {"decoder": "x"}])
def test_an_argument_without_meaning_is_refused(videos, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        read_clip(videos["VP9"], fixed(1), **arguments)


# --- what a frame is

CORNERS = np.zeros((34, 50, 3), np.uint8)  # red, green / blue, white
CORNERS[:17, :25, 0] = CORNERS[:17, 25:, 1] = CORNERS[17:, :25, 2] = 255
CORNERS[17:, 25:] = 255


def corners(frame) -> list[list[int]]:
    """Whether each channel is lit at the four corners of a `(3, H, W)` frame."""
    lit = (torch.as_tensor(frame)[:, [4, 4, -5, -5], [4, -5, 4, -5]] > 127).int()
    return lit.T.tolist()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_display_matrix_is_obeyed(tmp_path, rotation, mirrored):
    path = write_video(tmp_path / "turned.mp4", [CORNERS] * 3, pix_fmt="yuv444p", rotation=rotation, mirrored=mirrored)
    clip = read_clip(path, fixed(1), decoder="pyav")
    upright = np.rot90(CORNERS, rotation // 90)  # anticlockwise
    upright = upright[:, ::-1] if mirrored else upright
    assert clip.frames.shape == (1, 3, *upright.shape[:2])
    assert corners(clip.frames[0]) == corners(upright.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(CORNERS)
    for operation in {  # what undoes each, applied the other way round
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }.get(orientation, []):
        turned = turned.transpose(operation)
    turned.save(tmp_path / "photo.jpg", exif=exif, quality=95, subsampling=0)
    clip = read_clip(tmp_path / "photo.jpg", fixed(8))
    assert (clip.duration, clip.timestamps.tolist()) == (None, [0.0])
    assert corners(clip.frames[0]) == corners(CORNERS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("libx264", "yuv444p", (51, 37)),
        ("libx264", "yuv420p", (50, 38)),
        ("ffv1", "gray", (64, 48)),
        ("libx264", "yuvj420p", (64, 48)),
        ("libx264", "yuv420p10le", (64, 48)),
        ("libvpx-vp9", "yuv420p", (51, 37)),
        ("ffv1", "gray16le", (33, 21)),
        ("ffv1", "bgr0", (33, 21)),
    ],
)
def test_odd_sizes_grey_and_depths_give_8_bit_rgb(tmp_path, codec, pix_fmt, size):
    frames = [number_frame(number, size) for number in range(20)]
    clip = read_clip(write_video(tmp_path / "clip.mkv", frames, codec=codec, pix_fmt=pix_fmt), fixed(20))
    assert clip.frames.shape == (20, 3, size[1], size[0])
    assert numbers_of(clip.frames) == list(range(20))
    assert (clip.frames.float() - torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)).abs().mean() < 4


def test_colours_are_converted_by_the_matrix_that_the_video_names(tmp_path):
    colour = np.full((48, 64, 3), (200, 60, 30), np.uint8)
    path = tmp_path / "bt709.mp4"
    red, green, blue = (value / 255 for value in (200, 60, 30))
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    planes = (16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748)
    yuv = np.concatenate(
        [np.full(48 * 64 // n, round(value), np.uint8) for value, n in zip(planes, (1, 4, 4), strict=True)]
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "colorspace": "bt709"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(yuv.reshape(72, 64), format="yuv420p")
        frame.colorspace = stream.codec_context.colorspace = 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    pixels = read_clip(path, fixed(1)).frames[0].float()
    assert (pixels - torch.from_numpy(colour).permute(2, 0, 1)).abs().max() <= 3


def test_alpha_is_shown_on_white(tmp_path):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[..., 0], pixels[:, 32:, 3] = 255, 255  # red: clear on the left, opaque on the right
    for suffix, codec, pix_fmt in ((".webm", "libvpx-vp9", "yuva420p"), (".mov", "qtrle", "argb")):
        path = write_video(
            tmp_path / f"clear{suffix}", [pixels] * 3, codec=codec, pix_fmt=pix_fmt, source_format="rgba"
        )
        frame = read_clip(path, fixed(1)).frames[0].int()
        assert (frame[:, 24, 16] - 255).abs().max() <= 3, codec
        assert (frame[:, 24, 48] - torch.tensor([255, 0, 0])).abs().max() <= 6, codec
    picture = Image.fromarray(pixels)
    pixels[..., 3] //= 2
    half = read_clip(Image.fromarray(pixels), fixed(1)).frames[0]
    assert read_clip(picture, fixed(1)).frames[0, :, 0, 0].tolist() == [255, 255, 255]
    assert half[:, 0, 40].tolist() == [255, 128, 128]


def test_modes_of_pictures_become_rgb(tmp_path):
    Image.fromarray(np.full((5, 7), 77 * 257, np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (7, 5), 77).save(tmp_path / "grey.png")
    Image.new("CMYK", (7, 5), (0, 0, 0, 255 - 77)).save(tmp_path / "print.tif")
    palette = Image.new("P", (7, 5), 1)
    palette.putpalette([0, 0, 0, 77, 77, 77])
    palette.save(tmp_path / "palette.png")
    for path in tmp_path.iterdir():
        frames = read_clip(path, fixed(4)).frames
        assert frames.shape == (1, 3, 5, 7), path
        assert (frames.int() - 77).abs().max() <= 1, path
    palette.save(tmp_path / "clear.gif", transparency=1)
    assert read_clip(tmp_path / "clear.gif", fixed(1)).frames.min() == 255


@pytest.mark.parametrize("decoder", ["pyav", None])
def test_max_side_shrinks_each_frame_and_enlarges_none(videos, decoder):
    clip = read_clip(videos["H.264, one keyframe"], fixed(6), max_side=32, decoder=decoder)
    assert clip.frames.shape == (6, 3, 24, 32)
    assert numbers_of(clip.frames) == [5, 15, 25, 35, 45, 55]
    assert read_clip(videos["H.264, one keyframe"], fixed(1), max_side=640, decoder=decoder).frames.shape[-2:] == (
        48,
        64,
    )


# --- sources that are no video


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_is_sampled_by_its_durations(tmp_path, suffix):
    frames = [Image.fromarray(number_frame(16 * k + k)) for k in range(6)]
    durations = [100, 200, 300, 400, 500, 600]
    lossless = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], duration=durations, **lossless)
    clip = read_clip(tmp_path / f"a{suffix}", fixed(4))  # at 0.2625, 0.7875, 1.3125, 1.8375 of 2.1 seconds
    assert numbers_of(clip.frames) == [17 * k for k in (1, 3, 4, 5)]
    assert clip.timestamps.tolist() == pytest.approx([0.1, 0.6, 1.0, 1.5])
    assert clip.duration == pytest.approx(2.1)
    assert numbers_of(read_clip(tmp_path / f"a{suffix}", per_second(10.0)).frames) == [17 * k for k in range(6)]
    window = read_clip((tmp_path / f"a{suffix}").read_bytes(), fixed(2), start=0.3, end=1.0)
    assert (numbers_of(window.frames), window.timestamps.tolist()) == ([34, 51], pytest.approx([0.0, 0.3]))


def test_a_picture_that_an_apng_shows_to_others_is_no_frame(tmp_path):
    frames = [Image.fromarray(number_frame(number)) for number in (200, 1, 2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=100, default_image=True)
    assert numbers_of(read_clip(tmp_path / "a.png", fixed(8)).frames) == [1, 2]


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for number in range(12):
        Image.fromarray(number_frame(number)).save(tmp_path / f"Frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "Frame5.png").write_bytes(b"")  # not sampled, so not opened
    assert numbers_of(read_clip(tmp_path, fixed(4)).frames) == [1, 4, 7, 10]


def test_frames_without_times_are_spread_by_number():
    frames = np.stack([number_frame(number) for number in range(10)])
    clip = read_clip(frames, fixed(4))
    assert (numbers_of(clip.frames), clip.timestamps.tolist()) == ([1, 3, 6, 8], [1.0, 3.0, 6.0, 8.0])
    assert clip.duration is None
    assert len(read_clip(frames, per_second(1.0)).frames) == 10
    assert numbers_of(read_clip(frames, per_second(1.0, max_frames=5)).frames) == [1, 3, 5, 7, 9]
    assert numbers_of(read_clip(frames[:2], fixed(8)).frames) == [0, 1]


def test_every_kind_of_source_gives_the_same_clip(videos, tmp_path):
    path = videos["H.264, keyframe every 10"]
    expected = read_clip(path, fixed(5))
    with path.open("rb") as file:
        file.seek(100)
        for source in (
            str(path),
            path.read_bytes(),
            file,
            {"path": str(path), "bytes": None},
            {"bytes": path.read_bytes()},
        ):
            clip = read_clip(source, fixed(5))
            assert torch.equal(clip.frames, expected.frames)
            assert clip.duration == expected.duration
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in expected.frames]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    arrays = [np.asarray(picture) for picture in pictures]
    for source in (expected.frames, expected.frames.permute(0, 2, 3, 1).numpy(), pictures, paths, tmp_path, arrays):
        assert torch.equal(read_clip(source, fixed(5)).frames, expected.frames)


class StandIn:
    """What this module asks of torchcodec's VideoDecoder: 60 frames at 25 a second, the first at 0.2 seconds."""

    class metadata:  # noqa: N801
        begin_stream_seconds, end_stream_seconds, width, height = 0.2, 2.6, 64, 48

    def get_frame_played_at(self, seconds):
        number = math.floor((seconds - 0.2) * 25)
        frame = type("Frame", (), {})()
        frame.data = torch.from_numpy(number_frame(number)).permute(2, 0, 1)
        frame.pts_seconds = 0.2 + number / 25
        return frame


def test_a_decoder_of_torchcodec_is_asked_for_the_same_frames(videos):
    expected = read_clip(videos["H.264, keyframe every 10"], fixed(7), start=0.5)
    clip = read_clip(StandIn(), fixed(7), start=0.5)
    assert numbers_of(clip.frames) == numbers_of(expected.frames)
    assert clip.timestamps.tolist() == pytest.approx(expected.timestamps.tolist())
    assert clip.duration == pytest.approx(expected.duration)


# --- what cannot be read


def png(width: int, height: int) -> bytes:
    """A picture that declares so many pixels and holds none."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_moov_first(path: Path, copied: Path) -> bytes:
    """The same packets, the index before the frames."""
    with av.open(str(path)) as source, av.open(str(copied), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    return copied.read_bytes()


def bad_files(videos: dict[str, Path], folder: Path) -> dict[str, tuple[bytes, str]]:
    """What is wrong -> the file, and what the message says."""
    mp4 = videos["H.264, keyframe every 10"].read_bytes()
    webm, avi = videos["VP9"].read_bytes(), videos["MPEG-4 with B-frames in AVI"].read_bytes()
    early = with_moov_first(videos["H.264, keyframe every 10"], folder / "early.mp4")
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    rows = [number_frame(number) for number in range(3)]
    large = bytearray(write_video(folder / "large.mov", rows, codec="qtrle", pix_fmt="rgb24").read_bytes())
    entry = large.rfind(b"rle ")  # of a codec whose size stands in the container alone
    large[entry + 28 : entry + 32] = struct.pack(">HH", 60000, 60000)
    huge_y4m = b"YUV4MPEG2 W60000 H60000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000)
    huge_ivf = b"DKIF\x00\x00\x20\x00VP90" + struct.pack("<HHIIII", 60000, 60000, 25, 1, 1, 0) + bytes(20)
    damaged = bytearray(mp4)
    box = mp4.find(b"mdat")
    middle = box + struct.unpack(">I", mp4[box - 4 : box])[0] * 2 // 3
    damaged[middle : middle + 200] = bytes(range(200))
    return {
        "empty": (b"", "is empty"),
        "text": (b"This is not a video.\n" * 50, "not a supported video or picture"),
        "zeros": (bytes(5000), "not a supported video or picture"),
        "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a supported video or picture"),
        "concat script": (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a supported video or picture"),
        "a header alone": (mp4[:64], "cannot be read as a video"),
        "without its end, index last": (mp4[: len(mp4) // 2], "cannot be read as a video.*cut short"),
        "without its end, index first": (early[: len(early) * 2 // 3], "cut short"),
        "without its last bytes": (early[:-40], "cut short"),
        "webm without its end": (webm[: len(webm) // 2], "cut short|damaged"),
        "avi without its end": (avi[: len(avi) // 2], "cut short"),
        "damaged": (bytes(damaged), "damaged"),
        "sound alone": (sound.getvalue(), "no video stream, only: audio"),
        "huge in the container": (bytes(large), "60000 x 60000|cannot be"),
        "huge y4m": (huge_y4m, "60000 x 60000|cannot be read"),
        "huge ivf": (huge_ivf, "60000 x 60000|cannot be read|no frame"),
        "huge png": (png(60000, 60000), "exceeds limit|limits are"),
        "large png": (png(9000, 9000), "9000 x 9000.*limits are"),
        "png without pixels": (png(500, 500), "cannot be decoded"),
        "half a jpeg": (b"\xff\xd8\xff\xe0" + bytes(200), "cannot be read as a picture"),
        "half a gif": (b"GIF89a" + struct.pack("<HH", 60000, 60000) + bytes(3), "limits are|cannot be read"),
    }


@pytest.fixture(scope="module")
def bad(videos, tmp_path_factory) -> dict[str, tuple[bytes, str]]:
    return bad_files(videos, tmp_path_factory.mktemp("bad"))


def test_files_that_cannot_be_read_are_named_soon_and_in_little_memory(bad, tmp_path):
    path = tmp_path / "holiday.mp4"
    for what, (content, words) in bad.items():
        path.write_bytes(content)

        def read(words: str = words) -> None:
            with pytest.raises(VideoDecodingError, match=words) as caught:
                read_clip(path, fixed(COUNT), decoder="pyav")
            assert str(path) in str(caught.value)

        started = time.perf_counter()
        assert peak_mib(read) < 150, what
        assert time.perf_counter() - started < 5, what
        with pytest.raises(VideoDecodingError, match="<bytes>"):
            read_clip(content, fixed(COUNT), decoder="pyav")


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "600", "bf": "0", "coder": "0"}),
        ("libx265", {"x265-params": "log-level=none:pools=none:frame-threads=1"}),
    ],
)
def test_a_damaged_packet_that_ffmpeg_alone_passes_over_is_an_error(tmp_path, codec, options):
    path = write_video(tmp_path / "holiday.mp4", COUNT, codec=codec, options=options)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][COUNT // 2 + 3]  # of no sampled frame
        first, last = packet.pos + packet.size // 2, packet.pos + packet.size - 2
    content = bytearray(path.read_bytes())
    content[first:last] = bytes(255 - value for value in content[first:last])
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) > COUNT // 2  # and no error
    with pytest.raises(VideoDecodingError, match="cannot be decoded.*damaged") as caught:
        read_clip(path, fixed(5), decoder="pyav")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_is_an_error_that_names_the_file_or_a_clip_but_nothing_else(videos, tmp_path, seed):
    generator = np.random.default_rng(seed)
    name = list(SOURCES)[seed % len(SOURCES)]
    content = bytearray(videos[name].read_bytes())
    for position in generator.integers(0, len(content), int(generator.choice([1, 5, 50]))):
        content[position] = generator.integers(256)
    if seed % 3 == 0:
        content = content[: generator.integers(1, len(content))]
    (tmp_path / "odd").write_bytes(content)
    started = time.perf_counter()
    try:
        frames = read_clip(tmp_path / "odd", fixed(5), decoder="pyav").frames
        assert 1 <= len(frames) <= 5
    except VideoDecodingError as error:
        assert str(tmp_path / "odd") in str(error)
    assert time.perf_counter() - started < 10


def test_a_name_is_never_taken_for_an_address(tmp_path, monkeypatch, videos):
    monkeypatch.chdir(tmp_path)
    name = "concat:a|b.mp4"
    Path(name).write_bytes(videos["H.264, one keyframe"].read_bytes())
    assert len(read_clip(name, fixed(2)).frames) == 2
    for missing in ("http://localhost:9/a.mp4", "nothing.mp4", "pipe:0"):
        with pytest.raises(VideoDecodingError, match=f"{missing}: no such file"):
            read_clip(missing, fixed(2))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "empty"),
        (np.zeros((0, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((2, 4, 4), np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), np.float32), "float32"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "one size"),
        (12, "neither a file"),
        (None, "neither a file"),
    ],
)
def test_what_is_no_clip_is_refused(source, words):
    with pytest.raises(VideoDecodingError, match=words):
        read_clip(source, fixed(2))


def test_a_folder_or_list_without_pictures_is_refused(tmp_path, videos):
    with pytest.raises(VideoDecodingError, match="folder without a picture"):
        read_clip(tmp_path, fixed(2))
    with pytest.raises(VideoDecodingError, match="is not a picture"):
        read_clip([videos["VP9"]], fixed(2))


def test_an_animation_that_would_take_hours_is_refused(tmp_path, monkeypatch):
    frames = [Image.fromarray(number_frame(number)) for number in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(pictures_mmt, "MAX_ANIMATION_PIXELS", 3 * 64 * 48)
    with pytest.raises(VideoDecodingError, match="declares 4 frames of 64 x 48"):
        read_clip(tmp_path / "a.gif", fixed(2))
    monkeypatch.setattr(pictures_mmt, "MAX_PICTURE_BYTES", 100)
    with pytest.raises(VideoDecodingError, match="more than 100 bytes"):
        read_clip(tmp_path / "a.gif", fixed(2))


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    still = [number_frame(number % 256, (320, 240)) for number in range(1000)]
    options = {"preset": "ultrafast", "g": "250"}
    long = write_video(tmp_path / "long.mp4", still, options=options)
    short = write_video(tmp_path / "short.mp4", still[:60], options=options)
    del still
    read_clip(short, fixed(8), max_side=32, decoder="pyav")
    grown = peak_mib(lambda: read_clip(long, fixed(8), max_side=32, decoder="pyav"))
    assert grown < 25  # all frames of it: 230 MB


def test_frames_come_one_at_a_time_as_in_the_clip(videos):
    for path in videos.values():
        clip = read_clip(path, per_second(20.0), start=0.5, max_side=32)
        duration, frames = clip_frames(path, per_second(20.0), start=0.5, max_side=32)
        timestamps, pixels = zip(*frames, strict=True)
        assert (duration, list(timestamps)) == (clip.duration, clip.timestamps.tolist())
        assert torch.equal(torch.stack(pixels).permute(0, 3, 1, 2), clip.frames)


def test_a_held_frame_is_given_again_at_each_time_where_that_is_asked_for(tmp_path):
    path = write_video(tmp_path / "held.mp4", 4, times=[0, 40, 1000, 1040])  # milliseconds
    duration, frames = clip_frames(path, per_second(5.0), end=1.0, repeat_held=True)  # at 0.1, 0.3, 0.5, 0.7, 0.9
    timestamps, pixels = zip(*frames, strict=True)
    assert len(per_second(5.0).times(duration)) == 5
    assert numbers_of(torch.stack(pixels).permute(0, 3, 1, 2)) == [1] * 5
    assert list(timestamps) == pytest.approx([0.04] * 5)
    assert all(frame is pixels[0] for frame in pixels)
    assert len(list(clip_frames(np.zeros((3, 4, 4, 3), np.uint8), fixed(9), repeat_held=True)[1])) == 3  # no times


def test_before_the_first_frame_the_first_is_shown():
    frames = [(0.2, torch.tensor(0)), (1.0, torch.tensor(1)), (2.0, torch.tensor(2))]
    shown = frames_mmt.at_each_time(iter(frames), [0.0, 0.5, 1.0, 2.5, 3.0])
    assert [frame.item() for _, frame in shown] == [0, 0, 1, 2, 2]


def test_a_frame_that_is_done_with_leaves_no_memory_behind(tmp_path):
    path = write_video(tmp_path / "a.mp4", [number_frame(number, (1280, 720)) for number in range(100)])
    read_clip(path, fixed(1))
    gc.collect()
    gc.disable()  # a cycle would wait for it
    try:
        grown = peak_mib(lambda: deque(clip_frames(path, per_second(25.0))[1], maxlen=1))
    finally:
        gc.enable()
    assert grown < 60  # all frames: 276 MB, and 138 MB as they were decoded


# --- without the decoders


def test_without_a_decoder_the_message_says_what_to_install(videos, monkeypatch):
    monkeypatch.setattr(streams, "_torchcodec_module", lambda: None)
    with pytest.raises(VideoDecodingError, match="torchcodec does not load"):
        read_clip(videos["VP9"], fixed(1), decoder="torchcodec")
    monkeypatch.setattr(streams, "av", None)
    with pytest.raises(VideoDecodingError, match="pip install av"):
        read_clip(videos["VP9"], fixed(1))
    monkeypatch.setattr(pictures_mmt, "Image", None)
    with pytest.raises(VideoDecodingError, match="pip install pillow"):
        read_clip(png(4, 4), fixed(1))


def test_the_files_alone_read_arrays_where_nothing_else_is_installed(tmp_path, monkeypatch):
    for module in (video_decoding_mmt, streams, video_packets_mmt, pictures_mmt, picture_formats_mmt, frames_mmt):
        shutil.copy(module.__file__, tmp_path)
    for package in ("av", "PIL", "torchcodec", "modeling_mmt"):
        monkeypatch.setitem(sys.modules, package, None)
    package = types.ModuleType("alone")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "alone", package)
    alone = importlib.import_module("alone.video_decoding_mmt")
    assert len(alone.read_clip(np.zeros((9, 4, 4, 3), np.uint8), alone.FrameSampling(num_frames=3)).frames) == 3
    with pytest.raises(alone.VideoDecodingError, match="pip install"):
        alone.read_clip(b"\x1aE\xdf\xa3", alone.FrameSampling(num_frames=3))
    for name in [name for name in sys.modules if name.startswith("alone.")]:
        monkeypatch.delitem(sys.modules, name)


# --- both decoders


@pytest.mark.system
@pytest.mark.parametrize("max_side", [None, 40])
@pytest.mark.parametrize(  # torchcodec 0.12 is a few frames off where H.264 refreshes without keyframes
    "name",
    [name for name in SOURCES if SOURCES[name][0] in (".mp4", ".webm", ".mkv", ".mov") and "refresh" not in name],
)
def test_torchcodec_and_pyav_give_the_same_frames(videos, name, max_side):
    ours = read_clip(videos[name], fixed(9), max_side=max_side, decoder="pyav")
    theirs = read_clip(videos[name], fixed(9), max_side=max_side, decoder="torchcodec")
    assert theirs.timestamps.tolist() == pytest.approx(ours.timestamps.tolist(), abs=1e-6)
    assert theirs.duration == pytest.approx(ours.duration)
    assert (theirs.frames.int() - ours.frames.int()).abs().max() <= 3


@pytest.mark.system
@pytest.mark.parametrize(("rotation", "pix_fmt"), [(90, "yuv420p"), (180, "yuv420p"), (0, "yuv420p10le"), (0, "gray")])
def test_torchcodec_and_pyav_agree_on_rotation_and_depth(tmp_path, rotation, pix_fmt):
    path = write_video(tmp_path / "a.mp4", 12, rotation=rotation, pix_fmt=pix_fmt)
    ours, theirs = (read_clip(path, fixed(4), decoder=decoder) for decoder in ("pyav", "torchcodec"))
    assert theirs.frames.shape == ours.frames.shape
    assert (theirs.frames.int() - ours.frames.int()).abs().max() <= 3


@pytest.mark.system
def test_torchcodec_reads_no_playlist_and_names_what_it_cannot_read(bad, tmp_path):
    path = tmp_path / "holiday.mp4"
    for what in ("playlist", "without its end, index first", "a header alone", "sound alone"):
        path.write_bytes(bad[what][0])
        with pytest.raises(VideoDecodingError, match=str(path)):
            read_clip(path, fixed(3), decoder="torchcodec")


def test_a_gif_cut_anywhere_is_read_or_refused_by_name(tmp_path):
    frames = [Image.effect_noise((16, 12), 60 + number).convert("RGB") for number in range(4)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:], duration=100)
    content, refused = (tmp_path / "whole.gif").read_bytes(), 0
    for length in range(len(content)):
        (tmp_path / "cut.gif").write_bytes(content[:length])
        try:
            read_clip(tmp_path / "cut.gif", fixed(2))
        except VideoDecodingError as error:
            refused += 1
            assert "cut.gif" in str(error)
    assert refused > len(content) // 2
