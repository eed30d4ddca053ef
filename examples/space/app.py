"""A page to search the bundled clips in any language or by a picture, and to see one clip found in all nine.

    python examples/space/app.py                                  # the checkpoints of `make demo`
    python examples/space/app.py --checkpoint MMP=runs/mine --checkpoint none=owner/name@v1 --port 7861

The page asks its own server for everything, so it works without network.
"""

import argparse
import base64
import html
import io
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported

import gradio as gr
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModel, AutoProcessor

import modeling_mmt  # noqa: F401  registers the model with AutoModel
from modeling_mmt.data.clips import frames_of
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.languages import LANGUAGES
from modeling_mmt.data.reading import read_split
from modeling_mmt.search.index import Hit, SearchIndex

LABELS = {"none": "none_en", "MP": "mp_en", "MMP": "mmp_en"}  # what a checkpoint is called, and its recipe
NAMES = dict(
    zip(
        LANGUAGES,
        ("English", "Deutsch", "Français", "Čeština", "中文", "Русский", "Tiếng Việt", "Kiswahili", "Español"),
        strict=True,
    )
)
EXAMPLES = ["con mèo", "骑自行车的人", "gari la zimamoto", "пожарная машина", "ein lächelndes Gesicht", "قلب بنفسجي"]
TOP, TOP_A_LANGUAGE = 12, 5
MAX_CHARACTERS = 1_000
MAX_PICTURE_SIZE, MAX_PICTURE_PIXELS = "8mb", 2**25  # of a file; and of what it unpacks to, a hundred megabytes
PICTURES = ("PNG", "JPEG", "WEBP", "GIF")
FRAME_MILLISECONDS = 150
USERS_AT_ONCE = 2  # as many as a small Space has cores; each computes with one thread
CSS = """
#query textarea { unicode-bidi: plaintext; text-align: start; }
.mmt .clips { display: flex; flex-wrap: wrap; gap: 12px; list-style: none; padding: 0; margin: 8px 0 20px; }
.mmt .clips li { width: 136px; margin: 0; padding: 4px; border: 1px solid #ddd; border-radius: 8px; background: #fff;
  color: #222; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
.mmt .clips li.right { border: 3px solid #009E73; padding: 2px; }
.mmt .clips img { width: 128px; height: 128px; display: block; margin: 0 auto; }
.mmt .small .clips li { width: 104px; } .mmt .small .clips img { width: 88px; height: 88px; }
.mmt .score { color: #595959; font-variant-numeric: tabular-nums; }
.mmt h3 { margin: 12px 0 4px; font-size: 16px; } .mmt .language { color: #595959; font-weight: normal; }
.mmt .message { padding: 12px; border-left: 4px solid #D55E00; background: #fff4ec; color: #222; }
.mmt .note { color: #595959; font-size: 13px; }
@media (prefers-color-scheme: dark) { .dark .mmt .score, .dark .mmt .note, .dark .mmt .language { color: #aaa; }
  .dark .mmt .clips li .score { color: #595959; } }
"""


class Checkpoint(NamedTuple):
    """A model, its processor, and the clips as it sees them."""

    model: Any
    processor: Any
    clips: SearchIndex


