"""The card of an imported dual encoder."""

import json
from pathlib import Path

CARD = """---
{base_model}library_name: transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- text-to-video-retrieval
- mmt
---
# {title} for video search

The dual encoder `{title}`{revision}, with its weights unchanged, as a checkpoint of modeling_mmt. A caption's
embedding is the original's. A clip's is the normalised mean of the original's embeddings of its frames.

Licence, intended use, training data and limits are those of the original: read its card, and add its `license` above
before publishing. No figures were measured.

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()  # a folder, or org/name with revision=
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
output = model(**processor(["a cat", "a dog"], images=["cat.jpg", "dog.jpg"]))
print(output.text_embeds @ output.video_embeds.T)  # cosines: one row a caption, one column a picture
```
"""


def write_import_card(folder: Path, name: str, revision: str | None):
    """Write the `README.md` of a checkpoint that was imported.

    Args:
        folder: of the checkpoint.
        name: of the original, on the Hub, or its folder, of which the card has the last part alone.
        revision: its tag or commit.
    """
    is_local = Path(name).exists()
    card = CARD.format(
        base_model="" if is_local else f"base_model: {json.dumps(name)}\n",
        title=Path(name).resolve().name if is_local else name,
        revision=f", revision `{revision}`" if revision else "",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
