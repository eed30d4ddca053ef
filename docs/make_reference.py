"""Write the pages of the reference that come from the code: `python docs/make_reference.py` (a test compares them).

The words of a page are those of `mmt VERB --help` and of the recipe's docstrings, so that they are written once.
"""

import argparse
import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["COLUMNS"] = "100"  # argparse wraps its help to this width

import mmt
from modeling_mmt.commands import build, convert
from modeling_mmt.training.recipe_reading import help_lines

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"


def commands_page() -> str:
    """Every verb with its help."""
    parser = mmt.build_parser()
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = ["# Commands", "", "Every verb of `mmt`, as its `--help` prints it.", ""]
    for name, verb in verbs.choices.items():
        if name == "build":
            lines += ["## mmt build", "", "Builders of corpora, by the name that comes first:", ""]
            for builder, about in build.builders():
                lines += [f"### mmt build {builder}", "", about, "", *_help_of(build.grammar(builder)[1])]
            continue
        lines += [f"## mmt {name}", "", *_help_of(convert.grammar() if name == "convert" else verb)]
        if name == "train":
            lines += ["Its options are the fields of a [recipe](recipe.md).", ""]
    return "\n".join(lines)


def _help_of(parser: argparse.ArgumentParser) -> list[str]:
    return ["```text", parser.format_help().rstrip().replace("mmt.py", "mmt"), "```", ""]


def recipe_page() -> str:
    """Every field of a recipe with its type, default and meaning."""
    return "\n".join(["# Recipe fields", "", *_recipe_lines()]) + "\n"


def _recipe_lines() -> Iterator[str]:
    yield "A recipe is a YAML or JSON file. Every field is also an option of `mmt train`, such as"
    yield "`--finetuning.learning_rate 3e-5`; the stages `pretraining` and `finetuning` have the same fields."
    for line in "\n".join(help_lines()).splitlines():
        if line.startswith("  --"):
            field, _, default = line.strip().partition("; ")
            name, _, kind = field[2:].partition(" ")
            yield f"\n`{name}` *{kind}*, default `{default}`<br>"
        elif line.startswith(" "):
            yield line.strip()
        elif line:
            yield f"\n## {line.rstrip('.')}"


def versions_page() -> str:
    """Python, and every requirement with its floor and the version of the published figures."""
    values: dict[str, Any] = {}
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id != "ROOT":
            values[node.targets[0].id] = ast.literal_eval(node.value)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in pins if "==" in line)
    lines = [
        "# Versions",
        "",
        "Python 3.11, 3.12 and 3.13. *Minimum* is what `setup.py` asks for, and what `make test-floors`",
    ]
    lines += ["runs the tests with; *tested* is what `make test` and the published figures used (`constraints.txt`)."]
    for title, wanted in {"": values["INSTALL_REQUIRES"], **values["EXTRAS_REQUIRE"]}.items():
        lines += ["", f"## Extra `{title}`" if title else "## Always installed", ""]
        lines += ["| package | minimum | tested |", "| --- | --- | --- |"]
        for requirement in wanted:
            name, _, floor = requirement.partition(">=")
            name = name.partition("[")[0].strip()
            lines += [f"| {name} | {floor or 'any'} | {tested.get(name.lower(), 'not pinned')} |"]
    return "\n".join(lines) + "\n"


PAGES = {"commands.md": commands_page, "recipe.md": recipe_page, "versions.md": versions_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (REFERENCE / page).write_text(write(), encoding="utf-8")
    sys.exit()
