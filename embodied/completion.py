"""What a command line that is half written may go on with, for the TAB key of a shell.

    python -P -m embodied.completion "embodied train rew"

prints a candidate a line: the whole word, a tab, what it is. The configs' files are read as they lie, without Hydra, so
that a TAB waits for nothing heavy. `embodied completion` writes what a shell needs to ask.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from embodied import console, paths
from embodied.catalogue import KINDS, comments, first_line
from embodied.cli import FLAGS, docstring, verbs
from embodied.config import COMPOSED, choices

SHELLS = ("bash", "zsh")
_WORDS = {  # settings that take one of a few words, beyond switches and groups
    "what": (*KINDS, "all"),
    "shell": SHELLS,
    "run": ("latest",),
    "experience": ("latest",),
    "read": ("auto", "state", "pictures", "both"),
}

Candidate = tuple[str, str]  # the whole word, and what it is


class _Config(NamedTuple):
    """A verb's config, as far as files tell it.

    Attributes:
        tree: its settings, nested, with those of the groups' choices.
        chosen: of each group, its choice.
        said: dotted key -> what the files say of it.
    """

    tree: dict[str, Any]
    chosen: dict[str, str]
    said: dict[str, str]


def candidates(line: str) -> list[Candidate]:
    """Words that the last one of a line may become, in order; none where it is anybody's guess, as in a sentence.

    Args:
        line: the command line up to the cursor, the program's name first.
    """
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote: a sentence
        return []
    word = "" if not words or line[-1:].isspace() else words.pop()
    return [found for found in _candidates(words[1:], word) if found[0].startswith(word)]


def _candidates(before: list[str], word: str) -> Iterator[Candidate]:
    """Candidates for a word after others, whatever it begins with."""
    verb, *words = [each for each in before if not each.startswith("-")] or [""]
    if word.startswith("-"):
        yield from ((flag, "") for flag in FLAGS if flag.startswith("--"))
    elif not verb or (verb == "help" and not words):
        yield from ((each, docstring(each).splitlines()[0]) for each in verbs())
        if not verb:
            yield "help", "What a verb does, its settings and choices"
    elif verb in verbs():
        config = _config(verb, words)
        key, equals, value = word.partition("=")
        yield from _values(config, key, value) if equals else _keys(config, key)


def _keys(config: _Config, word: str) -> Iterator[Candidate]:
    """Settings of the level that a word has come to: `reward.` has those of the reward."""
    above = word.rpartition(".")[0]
    node: Any = config.tree
    for part in above.split(".") if above else []:
        node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        name = f"{above}.{key}" if above else str(key)
        told = config.said.get(name, "")
        if key.startswith("_"):
            continue
        if not (isinstance(value, Mapping) and value) or _group(config, name):
            yield f"{name}=", told
        if isinstance(value, Mapping) and value:
            yield f"{name}.", told
    if not above and "reward" in config.chosen and "goal" not in node:
        yield "goal=", "short for reward.goal"


def _values(config: _Config, key: str, value: str) -> Iterator[Candidate]:
    """What a setting may be, where that is known."""
    if group := _group(config, key):
        start = ""
        if key == "reward" and value.startswith("["):  # several of them
            start = value[: max(value.rfind("["), value.rfind(",")) + 1]
        yield from ((f"{key}={start}{name}", first_line(group, name)) for name in choices(group))
    elif key in _WORDS:
        yield from ((f"{key}={each}", "") for each in _WORDS[key])
    elif isinstance(_at(config.tree, key), bool):
        yield from ((f"{key}={each}", "") for each in ("true", "false"))


def _group(config: _Config, key: str) -> str | None:
    """The folder of configs that a setting chooses from; None where it chooses from none."""
    if key == "reward.combine" and config.chosen.get("reward") == COMPOSED:
        return "reward/combine"
    return key if key in config.chosen else None


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _config(verb: str, words: list[str]) -> _Config:
    """A verb's settings, with those of the choices that are made on the line."""
    tree, chosen = _read(verb)
    parts: list[str] = []
    for word in words:
        group, _, name = word.partition("=")
        if group in chosen and name in choices(group):
            chosen[group] = name
        elif group == "reward" and group in chosen and name.startswith("["):
            parts = [each for each in name.strip("[]").split(",") if each in choices("reward")]
            chosen[group] = COMPOSED
    for group, name in chosen.items():
        tree[group] = _read(f"{group}/{name}")[0] if name else None
    if parts:
        named = [name for word in words if (name := word.removeprefix("reward.combine=")) in choices("reward/combine")]
        combine = (named or [_read(f"reward/{COMPOSED}")[1]["combine"]])[-1]
        tree["reward"] |= {"combine": _read(f"reward/combine/{combine}")[0]}
        for part in parts:  # the whole is shaped, once
            tree["reward"][part] = {key: value for key, value in _read(f"reward/{part}")[0].items() if key != "shaping"}
    for folder in sorted(paths.configs().iterdir()):  # experiments: what they choose must be there to choose
        names = choices(folder.name) if folder.is_dir() and folder.name not in (*tree, *chosen) else []
        wanted = {group for name in names for group in _read(f"{folder.name}/{name}")[1]}
        if wanted and wanted <= set(chosen):
            tree[folder.name], chosen[folder.name] = None, ""
    return _Config(tree, chosen, comments(verb, {group: name for group, name in chosen.items() if name}))


def _read(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A config's own settings, and the groups that it chooses from with its choices."""
    file = paths.configs() / f"{name}.yaml"
    tree: dict[str, Any] = yaml.safe_load(file.read_text("utf-8")) or {}
    chosen: dict[str, str] = {}
    for each in tree.pop("defaults", []):
        if isinstance(each, dict):
            chosen |= {str(group).removeprefix("override /"): str(of or "") for group, of in each.items()}
    return tree, chosen


if __name__ == "__main__":
    console.settle()
    for found, told in candidates(sys.argv[1]):
        print(found, told, sep="\t")
