"""Every frame of short videos, in every container and codec; times where a container has none, or wrong ones."""

from pathlib import Path

import av
import pytest
from video_files import number_frame, numbers_of, write_video

from modeling_mmt.frames_mmt import FrameSampling, VideoDecodingError
from modeling_mmt.video_decoding_mmt import read_clip

LOSSLESS = {"q": "2", "qmin": "1", "qmax": "2"}
CONTAINERS = {  # name -> suffix, codec, options and pixel format of write_video
    "MPEG-4 in AVI": (".avi", "mpeg4", LOSSLESS),
    "MPEG-4 with B-frames in AVI": (".avi", "mpeg4", {**LOSSLESS, "bf": "2"}),
    "H.264 without B-frames in AVI": (".avi", "libx264", {"bf": "0"}),
    "H.264 with B-frames in AVI": (".avi", "libx264", {"bf": "3", "b_strategy": "0"}),
    "H.264 with a pyramid of B-frames in AVI": (".avi", "libx264", {"bf": "7", "b_strategy": "0", "g": "20"}),
    "FFV1 in AVI": (".avi", "ffv1", {}),
    "H.264 in MPEG-TS": (".ts", "libx264", {"bf": "3", "b_strategy": "0"}),
    "H.265 in MPEG-TS": (".ts", "libx265", {"x265-params": "log-level=none:pools=none:frame-threads=1"}),
    "H.264 in FLV": (".flv", "libx264", {"bf": "3", "b_strategy": "0"}),
    "Sorenson in FLV": (".flv", "flv", LOSSLESS),  # whose packets have no duration
    "VP8 in IVF": (".ivf", "libvpx", {"b": "2M"}),
    "VP9 in IVF": (".ivf", "libvpx-vp9", {"b": "2M", "deadline": "realtime"}),
    "raw in Y4M": (".y4m", "wrapped_avframe", {}),
    "MPEG-1 in MPG": (".mpg", "mpeg1video", LOSSLESS),
    "MPEG-2 in MPG": (".mpg", "mpeg2video", {**LOSSLESS, "bf": "2"}),  # of some frames the time is another's
    "MPEG-2 alone": (".m2v", "mpeg2video", {**LOSSLESS, "bf": "2"}),
    "WMV 2 in ASF": (".wmv", "wmv2", LOSSLESS),
    "MPEG-2 in MXF": (".mxf", "mpeg2video", LOSSLESS),
    "VP9 in WebM": (".webm", "libvpx-vp9", {"b": "2M", "deadline": "realtime"}),
    "H.264 in MKV": (".mkv", "libx264", {"bf": "3", "b_strategy": "0"}),
    "H.264 in MP4": (".mp4", "libx264", {"bf": "3", "b_strategy": "0"}),
}


def every_frame(count: int) -> FrameSampling:
    return FrameSampling(num_frames=count)


@pytest.mark.parametrize("count", [2, 12, 25, 33, 60])
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_frame_of_a_short_video_is_read_whatever_holds_it(tmp_path, name, count):
    suffix, codec, options = CONTAINERS[name]
    path = write_video(tmp_path / f"short{suffix}", count, codec=codec, options=options)
    clip = read_clip(path, every_frame(count), decoder="pyav")
    assert numbers_of(clip.frames) == list(range(count))
    assert clip.duration == pytest.approx(count / 25, abs=2e-3)
    assert clip.timestamps.tolist() == pytest.approx([number / 25 for number in range(count)], abs=2e-3)


@pytest.mark.parametrize("name", CONTAINERS)
def test_one_frame_is_a_clip_whatever_holds_it(tmp_path, name):
    suffix, codec, options = CONTAINERS[name]
    path = write_video(tmp_path / f"one{suffix}", [number_frame(77)], codec=codec, options=options)
    clip = read_clip(path, every_frame(8), decoder="pyav")
    assert (numbers_of(clip.frames), clip.timestamps.tolist()) == ([77], [0.0])


def test_every_frame_of_theora_in_ogg_is_read():
    """`short.ogv`: 12 numbered frames, `ffmpeg -i numbered.mkv -c:v libtheora -q:v 10`; PyAV has no such encoder."""
    clip = read_clip(Path(__file__).parents[1] / "data" / "short.ogv", every_frame(12), decoder="pyav")
    assert (numbers_of(clip.frames), clip.duration) == (list(range(12)), pytest.approx(0.48))


# --- recordings that begin between two keyframes

RECORDINGS = {  # name -> codec, options, number of the second keyframe
    "H.264": ("libx264", {"g": "24", "keyint_min": "24", "sc_threshold": "0"}, 24),
    "H.264, open GOPs": ("libx264", {"x264-params": "open-gop=1:keyint=24:bframes=3:b-adapt=0:scenecut=0"}, 24),
    "H.265, open GOPs": (
        "libx265",
        {"x265-params": "keyint=20:min-keyint=20:scenecut=0:open-gop=1:log-level=none:pools=none:frame-threads=1"},
        20,
    ),
    "MPEG-2": ("mpeg2video", {**LOSSLESS, "bf": "2", "g": "15", "sc_threshold": "1000000000"}, 15),
}


def begun_late(path: Path, number: int) -> bytes:
    """An MPEG-TS file from its packet of this number on, its tables kept before it."""
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    return content[: positions[0]] + content[positions[number] :]


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("number", [1, 5, 11])
def test_a_recording_that_begins_between_keyframes_begins_at_the_first_one(tmp_path, name, number):
    codec, options, keyframe = RECORDINGS[name]
    path = write_video(tmp_path / "whole.ts", 60, codec=codec, options=options)
    (tmp_path / "late.ts").write_bytes(begun_late(path, number))
    wanted = list(range(keyframe, 60))
    clip = read_clip(tmp_path / "late.ts", every_frame(len(wanted)), decoder="pyav")
    assert numbers_of(clip.frames) == wanted
    assert clip.duration == pytest.approx(len(wanted) / 25, abs=2e-3)
    assert clip.timestamps[0] == 0


def test_a_recording_without_a_keyframe_is_refused_by_name(tmp_path):
    path = write_video(tmp_path / "whole.ts", 20, options={"g": "600"})
    (tmp_path / "late.ts").write_bytes(begun_late(path, 3))
    with pytest.raises(VideoDecodingError, match="late.ts"):
        read_clip(tmp_path / "late.ts", every_frame(3), decoder="pyav")
