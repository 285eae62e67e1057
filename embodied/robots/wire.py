"""Messages between a driver and a robot in another process: msgpack maps, each after its length in four bytes.

Every message is a map with a `type`. Nothing is unpickled, and nothing longer than `MAX_BYTES` is waited for.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from typing import Any

import msgpack

from embodied.robots.checks import is_finite

# Metres, but the opening (0 shut to 1 open); metres a second; metres; radians; newtons.
ACTION_NAMES = ("gripper_x", "gripper_y", "gripper_z", "gripper_opening")
OBSERVATION_NAMES = (
    *ACTION_NAMES, "speed_x", "speed_y", "speed_z", "target_x", "target_y", "target_z",
    *(f"joint{i}" for i in range(1, 8)), "force",
)  # fmt: skip
MAX_BYTES = 16 * 2**20
FAULT_RANGES = {"delay_s": 60, "jitter_s": 60, "drop": 1, "cable_s": 3600, "garbage": 2**20}  # greatest; least is 0
_LENGTH = struct.Struct(">I")


class WireError(Exception):
    """What came is no message; the connection cannot be trusted any more."""


def packed(message: dict[str, Any]) -> bytes:
    """One message as bytes."""
    body = msgpack.packb(message)
    assert body is not None
    return _LENGTH.pack(len(body)) + body


class Messages:
    """Bytes in, in any pieces; whole messages out."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that these bytes complete, in order.

        Raises:
            WireError: not a message: too long, not msgpack, or without a type.
        """
        self._pending += data
        found = []
        while len(self._pending) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._pending)
            if length > MAX_BYTES:
                raise WireError(f"a message must be at most {MAX_BYTES} bytes; its length says {length}")
            end = _LENGTH.size + length
            if len(self._pending) < end:
                break
            try:
                message = msgpack.unpackb(bytes(self._pending[_LENGTH.size : end]))
            except Exception as error:  # of many kinds, for bytes that are no message
                raise WireError(f"a message must be msgpack; it is not ({error})") from None
            if not isinstance(message, dict) or not isinstance(message.get("type"), str):
                raise WireError("a message must be a map with a type")
            del self._pending[:end]
            found.append(message)
        return found


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong with the simulated robot, from now on; the default is nothing.

    Attributes:
        delay_s: by which everything that the robot sends comes later, seconds by its clock.
        jitter_s: more delay than that, drawn for each message from 0 to this; order is kept, as on one connection.
        drop: share of frames that never arrive, 0 to 1.
        frozen: cameras that send one picture again and again, as new.
        lost: cameras whose cable is pulled: no frames.
        mute: no measurements any more, though the robot still listens.
        cable_s: for so long nothing goes through the robot's own cable, in either direction. What the robot measures
            meanwhile is lost; what it is told comes when the cable is back, late, as a network's repeats would.
        garbage: so many bytes of rubbish are sent, once.

    Raises:
        ValueError: a number out of range, see `FAULT_RANGES`, or a camera that is no name.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    drop: float = 0.0
    frozen: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    mute: bool = False
    cable_s: float = 0.0
    garbage: int = 0

    def __post_init__(self) -> None:
        for name, most in FAULT_RANGES.items():
            value = getattr(self, name)
            if not is_finite(value) or not 0 <= value <= most or (name == "garbage" and not isinstance(value, int)):
                raise ValueError(f"Faults: {name} must be a number from 0 to {most}; got {value!r:.60}.")
        if not all(isinstance(name, str) for name in (*self.frozen, *self.lost)) or not isinstance(self.mute, bool):
            raise ValueError("Faults: frozen and lost must be names of cameras, mute true or false.")

    def message(self) -> dict[str, Any]:
        return {"type": "faults", **asdict(self)}

    @classmethod
    def of(cls, message: dict[str, Any]) -> Faults:
        """What `message` gives, again.

        Raises:
            WireError: it is something else.
        """
        try:
            given = {key: value for key, value in message.items() if key != "type"}
            for key in ("frozen", "lost"):
                given[key] = tuple(given.get(key, ()))
            return cls(**given)
        except (TypeError, ValueError) as error:
            raise WireError(f"faults: {error}") from None
