"""What the config of somebody else's run may not do unasked: reach an address, a key, a file or a module.

A run folder can come from anyone, and `evaluate`, `train resume=true` and others build what its config describes. Such
a config reaches out only to what the person who runs the command names on the command line, by trust=[…], or named
there when the run was begun: that is kept outside of every run folder, in this person's own state (`kept_file`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from embodied.errors import UserError
from embodied.files import write_text

KEPT = 200  # the newest so many sets of addresses and names that this person used together

ADDRESSES = ("url", "server", "address", "host")
SECRETS = ("token_env", "token_file", "api_key_env")
WRITTEN = ("cache", "trace")  # files and folders that a reward writes
TEXTS = ("goal", "goals", "baseline", "negative", "negatives", "instruction", "prompt")  # words, whatever is in them
MODULES = re.compile(r"env\.id$|scenes\..+\.(facts|worlds\.[0-9]+)$")  # what may name code, as module:Name
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def check_trusted(folder: Path, values: Mapping[str, Any], trust: Iterable[str] | None) -> None:
    """Refuse a saved config that reaches out to what nobody here named.

    Args:
        folder: of the run, for the error.
        values: its config, plain.
        trust: what the person at the command line allows: addresses, names of variables and files, modules.

    Raises:
        UserError: says what the config wants, and how to allow it.
    """
    reached = {each: key for key, each in _reaches(values)}
    if any(set(reached) <= used for used in _kept()):
        return
    allowed = {str(each) for each in ([trust] if isinstance(trust, str) else trust or ())}
    wanted = {each: key for each, key in reached.items() if each not in allowed}
    if wanted:
        told = ", ".join(f"{key}={each}" for each, key in wanted.items())
        raise UserError(
            f"run: {folder} was saved with settings that reach out of it: {told}. A saved config may use only what you "
            f"name yourself. If you know that run and want this, add 'trust=[{','.join(wanted)}]'."
        )


def remember(values: Mapping[str, Any]) -> None:
    """Note what a config that this person wrote on the command line reaches out to, all of it together.

    Where it cannot be written down, the person is asked again.
    """
    used = {each for _, each in _reaches(values)}
    known = _kept()
    if used and used not in known:
        with suppress(OSError, RuntimeError):
            kept_file().parent.mkdir(parents=True, exist_ok=True)
            write_text(kept_file(), json.dumps([sorted(each) for each in [*known, used][-KEPT:]]) + "\n")


def kept_file() -> Path:
    """Where it is noted, in XDG_STATE_HOME or ~/.local/state.

    Raises:
        RuntimeError: a user without a home, as many a container runs as.
    """
    root = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(root) / "embodied" / "reached.json"


def _kept() -> list[set[str]]:
    """What was used together; a file that is damaged, however deep, holds nothing."""
    try:
        return [set(map(str, each)) for each in json.loads(kept_file().read_text("utf-8"))]
    except (OSError, ValueError, TypeError, RuntimeError):
        return []


def _reaches(values: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of everything that leads out of the run folder."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        name, dotted = str(key), f"{above}.{key}" if above else str(key)
        if (name in TEXTS and _is_text(value)) or (not above and name == "trust"):
            continue
        if isinstance(value, str) and value:
            module = MODULES.match(dotted) and ":" in value
            if name in (*ADDRESSES, *SECRETS, *WRITTEN) or module or SCHEME.match(value):
                yield dotted, value
        else:
            yield from _reaches(value, dotted)


def _is_text(value: Any) -> bool:
    """Whether a value is words alone: a part of a reward, or a scene, may be called "goal" too, and hold anything."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
