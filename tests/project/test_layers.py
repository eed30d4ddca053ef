"""Who may import whom.

    train.py  extract_features.py              experiments/  examples/  benchmarks/  metrics/
        |
    mmt.py
        |
    commands                                ---- when a verb is called ---->  datasets_scripts/
        |                                                                          |
    training  report  plugins                                                      |
        |                                                                          |
    search  hub                                                                    |
        |                                                                          |
    extraction  evaluation                                                         |
        |                                                                          |
    data  recipes  <---------------------------------------------------------------'
        |
    the files that ship with a checkpoint (`*_mmt.py`) and `__init__`, flat in modeling_mmt/

Imports point down only, and never in a circle; rooms side by side do not know each other. The rooms are the folders of
`modeling_mmt/`: a new module has its place by lying in one.
"""

import ast
import os
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, BUILDERS = "modeling_mmt", "datasets_scripts"
FLOORS = [
    {"data", "recipes"},
    {"extraction", "evaluation"},
    {"search", "hub"},
    {"training", "report", "plugins"},
    {"commands"},
]  # from the ground up; the shipped files lie below
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, start=1) for room in rooms}
OUTSIDE = {"experiments", "examples", "benchmarks", "metrics"}  # programs beside the package
DOORS = {"setup.py", "train.py", "extract_features.py", "mmt.py"}
NOT_OURS = {"tests", "build", "dist", "runs", "cache", "features", "shared"}
VAGUE = {"utils", "helpers", "common", "misc"}
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


def floor_of(module: str) -> int | None:
    """How high a dotted module of ours lies: 0 for what ships; None for what is not ours."""
    package, *parts = module.split(".")
    if package == BUILDERS:
        return FLOOR["data"] + 1
    if module == "mmt" or module.startswith("mmt."):
        return len(FLOORS) + 1
    if package in OUTSIDE or f"{package}.py" in DOORS:
        return len(FLOORS) + 2
    return FLOOR.get(parts[0], 0) if package == PACKAGE and parts else 0 if package == PACKAGE else None


