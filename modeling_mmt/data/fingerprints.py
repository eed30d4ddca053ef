"""Fingerprints of what a run's result depends on: contents rather than paths."""

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset


def rows_fingerprint(rows: Dataset, columns: Iterable[str]) -> str:
    """SHA-256 of some columns of a split: names, types and values, in the rows' order.

    `Dataset`'s own fingerprint is of the files' times and places. Here the same values give the same hash wherever
    they are read from; what is in other columns, and how the file is compressed, does not count.

    Args:
        rows: as `load_dataset` gives them; they are read once, some at a time.
        columns: of `rows`, in any order.
    """
    digest = sha256()
    for table in rows.select_columns(sorted(set(columns))).with_format("arrow").iter(batch_size=256):
        table = table.take(pa.array(range(len(table)))).combine_chunks()  # copied: a slice keeps what lies around it
        table = table.replace_schema_metadata(None)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        digest.update(sink.getvalue())
    return digest.hexdigest()[:32]


def encoder_fingerprint(encoder: torch.nn.Module, tokenizer: Any) -> str:
    """SHA-256 of a text encoder: configuration, every weight, and the tokenizer that its ids come from."""
    digest = sha256(architecture(encoder.config).encode())
    update_with_weights(digest, [encoder])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tokens = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    digest.update(f"{tokens} {sorted(tokenizer.special_tokens_map.items())}".encode())
    return digest.hexdigest()[:32]


def weights_fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 of every weight of a module."""
    digest = sha256()
    update_with_weights(digest, [module])
    return digest.hexdigest()[:32]


def architecture(config: Any) -> str:
    """A configuration's values as JSON, without what the environment says."""
    values = config.to_diff_dict()
    for key in ("transformers_version", "dtype"):  # each tensor's dtype counts by itself
        values.pop(key, None)
    return json.dumps(values, sort_keys=True, default=str)


def update_with_weights(digest: Any, modules: Iterable[torch.nn.Module]):
    """Put modules' weights into a hash: names, dtypes, shapes and values."""
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
