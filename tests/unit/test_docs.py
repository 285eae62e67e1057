"""What README and docs say is there: files and headings behind links, commands that compose, code that runs."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from embodied import cli
from embodied.config import compose

ROOT = Path(__file__).resolve().parents[2]
OURS = ("docs", "examples", "plugins", "sim_assets")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for folder in OURS for page in sorted((ROOT / folder).rglob("*.md")))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text("utf-8")) if language == kind]


def lines(page: Path) -> list[str]:
    """What a page tells to type into a shell."""
    typed = [line.strip() for text in blocks(page, "sh") for line in text.replace("\\\n", "").splitlines()]
    return [line for line in typed if line and not line.startswith("#")]


HELP = [
    line.strip()
    for verb in cli.verbs()
    for line in cli.docstring(verb).replace("\\\n", "").splitlines()
    if line.startswith("    embodied ")
]
LINES = sorted({*(line for page in PAGES for line in lines(page)), *HELP})
COMMANDS = [line for line in LINES if line.startswith("embodied ")]
OTHERS = [line for line in LINES if not line.startswith("embodied ")]
ELSEWHERE = (
    "lerobot-record ",
    ". .venv/bin/activate",
    "curl ",
    "pip freeze ",
    "export ",
)  # other people's programs, and a shell's own
CODE = [(str(page.relative_to(ROOT)), text) for page in PAGES for text in blocks(page, "python")]
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub and MkDocs call the headings of a page."""
    titles = HEADING.findall(BLOCK.sub("", page.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page):
    text = BLOCK.sub("", page.read_text("utf-8"))
    targets = [link.partition("#")[0] for link in LINK.findall(text) if not re.match(r"https?:|#", link)]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_headings(page):
    text = BLOCK.sub("", page.read_text("utf-8"))
    for target, _, heading in (link.partition("#") for link in LINK.findall(text) if "#" in link and ":" not in link):
        assert heading in anchors(page.parent / target if target else page)


FOLDERS = ("embodied", "rewards", "policies", "benchmarks", "configs", "sim_assets", "examples", "plugins", "tests")
FILE = re.compile(rf"`((?:{'|'.join(FOLDERS)}|docs|typings)/[\w./*-]*)`")
NAME = re.compile(r"`((?:embodied|rewards|policies)(?:\.\w+)+)")
UNNAMED = re.compile(r"\b(NAME|VERB|SCENE)\b|\.json$")  # a place for a name; another thing's file


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_a_page_names_are_there(page):
    named = [each for each in FILE.findall(BLOCK.sub("", page.read_text("utf-8"))) if not UNNAMED.search(each)]
    assert [each for each in named if not list(ROOT.glob(each.rstrip("/")))] == []


def there(name: str) -> bool:
    """Whether a dotted name is a module, or what one holds."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            held: Any = importlib.import_module(".".join(parts[:count]))
            return all((held := getattr(held, part, None)) is not None for part in parts[count:])
    return False


def test_python_names_that_pages_and_docstrings_name_are_there():
    texts = [*PAGES, *(file for kind in FOLDERS[:4] for file in sorted((ROOT / kind).rglob("*.py")))]
    named = {(name, file.name) for file in texts for name in NAME.findall(file.read_text("utf-8"))}
    assert len(named) > 40
    assert sorted((name, file) for name, file in named if not UNNAMED.search(name) and not there(name)) == []


def test_there_are_commands_of_every_verb():
    assert {line.split()[1] for line in COMMANDS} >= set(cli.verbs())


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_compose(line):
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition("#")[0])
    assert "{" not in bare, "a shell expands braces that are not quoted"
    _, verb, *words = shlex.split(
        re.split(r" [|>] ", line)[0], comments=True
    )  # what becomes of its output is a shell's
    if verb.startswith("-"):
        return
    if "--help" in words:
        assert cli.verb_help(verb, [word for word in words if word != "--help"])
        return
    compose(verb, words)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("line", OTHERS)
def test_other_lines_name_what_is_there(line):
    """Make's targets, modules, files and extras; what they do is tested where they are."""
    first, *words = shlex.split(line, comments=True)
    if first == "make":
        assert set(words) <= TARGETS
    elif first == "python":
        module = words[1] if words[0] == "-m" else None
        assert importlib.util.find_spec(module) if module else (ROOT / words[0]).is_file()
        if module == "pydoc":
            assert importlib.util.find_spec(words[2])
    elif line.startswith("pip install "):
        place, _, extras = words[-1].partition("[")
        assert (ROOT / place / "pyproject.toml").is_file()
        assert set(filter(None, extras.rstrip("]").split(","))) <= set(PROJECT["optional-dependencies"])
    else:
        assert line.startswith(ELSEWHERE)


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
