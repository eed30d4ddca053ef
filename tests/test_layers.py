"""Who may import whom.

    layer 7   train.py  extract_features.py  mmt.py  recipes/  examples/  benchmarks/  metrics/
              __init__  cli  report                                                                 __init__
    layer 6   hub  trainer  mteb_encoder  onnx_export  report_measures  report_sections             mteb_retrieval
                                                                         emoji_motion  extraction_clips  clip_columns
    layer 5   data_collator  large_batch  micro_batches  layer_cache  sharding
              significance  search  model_card  evaluation  report_page  feature_extraction   emoji9  msrvtt  ...
    layer 4   processing_mmt
    layer 3   video_decoding_mmt
    layer 2   modeling_mmt  video_streams_mmt  streaming_loss  checkpointing  packaged_encoders
              retrieval  training_arguments  snapshots  search_engines  diagnostics
              report_figures                                                                        corpus  sampling
    layer 1   pooling_mmt  vision_encoders_mmt  video_packets_mmt  pictures_mmt  exact_search        features  sources
    layer 0   configuration_mmt  loss_mmt  frames_mmt  image_processing_mmt  efficientnet_lite_mmt
              pipeline_mmt  published_results  fingerprints  augmentation  kept_clips
              `-------------------------------- modeling_mmt/ --------------------------------'     `datasets_scripts/'

Imports point down only; programs of layer 7 may call each other, and they alone use both packages. A new module gets
its layer here, or the test fails.
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PICTURE = {
    "modeling_mmt": {
        0: "configuration_mmt loss_mmt frames_mmt image_processing_mmt efficientnet_lite_mmt pipeline_mmt "
        "published_results video_backbones fingerprints augmentation kept_clips",
        1: "pooling_mmt vision_encoders_mmt video_packets_mmt pictures_mmt exact_search",
        2: "modeling_mmt video_streams_mmt streaming_loss checkpointing packaged_encoders retrieval "
        "training_arguments snapshots search_engines diagnostics report_figures",
        3: "video_decoding_mmt",
        4: "processing_mmt",
        5: "data_collator large_batch micro_batches layer_cache sharding significance search model_card evaluation "
        "report_page feature_extraction",
        6: "hub trainer mteb_encoder onnx_export report_measures report_sections",
        7: "__init__ cli report",
    },
    "datasets_scripts": {
        1: "features sources worker_pool",
        2: "corpus sampling convert_features video_lists",
        3: "extraction emoji9 multi_howto100m msrvtt vatex multi30k storybook8 own_clips translate language_report",
        4: "mteb_retrieval emoji_motion extraction_clips clip_columns",
        7: "__init__",
    },
}
TOP = 7
PROGRAMS = {"modeling_mmt.cli", "modeling_mmt.report"}  # in the wheel; they join both packages as train.py does
MODEL_AND_PROCESSOR = ("modeling_mmt.modeling_mmt", "modeling_mmt.processing_mmt")
LAYERS = {
    f"{package}.{name}": layer
    for package, rows in PICTURE.items()
    for layer, names in rows.items()
    for name in names.split()
}
SCRIPTS = {"setup", "train", "extract_features", "mmt"}  # beside the packages, layer 7
SCRIPT_FOLDERS = {"recipes", "examples", "benchmarks", "metrics"}  # all layer 7
NOT_OURS = {"tests", "build", "dist", "runs", "cache", "features", "shared"}
# `strict`, which makes a config a checked dataclass, lives in a package that transformers always brings.
SHIPPED_MAY_IMPORT = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names


def our_files() -> Iterator[Path]:
    """Every Python file of the tree, relative to its root; tests, environments and what runs write left out."""
    for folder, subfolders, names in os.walk(ROOT):
        top = Path(folder) == ROOT
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith((".", "__pycache__"))
            and not name.endswith(".egg-info")
            and not (top and name in NOT_OURS)
            and not (Path(folder, name) / "pyvenv.cfg").exists()
        ]
        yield from (Path(folder, name).relative_to(ROOT) for name in names if name.endswith(".py"))


def layer_of(module: str) -> int | None:
    """The layer of a dotted module of ours; None if the picture does not have it."""
    if module in LAYERS:
        return LAYERS[module]
    root = module.partition(".")[0]
    return TOP if root in SCRIPT_FOLDERS or module in SCRIPTS else None


def imports_of(module: str, tree: ast.AST, is_package: bool = False) -> Iterator[tuple[str, ast.stmt]]:
    """Each imported dotted module (ours: down to the file, `__init__` for a bare package), with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            targets = [f"{source}.{alias.name}" if source in PICTURE else source for alias in node.names]
        else:
            continue
        for target in targets:
            root = target.partition(".")[0]
            if root in PICTURE and target not in LAYERS:
                target = f"{root}.__init__"
            yield target, node


