"""What pages show exists: commands and their options, programs, figures, messages, exceptions."""

import argparse
import contextlib
import importlib
import io
import json
import re
import shlex
from collections.abc import Iterator

import pytest
from readme_blocks import PAGES, ROOT

import mmt
from modeling_mmt.commands import build, convert
from modeling_mmt.data.errors import InputError
from modeling_mmt.training.recipe_reading import help_lines

SHELL = re.compile(r"^( *)```(?:sh|bash)?\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(  # 10.7, -0.4 or 1.2 million; not a version, 0.5.1, and not 8.0-16.0
    r"(?<![\w.+-])(-?\d+\.\d+)(?![\w.]|-\d)( million| GB|)"
)
UNITS = {"": 1.0, " million": 1e6, " GB": 1e9}
RESULT_FILE = re.compile(r"results/[\w/.-]+\.(?:json|md)")
EMOJI9 = json.loads((ROOT / "results/emoji9/results.json").read_text(encoding="utf-8"))["rows"]


# Commands


def commands(page: str) -> list[list[str]]:
    """The words of each command of a page, in blocks and in running text, from `mmt`, `python` or `torchrun` on."""
    text = PAGES[page]
    lines = [line for _, block in SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:mmt|python|torchrun) [^`]*)`", SHELL.sub("", text).replace("\n", " "))
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # a quote that is not closed: no command
            words = shlex.split(line, comments=True)
            if words and words[0] in ("mmt", "python", "torchrun"):
                found.append(words)
    return found


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def known_options(verb: str, operands: list[str]) -> set[str]:
    """Those of a verb of `mmt`, of the recipe's fields, or of the builder that is named."""
    if verb == "train":
        return {line.split()[0] for line in help_lines() if line.startswith("  --")} | {"--traceback", "--help"}
    if verb == "build":
        (name,) = {name for name, _ in build.builders()} & set(operands) or {"own_clips"}
        return options_of(build.grammar(name)[1])
    if verb == "convert":
        return options_of(convert.grammar())
    return options_of(verbs()[verb])


def verbs() -> dict[str, argparse.ArgumentParser]:
    (subparsers,) = (each for each in mmt.build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(subparsers.choices)


def problems_of(words: list[str]) -> Iterator[str]:
    """What of a command does not exist: its verb, its program, its options."""
    words = [word for word in words if word != "..."]
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :] if "-m" in words else ["python", *words[-1:]]
    if words[:3] == ["python", "-m", "mmt"]:
        words = words[2:]
    given = {re.sub(r"\[\d+\]", "", word.partition("=")[0]) for word in words if word.startswith("--")}
    if words[0] == "mmt":
        if len(words) > 1 and not words[1].startswith("-"):
            if words[1] not in verbs():
                yield f"no verb {words[1]}"
                return
            known = known_options(words[1], words[2:])
            yield from (f"mmt {words[1]} has no {option}" for option in given - known if "sources." not in option)
    elif len(words) > 1 and words[1].endswith(".py"):
        program = ROOT / words[1]
        if not program.is_file():
            yield f"no program {words[1]}"
        elif "Trainer" not in program.read_text(encoding="utf-8"):  # whose options are transformers'
            source = program.read_text(encoding="utf-8")
            yield from (f"{words[1]} has no {option}" for option in given - {"--help"} if f'"{option}"' not in source)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_and_its_options_exist(page):
    found = {shlex.join(words): list(problems_of(words)) for words in commands(page)}
    assert {command: problems for command, problems in found.items() if problems} == {}


def test_commands_are_found_and_wrong_ones_too():
    assert sum(len(commands(page)) for page in PAGES) > 60
    wrong = ["mmt serhc index", "mmt index media --modle a", "mmt train a --finetuning.learning_rat 1", "python no.py"]
    wrong += ["mmt build own_clips --embed_video", "torchrun -m mmt train a --sede 1", "python train.py --no_such"]
    for line in wrong:
        assert len(list(problems_of(line.split()))) == 1, line


# Figures


def numbers_of(path: str) -> list[float]:
    """Every number of a file of results; percent where a share is stored."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]


def is_measured(figure: str, unit: str, numbers: list[float]) -> bool:
    """Whether a number rounds to the figure; a fraction may be shown in percent."""
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
    scales = (1 / UNITS[unit], 100) if not unit else (1 / UNITS[unit],)
    return any(abs(number * scale - float(figure)) <= half for number in numbers for scale in scales)


def parts_with_results(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each paragraph, item or table of a page that names files of results, with these."""
    for part in re.split(r"\n\n|\n(?=- |\d+\. )", SHELL.sub("", PAGES[page])):
        files = [name for name in RESULT_FILE.findall(part) if (ROOT / name).is_file()]
        if files:
            yield part, files


@pytest.mark.parametrize("page", PAGES)
def test_the_figures_of_a_paragraph_are_in_the_results_that_it_names(page):
    for part, files in parts_with_results(page):
        numbers = [number for file in files for number in numbers_of(file)]
        missing = [figure for figure in FIGURE.findall(part) if not is_measured(*figure, numbers)]
        assert missing == [], f"{files} do not have what {page} says: {part[:200]}"


def test_figures_are_found_and_wrong_ones_too():
    shown = [FIGURE.findall(part) for page in PAGES for part, _ in parts_with_results(page)]
    assert sum(map(len, shown)) >= 10
    numbers = numbers_of("results/emoji9/int8.json")
    assert is_measured("15.4", "", numbers) and not is_measured("15.9", "", numbers)
    assert is_measured("1.2", " million", [1_200_000.0]) and not is_measured("1.3", " million", [1_200_000.0])


def test_the_table_on_the_page_of_results_is_the_measured_one():
    shown = re.findall(
        r"^\| (\S+ / \S+) \| ([\d.]+) \| ([\d.]+) \[([\d.]+), ([\d.]+)\] \|$", PAGES["docs/results.md"], re.M
    )
    assert len(shown) == 4
    measured = {f"{row['pretraining']} / {row['finetuning']}": row for row in EMOJI9 if row["split"] == "test"}
    for name, *figures in shown:
        cells = measured[name]["t2v"]["R@1"]
        wanted = [cells["en"]["mean"], cells["avg_non_en"]["mean"], *cells["avg_non_en"]["ci95"]]
        assert figures == [f"{value:.1f}" for value in wanted], name


# Messages


SOURCE = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("modeling_mmt", "datasets_scripts")
    for path in (ROOT / folder).rglob("*.py")
)


