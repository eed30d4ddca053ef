"""Small corpora in the official formats: what the builders read, with words of the tiny encoder's vocabulary."""

import gzip
import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pysubs2
from av.stream import Disposition
from PIL import Image

NINE = ("en", "de", "fr", "cs", "zh", "ru", "vi", "sw", "es")
COLOURS = ["red", "green", "blue", "white", "black", "grey", "brown", "pink"]
ANIMALS = ["dog", "cat", "horse", "bird", "fish", "snake", "mouse", "whale"]


def caption(number: int, language: str, variant: int = 0) -> str:
    """A caption of clip `number`: its two English words, marked by language and variant."""
    words = f"{COLOURS[number % 8]} {ANIMALS[number // 8 % 8]}"
    return f"{words} {language}" + (f" {variant}" if variant else "")


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_gz(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def multi30k(folder: Path, sizes: dict[str, int] | None = None) -> list[str]:
    """Both tasks; returns the ids. Task 1's English caption is variant 2 of task 2, as in the real files."""
    sizes = sizes or {"train": 8, "val": 3, "test_2016_flickr": 3}
    ids, start = [], 0
    for name, size in sizes.items():
        numbers = range(start, start + size)
        start += size
        images = [f"{1000 + number}.jpg" for number in numbers]
        ids += [image.removesuffix(".jpg") for image in images]
        task2, listed = {"train": ("train", "train_images"), "val": ("val", "val_images")}.get(
            name, ("test_2016", "test_2016_images")
        )
        (folder / "data/task1/image_splits").mkdir(parents=True, exist_ok=True)
        (folder / "data/task2/image_splits").mkdir(parents=True, exist_ok=True)
        (folder / f"data/task1/image_splits/{name}.txt").write_text("\n".join(images) + "\n")
        (folder / f"data/task2/image_splits/{listed}.txt").write_text("\n".join(images) + "\n")
        for language in ("en", "de", "fr", "cs"):
            variant = 2 if language == "en" else 0
            lines = [caption(number, language, variant) for number in numbers]
            write_gz(folder / f"data/task1/raw/{name}.{language}.gz", lines)
        for language in ("en", "de"):
            for variant in range(1, 6):
                lines = [caption(number, language, variant) for number in numbers]
                write_gz(folder / f"data/task2/raw/{task2}.{variant}.{language}.gz", lines)
    return ids


def msrvtt(folder: Path, sizes=(8, 3, 6), num_pairs: int = 4, languages=NINE) -> list[str]:
    """`MSRVTT_data.json`, 1k-A's CSV of the first `num_pairs` test clips, and the nine-language files."""
    splits = [split for split, size in zip(("train", "validate", "test"), sizes, strict=True) for _ in range(size)]
    ids = [f"video{number}" for number in range(len(splits))]
    videos = [{"video_id": v, "split": s, "url": "https://example.org"} for v, s in zip(ids, splits, strict=True)]
    sentences = [
        {"video_id": video_id, "caption": caption(number, "en", variant)}
        for number, video_id in enumerate(ids)
        for variant in range(3)
    ]
    write_json(folder / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    tested = [(number, video_id) for number, video_id in enumerate(ids) if splits[number] == "test"][:num_pairs]
    rows = [f"ret{i},msr{n},{v},{caption(n, 'en', 1)}" for i, (n, v) in enumerate(tested)]
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,vid_key,video_id,sentence", *rows]) + "\n")
    for language in languages:
        of_test = {f"{v}.mp4": [caption(n, language), caption(n, language, 1)] for n, v in tested}
        write_json(folder / f"multilingual_test/test_{language}.json", of_test)
        others = {
            f"{v}.mp4": [caption(n, language, k) for k in range(2)] for n, v in enumerate(ids) if splits[n] != "test"
        }
        write_json(folder / f"multilingual_train/train_{language}.json", others)
    return ids


def vatex_id(number: int) -> str:
    return f"{'abc-_0XYZ'}{number:02d}_{number:06d}_{number + 10:06d}"


def vatex(folder: Path, sizes=(8, 6)) -> list[str]:
    """Training and validation JSON, and HGR's lists of its halves."""
    numbers = iter(range(sum(sizes)))
    ids = []
    for name, size in zip(("vatex_training_v1.0.json", "vatex_validation_v1.0.json"), sizes, strict=True):
        items = []
        for _ in range(size):
            number = next(numbers)
            ids.append(vatex_id(number))
            captions = {
                f: [caption(number, lang, k) for k in range(10)] for f, lang in (("enCap", "en"), ("chCap", "zh"))
            }
            items.append({"videoID": ids[-1]} | captions)
        write_json(folder / name, items)
    held = ids[sizes[0] :]
    (folder / "val_names.txt").write_text("\n".join(held[::2]) + "\n")
    (folder / "tst_names.txt").write_text("\n".join(held[1::2]) + "\n")
    return ids


def how2(folder: Path, num_videos: int = 8, languages=NINE, seed: int = 0) -> list[str]:
    """`how2_<language>.json`, each in an order of its own; every seventh video lacks the last language."""
    generator = np.random.default_rng(seed)
    ids = [f"yt{number:09d}" for number in range(num_videos)]
    for language in languages:
        order = generator.permutation(num_videos)
        videos = {}
        for number in order.tolist():
            if language == languages[-1] and number % 7 == 6:
                continue
            starts = [float(2 * cue) for cue in range(6)]
            texts = [caption(number, language, cue) for cue in range(6)]
            videos[ids[number]] = {"text": texts, "start": starts, "end": [start + 1.5 for start in starts]}
        write_json(folder / f"how2_{language}.json", videos)
    return ids


def storybook(folder: Path, num_stories: int = 40) -> list[str]:
    """Two pages a story."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "IMAGEBANK_CREDITS.md").write_text("credits\n")
    lines, ids = [], []
    for story in range(num_stories):
        for page in (1, 2):
            file = f"images/{story:04d}_{page + 1:02d}.jpg"
            buffer = io.BytesIO()
            Image.new("RGB", (20, 16), (story * 6, 100 * page, 0)).save(buffer, "JPEG")
            (folder / file).write_bytes(buffer.getvalue())
            texts = {language: caption(story, language, page) for language in ("en", "sw")}
            lines.append({"story": f"{story:04d}", "page": page, "file": file, "license": "[CC-BY]", "text": texts})
            ids.append(f"{story:04d}_{page:02d}")
    (folder / "storybook8.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return ids


def photos(folder: Path, num_photos: int = 10) -> list[str]:
    """Photos of a thing that emoji9 trains on, of one that it tests on, and of one whose names are not CLDR's.

    The last two photos of each are near-duplicates: one is a little brighter than the other.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    generator, lines, ids = np.random.default_rng(0), [], []
    for concept, emoji, split, origin in (
        ("accordion", "🪗", "train", "cldr"),
        ("ant", "🐜", "test", "cldr"),
        ("apple", None, None, "omw-wikt"),
    ):
        for number in range(num_photos):
            video_id = f"made-up-{concept}-{number}"
            if number < num_photos - 1:
                coarse = generator.integers(250, size=(8, 9, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse + np.uint8(number == num_photos - 1)).resize(
                (36, 32), Image.Resampling.NEAREST
            )
            picture.save(folder / "images" / f"{video_id}.jpg", "JPEG", quality=95)
            names = {language: f"{concept} {language}" for language in NINE} | {"en": concept}
            line = {"id": video_id, "file": f"images/{video_id}.jpg", "source": "made up", "original": f"{number}.jpg"}
            line |= {"licence": "CC0-1.0", "concept": concept, "emoji": emoji, "emoji9_split": split, "name": names}
            lines.append(line | {"name_source": dict.fromkeys(NINE, origin)})
            ids.append(video_id)
    (folder / "photo9.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return ids


def own(folder: Path, num_clips: int = 9) -> list[str]:
    """`captions.csv` in English and Swahili."""
    folder.mkdir(parents=True, exist_ok=True)
    split = {0: "validation", 1: "test"}
    rows = ["video_id,language,caption,split"]
    for number in range(num_clips):
        for language in ("en", "sw"):
            rows.append(f"own{number},{language},{caption(number, language)},{split.get(number % 5, 'train')}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return [f"own{number}" for number in range(num_clips)]


def subtitled(folder: Path, num_videos: int = 4) -> list[str]:
    """Films of two seconds: English and Portuguese beside each, Swahili inside it."""
    ids = [f"kitchen/film{number}" for number in range(num_videos)]
    for number, video_id in enumerate(ids):
        path = folder / f"{video_id}.mkv"
        path.parent.mkdir(parents=True, exist_ok=True)
        times = [(0.5 * cue, 0.5 * cue + 0.4) for cue in range(3)]
        write_film(path, {"swa": [(*span, caption(number, "sw", cue)) for cue, span in enumerate(times)]})
        for language, ending in (("en", "srt"), ("pt-BR", "vtt")):
            subtitles = pysubs2.SSAFile()
            for cue, (start, end) in enumerate(times):
                text = caption(number, language, cue)
                subtitles.append(pysubs2.SSAEvent(int(1000 * start), int(1000 * end), text))
            subtitles.save(str(path.with_suffix(f".{language}.{ending}")))
    return ids


def write_film(path: Path, texts: dict[str, list[tuple[float, float, str]]], codec: str = "subrip", **flags) -> None:
    """Two seconds of grey with text streams, by their language tag; `flags` are of the streams' dispositions."""
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=5)
        film.width, film.height, film.pix_fmt, film.codec_context.thread_count = 32, 32, "yuv420p", 1
        streams = [container.add_mux_stream(codec) for _ in texts]
        for stream, language in zip(streams, texts, strict=True):
            stream.metadata["language"], stream.time_base = language, Fraction(1, 1000)
            for flag in flags:
                stream.disposition |= getattr(Disposition, flag)
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(film.encode(frame))
        for stream, cues in zip(streams, texts.values(), strict=True):
            for start, end, text in cues:
                data = text.encode()
                packet = av.Packet(len(data).to_bytes(2, "big") + data if codec == "mov_text" else data)
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                packet.pts = packet.dts = round(1000 * start)
                packet.duration = round(1000 * (end - start))
                container.mux(packet)
        container.mux(film.encode())
