"""Reads a recipe from a YAML file and the command line.

The file and the options after or before it become one mapping, which pydantic reads; what does not fit is said in one
line that names the file, the field, its value and what is allowed.
"""

import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from modeling_mmt.recipes import bundled_recipes, recipe_path
from modeling_mmt.training.recipe import Recipe, RecipeError, near

FieldPath = tuple[str | int, ...]
# The parts of a recipe, in the order of the help; `pretraining` is as `finetuning` is.
PARTS = (
    *("", "data.", "model.", "alignment."),
    *("finetuning.", "finetuning.sources[0].", "finetuning.sources[0].augmentation."),
)
USAGE = "RECIPE [--FIELD VALUE ...]: a YAML or JSON file, or a bundled recipe such as emoji9/mmp_en, and other values"
UNKNOWN = "unexpected_keyword_argument"  # pydantic's word


class RecipeLoader(yaml.SafeLoader):
    """YAML whose `1e-3` is a number and whose `no` is Norwegian, as in YAML 1.2; no key may be given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The nodes of a mapping.

        Raises:
            MarkedYAMLError: a key is given twice.
        """
        node, keys = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if str(key.value) in keys:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            keys.add(str(key.value))
        return node


SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0x[\da-fA-F_]+|\d[\d_]*)",
    "float": r"[-+]?(?=.*[.eE])(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
RecipeLoader.yaml_implicit_resolvers = {}
for tag, pattern in SCALARS.items():
    RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), None)


def load_recipe(argv: Sequence[str], description: str = "") -> Recipe:
    """A recipe from its path, or the name of a bundled one, and options such as `--pretraining.learning_rate 3e-4`.

    Args:
        argv: the path and the options, in any order; `--help` prints all fields and exits.
        description: heads the help.

    Raises:
        RecipeError: a file cannot be read, a name is not known, or a value not allowed.
    """
    if {"-h", "--help"} & set(argv):
        print(description.strip(), "", USAGE, *help_lines(), sep="\n")
        raise SystemExit(0)
    name, options = split_options(argv)
    values = read_file(name) if name is not None else {}
    option_paths = [set_option(values, option, text) for option, text in options]
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as invalid:
        errors = invalid.errors()
        error = next((error for error in errors if error["type"] == UNKNOWN), errors[0])
        path = error["loc"]
        by_option = any(
            path[: len(p)] == p or (error["type"] == UNKNOWN and p[: len(path)] == path) for p in option_paths
        )
        where = "the command line" if by_option or name is None else name
        raise RecipeError(" ".join(f"{where}: {in_words(error)}".split())) from None


