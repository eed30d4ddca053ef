"""film9: the films, with subtitles, that `film9.py` pre-trains on, fine-tunes on and searches.

    python experiments/film9_films.py --output_dir runs/film9           # all of emoji9, seven hours of film
    python experiments/film9_films.py --output_dir runs/film9 --small   # three films of three minutes, for tests

What a person with media files has, and nothing else, lies in `films/`:

    train/film000.mp4  train/film000.en.srt  train/film000.de.vtt ...    nine languages beside a film
    train/film001.mkv                                                    every fourth: nine languages inside it
    captions.csv                                                         English: what a span shows, for fine-tuning

`truth.json`, beside `films/`, says what is shown when, for evaluation alone. A split's films show that split's clips
alone, each so many times, 3 to 9 seconds at a time in a shuffled row, over backgrounds that move; half of the clips
are cut in, half fade in. A cue is 1 to 3 keywords of the clip on screen, each time shifted by -2 to 2 seconds; some
are missing, some joined with the next. A film depends on the seed and its number alone; one that is there is kept.
"""

import argparse
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pysubs2
from datasets import Dataset
from PIL import Image

from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.errors import InputError
from modeling_mmt.data.files import write_json, writing_file
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split

SPLITS = ("train", "validation", "test")
COPIES = {"train": 3, "validation": 2, "test": 2}  # how often each clip is shown, at least
SMALL_CLIPS = 30  # of each split, once: three minutes
SIZES = ((160, 120), (192, 144), (240, 180), (256, 144), (320, 180))  # small, so that all films are made in minutes
RATES = (8, 10, 12, 15)
SHORTEST, LONGEST = 180.0, 720.0  # seconds of a film
SHOWN = (3.0, 9.0)  # seconds of a clip
FADE = 0.5  # seconds
SHIFT = 2.0  # seconds that a cue may come early or late
MISSING, JOINED = 0.1, 0.1  # shares of the cues
VTT = 0.25  # share of the files beside a film that are WebVTT
SAMPLE_RATE = 16_000
TAGS = ("eng", "ger", "fre", "cze", "chi", "rus", "vie", "swa", "spa")  # as Matroska names `LANGUAGES`


@dataclass(frozen=True)
class Showing:
    """A clip on screen.

    Args:
        video_id: of emoji9's clip.
        row: of it in its split.
        start: seconds of the film, on the border of a frame.
        end: the same; the next one's start.
        fades: in, over the one before; else it is cut in.
    """

    video_id: str
    row: int
    start: float
    end: float
    fades: bool


@dataclass(frozen=True)
class Film:
    """What a film shows.

    Args:
        split: of emoji9, whose clips it shows.
        number: in its split.
        size: width and height in pixels.
        rate: frames a second.
        seed: of the corpus.
        showings: in their order, without a gap.
    """

    split: str
    number: int
    size: tuple[int, int]
    rate: int
    seed: int
    showings: Sequence[Showing]

    @property
    def name(self) -> str:
        """Path in `films/`; every fourth film is an mkv with its subtitles inside."""
        is_fourth = (self.number + SPLITS.index(self.split)) % 4 == 1
        return f"{self.split}/film{self.number:03d}.{'mkv' if is_fourth else 'mp4'}"

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.showings[-1].end

    def generator(self, *what: int) -> np.random.Generator:
        """Of draws that depend on the seed, the film and `what` alone."""
        return np.random.default_rng((self.seed, SPLITS.index(self.split), self.number, *what))


Cue = tuple[float, float, str]  # start and end in seconds, text


def plan(split: str, ids: Sequence[str], copies: int, seed: int = 0) -> list[Film]:
    """The films of a split: each clip is shown `copies` times, and a few once more to fill the last film.

    Args:
        split: of emoji9.
        ids: of its clips, in the order of its rows.
        copies: of each.
        seed: of every draw.
    """
    generator = np.random.default_rng((seed, SPLITS.index(split)))
    order = [int(row) for _ in range(copies) for row in generator.permutation(len(ids))]
    films: list[Film] = []
    while order:
        rate = int(generator.choice(RATES))
        size = SIZES[generator.integers(len(SIZES))]
        # Most are short: an epoch of pre-training takes one window of each film, so many films make a large batch.
        wanted = SHORTEST + (LONGEST - SHOWN[1] - SHORTEST) * generator.random() ** 10
        frames, borders, rows = 0, [0], []
        while frames < wanted * rate:
            rows.append(order.pop() if order else int(generator.integers(len(ids))))
            frames += round(rate * generator.uniform(*SHOWN))
            borders.append(frames)
        fades = generator.permutation(np.arange(len(rows)) % 2 == 0)
        spans = zip(rows, pairwise(borders), fades, strict=True)
        showings = [
            Showing(ids[row], row, first / rate, last / rate, bool(fade)) for row, (first, last), fade in spans
        ]
        films.append(Film(split, len(films), size, rate, seed, showings))
    return films


