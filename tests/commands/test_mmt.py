"""The grammar of `mmt`, the exit codes, and what goes to a terminal."""

import calendar
import inspect
import io
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from command_line import call

import mmt
from modeling_mmt.commands import errors, evaluate, terminal
from modeling_mmt.data.errors import InputError
from modeling_mmt.recipes import bundled_recipes

ROOT = Path(__file__).resolve().parents[2]
PARSED = ("demo", "extract", "import", "recipes", "index", "evaluate", "search", "report", "cost", "export", "publish")
VERBS = (*mmt.PASSED_ON, *PARSED)


@pytest.mark.parametrize("command", [[], *([verb] for verb in PARSED)])
def test_help_has_examples_that_parse(command, capsys):
    code, out, _ = call(capsys, *command, "--help")
    examples = [line.split("   ")[0].strip() for line in out.splitlines() if line.startswith("  mmt ")]
    assert code == 0 and examples
    assert all(example.split()[1] in (command or VERBS) for example in examples)
    for example in examples:
        words = [quoted or word for quoted, word in re.findall(r'"(.*?)"|(\S+)', example)][1:]
        if words[0] in PARSED:
            assert mmt.build_parser().parse_args(words).verb == words[0]


def test_every_verb_has_an_example_and_takes_traceback_before_it_and_after():
    for verb in VERBS:
        assert f"  mmt {verb}" in mmt.__doc__
    for words in (["--traceback", "evaluate", "x"], ["evaluate", "x", "--traceback"]):
        assert mmt.build_parser().parse_args(words).traceback


def test_what_is_written_is_called_output_dir_and_options_have_underscores():
    (verbs,) = (action for action in mmt.build_parser()._actions if action.dest == "verb")
    for name, parser in verbs.choices.items():
        options = [option for action in parser._actions for option in action.option_strings if len(option) > 2]
        assert not [option for option in options if "-" in option.removeprefix("--")], name
        assert "--traceback" in options
        assert not {"--output", "--out", "--folder"} & set(options)


def imported_by(*words):
    """The exit code of a command, and the modules that it imported."""
    script = "import atexit, sys, mmt; atexit.register(lambda: print(*sys.modules)); raise SystemExit(mmt.main())"
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["search", "--help"], 0), (["search"], 2), (["nothing"], 2)]
)
def test_help_and_a_wrong_option_import_neither_torch_nor_transformers(words, code):
    returned, imported = imported_by(*words)
    assert returned == code and "mmt" in imported
    assert not imported & {"torch", "transformers", "datasets", "numpy", "modeling_mmt"}


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "emoji9/mmp_en"]])
def test_recipes_are_listed_and_shown_without_torch(words):
    returned, imported = imported_by(*words)
    assert returned == 0 and not imported & {"torch", "transformers", "datasets"}


# Errors


def test_bad_input_is_one_line_interrupted_is_130_and_a_bug_keeps_its_traceback(capsys, monkeypatch):
    for error, code in ((InputError("two\nlines"), 2), (KeyboardInterrupt(), 130)):

        def fail(checkpoint, error=error, **options):
            raise error

        monkeypatch.setattr(evaluate, "main", fail)
        assert call(capsys, "evaluate", "x")[0] == code
        assert call(capsys, "evaluate", "x")[2] == ("mmt: two lines\n" if code == 2 else "mmt: interrupted\n")

    def bug(checkpoint, **options):
        raise AssertionError("a bug")

    monkeypatch.setattr(evaluate, "main", bug)
    with pytest.raises(AssertionError, match="a bug"):
        mmt.main(["evaluate", "x"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["searchh", "films"], r"mmt: COMMAND: invalid choice: 'searchh' \(choose from .*\); did you mean search\?\n"),
        (
            ["index", "films", "--output_dir", "i", "--window", "four"],
            r"mmt index: --window: invalid float value: 'four'; see mmt index --help\n",
        ),
        (["extract", "films"], r"mmt extract: the following arguments are required: --output_dir; see .*\n"),
        (["convert", "films"], r"mmt: the following arguments are required: .*; see mmt convert --help\n"),
        (["recipes", "emoji9/mmp"], r"mmt: emoji9/mmp is not a bundled recipe; did you mean emoji9/mmp_en or .*\?\n"),
    ],
)
def test_a_wrong_word_of_the_command_line_is_one_line_without_the_usage(words, line, capsys):
    try:
        code = mmt.main(words)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2 and re.fullmatch(line, capsys.readouterr().err)


@pytest.mark.parametrize("verb", [*mmt.PASSED_ON, *PARSED])
def test_what_a_verb_returns_is_an_exit_code_or_nothing(verb):
    module = import_module(f"modeling_mmt.commands.{mmt.MODULES.get(verb, verb)}")
    call = module.command if verb == "train" else module.main
    assert inspect.signature(call).return_annotation in (int, None, int | None, inspect.Signature.empty)


def test_a_library_s_complaint_about_a_line_of_ours_is_no_bad_input():
    with pytest.raises(ValueError, match="bad month number 13"):
        errors.exit_code_of("mmt", lambda: calendar.monthrange(2024, 13))


@pytest.mark.parametrize("words", [["--traceback", "evaluate"], ["evaluate", "--traceback"]])
def test_traceback_shows_where_bad_input_was_found(words, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        mmt.main([*words, str(tmp_path)])


def test_nobody_reading_on_is_no_error():
    assert errors.exit_code_of("mmt", lambda: 3) == 3
    script = "import mmt; raise SystemExit(mmt.main(['recipes']))"
    reader = subprocess.run(
        f'{sys.executable} -c "{script}" | head -1', shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert reader.stdout.split()[0] == next(iter(bundled_recipes())) and "Traceback" not in reader.stderr


# The terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colours_are_for_terminals_that_want_them():
    assert terminal.Paint(Terminal(), {}).bold("x") == "\033[1mx\033[0m"
    for stream, environment in ((io.StringIO(), {}), (Terminal(), {"NO_COLOR": "1"}), (Terminal(), {"TERM": "dumb"})):
        assert terminal.Paint(stream, environment).bold("x") == "x"
