"""What a person types, as Hydra's grammar wants it: a sentence is a text, in any script, without quotes of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from embodied.errors import UserError, nearest

TEXTS = ("goal", "goals", "baseline", "negative", "negatives", "instruction", "wrong")  # in words: ${…} is text too
PLACES = ("data", "id", "model", "name", "out", "play", "record", "run")  # texts too: a folder 2026 is no number


def quote(word: str) -> str:
    """`reward.goal=the robot's cup` → `reward.goal="the robot's cup"`; what Hydra's grammar knows stays.

    In lists and mappings each item gets quotes that needs them: `source=[front=0,side=film.mp4]`.
    """
    key, equal, value = word.partition("=")
    if not equal or not value:
        return word
    last = key.rpartition(".")[2]
    text = last in TEXTS and key != "baseline"  # a switch of finetune's
    if text:
        value = re.sub(r"(?<!\\)\$\{", r"\\${", value)
    else:  # zsh leaves it to us everywhere, bash in a.b=~/c and in a list
        value = re.sub(r"(^\[?|,\s*)~(?=/)", lambda found: found[1] + str(Path.home()), value)
    if value[0] in "\"'":
        return f"{key}={value}" if _reads(f"{key}={value}") else f"{key}={_quoted(value)}"
    if value[0] in "[{":
        if _reads(f"{key}={value}"):
            return f"{key}={value}"
        inner = value[1:-1]
        if value[-1] == {"[": "]", "{": "}"}[value[0]] and not re.search(r"[]\[{}\"]", inner.replace("\\${", "")):
            quoted = f"{key}={value[0]}{','.join(_quote_item(each, value[0]) for each in inner.split(','))}{value[-1]}"
            if _reads(quoted):
                return quoted
        return f"{key}={_quoted(value)}" if text else word
    words = (text or last in PLACES) and value != "null"
    if words or re.search(r"[\s',=#]|^~", value) or not _reads(f"{key}={value}"):
        return f"{key}={_quoted(value)}"
    return f"{key}={value}"


def _quote_item(item: str, bracket: str) -> str:
    """An item of a list, or `name: item` of a mapping, in quotes where the grammar cannot read it."""
    name, item = (item.partition(":")[0] + ":", item.partition(":")[2]) if bracket == "{" else ("", item)
    return f"{name}{item}" if _reads(f"x={item}") else f"{name}{_quoted(item.strip())}"


def _quoted(value: str) -> str:
    escaped = re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + '\\"' * bool(found[2]), value)
    return f'"{escaped}"'


def _reads(word: str) -> bool:
    """Whether Hydra's grammar can read a setting."""
    try:
        check_grammar(word)
    except UserError:
        return False
    return True


@lru_cache(maxsize=1024)  # reading takes milliseconds, and a word is read several times a command
def check_grammar(word: str) -> Any:
    """Refuse what Hydra's grammar cannot read.

    Returns:
        The value of the setting, plain; to read, for the next call gets the same.

    Raises:
        UserError: shows the word.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        return OverridesParser.create().parse_overrides([word])[0].value()
    except OverrideParseException as error:
        raise UserError(
            f"cannot read {word!r}. Settings are written key=value; a list is [a,b], and a text that looks like one "
            "wants quotes of its own: key='\"[a] b\"'."
        ) from error


def suggestion(key: str, known: Iterable[str]) -> str:
    """What was meant by a key: `lr` is short for `policy.learning_rate`; else the nearest."""

    def means(name: str) -> bool:
        last = name.rpartition(".")[2]
        return key in (last, "".join(word[:1] for word in last.split("_")))

    meant = sorted(name for name in known if means(name)) if "." not in key and len(key) > 1 else []
    return f"Did you mean {' or '.join(meant[:3])}?" if meant else nearest(key, known)