def imports_of(module: str, tree: ast.AST, is_package: bool = False) -> Iterator[tuple[str, ast.stmt]]:
    """Each imported dotted name, down to what is imported from a module, with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{source}.{alias.name}", node) for alias in node.names)


def complaints(path: Path, source: str) -> list[str]:
    """What one file does that the picture forbids, one sentence each."""
    module, found = ".".join(path.with_suffix("").parts), []
    tree = ast.parse(source)
    if vague := VAGUE & {*path.parts, path.stem}:
        found.append(f"is called {vague.pop()}: name it after the noun that it holds")
    if len(path.parts) == 1 and path.name not in DOORS:
        found.append("lies beside the doors: put it into the room that its job names")
    if path.parts[0] == PACKAGE:
        if len(path.parts) == 2 and not (path.stem.endswith("_mmt") or path.stem == "__init__"):
            found.append("lies among the files that ship with a checkpoint: put it into a room")
        if len(path.parts) > 2 and path.parts[1] not in FLOOR:
            found.append(f"lies in {path.parts[1]}, which is no room of the picture")
    at_the_top = {id(node) for node in tree.body}
    for target, node in imports_of(module, tree, is_package=path.name == "__init__.py"):
        mine, theirs = floor_of(module), floor_of(target)
        room, other = module.split(".")[:2], target.split(".")[:2]
        if mine is None or theirs is None or room == other or 0 in (mine, theirs) and mine >= theirs:
            pass
        elif other[0] == BUILDERS:
            if not (room == [PACKAGE, "commands"] and id(node) not in at_the_top or room[0] in {BUILDERS, *OUTSIDE}):
                found.append(f"line {node.lineno}: only a verb imports {BUILDERS}, when it is called")
        elif not theirs < mine:
            found.append(f"line {node.lineno}: imports {target}, which is not below")
        if path.name == "loss_mmt.py" and (other[0] in {PACKAGE, "transformers"} or "distributed" in target):
            found.append(f"line {node.lineno}: knows no model, no config, no process group")
    found += [
        f"line {node.lineno}: changes sys.path"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
    ]
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


def circle(modules: dict[str, str]) -> list[str]:
    """The modules of a circle of imports, or none.

    Args:
        modules: dotted name to source.
    """
    graph: dict[str, set[str]] = {}
    for module, source in modules.items():
        named = [target for target, _ in imports_of(module, ast.parse(source))]
        graph[module] = {name for target in named for name in (target, target.rpartition(".")[0]) if name in modules}
        graph[module].discard(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("path", sorted(our_files()), ids=str)
def test_every_module_lies_in_a_room_and_imports_only_downwards(path):
    assert complaints(path, (ROOT / path).read_text(encoding="utf-8")) == []


def test_no_imports_run_in_a_circle():
    sources = {".".join(path.with_suffix("").parts): (ROOT / path).read_text("utf-8") for path in our_files()}
    assert circle(sources) == []
    assert circle({"a": "import b", "b": "def f():\n    from a import x"}) == ["a", "b", "a"]


@pytest.mark.parametrize("path", sorted(our_files()), ids=str)
def test_no_file_of_the_package_is_too_long_to_say_one_thing(path):
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    limits = {"modeling_mmt.py": 900, "train.py": 80}
    assert lines <= limits.get(path.name if path.parent.name != "commands" else "", 450)


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("modeling_mmt/training/streaming_loss.py", "from modeling_mmt.commands import train", "not below"),
        ("modeling_mmt/data/collator.py", "from modeling_mmt.search.index import SearchIndex", "not below"),
        ("modeling_mmt/search/index.py", "from modeling_mmt.hub.publish import publish", "not below"),
        ("modeling_mmt/hub/publish.py", "import train", "not below"),
        ("modeling_mmt/report/write.py", "from mmt import build_parser", "not below"),
        ("modeling_mmt/hub/publish.py", "import datasets_scripts.emoji9", "only a verb"),
        ("modeling_mmt/commands/build.py", "from datasets_scripts import emoji9", "only a verb"),
        ("modeling_mmt/modeling_mmt.py", "from .data import clips", "not below"),
        ("datasets_scripts/emoji9.py", "import modeling_mmt.training.recipe", "not below"),
        ("datasets_scripts/emoji9.py", "import sys\nsys.path.insert(0, '.')", "sys.path"),
        ("modeling_mmt/loss_mmt.py", "import torch.distributed as dist", "no process group"),
        ("modeling_mmt/modeling_mmt.py", "import numpy", "cannot count on numpy"),
        ("modeling_mmt/modeling_mmt.py", "from . import loss_mmt", "has the form"),
        ("modeling_mmt/modeling_mmt.py", "from modeling_mmt.loss_mmt import nce_loss", "cannot count on modeling_mmt"),
        ("modeling_mmt/modeling_mmt.py", '"""Doc.\n\nfrom .x import y\n"""', "scanner"),
        ("modeling_mmt/surprise.py", "", "put it into a room"),
        ("modeling_mmt/attic/surprise.py", "", "no room"),
        ("helper.py", "", "beside the doors"),
        ("examples/utils.py", "", "called utils"),
    ],
)
def test_a_forbidden_import_is_named(path, source, words):
    assert any(words in complaint for complaint in complaints(Path(path), source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("extract_features.py", "import mmt"),
        ("experiments/run.py", "from datasets_scripts import emoji9\nfrom modeling_mmt import MMTModel"),
        ("modeling_mmt/modeling_mmt.py", "import torch\nfrom .loss_mmt import (\n    nce_loss,\n)"),
        ("modeling_mmt/video_streams_mmt.py", "try:\n    import av\nexcept ImportError:\n    av = None"),
        ("modeling_mmt/commands/build.py", "def run():\n    from datasets_scripts import emoji9"),
        ("modeling_mmt/training/run.py", "from modeling_mmt.data.feature_store import FeatureStores"),
        ("datasets_scripts/emoji9.py", "from modeling_mmt.data.clips import frames_of"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert complaints(Path(path), source) == []