class Page:
    """What is shown for a query, as HTML.

    Args:
        checkpoints: by label.
        clips: rows with `video_id`, `frames`, `num_frames`, `name_<language>`, in the order of each index.
        folder: where the clips' animations are kept, by row number, for the server to send.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint], clips: Dataset, folder: Path):
        self.checkpoints, self.folder = checkpoints, folder
        for row, clip in enumerate(clips):
            first, *rest = frames_of(clip)
            first.save(
                folder / f"{row}.webp",
                save_all=True,
                append_images=rest,
                duration=FRAME_MILLISECONDS,
                loop=0,
                method=0,
            )
        texts = clips.remove_columns("frames")
        self.names = {language: texts[f"name_{language}"][:] for language in LANGUAGES}
        emoji = texts["emoji"][:] if "emoji" in texts.column_names else [""] * len(texts)
        self.choices = [
            (f"{sign} {name}".strip(), row)
            for row, (sign, name) in enumerate(zip(emoji, self.names["en"], strict=True))
        ]
        self.find_texts = lru_cache(maxsize=1024)(self._find_texts)

    def _find_texts(self, label: str, texts: tuple[str, ...], top: int) -> list[list[Hit]]:
        model, processor, index = self.checkpoints[label]
        return index.search_texts(model, processor, texts, min(top, len(index)))

    def typed(self, text: str | None, label: str | None) -> str:
        """The clips that a typed query finds, or why it cannot be searched."""
        if label is None:
            return message("Choose a kind of pre-training first.")
        text = text or ""
        if len(text) > MAX_CHARACTERS:
            return message(f"The query has {len(text):,} characters; {MAX_CHARACTERS:,} is the most. Shorten it.")
        started = time.perf_counter()
        try:
            (hits,) = self.find_texts(label, (text,), TOP)
        except ValueError:  # the processor's word for a text with nothing in it
            return message("The query is empty. Type a word or a sentence, in any language.")
        seconds = time.perf_counter() - started
        note = self.unknown(label, text)
        timing = f"{len(hits)} clips in {1000 * seconds:.0f} ms, {html.escape(label)}"
        footnote = f'<p class="note" role="status">{timing}</p>'
        heading = f'<h3 dir="auto">{html.escape(shown(text))}</h3>'
        return page(f"{note}{heading}{self.clips(hits)}{footnote}")

    def unknown(self, label: str, text: str) -> str:
        """A warning where the tokenizer does not know most of a text; its clips are then no answer."""
        tokenizer = self.checkpoints[label].processor.tokenizer
        ids = tokenizer(shown(text), add_special_tokens=False)["input_ids"]
        if 2 * sum(token == tokenizer.unk_token_id for token in ids) < max(1, len(ids)):
            return ""
        return '<p class="message" role="alert">The model does not know this script; take the clips for a guess.</p>'

    def picked(self, row: int | None, label: str | None) -> str:
        """A clip found by its name in each language, and the clips most like it."""
        if row is None or label is None:
            return message("Pick a clip and a kind of pre-training first.")
        queries = {language: names[row] for language, names in self.names.items()}
        index = self.checkpoints[label].clips
        found = self.find_texts(label, tuple(queries.values()), len(index))
        parts = []
        for (language, name), hits in zip(queries.items(), found, strict=True):
            rank = 1 + next(place for place, hit in enumerate(hits) if hit.row == row)
            parts.append(
                f'<h3 lang="{language}"><bdi>{html.escape(name)}</bdi> <span class="language">'
                f"{NAMES[language]}: rank {rank} of {len(index)}</span></h3>"
                f"{self.clips(hits[:TOP_A_LANGUAGE], right=row)}"
            )
        (alike,) = index.search_clips([index.clips["video_id"][row]], min(TOP_A_LANGUAGE + 1, len(index)))
        parts.append(f"<h3>Clips like it</h3>{self.clips(alike, right=row)}")
        return page(f'<div class="small">{"".join(parts)}</div>')

    def uploaded(self, path: str | None, label: str | None) -> str:
        """The clips that a picture finds, or why it cannot be searched by."""
        if path is None or label is None:
            return message("Choose a picture and a kind of pre-training first.")
        model, processor, index = self.checkpoints[label]
        if model.config.vision_config is None:
            return message(
                f"The checkpoint {label} has no vision encoder: it was trained on features of clips, and cannot look "
                "at a picture. Search by text or by a clip, or start the page with a checkpoint from pixels."
            )
        try:
            with Image.open(path, formats=PICTURES) as picture:
                if picture.width * picture.height > MAX_PICTURE_PIXELS:
                    raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
                picture.load()
                (hits,) = index.search_images(model, processor, [picture.copy()], min(TOP, len(index)))
                picture.thumbnail((128, 128))
                seen = io.BytesIO()
                picture.convert("RGBA").save(seen, "PNG")
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
            return message(
                f"This picture cannot be read: use a {', '.join(PICTURES[:-1])} or {PICTURES[-1]} of at most "
                f"{MAX_PICTURE_PIXELS / 1e6:.0f} million pixels."
            )
        source = f"data:image/png;base64,{base64.b64encode(seen.getvalue()).decode()}"
        return page(f'<h3>Clips like <img src="{source}" alt="your picture"></h3>{self.clips(hits)}')

    def clips(self, hits: Sequence[Hit], right: int | None = None) -> str:
        """A list of clips with rank, cosine and English name; `right` is framed."""
        items = []
        for rank, hit in enumerate(hits, start=1):
            name = html.escape(self.names["en"][hit.row])
            framed = ' class="right"' if hit.row == right else ""
            items.append(
                f'<li{framed}><img src="/gradio_api/file={html.escape(str(self.folder / f"{hit.row}.webp"))}" '
                f'alt="{name}" width="128" height="128"><span class="score">{rank} &nbsp; {hit.score:.3f}</span><br>'
                f"{name}</li>"
            )
        return f'<ol class="clips">{"".join(items)}</ol>'


def page(content: str) -> str:
    """The frame that the styles hang on."""
    return f'<div class="mmt">{content}</div>'


def message(text: str) -> str:
    """What a person sees instead of results."""
    return page(f'<p class="message" role="alert">{html.escape(text)}</p>')


def shown(text: str) -> str:
    """A text without control characters, which no page should be sent."""
    return "".join(character if character.isprintable() else " " for character in text)


def build_demo(pages: Page) -> gr.Blocks:
    """The page's parts and what they do."""
    labels = list(pages.checkpoints)
    gr.set_static_paths([pages.folder])
    with gr.Blocks(title="Search in nine languages", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown(
            "# Search in nine languages\nThe model was fine-tuned on **English** names of the training clips alone. "
            "What it knows of other languages came from its text encoder, and from pre-training."
        )
        label = gr.Radio(labels, value=labels[-1], label="Pre-training", elem_id="checkpoint")
        with gr.Tab("Type in any language"):
            query = gr.Textbox(
                label="Query", placeholder=" · ".join(EXAMPLES[:3]), elem_id="query", autofocus=True,
                max_length=MAX_CHARACTERS, lines=1, submit_btn="Search",
            )  # fmt: skip
            with gr.Row():
                examples = [gr.Button(text, size="sm", min_width=80) for text in EXAMPLES]
            results = gr.HTML(elem_id="results")
        with gr.Tab("Pick a clip"):
            clip = gr.Dropdown(pages.choices, value=None, label="Clip (type to filter)", elem_id="clip")
            languages = gr.HTML(elem_id="languages")
        with gr.Tab("Upload a picture"):
            picture = gr.File(label="Picture", file_types=["image"], type="filepath", elem_id="picture")
            alike = gr.HTML(elem_id="alike")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        query.submit(pages.typed, [query, label], results, api_name="search", show_progress="hidden")
        clip.change(pages.picked, [clip, label], languages, api_name="languages", show_progress="hidden")
        picture.upload(pages.uploaded, [picture, label], alike, api_name="picture", show_progress="hidden")
        picture.clear(lambda: "", None, alike, **quiet)
        for button in examples:
            button.click(lambda text: text, button, query, **quiet).then(pages.typed, [query, label], results, **quiet)
        label.change(lambda text, kind: pages.typed(text, kind) if text else "", [query, label], results, **quiet)
        label.change(
            lambda row, kind: "" if row is None else pages.picked(row, kind), [clip, label], languages, **quiet
        )
        label.change(lambda path, kind: pages.uploaded(path, kind) if path else "", [picture, label], alike, **quiet)
    return demo.queue(default_concurrency_limit=USERS_AT_ONCE, max_size=256)


def open_checkpoint(source: str, clips: Dataset, features: Mapping[str, Any]) -> Checkpoint:
    """A model from a folder, or from the Hub as `owner/name@revision`, with its index of the clips.

    Raises:
        FileNotFoundError: no such folder, and no revision that would make it a name on the Hub.
    """
    name, _, revision = source.partition("@")
    if not revision and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"no checkpoint in {name}: `make demo` makes some; a name on the Hub needs @revision")
    pinned = {"revision": revision} if revision else {}
    model = AutoModel.from_pretrained(name, **pinned).eval()
    processor = AutoProcessor.from_pretrained(name, **pinned)
    index = SearchIndex.build(model, processor, clips, features, revision=revision or None)
    index.search_texts(model, processor, ["warm up"], 1)
    return Checkpoint(model, processor, index)