def literal_parts(message: str) -> list[str]:
    """The pieces between the dots and the quoted names of a message on a page."""
    return [part.strip() for part in re.split(r"\.\.\.|'[^']*'", message) if len(part.strip()) > 6]


@pytest.mark.parametrize("page", ["docs/reference/errors.md", "docs/tutorials/own_media.md"])
def test_every_message_that_a_page_explains_is_one_that_the_code_has(page):
    table = PAGES[page].rpartition("| message |")[2]
    messages = [message for row in table.splitlines()[2:] for message in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(messages) >= 4
    missing = [part for message in messages for part in literal_parts(message) if part not in SOURCE]
    assert missing == []


def test_every_exception_of_the_page_on_errors_exists_and_is_an_input_error():
    table = PAGES["docs/reference/errors.md"].partition("| exception |")[2].partition("\n\n")[0]
    names = re.findall(
        r"`(?:modeling_mmt\.data\.errors\.)?(\w+Error)`", "\n".join(r.split("|")[1] for r in table.splitlines()[2:])
    )
    assert len(names) == 9
    for name in names:
        (module,) = {
            path for path in (ROOT / "modeling_mmt").rglob("*.py") if f"class {name}(" in path.read_text("utf-8")
        }
        found = importlib.import_module(".".join(module.relative_to(ROOT).with_suffix("").parts))
        assert issubclass(getattr(found, name), InputError)


def test_help_of_every_verb_says_what_each_option_takes():
    """`--revision REVISION`: a word in capitals, not the option's own name twice."""
    for name, verb in verbs().items():
        for action in verb._actions:
            takes_value = action.option_strings and action.nargs != 0 and not action.choices
            assert not takes_value or action.metavar or action.default is not None, (name, action.option_strings)
            assert action.help and not action.help.startswith("of "), (name, action.dest)


def test_mmt_help_fits_the_terminal():
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        mmt.main(["--help"])
    assert max(map(len, out.getvalue().splitlines())) <= 120
