"""docs/concepts/terms.md is kept to: what a person reads first has none of the words that it rules out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embodied import cli

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "concepts" / "terms.md"
TABLES = PAGE.read_text("utf-8").split("## Words that are not used")
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def first_columns(table: str) -> list[str]:
    return [word.strip() for row, _ in ROW.findall(table)[1:] for word in row.split(",")]


def read_first() -> dict[str, str]:
    """Help, configs and pages by where they are."""
    texts = {f"embodied {verb} --help": cli.docstring(verb) for verb in cli.verbs()}
    files = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "docs" / "howto").glob("*.md"), ROOT / "README.md"]
    files += [file for file in (ROOT / "docs" / "concepts").glob("*.md") if file != PAGE]
    return texts | {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in files}


@pytest.mark.parametrize("word", first_columns(TABLES[1]))
def test_a_word_that_is_ruled_out_is_not_used(word):
    form = re.compile(rf"\b{re.escape(word)}(s|ies)?\b", re.IGNORECASE)
    assert {where: found[0] for where, text in read_first().items() if (found := form.search(text))} == {}


SETTING = re.compile(r"^ *([a-z_]+):.*?\s# ((?:of|and|with|which|after|over|those|times) .*)$", re.MULTILINE)


def test_what_a_config_says_of_a_setting_begins_with_what_it_is():
    """A comment that begins with "of" or "which" leaves a reader of the help to guess what is spoken of."""
    files = [*(ROOT / "configs").rglob("*.yaml")]
    assert len(files) > 60
    found = {str(file.relative_to(ROOT)): SETTING.findall(file.read_text("utf-8")) for file in files}
    allowed = ("which of ", "which user")
    begun = {name: [said for said in each if not said[1].startswith(allowed)] for name, each in found.items()}
    assert {name: said for name, said in begun.items() if said} == {}


def test_a_word_stands_once_and_is_used():
    words = first_columns(TABLES[0])
    assert len(words) > 30
    assert len(set(words)) == len(words)
    assert not set(words) & set(first_columns(TABLES[1]))
    code = "\n".join(
        file.read_text("utf-8") for room in ("embodied", "rewards", "policies") for file in (ROOT / room).rglob("*.py")
    )
    unused = [word for word in words if word.removeprefix("to ") not in code.replace("\n    ", " ")]
    assert unused == []
