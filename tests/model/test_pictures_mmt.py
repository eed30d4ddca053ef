"""What a picture or an animation shows where its format leaves it open, and what pixels that are not square become."""

import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_files import number_frame, numbers_of, write_video

from modeling_mmt.frames_mmt import FrameSampling, VideoDecodingError, with_square_pixels
from modeling_mmt.video_decoding_mmt import read_clip

ONE, FOUR = FrameSampling(num_frames=1), FrameSampling(num_frames=4)
RAMP = np.linspace(0, 1, 64)[None].repeat(48, 0)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RAMP.astype(np.float32), "floats"),
        ((RAMP * 255).astype(np.float32), "floats"),
        ((RAMP * 255).astype(np.int32), "32-bit integers"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "32-bit integers"),
    ],
)
def test_a_tiff_that_does_not_say_what_is_white_is_refused_as_ffmpeg_refuses_it(tmp_path, values, kind):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with av.open(str(tmp_path / "deep.tif")) as container, pytest.raises(av.FFmpegError):
        next(container.decode(video=0))
    with pytest.raises(VideoDecodingError, match=rf"deep.tif is a picture of {kind}.*Save it with 8 or 16 bits"):
        read_clip(tmp_path / "deep.tif", ONE)


def test_a_picture_of_floats_in_memory_is_refused():
    with pytest.raises(VideoDecodingError, match="of floats"):
        read_clip(Image.fromarray(RAMP.astype(np.float32)), ONE)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".pgm"])
def test_grey_of_16_bits_is_shown_as_ffmpeg_shows_it(tmp_path, suffix):
    values = (RAMP * 65535).astype(np.uint16)
    path = tmp_path / f"deep{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 64 48 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    with av.open(str(path)) as container:
        wanted = next(container.decode(video=0)).to_ndarray(format="rgb24")
    frame = read_clip(path, ONE).frames[0].permute(1, 2, 0)
    assert (frame.int() - torch.from_numpy(wanted).int()).abs().max() <= 1
    assert frame[0, [0, -1]].tolist() == [[0, 0, 0], [255, 255, 255]]


# --- how long a frame of an animation is shown


@pytest.mark.parametrize(("centiseconds", "seconds"), [(0, 0.1), (1, 0.1), (2, 0.02), (3, 0.03), (10, 0.1)])
def test_a_gif_frame_of_less_than_20_ms_lasts_100_as_in_browsers(tmp_path, centiseconds, seconds):
    frames = [Image.fromarray(number_frame(17 * number)) for number in range(4)]
    path = tmp_path / "quick.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    content = path.read_bytes()
    extension = b"\x21\xf9\x04"
    parts = content.split(extension)
    path.write_bytes(extension.join([parts[0], *(p[:1] + struct.pack("<H", centiseconds) + p[3:] for p in parts[1:])]))
    clip = read_clip(path, FOUR)
    assert clip.timestamps.tolist() == pytest.approx([number * seconds for number in range(4)])
    assert (numbers_of(clip.frames), clip.duration) == ([0, 17, 34, 51], pytest.approx(4 * seconds))
    with av.open(str(path)) as container:
        theirs = [frame.time for frame in container.decode(video=0)]
    assert centiseconds == 1 or theirs == pytest.approx(clip.timestamps.tolist())


# --- pixels that are not square


def stretched(path: Path, aspect: Fraction, rotation: int = 0) -> Path:
    """A video of 64 x 48 pixels of this aspect, red on the left."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32, 0] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("aspect", "rotation", "size"),
    [
        (Fraction(1), 0, (48, 64)),
        (Fraction(3, 2), 0, (48, 96)),  # as wide as a browser shows it: the side that is too short grows
        (Fraction(16, 11), 0, (48, 93)),
        (Fraction(3, 4), 0, (64, 64)),
        (Fraction(3, 2), 90, (96, 48)),  # of the pixels as they are stored
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pixels_that_are_not_square_are_shown_as_browsers_show_them(tmp_path, aspect, rotation, size, suffix):
    if rotation and suffix == ".ts":
        pytest.skip("MPEG-TS has no display matrix")
    frame = read_clip(stretched(tmp_path / f"a{suffix}", aspect, rotation), ONE, decoder="pyav").frames[0]
    assert tuple(frame.shape) == (3, *size)
    red = (frame[0] > 127).float()
    assert red.mean() == pytest.approx(0.5, abs=0.02)
    halves = red.mean(1) if rotation else red.mean(0)
    assert {halves[:20].mean().item(), halves[-20:].mean().item()} == {0.0, 1.0}


def test_an_absurd_aspect_is_refused_by_name_before_it_takes_memory():
    with pytest.raises(VideoDecodingError, match="odd.mp4 declares frames of 6400000 x 48"):
        with_square_pixels(torch.zeros(48, 64, 3, dtype=torch.uint8), 100_000.0, "odd.mp4")
    same = torch.zeros(48, 64, 3, dtype=torch.uint8)
    assert with_square_pixels(same, None, "a") is same and with_square_pixels(same, 0, "a") is same


@pytest.mark.parametrize(("rotation", "size"), [(None, (48, 96)), (90, (72, 64))])
def test_a_decoder_of_torchcodec_has_the_aspect_of_pixels_as_they_are_stored(rotation, size):
    frame = SimpleNamespace(data=torch.zeros(3, 48, 64, dtype=torch.uint8), pts_seconds=0.0)
    metadata = SimpleNamespace(
        begin_stream_seconds=0.0, end_stream_seconds=1.0, width=64, height=48, pixel_aspect_ratio=Fraction(3, 2),
        rotation=rotation,
    )  # fmt: skip
    video = SimpleNamespace(metadata=metadata, get_frame_played_at=lambda seconds: frame)
    assert tuple(read_clip(video, ONE).frames.shape[-2:]) == size


def test_the_densities_that_a_picture_declares_for_print_do_not_stretch_it(tmp_path):
    Image.fromarray(number_frame(3)).save(tmp_path / "a.jpg", dpi=(72, 144))
    Image.fromarray(number_frame(3)).save(tmp_path / "a.png", dpi=(72, 144))
    for path in tmp_path.iterdir():
        assert tuple(read_clip(path, ONE).frames.shape) == (1, 3, 48, 64)


def test_a_numbered_video_of_square_pixels_is_not_touched(tmp_path):
    assert numbers_of(read_clip(write_video(tmp_path / "a.mp4", 4), FOUR).frames) == [0, 1, 2, 3]
