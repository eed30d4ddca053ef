"""The code blocks of the README and of the pages under `docs/`."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "log" not in page.relative_to(ROOT).parts
}


def code_blocks(language: str, page: str | None = None) -> list[str]:
    """The blocks of a language of a page, or of all pages; those in lists without their indent."""
    texts = PAGES.values() if page is None else [PAGES[page]]
    found = [
        block
        for text in texts
        for block in re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    ]
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


PARALLEL = [block for block in code_blocks("python") if "sentence_de" in block]
HUB = [block for block in code_blocks("python") if re.search("org/name|load_pinned_dataset", block)]
