"""emoji_motion: pairs of real mp4 clips that only time tells apart, with captions in nine languages.

    mmt build emoji_motion --output_dir data/emoji_motion
    load_dataset("data/emoji_motion/motion", split="test")  # or order, or playback

Made from emoji9's clips, each split from its own concepts, without country flags. A clip and its *twin* have the same
frames in another order, and their captions say which is which:

    order     emoji A for a second, then B; the twin: B, then A              "1. dog 2. kite"
    motion    an emoji moves right or down; the twin: the same way back      "kite — to the right"
    playback  the loop of an animated emoji; the twin: the loop in reverse   "dog — reverse playback"

Clips are H.264, 128 x 128 pixels, 12 frames a second, 2 seconds. Every frame is a key frame at constant quality, so
its pixels after decoding depend on the picture alone: a twin's decoded frames are the clip's, to the bit, and neither
a mean over frames nor the codec's traces can tell them apart. Eight samples at the centres of eight equal parts are
the same frames in both, too.

The names are free noun phrases, and to put one into a sentence would need its gender and case. So no caption does: an
order is a numbered list, a motion an adverbial of place behind a dash, a playback a noun behind a dash; none agrees
with the name. The fixed words were written for this corpus and not reviewed by native speakers of all nine languages.
"""

import argparse
import json
import math
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import yaml
from PIL import Image

from datasets_scripts.corpus import CARD, building
from datasets_scripts.emoji9 import LICENCE_FILES, SPLITS
from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.files import write_text, writing_folder
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split
from modeling_mmt.data.wording import counted

SIZE = 128  # pixels, of a clip
MOVING_SIZE = 64  # pixels, of an emoji that moves
MIN_DISTANCE = 40  # pixels that it moves, up to SIZE - MOVING_SIZE
FRAMES_PER_SECOND, NUM_FRAMES = 12, 24
QUANTIZER = 20  # of H.264; 0 is lossless, 51 the worst
ASYMMETRY = 0.5  # least difference of a loop from its reverse, in steps of the loop
KINDS = ("order", "motion", "playback")
METADATA = "metadata.jsonl"  # as `datasets`' videofolder names it
WORDS: dict[str, dict[str, str]] = {
    "left": {
        "en": "to the left", "de": "nach links", "fr": "vers la gauche", "cs": "doleva", "zh": "向左",
        "ru": "влево", "vi": "sang trái", "sw": "kuelekea kushoto", "es": "hacia la izquierda",
    },
    "right": {
        "en": "to the right", "de": "nach rechts", "fr": "vers la droite", "cs": "doprava", "zh": "向右",
        "ru": "вправо", "vi": "sang phải", "sw": "kuelekea kulia", "es": "hacia la derecha",
    },
    "up": {
        "en": "upwards", "de": "nach oben", "fr": "vers le haut", "cs": "nahoru", "zh": "向上",
        "ru": "вверх", "vi": "lên trên", "sw": "kuelekea juu", "es": "hacia arriba",
    },
    "down": {
        "en": "downwards", "de": "nach unten", "fr": "vers le bas", "cs": "dolů", "zh": "向下",
        "ru": "вниз", "vi": "xuống dưới", "sw": "kuelekea chini", "es": "hacia abajo",
    },
    "normal": {
        "en": "normal playback", "de": "normale Wiedergabe", "fr": "lecture normale", "cs": "normální přehrávání",
        "zh": "正常播放", "ru": "обычное воспроизведение", "vi": "phát bình thường", "sw": "uchezaji wa kawaida",
        "es": "reproducción normal",
    },
    "reverse": {
        "en": "reverse playback", "de": "Rückwärtswiedergabe", "fr": "lecture inversée", "cs": "zpětné přehrávání",
        "zh": "倒放", "ru": "обратное воспроизведение", "vi": "phát ngược", "sw": "uchezaji wa kinyume",
        "es": "reproducción inversa",
    },
}  # fmt: skip
AXES = (("left", "right"), ("up", "down"))

Clip = tuple[dict[str, Any], list[Image.Image]]  # its row, its NUM_FRAMES frames


def order_caption(first: str, second: str) -> str:
    """Two names as a numbered list."""
    return f"1. {first} 2. {second}"


def labelled_caption(name: str, word: str, language: str) -> str:
    """A name, a dash (in Chinese the double one, without spaces) and a word of `WORDS`."""
    return f"{name}{'——' if language == 'zh' else ' — '}{WORDS[word][language]}"


def row_of(kind: str, what: str, twin: str, concepts: Sequence[str], captions: Mapping[str, str]) -> dict[str, Any]:
    """A clip's row; `what` and `twin` end its id and its twin's."""
    name = "_".join([kind, *concepts[:1]])
    row = {"video_id": f"{name}_{what}", "twin": f"{name}_{twin}", "kind": kind, "concepts": list(concepts)}
    if kind == "order":
        row |= {"video_id": f"{kind}_{what}_{twin}", "twin": f"{kind}_{twin}_{what}"}
    return row | {f"caption_{language}": text for language, text in captions.items()}


