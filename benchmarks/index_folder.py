"""`mmt index`: how long a folder takes, a folder that did not change, and one file more in a large index.

    python benchmarks/index_folder.py --model runs/demo/mmp_en --output results/benchmarks/index_folder.json

- *Throughput*: minutes of video a minute, of films of 640 x 360 at 25 a second (H.264, moving textures), indexed at 2
  frames a second in windows of 4 s: end to end as the command does it, against decoding alone (the same processes, one
  a core, nobody who encodes) and encoding alone (the same pixels, in memory, as many threads). To reach: 0.85 of
  1 / (1 / decoding + 1 / encoding), which is what the cores could do if none ever waited.
- *Peer*: the same films by a checkpoint with its vision encoder inside (`efficientnet-lite0`, untrained heads), as
  `mmt index` does it and as a script of sentence-transformers: `transformers.video_utils.load_video` at 2 a second,
  a window's frames as `{"video": frames}` to `SentenceTransformer.encode`. In turn, on two cores, the checkpoint open.
- *Unchanged*: `mmt index` over a folder of `--files` pictures that did not change. To reach: 2 s. Processes that
  import torch, and the package, are timed beside it.
- *One more*: `IndexFolder` opened, one file's rows committed and segments merged where due, in an index of `--windows`
  windows of 256 numbers with thumbnails: what adding a file costs beside its extraction. To reach: 1 s.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import harness
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tqdm import tqdm
from transformers.video_utils import load_video

from modeling_mmt import MMTModel, MMTProcessor
from modeling_mmt.evaluation.evaluate import open_checkpoint
from modeling_mmt.extraction.packaged_encoders import resolve_encoder
from modeling_mmt.extraction.workers import WorkerPool
from modeling_mmt.search.index import SearchIndex
from modeling_mmt.search.index_folder import IndexFolder
from modeling_mmt.search.manifest import Manifest
from modeling_mmt.search.media_encoder import MediaEncoder, load_encoders, own_encoders, recorded_encoders
from modeling_mmt.search.media_files import find_media
from modeling_mmt.search.media_index import IndexOptions, update_index
from modeling_mmt.search.media_windows import (
    STRIDE,
    WINDOW,
    Chunk,
    MediaReader,
    Plan,
    Planned,
    WindowRule,
    chunks_of,
    thumbnail,
)
from modeling_mmt.search.segments import FILE_SCHEMA, NO_CLIPS, Rows, write_segment

ROOT = Path(__file__).resolve().parents[1]
RATE, WIDTH, WINDOWS_A_FILE = 2.0, 256, 100
PARTS = ("one_more", "unchanged", "throughput", "peer")
PEER_BATCH = 2  # windows, of eight frames: as many frames at once as `mmt index` takes


def make_film(path: Path, seconds: int) -> None:
    """Drifting textures, with a keyframe every 50."""
    generator = np.random.default_rng(seconds)
    texture = generator.integers(0, 256, (90, 160, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "28", "g": "50", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number in range(seconds * 25):
            top, left = number % 300, 2 * number % 600
            frame = np.ascontiguousarray(texture[top : top + 360, left : left + 640])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))


def make_films(folder: Path, num_films: int, seconds: int) -> Path:
    """A film, and copies of it, each with a SHA-256 of its own."""
    folder.mkdir()
    make_film(folder / "0.mp4", seconds)
    content = (folder / "0.mp4").read_bytes()
    for number in range(1, num_films):
        (folder / f"{number}.mp4").write_bytes(content + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))
    return folder


def throughput(model_name: str, folder: Path, num_films: int, seconds: int, repeats: int) -> dict[str, float]:
    """Minutes of video a minute: end to end, decoding alone, encoding alone; the best of each."""
    media = make_films(folder / "films", num_films, seconds)
    model, processor = open_checkpoint(model_name)
    steps = own_encoders(model, processor) or load_encoders(recorded_encoders(processor, model_name, None), "cpu")
    encoder = MediaEncoder(model, processor, steps)
    reader = MediaReader([one.prepare for one in steps], RATE, WindowRule(WINDOW, STRIDE))
    took: dict[str, list[float]] = {"end to end": [], "decoding alone": [], "encoding alone": []}
    with WorkerPool(reader, os.cpu_count() or 1, 600) as pool:
        paths, ahead = [file.path for file in find_media(media).values()], 2 * pool.num_workers

        def decode() -> list[tuple[Planned, list[Chunk]]]:
            plans = list(pool.map([Plan(path) for path in paths], ahead))
            calls = [chunks_of(path, plan, RATE, 1) for path, plan in zip(paths, plans, strict=True)]
            chunks = pool.map([call for of_file in calls for call in of_file], ahead)
            return [(plan, [next(chunks) for _ in of_file]) for plan, of_file in zip(plans, calls, strict=True)]

        decode()  # the processes are up
        for _ in range(repeats):
            start = time.perf_counter()
            decoded = decode()
            took["decoding alone"].append(time.perf_counter() - start)
    for number in range(repeats):
        start = time.perf_counter()
        for plan, chunks in decoded:
            parts = [features for _, features in encoder.features((None, chunk) for chunk in chunks)]
            encoder.embed(np.concatenate(parts), plan.spans, RATE)
        took["encoding alone"].append(time.perf_counter() - start)
        options = IndexOptions(model=model_name)
        start = time.perf_counter()
        update_index(media, folder / f"films_index{number}", options)
        took["end to end"].append(time.perf_counter() - start)
    start = time.perf_counter()
    model, processor = open_checkpoint(model_name)
    own_encoders(model, processor) or load_encoders(recorded_encoders(processor, model_name, None), "cpu")
    opening = time.perf_counter() - start
    minutes = num_films * seconds / 60
    speeds = {what: minutes / (min(times) / 60) for what, times in took.items()}
    speeds["end to end, the checkpoint open"] = minutes / ((min(took["end to end"]) - opening) / 60)
    return speeds | {"seconds to open the checkpoint and its encoders": opening}


def pixel_checkpoint(folder: Path) -> str:
    """A model that looks at pixels, by packaged encoders; its heads are new."""
    text, vision = resolve_encoder("multilingual-e5-small"), resolve_encoder("efficientnet-lite0")
    MMTModel.from_encoders(text, vision, projection_dim=WIDTH).save_pretrained(folder)
    MMTProcessor.from_encoders(text, [vision]).save_pretrained(folder)
    return str(folder)


def peer(folder: Path, num_films: int, seconds: int, repeats: int) -> dict[str, float]:
    """Minutes of video a minute, in turn by `mmt index` and by sentence-transformers; the best of each."""
    from sentence_transformers import SentenceTransformer

    media, checkpoint = make_films(folder / "peer_films", num_films, seconds), pixel_checkpoint(folder / "pixels")
    start = time.perf_counter()
    open_checkpoint(checkpoint)
    opening = time.perf_counter() - start
    theirs = SentenceTransformer(checkpoint, trust_remote_code=True, device="cpu")
    length = round(WINDOW * RATE)
    took: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(repeats):
        start = time.perf_counter()
        update_index(media, folder / f"peer_index{number}", IndexOptions(model=checkpoint))
        took["ours"].append(time.perf_counter() - start - opening)
        start = time.perf_counter()
        for path in sorted(media.iterdir()):
            frames, _ = load_video(str(path), fps=RATE, backend="pyav")  # type: ignore[arg-type]  # it takes a path
            windows = [{"video": frames[first : first + length]} for first in range(0, len(frames), length)]
            vectors = theirs.encode(windows, batch_size=PEER_BATCH)
        took["theirs"].append(time.perf_counter() - start)
    ours = SearchIndex.load(folder / "peer_index0").embeddings[-len(vectors) :].numpy()  # the last film's
    agreement = float((ours * vectors).sum(axis=1).mean())
    minutes = num_films * seconds / 60
    return {what: minutes / (min(times) / 60) for what, times in took.items()} | {"mean cosine of both": agreement}


def unchanged(model_name: str, folder: Path, num_files: int, repeats: int) -> dict[str, float]:
    """Seconds of the second `mmt index`, of its work in a process that is up, and of imports; the best of each."""
    media = folder / "pictures"
    media.mkdir()
    generator = np.random.default_rng(0)
    for number in range(num_files):
        noise = Image.fromarray(generator.integers(0, 256, (9, 16, 3), dtype=np.uint8))
        noise.resize((320, 180)).save(media / f"{number:05d}.jpg")
    command = [sys.executable, "-m", "mmt", "index", str(media), "--output_dir", str(folder / "pictures_index")]
    start = time.perf_counter()
    subprocess.run([*command, "--model", model_name], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    took: dict[str, float] = {"first run": time.perf_counter() - start}
    imports = {what: [sys.executable, "-c", what] for what in ("import torch", "import modeling_mmt")}
    for what, words in {"second run": command, **imports}.items():
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        took[what] = min(times)
    start = time.perf_counter()
    update_index(media, folder / "pictures_index", IndexOptions())
    return took | {"second run, in a process that is up": time.perf_counter() - start}


def one_more(folder: Path, num_windows: int, repeats: int) -> dict[str, float]:
    """Seconds to take one file's rows into a large index, each time another file; the longest."""
    index = folder / "large"
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 16, 3), dtype=np.uint8))
    jpeg = thumbnail(torch.from_numpy(np.array(coarse.resize((160, 90)))))

    def rows(files: range) -> Rows:
        names = [f"{number:06d}.mp4" for number in files]
        vectors = generator.standard_normal((len(names) * WINDOWS_A_FILE, WIDTH)).astype(np.float32)
        clips = [
            {"video_id": f"{name}#{4.0 * window}-{4.0 * window + 8}", "file": name, "start": 4.0 * window}
            for name in names
            for window in range(WINDOWS_A_FILE)
        ]
        known = [
            {"file": name, "size": 1, "mtime_ns": 1, "sha256": name, "num_clips": WINDOWS_A_FILE} for name in names
        ]
        unit = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)
        table = pa.Table.from_pylist(clips, NO_CLIPS.schema)
        return Rows(unit, table, [jpeg] * len(clips), pa.Table.from_pylist(known, FILE_SCHEMA))

    num_files, at_once = num_windows // WINDOWS_A_FILE, 1000
    index.mkdir()
    segments = [
        write_segment(index, number + 1, rows(range(first, min(first + at_once, num_files))))
        for number, first in enumerate(tqdm(range(0, num_files, at_once), desc="windows"))
    ]
    Manifest("f", "m", None, WIDTH, {"window": 8.0}, len(segments), tuple(segments)).write(index)
    times = []
    for number in range(repeats):
        new = rows(range(num_files + number, num_files + number + 1))
        start = time.perf_counter()
        opened = IndexFolder(index)
        opened.commit(new)
        opened.compact()
        times.append(time.perf_counter() - start)
    return {"one file more": max(times), "median": float(np.median(times)), "windows": opened.num_clips}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo/mmp_en", help="checkpoint (%(default)s)")
    parser.add_argument("--films", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=120, help="of a film")
    parser.add_argument("--files", type=int, default=1000, help="pictures of the folder that does not change")
    parser.add_argument("--windows", type=int, default=200_000, help="of the large index")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (all)")
    parser.add_argument("--output", type=Path, help="JSON file to write the results to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        results: dict[str, Any] = {}
        verdicts = []
        if "one_more" in args.parts:
            results["one_more"] = found = one_more(folder, args.windows, 3 * args.repeats)
            verdicts.append(harness.compare("one file more, seconds", found["one file more"], 1.0, 1.0, False))
        if "unchanged" in args.parts:
            results["unchanged"] = found = unchanged(args.model, folder, args.files, args.repeats)
            verdicts.append(harness.compare("second run, seconds", found["second run"], 1.0, 2.0, False))
        if "throughput" in args.parts:
            results["throughput"] = found = throughput(args.model, folder, args.films, args.seconds, args.repeats)
            bound = 1 / (1 / found["decoding alone"] + 1 / found["encoding alone"])
            ours = found["end to end, the checkpoint open"]
            verdicts.append(harness.compare("minutes of a minute of video", 1 / ours, 1 / bound, 1 / 0.85, False))
        if "peer" in args.parts:
            results["peer"] = found = peer(folder, args.films, args.seconds, args.repeats)
            verdicts.append(
                harness.compare(
                    "minutes of a minute of video, by the peer's", 1 / found["ours"], 1 / found["theirs"], 1, False
                )
            )
    facts = {
        "command": f"python {' '.join(sys.argv)}",
        "machine": {"cpu": harness.cpu(), "load": os.getloadavg()[0]},
        "versions": harness.versions(["av", "transformers", "sentence-transformers", "pyarrow"], None),
        "results": results,
    }
    harness.print_markdown(__doc__ or "", facts, [], verdicts)
    if args.output:
        harness.write_json(args.output, facts, [], verdicts)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