def complaints(path: Path, source: str) -> list[str]:
    """What one file does that the picture forbids, one sentence each."""
    module = ".".join(path.with_suffix("").parts)
    package, layer, found = path.parts[0], layer_of(module), []
    if "utils" in (*path.parts, path.stem):
        found.append("is called utils: name it after the noun that it holds")
    if layer is None:
        return [*found, "has no layer: give it one in tests/test_layers.py"]
    tree = ast.parse(source)
    for target, node in imports_of(module, tree, is_package=path.name == "__init__.py"):
        other, below = target.partition(".")[0], layer_of(target)
        if below is not None and not (below < layer or layer == below == TOP):
            found.append(f"line {node.lineno}: imports {target}, which is not in a lower layer")
        if package in PICTURE and other in PICTURE and other != package and module not in PROGRAMS:
            found.append(f"line {node.lineno}: {package} and {other} never import each other")
        if module == "modeling_mmt.retrieval" and target in MODEL_AND_PROCESSOR:
            found.append(f"line {node.lineno}: takes model and processor as arguments, and imports neither")
        if module == "modeling_mmt.loss_mmt" and (other in {*PICTURE, "transformers"} or "distributed" in target):
            found.append(f"line {node.lineno}: knows no model, no config, no process group")
    return found + (shipping_complaints(tree, source) if path.stem.endswith("_mmt") else [])


def shipping_complaints(tree: ast.AST, source: str) -> list[str]:
    """What would stop the Hub's loader from running a file that is copied beside a checkpoint."""
    found, optional, relative_lines = [], set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):  # the loader skips what stands in a try
            optional |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            relative_lines.add(node.lineno)
            if node.level > 1 or not re.fullmatch(r"\w+_mmt", node.module or ""):
                found.append(f"line {node.lineno}: a relative import here has the form: from .name_mmt import x")
        elif isinstance(node, ast.Import | ast.ImportFrom) and node not in optional:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            foreign = {name.partition(".")[0] for name in names} - SHIPPED_MAY_IMPORT
            if foreign:
                found.append(f"line {node.lineno}: a shipped file cannot count on {', '.join(sorted(foreign))}")
    for number, line in enumerate(source.splitlines(), start=1):
        if re.match(r"\s*(from|import)\s+\.", line) and number not in relative_lines:
            found.append(f"line {number}: text that the Hub's scanner takes for a relative import")
    return found


@pytest.mark.parametrize("path", sorted(our_files()), ids=str)
def test_every_module_has_a_layer_and_imports_only_downwards(path):
    assert complaints(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("modeling_mmt/streaming_loss.py", "from .retrieval import ranks", "not in a lower layer"),
        ("modeling_mmt/streaming_loss.py", "from . import retrieval", "not in a lower layer"),
        ("modeling_mmt/data_collator.py", "from modeling_mmt import MMTModel", "not in a lower layer"),
        ("modeling_mmt/hub.py", "import train", "not in a lower layer"),
        ("modeling_mmt/hub.py", "def f():\n    from datasets_scripts.features import FeatureStore", "never import"),
        ("datasets_scripts/emoji9.py", "import modeling_mmt.loss_mmt", "never import"),
        ("modeling_mmt/evaluation.py", "from datasets_scripts.features import FeatureStores", "never import"),
        ("modeling_mmt/retrieval.py", "from .modeling_mmt import MMTModel", "imports neither"),
        ("modeling_mmt/loss_mmt.py", "import torch.distributed as dist", "no process group"),
        ("modeling_mmt/modeling_mmt.py", "import numpy", "cannot count on numpy"),
        ("modeling_mmt/modeling_mmt.py", "from . import loss_mmt", "has the form"),
        ("modeling_mmt/modeling_mmt.py", "from modeling_mmt.loss_mmt import nce_loss", "cannot count on modeling_mmt"),
        ("modeling_mmt/modeling_mmt.py", '"""Doc.\n\nfrom .x import y\n"""', "scanner"),
        ("modeling_mmt/surprise.py", "", "has no layer"),
        ("helper.py", "", "has no layer"),
        ("examples/utils.py", "", "called utils"),
    ],
)
def test_a_forbidden_import_is_named(path, source, words):
    assert any(words in complaint for complaint in complaints(Path(path), source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("train.py", "from datasets_scripts import emoji9\nfrom modeling_mmt import MMTModel"),
        ("recipes/demo.py", "from train import main"),
        ("modeling_mmt/modeling_mmt.py", "import torch\nfrom .loss_mmt import (\n    nce_loss,\n)"),
        ("modeling_mmt/video_streams_mmt.py", "try:\n    import av\nexcept ImportError:\n    av = None"),
        ("modeling_mmt/cli.py", "from datasets_scripts.features import FeatureStores\nfrom .hub import publish"),
        ("metrics/retrieval/retrieval.py", "import evaluate\nfrom modeling_mmt.retrieval import ranks"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert complaints(Path(path), source) == []