def order_pair(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Clip]:
    """A then B, and B then A; an animated emoji plays its whole loop in its second."""
    half = NUM_FRAMES // 2
    shown = {}
    for emoji in (a, b):
        frames = [frame.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for frame in frames_of(emoji)]
        shown[emoji["video_id"]] = [frames[step * len(frames) // half] for step in range(half)]
    for first, second in ((a, b), (b, a)):
        captions = {lang: order_caption(first[f"name_{lang}"], second[f"name_{lang}"]) for lang in LANGUAGES}
        ids = [first["video_id"], second["video_id"]]
        yield row_of("order", ids[0], ids[1], ids, captions), shown[ids[0]] + shown[ids[1]]


def motion_pair(emoji: Mapping[str, Any], generator: random.Random) -> Iterator[Clip]:
    """An emoji, standing still in itself, that moves along a random axis at a random place and speed; and back."""
    axis = generator.randrange(2)
    room = SIZE - MOVING_SIZE
    distance = generator.randint(MIN_DISTANCE, room)
    start, aside = generator.randint(0, room - distance), generator.randint(0, room)
    picture = frames_of(emoji)[0].resize((MOVING_SIZE, MOVING_SIZE), Image.Resampling.BICUBIC)
    frames = []
    for step in range(NUM_FRAMES):
        along = start + round(distance * step / (NUM_FRAMES - 1))
        frame = Image.new("RGB", (SIZE, SIZE), "white")
        frame.paste(picture, (along, aside) if axis == 0 else (aside, along))
        frames.append(frame)
    yield from labelled_pair("motion", emoji, AXES[axis][::-1], frames)  # right and down are the ways that grow


def playback_pair(emoji: Mapping[str, Any], generator: random.Random) -> Iterator[Clip]:
    """A loop from a random frame on, so that no end shows the pose at rest; and in reverse."""
    frames = [frame.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for frame in frames_of(emoji)]
    phase = generator.randrange(len(frames))
    frames = frames[phase:] + frames[:phase]
    shown = [frames[step * len(frames) // NUM_FRAMES] for step in range(NUM_FRAMES)]
    yield from labelled_pair("playback", emoji, ("normal", "reverse"), shown)


def labelled_pair(
    kind: str, emoji: Mapping[str, Any], words: Sequence[str], frames: list[Image.Image]
) -> Iterator[Clip]:
    """The frames under the first word, and reversed under the second."""
    for word, twin, shown in ((words[0], words[1], frames), (words[1], words[0], frames[::-1])):
        captions = {lang: labelled_caption(emoji[f"name_{lang}"], word, lang) for lang in LANGUAGES}
        yield row_of(kind, word, twin, [emoji["video_id"]], captions), shown


def asymmetry(emoji: Mapping[str, Any]) -> float:
    """How far a loop is from its own reverse at the best phase, in units of its mean step; 0 for a still emoji.

    0 too for a pendulum, whose reverse is the same loop begun elsewhere: no caption could tell its twins apart.
    """
    loop = np.stack([np.asarray(frame, dtype=np.float32) for frame in frames_of(emoji)])
    steps = np.abs(loop - np.roll(loop, -1, axis=0)).mean()
    reverse = loop[::-1]
    nearest = min(np.abs(loop - np.roll(reverse, shift, axis=0)).mean() for shift in range(len(loop)))
    return float(nearest / steps) if steps else 0.0


def pairs_of(kind: str, emojis: datasets.Dataset, seed: str, max_pairs: int | None = None) -> Iterator[Iterator[Clip]]:
    """A split's pairs of a kind, at most `max_pairs`; a concept is in one of them or in none.

    Left out are what is beyond `max_pairs`, the odd concept of the orders, and loops that equal their reverse.
    """
    order = random.Random(seed).sample(range(len(emojis)), len(emojis))
    shuffled = (emojis[row] for row in order)  # a strip is decoded when it is drawn
    pairs: dict[str, Iterator[Iterator[Clip]]] = {
        "order": (order_pair(emojis[order[i]], emojis[order[i + 1]]) for i in range(0, len(order) - 1, 2)),
        "motion": (motion_pair(emoji, random.Random(f"{seed} {emoji['video_id']}")) for emoji in shuffled),
        "playback": (
            playback_pair(emoji, random.Random(f"{seed} {emoji['video_id']}"))
            for emoji in shuffled
            if asymmetry(emoji) >= ASYMMETRY
        ),
    }
    return islice(pairs[kind], max_pairs)


def write_clip(path: str | Path, frames: Sequence[Image.Image]) -> None:
    """Writes an H.264 mp4 whose frames are coded each by itself: `(SIZE, SIZE)` RGB, `FRAMES_PER_SECOND`.

    The bytes are the same for the same frames and version of x264.
    """
    options = {"qp": str(QUANTIZER), "g": "1", "preset": "veryfast"}  # g: distance of key frames
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_split(folder: Path, clips: Iterable[Clip]) -> int:
    """Writes the clips and `metadata.jsonl` of a folder, which appears whole or not at all; returns their number."""
    count = 0
    with writing_folder(folder, replace=True) as partial, open(partial / METADATA, "w", encoding="utf-8") as metadata:
        for count, (row, frames) in enumerate(clips, start=1):  # noqa: B007
            name = f"{row['video_id']}.mp4"
            write_clip(partial / name, frames)
            metadata.write(json.dumps({"file_name": name, **row}, ensure_ascii=False) + "\n")
    return count


def build(
    output_dir: str | Path,
    dataset: str | Path = "emoji9",
    seed: int = 0,
    max_pairs: int | None = None,
) -> dict[str, int]:
    """Renders all clips and writes them with their captions, as `datasets` loads them, and a card.

    Args:
        output_dir: `<kind>/<split>/<video_id>.mp4` and `<kind>/<split>/metadata.jsonl`; these are replaced.
        dataset: folder or Hub name of emoji9.
        seed: of the pairs, ways and phases.
        max_pairs: of each kind in each split; None for all that there are.

    Returns:
        {split: number of clips}.
    """
    output_dir = Path(output_dir)
    counts: dict[str, dict[str, int]] = {}
    with building(output_dir):
        (output_dir / CARD).unlink(missing_ok=True)  # which tells of what is replaced now
        for split in SPLITS:
            rows = read_split(str(dataset), None, split)
            emojis = rows.select([row for row, is_flag in enumerate(rows["is_flag"]) if not is_flag])
            counts[split] = {}
            for kind in KINDS:
                pairs = pairs_of(kind, emojis, f"{seed} {split}", max_pairs)
                counts[split][kind] = write_split(output_dir / kind / split, (clip for pair in pairs for clip in pair))
        for licence in LICENCE_FILES:
            shutil.copyfile(Path(__file__).parent / "emoji9" / licence, output_dir / licence)
        write_text(output_dir / CARD, card(counts, seed, max_pairs))
    return {split: sum(of_kind.values()) for split, of_kind in counts.items()}


def card(counts: Mapping[str, Mapping[str, int]], seed: int, max_pairs: int | None) -> str:
    """The dataset card."""
    metadata = {
        "pretty_name": "emoji_motion: clips that only time tells apart",
        "language": list(LANGUAGES),
        "license": "other",
        "license_name": "mit-and-unicode-3.0",
        "license_link": "LICENSE-Unicode-3.0.txt",
        "task_categories": ["text-to-video"],
        "multilinguality": ["multilingual"],
        "tags": ["text-to-video-retrieval", "emoji", "temporal-order"],
    }
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    assert __doc__ is not None
    head, _, about = __doc__.partition("\n\n")
    command, _, about = about.partition("\n\n")
    table = ["| split | " + " | ".join(KINDS) + " |", "| --- |" + " ---: |" * len(KINDS)]
    table += [f"| {split} | " + " | ".join(f"{of[kind]:,}" for kind in KINDS) + " |" for split, of in counts.items()]
    most = "all" if max_pairs is None else f"at most {max_pairs}"
    words = ["| | " + " | ".join(LANGUAGES) + " |", "| --- |" + " --- |" * len(LANGUAGES)]
    words += [f"| {word} | " + " | ".join(of[lang] for lang in LANGUAGES) + " |" for word, of in WORDS.items()]
    columns = (
        "`video` (the mp4), `video_id`, `twin` (its twin's `video_id`), `kind`, `concepts` (`video_id`s of emoji9), "
        "`caption_<language>`."
    )
    return "\n\n".join(
        [
            f"---\n{front}---\n\n# {head}",
            about.strip(),
            "## Clips\n\n" + "\n".join(table) + f"\n\nColumns: {columns}",
            f"A loop is left out of `playback` where it is its own reverse begun elsewhere (`ASYMMETRY` {ASYMMETRY}).",
            "## Fixed words\n\n" + "\n".join(words),
            f"## Where it comes from\n\nMade by\n\n{command}\n\nwith seed {seed}, {most} pairs of a kind in a split, "
            f"PyAV {av.__version__}. Pictures: Fluent Emoji, (c) Microsoft Corporation, MIT. Names: Unicode CLDR, "
            "(c) Unicode, Inc., Unicode-3.0. See emoji9's card.",
            "## Limits\n\nDrawings on white, short and clean: it shows whether a model can use the order of frames at "
            "all, not how well it understands real motion.",
        ]
    ) + "\n"  # fmt: skip


def sample_steps(num_samples: int) -> list[int]:
    """Frames of a clip that are shown at the centres of `num_samples` equal parts of it."""
    return [math.floor((part + 0.5) * NUM_FRAMES / num_samples) for part in range(num_samples)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `build`."""
    parser.add_argument("--output_dir", required=True, type=Path, help="of the clips; its splits are replaced")
    parser.add_argument("--dataset", default="emoji9", help="folder or Hub name of emoji9")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs, ways and phases")
    parser.add_argument("--max_pairs", type=int, help="of each kind in each split; all by default")


def run(arguments: argparse.Namespace) -> dict[str, int]:
    """Builds the dataset; returns the number of clips of each split."""
    counts = build(arguments.output_dir, arguments.dataset, arguments.seed, arguments.max_pairs)
    for split, count in counts.items():
        print(f"{split}: {counted(count, 'clip')}")
    return counts
