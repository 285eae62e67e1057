"""Which of this package's extras brings a module that is not installed."""

from __future__ import annotations

import re

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+).*?;.*\bextra == ['\"](?P<extra>[\w-]+)['\"]")


def extras_of(module: str) -> list[str]:
    """The extras that install a module, by name, those that bring everything left out.

    Args:
        module: as imported; of `a.b` it is `a` that counts. Its distribution has the same name, but for "-" and "_".
    """
    from importlib import metadata  # slow to import, and only a missing module needs it

    wanted = module.partition(".")[0].replace("_", "-").lower()
    found = (_REQUIREMENT.match(each) for each in metadata.requires("embodied-rewards") or ())
    named = {each["extra"] for each in found if each and each["name"].replace("_", "-").lower() == wanted}
    return sorted(named - {"all", "dev"})


def missing(error: BaseException) -> str | None:
    """What to install, where an error is that a module of an extra is not there; else None."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    extras = extras_of(name) if name else []
    if not extras:
        return None
    brought = f"the extra {extras[0]} brings" if len(extras) == 1 else f"each of the extras {', '.join(extras)} brings"
    return f'{name} is not installed; {brought} it. Run: pip install "embodied-rewards[{extras[-1]}]"'
