"""A command line or YAML file to a recipe."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from modeling_mmt.data.augmentation import VideoAugmentation
from modeling_mmt.training.recipe import (
    DataArguments,
    ModelArguments,
    Recipe,
    RecipeError,
    Source,
    StageArguments,
    check_clips,
    near,
)


def parse_recipe(argv: Sequence[str], description: str = "") -> tuple[Recipe, dict[str, Any]]:
    """A recipe's path and options to the recipe, and to its plain values; `description` heads the help.

    Raises:
        RecipeError: a name is not known, or a value not allowed.
    """
    parser = ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, exit_on_error=False
    )
    parser.add_argument("--recipe", action="config", help="YAML or JSON with any of these values")
    parser.add_class_arguments(Recipe, skip={"dry_run"})
    parser.add_argument("--dry_run", action="store_true", help="check the data against the recipe, and train nothing")
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv.insert(0, "--recipe")
    where = argv[1] if argv[:1] == ["--recipe"] else "the command line"
    try:
        check_names(argv)
        namespace = parser.parse_args(argv)
        namespace.pop("recipe", None)
        recipe = build_recipe(namespace)
        check_clips(recipe)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    except argparse.ArgumentError as error:
        raise RecipeError(f"{where}: {shortened(str(error))}") from None
    return recipe, asdict(recipe)


# The parts of a recipe whose names are known; `config`, `card` and `comes_from` hold names of their own.
PARTS = {"data": DataArguments, "model": ModelArguments, "pretraining": StageArguments, "finetuning": StageArguments}


def check_names(argv: Sequence[str]):
    """Refuse a field, in the recipe's file or among the options, that no part of a recipe has.

    Raises:
        RecipeError: says where, and what is nearest to it.
    """
    if argv[:1] == ["--recipe"] and len(argv) > 1:
        try:
            values = yaml.safe_load(Path(argv[1]).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(
                f"{error.strerror}; give a recipe's path, such as modeling_mmt/recipes/emoji9/mmp_en.yaml"
            ) from None
        except yaml.YAMLError as error:
            raise RecipeError(f"not YAML: {' '.join(str(error).split())}") from None
        check_fields(values, Recipe)
    for option in argv:
        kind: Any = Recipe
        where = "--"
        for part in option[2:].partition("=")[0].rstrip("+").split(".") if option.startswith("--") else ():
            if kind is None or part in ("help", "print_config", "recipe"):
                break
            check_fields({part: None}, kind, where)
            kind, where = PARTS.get(part), f"{where}{part}."


def check_fields(values: Any, kind: Any, where: str = ""):
    """Refuse a name that a part of a recipe has not."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where.rstrip('.') or 'it'} is {values!r:.60}; give fields with values")
    known = [known.name for known in fields(kind)]
    for name, value in values.items():
        if name not in known:
            raise RecipeError(f"{where}{name} is no field of {kind.__name__}; {near(str(name), known)}")
        if name in PARTS and value is not None:
            check_fields(value, PARTS[name], f"{where}{name}.")
        for number, source in enumerate(value if name == "sources" and isinstance(value, list) else ()):
            check_fields(source, Source, f"{where}sources[{number}].")
            if source.get("augmentation") is not None:
                check_fields(source["augmentation"], VideoAugmentation, f"{where}sources[{number}].augmentation.")


def build_recipe(namespace: Namespace) -> Recipe:
    """What the parser read, as a recipe; an error names the part that it is in."""
    values = plain(namespace)
    for name, kind in PARTS.items():
        if values[name] is None:
            continue
        if kind is StageArguments:
            sources = enumerate(values[name]["sources"])
            values[name]["sources"] = [build_source(f"{name}.sources[{i}]", source) for i, source in sources]
        values[name] = located(kind, name, values[name])
    return Recipe(**values)


def build_source(where: str, values: dict[str, Any]) -> Source:
    """A source; an error says where it is."""
    if values["augmentation"] is not None:
        try:
            values["augmentation"] = VideoAugmentation(**values["augmentation"])
        except ValueError as error:
            raise RecipeError(f"{where}.{error}") from None
    return located(Source, where, values)


def plain(value: Any) -> Any:
    """The parser's namespaces as dicts; it wraps each dataclass of a list in its class's path."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return (
            plain(value["init_args"]) if "class_path" in value else {key: plain(item) for key, item in value.items()}
        )
    return [plain(item) for item in value] if isinstance(value, list) else value


def located(kind: Any, where: str, values: Mapping[str, Any]) -> Any:
    """A part of a recipe; its errors say where it is."""
    try:
        return kind(**values)
    except RecipeError as error:
        raise RecipeError(f"{where}.{error}") from None


def shortened(message: str) -> str:
    """The parser's tree of what did not fit, as the path to the field and the first reason."""
    path, reason = [], ""
    for line in (line.strip().removeprefix("- ") for line in message.splitlines()):
        if key := re.fullmatch(r'Parser key "(.+?)":(.*)', line):
            path.append(key[1])
            reason = key[2].strip()
        elif not line.startswith(("Does not validate", "Subtypes:", "Errors:", "Problem with")):
            reason = line
        if reason:
            break
    given = re.search(r"Given value: (.*)", message)
    reason += f". Got value: {given[1]}" if given and "Expected" in reason and "value" not in reason else ""
    return re.sub(r"<class '(\w+)'>", r"\1", f"{'.'.join(path)}: {reason}" if path else reason)
