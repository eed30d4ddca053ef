"""`modeling_mmt.search.excerpts`: a moment's packets, copied; each frame says its number."""

import subprocess
from shutil import which
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from video_files import numbers_of, write_video

from modeling_mmt.data.errors import InputError
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.search.excerpts import media_file, save_excerpt
from modeling_mmt.video_decoding_mmt import read_clip

RATE, KEYFRAMES = 25, 12  # frames a second, and from one keyframe to the next
ALL = FrameSampling(num_frames=None, frames_per_second=RATE)
OPTIONS = {"g": str(KEYFRAMES), "sc_threshold": "0"}


def film(path, codec="libx264", num_frames=100, **options):
    return write_video(path, num_frames, codec=codec, rate=RATE, options=options)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("film.mp4", "libx264", {**OPTIONS, "bf": "0"}),
        ("film.mp4", "libx264", {**OPTIONS, "bf": "3"}),
        ("film.mkv", "libx264", {**OPTIONS, "bf": "2"}),
        ("film.MOV", "libx264", {**OPTIONS, "bf": "0"}),
        ("film.webm", "libvpx", {"g": str(KEYFRAMES), "auto-alt-ref": "0"}),
        ("film.avi", "mpeg4", {"g": str(KEYFRAMES), "bf": "0"}),
        ("film.ts", "libx264", {**OPTIONS, "bf": "0"}),
    ],
)
def test_an_excerpt_begins_at_the_keyframe_before_and_has_every_frame_to_its_end(tmp_path, name, codec, options):
    source = film(tmp_path / name, codec, **options)
    target = save_excerpt(source, 1.6, 2.4, tmp_path / "01-01")  # frames 40 to 60
    assert target == tmp_path / f"01-01{source.suffix.lower()}"
    with av.open(str(source)) as container:
        keyframes = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    numbers = numbers_of(read_clip(target, ALL).frames)
    first = max(number for number in keyframes if number <= 40)
    assert 0 < first and numbers == list(range(first, first + len(numbers)))
    assert 60 <= numbers[-1] + 1 <= 64  # what was decoded before the end may be shown a little later


def test_a_moment_at_either_end_of_the_film_is_copied(tmp_path):
    source = film(tmp_path / "film.mp4", **OPTIONS)
    first = numbers_of(read_clip(save_excerpt(source, 0.0, 0.4, tmp_path / "1"), ALL).frames)
    last = numbers_of(read_clip(save_excerpt(source, 3.9, 4.0, tmp_path / "2"), ALL).frames)
    assert first[0] == 0 and 10 <= len(first) <= 14
    assert last == list(range(96, 100))


def test_the_sound_comes_along_and_keeps_time(tmp_path):
    path = tmp_path / "film.mp4"
    if which("ffmpeg") is None:
        pytest.skip("needs ffmpeg to make a film with sound")
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=d=4:r=25:s=64x48", "-f", "lavfi", "-i"]
    command += ["sine=d=4", "-g", "12", "-sc_threshold", "0", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True)
    with av.open(str(save_excerpt(path, 1.6, 2.4, tmp_path / "01"))) as excerpt:
        video, sound = excerpt.streams.video[0], excerpt.streams.audio[0]
        starts = {stream.type: float((stream.start_time or 0) * stream.time_base) for stream in (video, sound)}
        lengths = {stream.type: float(stream.duration * stream.time_base) for stream in (video, sound)}
    assert abs(starts["video"] - starts["audio"]) < 0.05
    assert lengths == pytest.approx({"video": 0.96, "audio": 0.96}, abs=0.15)


def test_a_picture_and_an_animation_are_copied_whole(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 200)]
    frames[0].save(tmp_path / "still.PNG")
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for source, span in ((tmp_path / "still.PNG", (None, None)), (tmp_path / "moving.gif", (0.0, 0.1))):
        copy = save_excerpt(source, *span, tmp_path / f"copy of {source.suffix}")
        assert copy.read_bytes() == source.read_bytes() and copy.suffix == source.suffix.lower()


def test_what_ffmpeg_cannot_copy_is_one_line_that_names_the_file(tmp_path):
    source = film(tmp_path / "film.mp4", **OPTIONS)
    source.write_bytes(source.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="film.mp4") as caught:
        save_excerpt(source, 0.0, 1.0, tmp_path / "01")
    assert "\n" not in str(caught.value)


def test_a_matroska_slide_show_keeps_the_slides_of_the_moment(tmp_path):
    """The first packets after a keyframe have no time of decoding, and one of them is shown last of all."""
    source = write_video(tmp_path / "slides.mkv", 5, codec="libx264", rate=1, options={"bf": "3", "b_strategy": "0"})
    numbers = numbers_of(read_clip(save_excerpt(source, 1.0, 3.0, tmp_path / "1"), ALL).frames)
    assert {0, 1, 2} <= set(numbers)


@pytest.mark.parametrize("name", ["~film.mp4", "a::b.mp4", "c:film.mp4"])
def test_a_file_of_an_odd_name_is_found_in_the_indexed_folder(tmp_path, name):
    (tmp_path / name).write_bytes(b"film")
    assert media_file(SimpleNamespace(media_folder=str(tmp_path)), name) == tmp_path / name


@pytest.mark.parametrize("name", ["../film.mp4", "a/../../film.mp4", "/etc/passwd"])
def test_a_file_outside_the_indexed_folder_is_refused(tmp_path, name):
    (tmp_path / "indexed").mkdir()
    (tmp_path / "film.mp4").write_bytes(b"film")
    with pytest.raises(InputError, match="outside the folder that was indexed"):
        media_file(SimpleNamespace(media_folder=str(tmp_path / "indexed")), name)
