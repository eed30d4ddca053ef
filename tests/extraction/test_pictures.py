"""Pictures to features: each format that people have, upright as its EXIF says, one step a picture."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from video_files import number_frame, numbers_of

from modeling_mmt.data.video_lists import find_videos
from modeling_mmt.extraction.encoders import StepPreparation, VideoReader
from modeling_mmt.frames_mmt import FrameSampling, VideoDecodingError
from modeling_mmt.image_processing_mmt import PixelSettings
from modeling_mmt.picture_formats_mmt import picture_formats
from modeling_mmt.video_decoding_mmt import read_clip

ORIENTATION = 0x0112
NUMBER = 0x5C
AS_THEY_ARE = PixelSettings(48, 64, (48, 64), (0.0,) * 3, (1.0,) * 3)
SUFFIXES = ("jpg", "JPEG", "png", "webp", "tif", "avif", "mpo", "heic")


def save(path, image, orientation=1):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if path.suffix == ".heic":
        pillow_heif = pytest.importorskip("pillow_heif", reason="pictures of phones: extra `heic`")
        pillow_heif.register_heif_opener()
        image.save(path, "HEIF", quality=95, exif=exif.tobytes())
    else:
        image.save(path, exif=exif, quality=95, **({"save_all": True} if path.suffix == ".mpo" else {}))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_one_step_upright_as_its_exif_says(suffix, orientation, tmp_path):
    if suffix == "avif" and "AVIF" not in picture_formats():
        pytest.skip("Pillow reads AVIF from 11.3")
    undone = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation)  # what turns it as a camera stores it
    upright = Image.fromarray(number_frame(NUMBER))
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    stored = upright.transpose(methods[undone]) if undone else upright
    save(tmp_path / f"cat.{suffix}", stored, orientation)
    (video,) = find_videos(tmp_path)
    assert video.video_id == "cat"
    for sampling in (FrameSampling(8), FrameSampling(None, 2.0)):
        pixels = VideoReader(StepPreparation(AS_THEY_ARE), sampling)(video)
        assert pixels.shape == (1, 3, 48, 64)
        assert numbers_of(torch.from_numpy(pixels)) == [NUMBER]


def test_an_upright_picture_is_the_one_that_pillow_turns():
    """The table above, against Pillow's own."""
    picture = Image.fromarray(number_frame(NUMBER)).transpose(Image.Transpose.ROTATE_90)
    picture.getexif()[ORIENTATION] = 6
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(picture)), number_frame(NUMBER))


def test_heic_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_mmt.pictures_mmt.picture_formats", lambda: ("PNG", "JPEG", "AVIF"))
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(VideoDecodingError, match="a.heic cannot be read as a picture: .*pip install pillow-heif"):
        read_clip(tmp_path / "a.heic", FrameSampling(1))


def test_what_is_no_picture_has_the_same_words_each_time(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    with pytest.raises(VideoDecodingError, match="a.png cannot be read as a picture: cannot identify image file$"):
        read_clip(tmp_path / "a.png", FrameSampling(1))


def test_a_source_may_say_which_span_of_it_is_the_clip(tmp_path):
    frames = [Image.fromarray(number_frame(number)) for number in range(10)]
    path = tmp_path / "a.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    sampling = FrameSampling(None, 10.0)
    for source in ({"path": str(path)}, {"bytes": path.read_bytes(), "path": None}):
        assert numbers_of(read_clip({**source, "start": 0.3, "end": 0.7}, sampling).frames) == [3, 4, 5, 6]
        assert numbers_of(read_clip({**source, "start": None, "end": 0.2}, sampling).frames) == [0, 1]
        assert numbers_of(read_clip(source, sampling, start=0.5).frames) == [5, 6, 7, 8, 9]
        with pytest.raises(ValueError, match="0 <= start < end"):
            read_clip({**source, "start": 0.3, "end": 0.0}, sampling)