def cues_of(film: Film, language: str, keywords: Sequence[Sequence[str]]) -> list[Cue]:
    """A film's subtitles in a language, in the order of their starts.

    Args:
        film: that they are of.
        language: of `LANGUAGES`.
        keywords: of each clip of the split in that language.
    """
    generator = film.generator(1, LANGUAGES.index(language))
    cues: list[Cue] = []
    open_cue: Cue | None = None  # waits to be joined with the next
    for showing in film.showings:
        words = keywords[showing.row]
        chosen = generator.choice(len(words), min(len(words), int(generator.integers(1, 4))), replace=False)
        text = ", ".join(words[index] for index in chosen)
        shift, fate = generator.uniform(-SHIFT, SHIFT), generator.random()
        start, end = (min(max(time + shift, 0.0), film.seconds) for time in (showing.start, showing.end))
        if fate < MISSING:
            cues += [open_cue] if open_cue else []
            open_cue = None
            continue
        if open_cue is not None:
            start, end, text = min(open_cue[0], start), max(open_cue[1], end), f"{open_cue[2]}\n{text}"
        open_cue = (start, end, text) if fate > 1 - JOINED and open_cue is None else None
        if open_cue is None:
            cues.append((start, end, text))
    return sorted([*cues, open_cue] if open_cue else cues)


# -- pixels and sound -------------------------------------------------------------------------------------------------


def cut_out(frame: Image.Image) -> Image.Image:
    """A frame of emoji9 without the white around the drawing; white inside it stays."""
    pixels = np.asarray(frame)
    white = (pixels > 245).all(axis=2)
    outside = np.zeros_like(white)
    for axis in (0, 1):  # all that a straight line from a border reaches; the rest grows from there
        outside |= np.logical_and.accumulate(white, axis)
        outside |= np.flip(np.logical_and.accumulate(np.flip(white, axis), axis), axis)
    while True:
        grown = outside.copy()
        grown[1:] |= outside[:-1]
        grown[:-1] |= outside[1:]
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown &= white
        if (grown == outside).all():
            break
        outside = grown
    return Image.fromarray(np.dstack([pixels, np.where(outside, 0, 255).astype(np.uint8)]))


class Scene:
    """A clip before its background: pixels of any moment of a showing.

    Args:
        frames: of the clip, cut out.
        size: width and height of the film.
        generator: draws place, size, speed and background.
    """

    def __init__(self, frames: Sequence[Image.Image], size: tuple[int, int], generator: np.random.Generator):
        width, height = size
        side = round(height * generator.uniform(0.55, 0.8))
        # Within the square in the middle, which is what an encoder sees of a film.
        self.left = (width - height) // 2 + int(generator.integers(height // 12, height - side - height // 12 + 1))
        self.top = int(generator.integers(0, height - side + 1))
        cut = [np.asarray(frame.resize((side, side), Image.Resampling.BILINEAR), np.uint16) for frame in frames]
        self.drawn = [frame[..., :3] * frame[..., 3:] for frame in cut]
        self.clear = [255 - frame[..., 3:] for frame in cut]
        self.speed, self.drift = generator.uniform(5, 10), int(generator.integers(-24, 25))
        self.background = background(size, generator)

    def pixels(self, seconds: float) -> np.ndarray:
        """`(height, width, 3)` uint8, so many seconds after it began."""
        picture = np.roll(self.background, int(self.drift * seconds), axis=1)
        number = int(self.speed * seconds) % len(self.drawn)
        drawn, clear = self.drawn[number], self.clear[number]
        place = picture[self.top : self.top + len(drawn), self.left : self.left + len(drawn)]
        place[:] = (drawn + place * clear) // 255
        return picture


