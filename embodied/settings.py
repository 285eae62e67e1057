"""Checks of settings that several verbs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from embodied.errors import UserError, nearest

DEVICES = ("auto", "cpu", "cuda", "mps")


def check_least(config: Mapping[str, Any], **least: int) -> None:
    """Refuse numbers below what makes sense.

    Args:
        config: the verb's.
        **least: setting -> its least value.

    Raises:
        UserError: naming the first that is below.
    """
    for name, low in least.items():
        if config[name] is None or not config[name] >= low:  # NaN is not, either
            raise UserError(f"{name} must be at least {low}; got {config[name]}.")


def check_execute(execute: int | float, horizon: int) -> None:
    """Refuse a number of a chunk's actions that cannot be executed.

    Args:
        execute: that was asked for.
        horizon: actions of a chunk.

    Raises:
        UserError: so.
    """
    if execute != int(execute) or not 1 <= execute <= horizon:
        raise UserError(f"execute must be a whole number from 1 to {horizon}, the actions of a chunk; got {execute}.")


def check_device(name: str) -> None:
    """Refuse what is no device of this machine.

    Args:
        name: one of `DEVICES`, or "cuda:1".

    Raises:
        UserError: another word, or hardware that torch does not find here.
    """
    kind = str(name).partition(":")[0]
    if kind not in DEVICES:
        raise UserError(f"device must be {', '.join(DEVICES)} or cuda:N; got {name!r}. {nearest(str(name), DEVICES)}")
    found = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(kind)
    if found is not None and not found():
        raise UserError(f"device={name} must be one this machine has; torch finds no {kind} here. Use device=auto.")
