"""Mutated media of every kind: read as the sound file would be, or refused in one line; nothing else happens.

Most formats detect only some damage (a changed byte of lossy pixels is other pixels), so a clip that is read is held
to what any clip is: few frames, rising times. A PNG's checksums detect it all: it gives the sound frames or an error.
`MMT_FUZZ` sets how many mutants of a kind there are.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import number_frame, write_video

MUTANTS = 300  # of each kind
KINDS = {  # name of the file -> codec and options of a video; None: a picture or an animation
    "h264.mp4": ("libx264", {"g": "5"}),
    "hevc.mkv": ("libx265", {"x265-params": "keyint=5:log-level=none:pools=none:frame-threads=1"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "av1.mp4": ("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
    "h264.ts": ("libx264", {"g": "5"}),
    "h264.avi": ("libx264", {"bf": "2"}),
    "sorenson.flv": ("flv", {}),
    "vp8.ivf": ("libvpx", {}),
    "mpeg2.mpg": ("mpeg2video", {"bf": "2"}),
    "raw.y4m": ("wrapped_avframe", {}),
    "wmv2.wmv": ("wmv2", {}),
    "theora.ogv": None,
    "picture.png": None,
    "picture.jpg": None,
    "picture.tif": None,
    "picture.bmp": None,
    "picture.ppm": None,
    "animation.gif": None,
    "animation.webp": None,
    "animation.png": None,
    "animation.avif": None,
}
DETECTED = ("picture.png",)  # every byte of the pixels is under a checksum
READ = """
import json, resource, sys, warnings
from pathlib import Path
import av, torch
import numpy as np
from modeling_mmt.frames_mmt import FrameSampling
from modeling_mmt.video_decoding_mmt import VideoDecodingError, read_clip

warnings.simplefilter("ignore")
torch.set_num_threads(1)
av.logging.set_level(None)
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
sound, count, detected = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
content, path = sound.read_bytes(), sound.with_name("mutant" + sound.suffix)
wanted = read_clip(sound, FrameSampling(num_frames=4), decoder="pyav")
generator, problems, refused = np.random.default_rng(len(content)), [], 0
for number in range(count):
    mutant = bytearray(content)
    for position in generator.integers(0, len(mutant), int(generator.choice([1, 3, 30]))):
        flipped = mutant[position] ^ 1 << generator.integers(8)
        mutant[position] = generator.choice([0, 255, generator.integers(256), flipped])
    if number % 4 == 1:
        mutant = mutant[: generator.integers(1, len(mutant))]
    if number % 4 == 2:
        first, last = sorted(generator.integers(0, len(mutant), 2))
        mutant[first:first] = mutant[first:last][:5000]
    path.write_bytes(mutant)
    print(number, file=sys.stderr, flush=True)
    try:
        clip = read_clip(path, FrameSampling(num_frames=4), decoder="pyav")
    except VideoDecodingError as error:
        refused += 1
        if len(str(error).splitlines()) != 1 or str(path) not in str(error):
            problems.append(f"{number}: {error}")
    except Exception as error:
        problems.append(f"{number}: {type(error).__name__}: {error}")
    else:
        times = clip.timestamps.tolist()
        if not 1 <= len(clip.frames) <= 4 or times != sorted(set(times)) or times[0] < 0:
            problems.append(f"{number}: {len(clip.frames)} frames at {times}")
        if detected and not torch.equal(clip.frames, wanted.frames):
            problems.append(f"{number}: other frames")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([refused, peak, problems]))
"""


def sound_file(folder: Path, name: str) -> Path:
    path = folder / name
    if name == "theora.ogv":
        path.write_bytes((Path(__file__).parents[1] / "data" / "short.ogv").read_bytes())
    elif KINDS[name] is not None:
        codec, options = KINDS[name]
        write_video(path, 12, codec=codec, options=options)
    else:
        noise = np.random.default_rng(0).integers(0, 60, (5, 48, 64, 3), dtype=np.uint8)
        frames = [Image.fromarray(number_frame(16 * number) + noise[number]) for number in range(5)]
        animated = {"save_all": True, "append_images": frames[1:], "duration": 100}
        frames[0].save(path, **(animated if name.startswith("animation") else {}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_mutant_is_read_or_refused_in_one_line_without_crash_hang_or_gigabyte(tmp_path, name):
    path, count = sound_file(tmp_path, name), int(os.environ.get("MMT_FUZZ", MUTANTS))
    result = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(count), str(name in DETECTED)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, f"died at mutant {result.stderr.splitlines()[-3:]} ({result.returncode})"
    refused, peak, problems = json.loads(result.stdout)
    assert problems == []
    assert refused > count // 20  # the mutants do harm
    assert peak < 1.6  # GiB, with torch
