"""What README and docs say is there: files behind links, commands that compose, code that runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from embodied import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text("utf-8")) if language == kind]


def commands(page: Path) -> list[str]:
    lines = [line.strip() for text in blocks(page, "sh") for line in text.splitlines()]
    return [line for line in lines if line.startswith("embodied ")]


COMMANDS = sorted({line for page in PAGES for line in commands(page)})
CODE = [(str(page.relative_to(ROOT)), text) for page in PAGES for text in blocks(page, "python")]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page):
    text = BLOCK.sub("", page.read_text("utf-8"))
    targets = [link.partition("#")[0] for link in LINK.findall(text) if not re.match(r"https?:|#", link)]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_there_are_commands_of_every_verb():
    assert {line.split()[1] for line in COMMANDS} >= set(cli.verbs())


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_compose(line):
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition("#")[0])
    assert "{" not in bare, "a shell expands braces that are not quoted"
    _, verb, *words = shlex.split(line, comments=True)
    if verb.startswith("-"):
        return
    if "--help" in words:
        assert cli.verb_help(verb, [word for word in words if word != "--help"])
        return
    cli.compose(verb, words)


@pytest.mark.parametrize(("page", "code"), CODE, ids=[page for page, _ in CODE])
def test_code_runs(page, code):
    exec(compile(code, page, "exec"), {"__name__": "page"})


def test_the_readme_can_be_read_in_one_go():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 180
    assert len(text.encode()) <= 10_000
    assert "make demo" in text
    assert "make test" in text


def test_a_package_index_gets_a_readme_without_broken_links():
    spec = importlib.util.spec_from_file_location("package_readme", ROOT / "docs" / "making" / "package_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.packaged("![a desk](x.jpg) [train](docs/train.md) [site](https://a.b)") == (
        "*a desk* train (`docs/train.md`) [site](https://a.b)"
    )
    text = module.packaged((ROOT / "README.md").read_text("utf-8"))
    assert [link for link in LINK.findall(BLOCK.sub("", text)) if not link.startswith("https:")] == []