def default_checkpoints() -> list[str]:
    """`LABEL=FOLDER` of what `make demo` made, or of what stands beside this file in a Space."""
    here = Path(__file__).parent / "checkpoints"
    found = []
    for label, recipe in LABELS.items():
        for folder in (here / label, Path("runs/demo") / recipe):
            if (folder / "config.json").is_file():
                found.append(f"{label}={folder}")
                break
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Open the checkpoints, serve the page."""
    beside = Path(__file__).parent / "features"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", metavar="LABEL=FOLDER", help="may be repeated")
    parser.add_argument("--dataset", default="datasets_scripts/emoji9", help="folder or Hub name (%(default)s)")
    parser.add_argument("--dataset_revision", help="tag or commit of a dataset on the Hub")
    parser.add_argument("--split", default="test", help="searched split (%(default)s)")
    parser.add_argument(
        "--features",
        default=str(beside) if beside.is_dir() else "runs/features/emoji9-lite0-128",
        help="(%(default)s)",
    )
    parser.add_argument("--host", default=None, help="address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        sources = dict(item.partition("=")[::2] for item in arguments.checkpoint or default_checkpoints())
        if not sources or "" in sources.values():
            raise FileNotFoundError("no checkpoint: `make demo` makes some; or give --checkpoint LABEL=FOLDER")
        features = FeatureStore(arguments.features)
        clips = read_split(arguments.dataset, arguments.dataset_revision, arguments.split)
        checkpoints = {label: open_checkpoint(source, clips, features) for label, source in sources.items()}
    except (FileNotFoundError, KeyError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    with tempfile.TemporaryDirectory() as folder:
        demo = build_demo(Page(checkpoints, clips, Path(folder)))
        demo.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            share=False,
            ssr_mode=False,
            max_file_size=MAX_PICTURE_SIZE,
            css=CSS,
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=[],
        )


if __name__ == "__main__":
    main()
