"""Robots that are in use stop when the program ends, however it ends: at its last line, by Ctrl-C, an error, SIGTERM.

A kill (SIGKILL), a crash of the interpreter or of the computer runs nothing of this: then the robot's dead-man timer is
left.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from typing import Any, Protocol, runtime_checkable

ENDING = tuple(each for each in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if each is not None)


@runtime_checkable
class InUse(Protocol):
    """What is ended: `RobotEnv`."""

    def halt(self, why: str) -> None:
        """Have the robot stopped, without waiting: a signal may have come in the middle of anything."""
        ...

    def close(self) -> None: ...


_in_use: dict[int, InUse] = {}  # by id, in the order of opening
_before: dict[int, Any] = {}  # signal -> the handler that ours stands before
_process = 0


def begin(robot: InUse) -> None:
    """From now on end it with the program. Signals are heeded where the main thread says so first.

    Args:
        robot: has been connected.
    """
    global _process
    if _process != os.getpid():  # a fork has a copy of what is in use, and no say in it
        _in_use.clear()
        _process = os.getpid()
    _in_use[id(robot)] = robot
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            now = signal.getsignal(number)
            if number not in _before and now not in (signal.SIG_IGN, None):
                _before[number] = now
                signal.signal(number, _on_signal)


def forget(robot: InUse) -> None:
    """It has been closed.

    Args:
        robot: that `begin` was told of.
    """
    _in_use.pop(id(robot), None)
    if not _in_use and threading.current_thread() is threading.main_thread():
        for number, handler in tuple(_before.items()):
            if signal.getsignal(number) is _on_signal:  # else somebody else's stands before ours
                signal.signal(number, handler)
                del _before[number]


def _on_signal(number: int, frame: Any) -> None:
    """Stop the robots at once, then go on as the signal would have: by default, by ending the program in order."""
    if _process == os.getpid():
        for robot in tuple(_in_use.values()):
            robot.halt(f"signal: {signal.Signals(number).name}")
    before = _before.get(number, signal.SIG_DFL)
    if callable(before):
        before(number, frame)
    elif _process != os.getpid():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    else:
        sys.exit(128 + number)  # unwinds, so that what is in use is closed


@atexit.register
def _close_all() -> None:
    if _process == os.getpid():
        for robot in reversed(tuple(_in_use.values())):
            robot.close()
