"""List what there is to choose: worlds, rewards, published models, combinations, encoders, learners, sources.

One line each: the name to write, what it is, and what it needs. format=json is the same for programs.

    embodied list
    embodied list what=rewards
    embodied list what=worlds format=json
"""

from __future__ import annotations

import json

from omegaconf import DictConfig

from embodied import catalogue
from embodied.errors import UserError, nearest

FORMATS = ("text", "json")


def run(config: DictConfig) -> None:
    """Print it."""
    if config.what != "all" and config.what not in catalogue.KINDS:
        known = (*catalogue.KINDS, "all")
        raise UserError(f"what must be a kind of choice; got {config.what!r}. {nearest(str(config.what), known)}")
    if config.format not in FORMATS:
        raise UserError(f"format must be text or json; got {config.format!r}. {nearest(str(config.format), FORMATS)}")
    kinds = tuple(catalogue.KINDS) if config.what == "all" else (config.what,)
    found = {kind: catalogue.entries(kind) for kind in kinds}
    if config.format == "json":
        print(json.dumps({kind: [entry._asdict() for entry in of] for kind, of in found.items()}, ensure_ascii=False))
        return
    for number, (kind, of) in enumerate(found.items()):
        print("\n" * bool(number) + f"{kind} ({catalogue.KINDS[kind]})")
        width = max(len(entry.name) for entry in of)
        for entry in of:
            needs = f" Needs {entry.needs}." if entry.needs else ""
            print(f"  {entry.name:{width}}  {entry.text}{needs}")
