"""Write the tiny checkpoint that belongs to this release; every later version must load it (`test_checkpoints.py`).

    python tests/make_checkpoint.py

Run once at a release, after the version in setup.py was raised. It never overwrites: what a release wrote stays.
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ROOT / "tests" / "artifacts" / "checkpoints"
CAPTIONS = ["red dog runs", "heim"]
CLIP_LENGTHS = (3, 5)


def current_version() -> str:
    """setup.py's."""
    return re.search(r'version="([^"]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]


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
    print(folder)


if __name__ == "__main__":
    main()
