"""Pretrained encoders from the Hub, including sentence-transformers' text models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import cached_file, logging

POOLINGS = {"cls": "first", "mean": "mean"}  # theirs, and `DualEncoder`'s names
OLD_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}  # flags, until their version 5


def load_pretrained(name: str, **options) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """A model in float32 and eval mode, and the names of `missing_keys` and `unexpected_keys` in its checkpoint.

    Args:
        name: name on the Hub, or a folder.
        options: of `AutoModel.from_pretrained`.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report names parts that are not used; what matters is checked by the caller
    try:
        model, info = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    return model.eval(), {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys")}


def sentence_modules(name: str, hub: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The `modules.json` of a sentence-transformers text model, which has a Pooling; `None` of any other.

    Args:
        name: name on the Hub, or a folder.
        hub: `revision` and `cache_dir`.
    """
    modules = _read(name, "modules.json", hub)
    kinds = [module["type"].rpartition(".")[2] for module in modules or ()]
    return modules if "Pooling" in kinds else None


def sentence_options(name: str, modules: list[dict[str, Any]], hub: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of its Transformer, such as `max_seq_length`; empty where there are none.

    Raises:
        ValueError: it lowers the case of captions itself, which its tokenizer does not know.
    """
    options = _read(name, _file(modules[0], "sentence_bert_config.json"), hub) or {}
    if options.get("do_lower_case"):
        raise ValueError(f"{name}: sentence_bert_config.json has do_lower_case true; supported: false")
    return options


def load_sentence_encoder(
    name: str, modules: list[dict[str, Any]], hub: Mapping[str, Any]
) -> tuple[PreTrainedModel, str, nn.Linear | None]:
    """A text model of a Transformer, a Pooling and at most one Dense; a Normalize changes no direction.

    Args:
        name: name on the Hub, or a folder.
        modules: its `modules.json`.
        hub: `revision` and `cache_dir`.

    Returns:
        The encoder, how its states are pooled (`"first"` or `"mean"`), and the Dense.

    Raises:
        ValueError: it has other modules, or a weight is missing; says which.
    """
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if [kind for kind in kinds if kind != "Normalize"] not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Dense"],
    ):
        raise ValueError(
            f"{name}: modules.json has {', '.join(kinds)}; supported: Transformer, Pooling, Dense, Normalize"
        )
    encoder, info = load_pretrained(name, subfolder=modules[0]["path"], use_safetensors=True, **hub)
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise ValueError(f"{name}: the checkpoint lacks {missing[:5]}, which the encoder needs")
    by_kind = dict(zip(kinds, modules, strict=True))
    fields = _read(name, _file(by_kind["Pooling"], "config.json"), hub) or {}
    flags = [OLD_POOLINGS.get(key, key) for key, value in fields.items() if key.startswith("pooling_mode_") and value]
    pooling = fields.get("pooling_mode") or "+".join(flags)
    if pooling not in POOLINGS:
        raise ValueError(f"{name}: its Pooling takes {pooling!r}; supported: {', '.join(POOLINGS)}")
    return encoder, POOLINGS[pooling], _dense(name, by_kind["Dense"], hub) if "Dense" in by_kind else None


def _dense(name: str, module: dict[str, Any], hub: Mapping[str, Any]) -> nn.Linear:
    fields = _read(name, _file(module, "config.json"), hub) or {}
    activation = str(fields.get("activation_function"))
    if not activation.endswith("Identity") or fields.get("use_residual"):
        raise ValueError(
            f"{name}: {module['path']}/config.json has activation_function {activation!r}; supported: Identity, "
            "without a residual"
        )
    dense = nn.Linear(fields["in_features"], fields["out_features"], bias=fields.get("bias", True))
    weights = load_state_dict(str(cached_file(name, _file(module, "model.safetensors"), **hub)))
    dense.load_state_dict({key.removeprefix("linear."): value.float() for key, value in weights.items()})
    return dense


def _file(module: dict[str, Any], name: str) -> str:
    return f"{module['path']}/{name}" if module["path"] else name


def _read(name: str, file: str, hub: Mapping[str, Any]) -> Any:
    path = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
