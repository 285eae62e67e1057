"""The one error a person can mend: a wrong name, a missing package, a bad value in a config."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

SHOWN = 30  # choices listed in full; longer lists show the nearest ones only


class UserError(Exception):
    """Told to the user in one line, without a traceback; the command line exits with status 2."""


class BusyError(UserError):
    """Another process is at work there; later there is nothing wrong with it."""


def nearest(name: str, choices: Iterable[str], *, listed: str | None = None) -> str:
    """The choices for a name that is none of them, as the end of an error text.

    Args:
        name: what the user wrote.
        choices: the names that exist, in any order.
        listed: under what `embodied list` tells of each of them (`embodied.catalogue.KINDS`); None: it does not.

    Returns:
        "Choose from a, b, c; did you mean b?" (the question only where something is near; of more than
        `SHOWN` choices only the near ones are listed), and the command that lists them with a line each.
    """
    told = _nearest(name, choices)
    return told if listed is None else f"{told} embodied list what={listed} says what each is."


def _nearest(name: str, choices: Iterable[str]) -> str:
    names = sorted(set(choices))
    alike = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    alike = [c for c in alike if c[:1] == name[:1] or difflib.SequenceMatcher(None, c, name).ratio() > 0.6]
    near = alike or [c for c in names if name and name in c][:3]
    if not names:
        return "There is nothing to choose from."
    if len(names) <= SHOWN:
        listed = f"Choose from {', '.join(names)}"
        return f"{listed}; did you mean {near[0]}?" if near else f"{listed}."
    if near:
        return f"Did you mean {' or '.join(near)}? ({len(names)} names exist.)"
    return f"{len(names)} names exist, for example {', '.join(names[:SHOWN])}."


def disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full, in Python's words or in those of a library that writes by itself."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if isinstance(error, UserError):  # says all itself
        return False
    return bool(re.search(r"No space left on device|Disk quota exceeded", str(error)))


def printable(text: str) -> str:
    """A line for a terminal: what a text from outside says to the terminal itself is shown, not done."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
