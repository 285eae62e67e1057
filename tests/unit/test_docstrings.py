"""Public names say what they take, give and refuse: `docs/reference/` is made of their docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    [
        *(file for room in ("rewards", "policies") for file in (ROOT / room).rglob("*.py")),
        *(ROOT / "embodied" / "envs").rglob("*.py"),
        *(ROOT / "embodied" / "robots").rglob("*.py"),
        ROOT / "embodied" / "serving" / "client.py",
    ]
)
Function = ast.FunctionDef | ast.AsyncFunctionDef
PLAIN = {"self", "cls"}


def public(name: str) -> bool:
    return not name.startswith("_")


def arguments(node: Function) -> list[str]:
    a = node.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return [each.arg for each in given if each.arg not in PLAIN and public(each.arg)]


def raises(node: Function) -> bool:
    """Whether it raises by itself, its inner functions left out."""
    inner = [each for each in ast.walk(node) if isinstance(each, Function | ast.Lambda) and each is not node]
    theirs = {id(part) for each in inner for part in ast.walk(each)}
    found = (each for each in ast.walk(node) if isinstance(each, ast.Raise) and id(each) not in theirs)
    return any(each.exc is not None and "NotImplementedError" not in ast.unparse(each.exc) for each in found)


def fields(node: ast.ClassDef) -> list[str]:
    """Of a dataclass or a named tuple."""
    data = any("dataclass" in ast.unparse(each) for each in node.decorator_list)
    if not data and "NamedTuple" not in {ast.unparse(base) for base in node.bases}:
        return []
    return [
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and public(each.target.id)
        and "ClassVar" not in ast.unparse(each.annotation)
    ]  # fmt: skip


def unsaid(text: str, names: list[str]) -> list[str]:
    return [name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)]


def gaps(file: Path) -> Iterator[str]:
    """What a file's public names leave out, a line each."""
    tree = ast.parse(file.read_text("utf-8"))
    where = str(file.relative_to(ROOT))
    for node in tree.body:
        if isinstance(node, Function) and public(node.name):
            yield from of_function(f"{where}:{node.name}", node)
        if isinstance(node, ast.ClassDef) and public(node.name):
            yield from of_class(f"{where}:{node.name}", node)


def of_function(name: str, node: Function) -> Iterator[str]:
    text = ast.get_docstring(node) or ""
    if not text:
        yield f"{name} says nothing"
        return
    for missing in unsaid(text, arguments(node)):
        yield f"{name} does not say what {missing} is"
    if raises(node) and "Raises:" not in text:
        yield f"{name} does not say what it raises"


def of_class(name: str, node: ast.ClassDef) -> Iterator[str]:
    text = ast.get_docstring(node) or ""
    if not text:
        yield f"{name} says nothing"
        return
    functions = [each for each in node.body if isinstance(each, Function)]
    init = [each for each in functions if each.name == "__init__"]
    for missing in unsaid(text, fields(node) + [each for made in init for each in arguments(made)]):
        yield f"{name} does not say what {missing} is"
    if any(raises(each) for each in init) and "Raises:" not in text:
        yield f"{name} does not say what it raises"


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_public_names_say_what_they_take_and_refuse(file):
    assert list(gaps(file)) == []