def background(size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """`(height, width, 3)` uint8: waves between two colours, with grain; it goes on at the other side."""
    width, height = size
    colours = generator.uniform(0, 255, (2, 3))
    waves, slope = int(generator.integers(1, 4)), generator.uniform(-2, 2)
    y, x = np.mgrid[:height, :width]
    share = 0.5 + 0.5 * np.sin(2 * np.pi * (waves * x / width + slope * y / height))
    grain = generator.normal(0, 6, (height, width, 1))
    return np.clip(colours[0] + share[..., None] * (colours[1] - colours[0]) + grain, 0, 255).astype(np.uint8)


def frames_in(film: Film, clips: Dataset) -> Iterator[np.ndarray]:
    """Every frame of a film."""
    before: Scene | None = None
    began = 0.0
    for number, showing in enumerate(film.showings):
        cut = [cut_out(frame) for frame in frames_of(clips[showing.row])]
        scene = Scene(cut, film.size, film.generator(2, number))
        for frame in range(round((showing.end - showing.start) * film.rate)):
            seconds = frame / film.rate
            pixels = scene.pixels(seconds)
            if before is not None and showing.fades and seconds < FADE:
                share, old = (seconds + 0.5 / film.rate) / FADE, before.pixels(showing.start - began + seconds)
                pixels = (share * pixels + (1 - share) * old).astype(np.uint8)
            yield pixels
        before, began = scene, showing.start


def tone(showing: Showing, generator: np.random.Generator) -> np.ndarray:
    """`(1, samples)` float32: a quiet tone while a clip is shown."""
    times = np.arange(round((showing.end - showing.start) * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.1 * np.sin(2 * np.pi * generator.uniform(150, 900) * times)).astype(np.float32)[None]


# -- files ------------------------------------------------------------------------------------------------------------


def write_film(film: Film, path: Path, clips: Dataset, inside: Mapping[str, Sequence[Cue]]) -> None:
    """Encode a film, H.264 and AAC, with subtitles inside it by their language's tag."""
    file_format = "matroska" if film.name.endswith("mkv") else "mp4"
    with av.open(str(path), "w", format=file_format, options={"fflags": "+bitexact"}) as out:
        video = out.add_stream("libx264", rate=film.rate, options={"preset": "veryfast", "g": str(4 * film.rate)})
        video.width, video.height, video.pix_fmt, video.codec_context.thread_count = *film.size, "yuv420p", 1
        audio = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        streams = []
        for tag in inside:
            streams.append(out.add_mux_stream("subrip"))
            streams[-1].metadata["language"], streams[-1].time_base = tag, Fraction(1, 1000)
        waiting = sorted((*cue, number) for number, cues in enumerate(inside.values()) for cue in cues)
        frames, written, samples = frames_in(film, clips), 0, 0
        for number, showing in enumerate(film.showings):
            while waiting and waiting[0][0] < showing.end:
                start, end, text, stream = waiting.pop(0)
                out.mux(text_packet(start, end, text, streams[stream]))
            sound = av.AudioFrame.from_ndarray(tone(showing, film.generator(3, number)), "fltp", "mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, samples, Fraction(1, SAMPLE_RATE)
            out.mux(audio.encode(sound))
            samples += sound.samples
            while written < round(showing.end * film.rate):
                picture = av.VideoFrame.from_ndarray(next(frames), format="rgb24")
                picture.pts, written = written, written + 1
                out.mux(video.encode(picture))
        out.mux(video.encode())
        out.mux(audio.encode())


def text_packet(start: float, end: float, text: str, stream: Any) -> av.Packet:
    """A cue as a packet of a text stream."""
    packet = av.Packet(text.encode())
    packet.stream, packet.time_base = stream, Fraction(1, 1000)
    packet.pts = packet.dts = round(1000 * start)
    packet.duration = round(1000 * (end - start))
    return packet


def write_subtitles(path: Path, cues: Sequence[Cue]) -> None:
    """A file of the format that its ending names."""
    events = [pysubs2.SSAEvent(round(1000 * start), round(1000 * end), text) for start, end, text in cues]
    for event in events:
        event.text = event.text.replace("\n", r"\N")
    subtitles = pysubs2.SSAFile()
    subtitles.events = events
    with writing_file(path) as partial:
        partial.write_text(subtitles.to_string(path.suffix[1:]), encoding="utf-8")


@cache
def clips_of(split: str) -> Dataset:
    """emoji9's clips of a split, once a process."""
    return read_split("emoji9", None, split)


def make(film: Film, folder: Path) -> str:
    """Write a film and its subtitles, unless it is there; returns its name."""
    path = folder / film.name
    if not path.is_file():
        clips = clips_of(film.split)
        cues = {language: cues_of(film, language, clips[f"keywords_{language}"]) for language in LANGUAGES}
        inside = dict(zip(TAGS, cues.values(), strict=True)) if path.suffix == ".mkv" else {}
        for language in LANGUAGES if not inside else ():
            ending = "vtt" if film.generator(4, LANGUAGES.index(language)).random() < VTT else "srt"
            write_subtitles(path.with_suffix(f".{language}.{ending}"), cues[language])
        with writing_file(path) as partial:
            write_film(film, partial, clips, inside)
    return film.name


def write_captions(path: Path, films: Sequence[Film], names: Mapping[str, Sequence[str]]) -> None:
    """`captions.csv`: where each clip is first shown in the films of training and validation, and its English name."""
    with writing_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video_id", "file_name", "start", "end", "split", "language", "caption"])
        captioned: set[str] = set()
        for film in films:
            for showing in film.showings:
                if film.split == "test" or showing.video_id in captioned:
                    continue
                captioned.add(showing.video_id)
                times = [f"{time:.3f}" for time in (showing.start, showing.end)]
                name = f"{Path(film.name).with_suffix('')}@{times[0]}"
                table.writerow([name, film.name, *times, film.split, "en", names[film.split][showing.row]])


def write_truth(path: Path, truth: Mapping[str, Any]) -> None:
    """`truth.json`, unless it is there.

    Raises:
        InputError: it is of other films, which would be kept.
    """
    if not path.is_file():
        write_json(path, truth)
    elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(truth)):
        raise InputError(f"{path}: of films of another seed, size or share; choose another folder, or delete this one")


def clips_shown(split: str, small: bool = False, share: float = 1.0) -> list[str]:
    """The ids of the clips that a split's films show: the first of its rows."""
    ids = clips_of(split)["video_id"][:]
    return ids[: SMALL_CLIPS if small else round(share * len(ids)) if split == "train" else None]


def make_corpus(output_dir: Path, small: bool = False, seed: int = 0, jobs: int = 1, share: float = 1.0) -> list[Film]:
    """Write `films/`, with `captions.csv`, and `truth.json`.

    Args:
        output_dir: that they lie in.
        small: three films for tests.
        seed: of every draw.
        jobs: films at a time.
        share: of the training clips that is shown; less than 1 for a run of less time.
    """
    films: list[Film] = []
    for split in SPLITS:
        films += plan(split, clips_shown(split, small, share), 1 if small else COPIES[split], seed)
    write_truth(output_dir / "truth.json", {"seed": seed, "films": {film.name: asdict(film) for film in films}})
    names = {split: clips_of(split)["name_en"][:] for split in SPLITS}
    write_captions(output_dir / "films" / "captions.csv", films, names)
    with ProcessPoolExecutor(jobs) as pool:
        for number, name in enumerate(pool.map(make, films, [output_dir / "films"] * len(films)), start=1):
            print(f"[{number}/{len(films)}] {name}", flush=True)
    return films


def main(argv: Sequence[str] | None = None) -> None:
    """Make the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs") / "film9")
    parser.add_argument("--small", action="store_true", help="three films of three minutes")
    parser.add_argument("--share", type=float, default=1.0, help="of the training clips (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="films at a time")
    arguments = parser.parse_args(argv)
    films = make_corpus(arguments.output_dir, arguments.small, arguments.seed, arguments.jobs, arguments.share)
    hours = {split: sum(film.seconds for film in films if film.split == split) / 3600 for split in SPLITS}
    print(json.dumps({"films": len(films), "hours": {split: round(value, 2) for split, value in hours.items()}}))


if __name__ == "__main__":
    main()
