"""The card of a published feature store: its extractor, its clips, and how to read it."""

import json
from pathlib import Path

from modeling_mmt.data.feature_store import MANIFEST

CARD = """---
configs:
- config_name: default
  data_files: features-*.{ending}
tags:
- video-features
- mmt
---
# {name}

Features of {num_clips:,} clips: steps of {dim} numbers ({dtype}) by `{extractor}`, revision `{revision}`{rate}.

```python
from modeling_mmt.data.feature_store import FeatureStore
from modeling_mmt.data.reading import pinned_snapshot

store = FeatureStore(pinned_snapshot("{name}", repo_type="dataset"{pin}))
```

`manifest.json` has each shard's SHA-256, and what the features were made from:

```json
{source}
```
"""


def write_store_card(folder: Path, name: str, tag: str | None):
    """Write a store's `README.md`, if it has none.

    Args:
        folder: of the store.
        name: `org/name` on the Hub.
        tag: of this version.
    """
    path = folder / "README.md"
    if path.is_file():
        return
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    fields = {key: manifest[key] for key in ("num_clips", "dim", "dtype", "extractor", "revision")}
    card = CARD.format(
        **fields,
        name=name,
        ending=manifest["shards"][0]["file"].rpartition(".")[2],
        rate=f", {manifest['rate']:g} steps per second" if manifest["rate"] else "",
        pin=f', revision="{tag}"' if tag else "",
        source=json.dumps(manifest.get("source"), indent=1, ensure_ascii=False),
    )
    path.write_text(card, encoding="utf-8")
