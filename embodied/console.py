"""The standard streams of a program of ours, whatever the shell or the service that started it left of them."""

from __future__ import annotations

import io
import os
import sys


def settle() -> None:
    """Closed streams lead nowhere from now on, and standard output takes any text.

    A closed one leaves its number to the next file that is opened, into which libraries would then write their
    warnings. A character that an encoding other than UTF-8 lacks is written as standard error has it, as in "\\u201c".
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115, PTH123  (for the life of the process)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
