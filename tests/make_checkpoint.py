"""Write the tiny checkpoint that belongs to this release; every later version must load it (`test_checkpoints.py`).

    python tests/make_checkpoint.py

Run once at a release, after the version in setup.py was raised. It never overwrites, and `SHA256SUMS` holds what every
version wrote: a file that changes fails a test. `v0.1.0.dev0` was written on 24 November 2026, by code that has since
been rewritten: today's must load its weights, and its own must still run.
"""

import re
import sys
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ROOT / "tests" / "artifacts" / "checkpoints"
SUMS = CHECKPOINTS / "SHA256SUMS"
CAPTIONS = ["red dog runs", "heim"]
CLIP_LENGTHS = (3, 5)


def current_version() -> str:
    """setup.py's."""
    return re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]


def sums(folder: Path) -> list[str]:
    """A line for each file of a checkpoint, as `sha256sum` writes it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(CHECKPOINTS).as_posix()}" for path in files]


def inputs(processor) -> dict[str, torch.Tensor]:
    """The batch whose embeddings are stored."""
    from conftest import build_clips

    return processor(CAPTIONS, build_clips(CLIP_LENGTHS))


def main():
    """Write model, processor, code and embeddings of this version."""
    sys.path.insert(0, str(ROOT))
    from conftest import build_model, build_processor

    folder = CHECKPOINTS / f"v{current_version()}"
    if folder.exists():
        raise SystemExit(f"{folder} is there: what a release wrote stays; raise the version in setup.py first")
    model, processor = build_model(projection_skip=True), build_processor(text_prefix="query: ", max_text_length=9)
    batch = inputs(processor)
    with torch.inference_mode():
        output = model(**batch)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    expected = {name: output[name].contiguous().clone() for name in ("text_embeds", "video_embeds")}
    save_file({"input_ids": batch["input_ids"].contiguous(), **expected}, folder / "expected.safetensors")
    with SUMS.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in sums(folder))
    print(folder)


if __name__ == "__main__":
    main()