def split_options(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """The recipe's name, and each option's name with the text of its value."""
    names: list[str] = []
    options: list[tuple[str, str]] = []
    words = iter(argv)
    for word in words:
        option, has_value, text = word.partition("=")
        if not option.startswith("--"):
            names.append(word)
            continue
        value = text if has_value else "true" if option == "--dry_run" else next(words, None)
        if value is None:
            raise RecipeError(f"the command line: {option} has no value")
        options.append((option[2:], value))
    if len(names) > 1 or not argv:
        named = " and ".join(names) or "no recipe"
        raise RecipeError(f"the command line: {named}; give one recipe, such as emoji9/mmp_en")
    return next(iter(names), None), options


def read_file(name: str) -> dict[str, Any]:
    """The values of a recipe's file."""
    try:
        values = parse_yaml(recipe_path(name).read_text(encoding="utf-8"))
    except OSError as error:
        (bundled, *_) = [*difflib.get_close_matches(name, bundled_recipes(), n=1), "emoji9/mmp_en"]
        raise RecipeError(
            f"{name}: {error.strerror}; give a recipe's path, or a bundled one such as {bundled}"
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8") from None
    except ValueError as error:
        raise RecipeError(f"{name}: {error}") from None
    if not isinstance(values, dict):
        content = "empty" if values is None else f"not a recipe but {shown(values)}"
        raise RecipeError(f"{name}: {content}; give fields with values, such as data.dataset: emoji9")
    return values


def parse_yaml(text: str) -> Any:
    """The values of a YAML or JSON text.

    Raises:
        ValueError: it is neither; one line that names the text's line.
    """
    try:
        return yaml.load(text, RecipeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"not YAML: {line}{reason}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # the last: a number of 5,000 digits
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None


def set_option(values: dict[str, Any], option: str, text: str) -> FieldPath:
    """Put an option's value into a recipe's values; `data.languages+` adds to a list. Returns the field's path."""
    path, target = field_path(option), cast(Any, values)
    kind = required(field_type(path))
    is_text = kind is str or get_origin(kind) is Literal
    is_null = text == "null" and kind is not field_type(path)
    try:
        value = text if is_text and not is_null else parse_yaml(text)
        for part in path[:-1]:
            if isinstance(target, dict) and target.get(part) is None:
                target[part] = {}
            target = target[part]
        if option.endswith("+"):
            value = [*(target.get(path[-1]) or []), *(value if isinstance(value, list) else [value])]
        elif is_dataclass(kind) and isinstance(value, dict):
            value = {**(target.get(path[-1]) or {}), **value}
        target[path[-1]] = value
    except (LookupError, TypeError, AttributeError):
        raise RecipeError(f"the command line: the recipe has no --{option}") from None
    except ValueError as error:
        raise RecipeError(f"the command line: --{option} is {shown(text)}; {error}") from None
    return path


def field_path(option: str) -> FieldPath:
    """`pretraining.sources[0].weight` as its parts."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]+]+", option))


def field_type(path: Sequence[str | int]) -> Any:
    """The type of the field at a path, without its limits; `Any` where a recipe has no such field."""
    kind: Any = Recipe
    for part in path:
        kind = required(kind)
        kind = get_type_hints(kind).get(str(part), Any) if is_dataclass(kind) else [Any, *get_args(kind)][-1]
    return kind


def required(kind: Any) -> Any:
    """The type of what may be null, when it is not."""
    others = tuple(part for part in get_args(kind) if part is not type(None))
    return Union[others] if len(others) < len(get_args(kind)) else kind  # noqa: UP007  of however many there are


def in_words(error: Mapping[str, Any]) -> str:
    """What pydantic found, with the path to the field, its value and what is allowed."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    cause = error.get("ctx", {}).get("error")
    if error["type"] == UNKNOWN:
        part = required(field_type(error["loc"][:-1]))
        field_names = [each.name for each in fields(part)]
        return f"{path} is not a field of {part.__name__}; {near(error['loc'][-1], field_names)}"
    if error["type"] == "missing":
        return f"{path} is missing; it has no default"
    if cause and is_dataclass(required(field_type(error["loc"]))):  # by a part's own check, which names the field
        return f"{path}.{cause}".lstrip(".")
    remedies = {"dataclass_type": "give fields with values", "list_type": f"write a list: [{error['input']}]"}
    message = remedies.get(error["type"], error["msg"])
    return f"{path} is {shown(error['input'])}; {cause or message[0].lower() + message[1:]}"


def shown(value: Any) -> str:
    """A value as a recipe has it, cut to 60 letters."""
    return f"{json.dumps(value, ensure_ascii=False, default=str, skipkeys=True):.60}"


def help_lines() -> Iterator[str]:
    """Each field of each part of a recipe with its type, default and meaning, as the parts' docstrings have them."""
    for place in PARTS:
        kind = required(field_type(field_path(place)))
        about = inspect.getdoc(kind) or ""
        yield "\n" + about.splitlines()[0]
        documented = "\n".join(inspect.cleandoc(part.__doc__ or "") for part in reversed(kind.__mro__))
        meanings = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", documented, re.MULTILINE))
        hints = get_type_hints(kind)
        for each in fields(kind):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            default = "required" if default is MISSING else "below" if is_dataclass(default) else shown(default)
            hint = hints[each.name]
            type_name = re.sub(r"\b\w+\.", "", inspect.formatannotation(required(hint)))
            type_name += " or null" if hint is not required(hint) else ""
            yield f"  --{place}{each.name} {type_name}; {default}"
            yield textwrap.indent(textwrap.fill(" ".join(meanings[each.name].split()), 100), " " * 8)
