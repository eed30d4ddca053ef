"""The page of an index of videos and pictures: what is found plays at its moment.

    python examples/space/media_page.py index                     # what `mmt index` made
    python examples/space/media_page.py index --media /mnt/films  # the same files, elsewhere

A browser asks for `/media/ROW`, a row of the index, and never for a path: files that the index does not list, that lie
outside its folder, or whose ending is not that of a video or picture, are not served. Videos come in ranges, so that a
browser seeks without loading all of a film.
"""

import argparse
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported

import gradio as gr
import torch
import uvicorn
from app import CSS, MAX_CHARACTERS, MAX_PICTURE_SIZE, USERS_AT_ONCE, message, page, shown
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response

import modeling_mmt  # noqa: F401  registers the model with AutoModel
from modeling_mmt.data.video_lists import MEDIA_SUFFIXES
from modeling_mmt.evaluation.embedding import embed_texts
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.media_files import path_below
from modeling_mmt.search.media_queries import embed_media
from modeling_mmt.search.moments import Moment

TOP = 12
WIDE = """
.mmt .moments { display: flex; flex-wrap: wrap; gap: 12px; list-style: none; padding: 0; margin: 8px 0 20px; }
.mmt .moments li { width: 300px; margin: 0; padding: 6px; border: 1px solid #ddd; border-radius: 8px; background: #fff;
  color: #222; font-size: 13px; overflow-wrap: anywhere; }
.mmt .moments video, .mmt .moments img { width: 288px; height: 180px; display: block; object-fit: contain;
  background: #111; }
"""


class MediaPage:
    """What is found for a query, as HTML.

    Args:
        folder: of the index.
        media: folder of the indexed files; None is where they were when the index was built.

    Raises:
        FileNotFoundError: that folder does not exist.
        SearchIndexError: the index cannot be read, or is another model's.
    """

    def __init__(self, folder: str, media: str | None = None):
        self.index = SearchIndex.load(folder)
        self.model, self.processor = open_checkpoint(self.index.model, self.index.revision)
        self.index.check_model(self.model)
        place = media or self.index.media_folder
        if place is not None and not Path(place).is_dir():
            raise FileNotFoundError(f"{place} does not exist; name the folder that was indexed with --media")
        self.media = None if place is None else Path(place).resolve()

    def file(self, row: int) -> Path | None:
        """The video or picture of a row, where it lies in the media folder; else None."""
        if self.media is None or not 0 <= row < len(self.index):
            return None
        name = self.index.clips[row]["file"]
        path = path_below(self.media, name).resolve() if name else None
        if path is None or path.suffix.lower() not in MEDIA_SUFFIXES or not path.is_relative_to(self.media):
            return None
        return path if path.is_file() else None

    def typed(self, text: str | None) -> tuple[str, Any]:
        """The moments that a typed query finds, or why it cannot be searched."""
        text = text or ""
        if len(text) > MAX_CHARACTERS:
            return message(
                f"The query has {len(text):,} characters; {MAX_CHARACTERS:,} is the most. Shorten it."
            ), None
        try:
            embeddings = embed_texts(self.model, self.processor, [text])
        except ValueError:  # the processor's word for a text with nothing in it
            return message("The query is empty. Type a word or a sentence, in any language."), None
        return self.found(embeddings, f'<h3 dir="auto">{html.escape(shown(text))}</h3>')

    def uploaded(self, path: str | None) -> tuple[str, Any]:
        """The moments that a picture or a video finds."""
        if path is None:
            return message("Choose a picture first."), None
        try:
            embeddings = embed_media(self.model, self.processor, path, settings=self.index.settings, index=self.index)
        except (ValueError, OSError) as error:
            return message(f"This file cannot be read as a picture: {html.escape(shown(str(error)[:200]))}"), None
        return self.found(embeddings, "<h3>Like your picture</h3>")

    def alike(self, row: int | None) -> tuple[str, Any]:
        """The moments like one that was found."""
        if row is None or not 0 <= row < len(self.index):
            return message("Search first, then choose one of the results."), None
        return self.found(
            self.index.embeddings[[row]], f"<h3>Like {html.escape(self.index.clips[row]['video_id'])}</h3>"
        )

    def found(self, embeddings: torch.Tensor, heading: str) -> tuple[str, Any]:
        """The answers, and the choices of a next search by one of them."""
        (moments,) = self.index.search_moments(embeddings, TOP)
        choices = [(f"{place}: {title(moment)}", moment.row) for place, moment in enumerate(moments, start=1)]
        items = "".join(self.item(place, moment) for place, moment in enumerate(moments, start=1))
        return page(f'{heading}<ol class="moments">{items}</ol>'), gr.Dropdown(choices=choices, value=None)

    def item(self, place: int, moment: Moment) -> str:
        """A video that plays from start to end, a picture, or the thumbnail of what is no longer there."""
        if self.file(moment.row) is None:
            seen = f'<img src="/thumbnail/{moment.row}" alt="no longer there" loading="lazy">'
        elif moment.start is None:
            seen = f'<img src="/media/{moment.row}" alt="{html.escape(title(moment))}" loading="lazy">'
        else:
            part = f"#t={moment.start:.2f},{moment.end:.2f}"
            seen = f'<video controls preload="metadata" src="/media/{moment.row}{part}"></video>'
        score = f'<span class="score">{place} &nbsp; {moment.score:.3f}</span>'
        return f"<li>{seen}{score}<br>{html.escape(title(moment))}</li>"


