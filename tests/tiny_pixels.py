"""The tiny corpus from pixels: its clips are mp4s, GIFs, PNGs and folders of frames, colours and shapes made here."""

import json

import datasets
import numpy as np
import torch
from PIL import Image
from tiny_corpus import SPLITS, write_split
from tiny_vision import LITE
from video_files import write_video

from modeling_mmt import EfficientNetLiteConfig, EfficientNetLiteModel

SIDE, FRAMES = 16, 3
PIXELS = {"data.features": [], "data.video_column": "video", "model.num_frames": FRAMES}
PALETTE = np.random.default_rng(5).integers(0, 256, (8, 3))


def frames_of_clip(number, words):
    """`(6, 24, 24, 3)` uint8: a square of the colour, at a place that the animal tells and that moves."""
    frames = np.full((6, 24, 24, 3), 255, np.uint8)
    for moment, frame in enumerate(frames):
        top, left = divmod(3 * words[1], 12)
        frame[top : top + 8, left + moment : left + moment + 8] = PALETTE[words[0]]
    return frames


def build_pixels(corpus):
    """The corpus with a column of files: an mp4, a GIF, a PNG or a folder of frames; and a vision encoder."""
    folder = corpus / "pixels"
    (folder / "clips").mkdir(parents=True)
    for split in SPLITS:
        rows = datasets.load_dataset(str(corpus / "corpus"), split=split).to_list()
        for row in rows:
            number = int(row["video_id"].removeprefix("clip-"))
            frames = frames_of_clip(number, (hash_of(row["keywords_en"][0]), hash_of(row["keywords_en"][1])))
            row["video"] = f"clips/{write_clip(folder / 'clips', number, frames)}"
        write_split(folder, split, rows)
    torch.manual_seed(0)
    EfficientNetLiteModel(EfficientNetLiteConfig(**LITE)).save_pretrained(corpus / "lite")
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIDE, "width": SIDE}}
    (corpus / "lite" / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def hash_of(word):
    return sum(word.encode()) % 8


def write_clip(folder, number, frames):
    kind = ("mp4", "gif", "png", "frames")[number % 4]
    path = folder / f"{number}.{kind}"
    pictures = [Image.fromarray(frame) for frame in frames]
    if kind == "mp4":
        write_video(path, list(frames))
    elif kind == "gif":
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    elif kind == "png":
        pictures[0].save(path)
    else:
        path.mkdir()
        for moment, picture in enumerate(pictures):
            picture.save(path / f"{moment}.png")
    return path.name
