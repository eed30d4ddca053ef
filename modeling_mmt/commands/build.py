"""`mmt build`: a corpus from its official files, by the named builder in `datasets_scripts`."""

import argparse
import ast
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from modeling_mmt.commands.terminal import OptionParser
from modeling_mmt.data.errors import InputError

BUILDERS = "datasets_scripts"


def main(argv: Sequence[str]) -> int:
    """Build what is named, or list what can be.

    Args:
        argv: a builder's name and its options.

    Raises:
        InputError: there is no such builder, a package that it needs is not installed, a file is invalid, or
            the Hub did not take what was built.
        OSError: a file is missing.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("mmt build NAME --help shows the options of a builder:\n")
        print("\n".join(f"  {name:16} {about}" for name, about in builders()))
    else:
        build(argv[0], argv[1:])
    return 0


def builders() -> Iterator[tuple[str, str]]:
    """Each builder's name and the first line of what it says of itself; none is imported."""
    package = find_spec(BUILDERS)
    for folder in package.submodule_search_locations or () if package else ():
        for path in sorted(Path(folder).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if "run" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
                yield path.stem, (ast.get_docstring(tree) or "").partition("\n")[0]


def build(name: str, options: Sequence[str]) -> Any:
    """Run a builder and publish what it built, if the options say so.

    Args:
        name: of a module of `datasets_scripts`.
        options: of its command line.

    Returns:
        What the builder's `run` returns: as a rule, the number of rows of each split.

    Raises:
        InputError, OSError: as `main`.
    """
    module, parser = grammar(name)
    arguments = parser.parse_args(options)
    result = module.run(arguments)
    if getattr(arguments, "push_to_hub", None):
        from modeling_mmt.hub.publish import publish

        commit = publish(
            arguments.output_dir,
            arguments.push_to_hub,
            repo_type="dataset",
            tag=arguments.tag,
            private=arguments.private or None,
            scripts=[str(module.__file__), str(import_module(f"{BUILDERS}.corpus").__file__)],
        )
        print(f"{arguments.push_to_hub} is at {arguments.tag or 'main'}, commit {commit}")
    return result


def grammar(name: str) -> tuple[ModuleType, argparse.ArgumentParser]:
    """A builder's module and what reads its command line.

    Args:
        name: of a module of `datasets_scripts`.

    Raises:
        InputError: there is no such builder, or a package that it needs is not installed.
    """
    names = [builder for builder, _ in builders()]
    if name not in names:
        raise InputError(f"no builder is called {name!r}; the name comes first, one of {', '.join(names)}")
    try:
        module, shared = (import_module(f"{BUILDERS}.{part}") for part in (name, "corpus"))
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: pip install 'modeling_mmt[data,video]'") from error
    parser = OptionParser(
        f"mmt build {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if hasattr(module, "ABOUT"):
        parser.epilog = f"Files in --data_dir:\n{module.ABOUT.layout}"
    getattr(module, "add_options", shared.add_options)(parser)
    return module, parser
