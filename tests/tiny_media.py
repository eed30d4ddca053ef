"""A folder of media whose frames say their number, checkpoints that look at it, and an index's content to compare."""

import json

from conftest import build_config, build_processor, build_text_config, randomize
from PIL import Image
from tiny_vision import LITE, SIDE, vision_model, vision_processor
from video_files import number_frame, write_video

from modeling_mmt import (
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    MMTModel,
    MMTProcessor,
    MMTVideoFeatureExtractor,
)
from modeling_mmt.extraction.workers import CallFailedError
from modeling_mmt.search.index import SearchIndex

RATE = 4  # frames a second of the films


def write_film(path, seconds, first=0):
    """A film of so many seconds, of frames `first`, `first + 1`, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, [number_frame((first + n) % 256) for n in range(int(seconds * RATE))], rate=RATE)


def write_picture(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(number_frame(number)).save(path, "PNG")
    return path


def write_animation(path, num_frames=10, first=100):
    """Half a second a frame."""
    frames = [Image.fromarray(number_frame(first + number)) for number in range(num_frames)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
    return path


def build_media(folder):
    """Films of 13, 3 and 21 seconds, an animation of 5, two pictures, and a file that is none."""
    write_film(folder / "a.mp4", 13)
    write_film(folder / "kitchen" / "kettle.mp4", 3, first=60)
    write_film(folder / "z.mkv", 21, first=80)
    write_animation(folder / "cat.gif")
    write_picture(folder / "kitchen" / "cup.png", 7)
    write_picture(folder / "photo.png", 200)
    (folder / "broken.mp4").write_bytes(b"no film at all")
    return folder


def save_pixel_checkpoint(folder, seed=0):
    """A model that looks at pixels."""
    model = randomize(vision_model(), seed, sharpness=2).eval()
    model.save_pretrained(folder)
    vision_processor(model).save_pretrained(folder)
    return folder


def save_encoder(folder):
    """A vision encoder."""
    randomize(EfficientNetLiteModel(EfficientNetLiteConfig(**LITE))).save_pretrained(folder)
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_feature_checkpoint(folder):
    """A model of features of `save_encoder`'s width."""
    width = LITE["hidden_size"]
    randomize(MMTModel(build_config(build_text_config(), video_feature_dims=[width]))).save_pretrained(folder)
    tokenizer = build_processor().tokenizer
    MMTProcessor(MMTVideoFeatureExtractor(width, 12), tokenizer).save_pretrained(folder)
    return folder


class InThisProcess:
    """A pool of no processes."""

    num_workers = 1

    def __init__(self, read, num_workers=1, timeout=0):
        self.read = read

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, calls, ahead):
        for call in calls:
            try:
                yield self.read(call)
            except (ValueError, OSError) as error:
                yield CallFailedError(str(error))


def content_of(folder):
    """video_id -> its embedding's bytes, place in time and thumbnail; an index is what it answers with."""
    index = SearchIndex.load(folder)
    rows = zip(index.clips.to_list(), index.embeddings.numpy(), index.thumbnails, strict=True)
    return {
        row["video_id"]: (row["file"], row["start"], row["end"], values.tobytes(), jpeg) for row, values, jpeg in rows
    }


def vectors_of(folder):
    """video_id -> embedding."""
    index = SearchIndex.load(folder)
    return dict(zip(index.clips["video_id"], index.embeddings.numpy(), strict=True))
