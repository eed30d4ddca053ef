"""Words that the project does not use: names that say how a value came about, and phrases that are no English idiom.

Names are looked for in the code that ships, phrases in its docstrings, comments and messages and in the pages.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = [
    path
    for folder in ("modeling_mmt", "datasets_scripts", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
]
CODE += [ROOT / name for name in ("mmt.py", "train.py", "extract_features.py")]
PAGES = [path for path in (ROOT / "docs").rglob("*.md") if "log" not in path.parts]
PAGES += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "model_card.md")]

NAMES = {
    "told": "message",
    "told_of": "known_errors",
    "kept": "cached, remaining or selected",
    "way": "direction, method or format",
    "Question": "EvalSpec",
}
PHRASES = {
    r"\b(?:is|are) no (?:checkpoint|folder|dataset|text|picture|file|language|split|time|object)\b": "is not a",
    r"\bhas no use for\b": "does not use",
    r"\bof no use\b": "say what is needed",
    r"\bgoes on where\b": "continues where",
    r"\b(?:are|to be|can be) had\b": "are available from",
    r"\bmend(?:s|ed)?\b": "correct, repair",
    r"\b(?:lie|lies|lay) beside\b": "is stored beside",
    r"\bis there twice\b": "appears twice",
    r"\bnot as (?:it|they) must be\b": "is invalid",
    r"\bknows no word\b": "has an empty vocabulary",
    r"\bso many (?:as|optimizer|inches|patches|equal|queries|files)\b": "this many",
    r"\bwhat (?:it|they) (?:is|are) taken for\b": "say what it is",
    r"\bOrder is seen where\b": "say who sees what",
    r"\bwhat (?:it|was there) had\b": "say what is unchanged",
}


def names_of(tree: ast.AST) -> set[str]:
    """Every identifier that a file binds or reads."""
    found = set()
    for node in ast.walk(tree):
        for field in ("id", "arg", "attr", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found.add(value)
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_name_says_how_a_value_came_about(path):
    used = names_of(ast.parse(path.read_text(encoding="utf-8"))) & NAMES.keys()
    assert {name: NAMES[name] for name in used} == {}


def phrases_of(text: str) -> dict[str, str]:
    """Each phrase of the list that a text has, lines joined, with what to write."""
    joined = re.sub(r"\s+(?:# )?", " ", text)
    return {match[0]: instead for phrase, instead in PHRASES.items() for match in [re.search(phrase, joined)] if match}


@pytest.mark.parametrize("path", CODE + PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_text_has_a_phrase_that_is_no_english_idiom(path):
    assert phrases_of(path.read_text(encoding="utf-8")) == {}


def test_names_and_phrases_are_found_where_they_are():
    assert names_of(ast.parse("for way in ways: f(kept=told.Question)")) >= {"way", "kept", "told", "Question"}
    assert phrases_of("a file\n# is no picture; mend it") == {"is no picture": "is not a", "mend": "correct, repair"}
    assert phrases_of("there is no folder, and amending it") == {"is no folder": "is not a"}
    assert phrases_of("the amendment was recommended") == {}