def title(moment: Moment) -> str:
    """`kitchen/kettle.mp4 0:08 to 0:16`."""
    name = shown(moment.file or moment.video_id)
    if moment.start is None or moment.end is None:
        return name
    start, end = (f"{round(time) // 60}:{round(time) % 60:02d}" for time in (moment.start, moment.end))
    return f"{name} {start} to {end}"


def build_demo(pages: MediaPage) -> gr.Blocks:
    """The page's parts and what they do."""
    quiet: dict[str, Any] = {"show_progress": "hidden"}
    with gr.Blocks(title="Search your media", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
        gr.Markdown(f"# Search {len(pages.index):,} moments and pictures\nType in any language, or give a picture.")
        query = gr.Textbox(
            label="Query", elem_id="query", autofocus=True, max_length=MAX_CHARACTERS, lines=1, submit_btn="Search"
        )
        with gr.Row():
            picture = gr.File(label="Picture", file_types=["image"], type="filepath", elem_id="picture")
            alike = gr.Dropdown([], label="More like a result", elem_id="alike")
        results = gr.HTML(elem_id="results")
        query.submit(pages.typed, query, [results, alike], api_name="search", **quiet)
        picture.upload(pages.uploaded, picture, [results, alike], api_name="picture", **quiet)
        alike.input(pages.alike, alike, [results, alike], api_name="alike", **quiet)
    return demo.queue(default_concurrency_limit=USERS_AT_ONCE, max_size=256)


def build_app(pages: MediaPage) -> FastAPI:
    """The server: the media of the index by row, and the page."""
    app = FastAPI(openapi_url=None)

    @app.get("/media/{row}")
    def media(row: int) -> FileResponse:
        path = pages.file(row)
        if path is None:
            raise HTTPException(404, "the index has no such row, or its file is gone")
        return FileResponse(path, headers={"X-Content-Type-Options": "nosniff"})

    @app.get("/thumbnail/{row}")
    def thumbnail(row: int) -> Response:
        picture = pages.index.thumbnail(row) if 0 <= row < len(pages.index) else None
        if picture is None:
            raise HTTPException(404, "the index has no such row, or no thumbnail of it")
        return Response(picture, media_type="image/jpeg")

    return gr.mount_gradio_app(
        app,
        build_demo(pages),
        path="/",
        css=CSS + WIDE,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        max_file_size=MAX_PICTURE_SIZE,
        footer_links=[],
        ssr_mode=False,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Open the index, serve the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", help="folder that `mmt index` made")
    parser.add_argument("--media", help="folder of the indexed files, where it is not what it was")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        pages = MediaPage(arguments.index, arguments.media)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"Running on local URL: http://{arguments.host}:{arguments.port}", flush=True)
    uvicorn.run(build_app(pages), host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
