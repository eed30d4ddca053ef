"""What a stranger meets first: issue forms, the citation, one version everywhere."""

import re
from pathlib import Path

import pytest
import yaml

import modeling_mmt

ROOT = Path(__file__).resolve().parents[2]
FORMS = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_what_a_git_host_asks_for(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"] and form["labels"]
    assert {item["type"] for item in form["body"]} <= KINDS
    asked = [item for item in form["body"] if item["type"] != "markdown"]
    assert len({item["id"] for item in asked}) == len(asked) >= 3
    assert all(item["attributes"]["label"] for item in asked)
    assert any(item.get("validations", {}).get("required") for item in asked)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_files_that_an_issue_form_names_exist(path):
    for name in re.findall(r"`([\w/]+\.md)`", path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


def test_vulnerabilities_are_not_reported_as_issues():
    assert len(FORMS) == 2
    assert "SECURITY.md" in (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/config.yml").read_text())["blank_issues_enabled"] is False


def test_the_version_is_the_same_in_setup_package_and_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["preferred-citation"]["authors"]
    (in_setup,) = re.findall(r'^    version="(.+)",$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert in_setup == citation["version"] == modeling_mmt.__version__
