"""The one error a person can mend: a wrong name, a missing package, a bad value in a config."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 20  # choices listed in full; longer lists show the nearest ones only


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
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or [c for c in names if name and name in c][:3]
    if not names:
        return "There is nothing to choose from."
    if len(names) <= SHOWN:
        listed = f"Choose from {', '.join(names)}"
        return f"{listed}; did you mean {near[0]}?" if near else f"{listed}."
    if near:
        return f"Did you mean {' or '.join(near)}? ({len(names)} names exist.)"
    return f"{len(names)} names exist, for example {', '.join(names[:SHOWN])}."
