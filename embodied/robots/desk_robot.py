"""The simulated robot itself, in its own process: our desk behind a socket, as a real arm stands behind its controller.

The tip follows targets in metres by a 100 Hz servo that takes a control period to each; measurements and frames are
sent as they are made, whether anybody asks or not. It has what a real controller has: commands are refused while it is
stopped, when they are too old or no numbers; when none comes for `deadman_s` while it moves, or the connection ends, it
stops by itself. It does not keep the workspace, speeds and accelerations: that is what is tested of whoever commands
it, and every command is logged as it came.

Nobody else touches the world. Messages are those of `embodied.robots.wire`:

    in   act {command, sent_s}, stop, release, faults {…}, scene {id, seed}, truth {id}
    out  robot {…} once, state {t, proprio, stopped}, frame {camera, t, index, shape, data}, answer {id, …}, busy
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import socket
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embodied.envs.desk_scene import OPENING, STEP
from embodied.robots.checks import check_number
from embodied.robots.desk_arm import TICK_S, Arm
from embodied.robots.driver import Clock
from embodied.robots.wire import ACTION_NAMES, OBSERVATION_NAMES, Faults, Messages, WireError, packed

SERVO_SPEED = 0.5  # m/s along each axis: a tick or a target that comes late is not made up for by a jump
REACH_S = 0.05  # a target is reached so long after it came: one control period
STATE_TICKS = 2  # a measurement each
LAST_WORDS = 20  # reads
BACKLOG = 2**20  # bytes not yet taken by the other side, above which frames are left out
MOST = {"speed": 1e4, "fps": 1e3, "deadman_s": 3600.0, "size": 4096.0}  # of the options; above 0
MOST_FROM_0 = {"noise": 255.0, "seed": 2.0**63}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the simulated robot is set up.

    Attributes:
        address: path of a unix socket, or "127.0.0.1:PORT"; port 0: any free one.
        task: task of the desk, such as drawer or lift; decides how the desk is laid out, and `truth`.
        speed: seconds of the robot that pass in one of ours.
        cameras: cameras of the desk that are filmed, such as front,side.
        size: pixels a side of a frame.
        fps: frames a second.
        noise: noise of the cameras, grey levels; without any, two pictures of a still scene are equal and look frozen.
        seed: seed of the scene, the noise and the faults.
        deadman_s: seconds without a command, while moving, after which the arm stops by itself.
        log: a file for every command, stop and movement, one JSON object a line; "": none.
        until_eof: end when the standard input ends, so that it does not outlive whoever started it.

    Raises:
        ValueError: a number that is none, or out of range.
    """

    address: str
    task: str = "drawer"
    speed: float = 1.0
    cameras: tuple[str, ...] = ("front",)
    size: int = 96
    fps: float = 30.0
    noise: int = 1
    seed: int = 0
    deadman_s: float = 0.25
    log: str = ""
    until_eof: bool = False

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            check_number("Options", name, getattr(self, name), above=0.0, most=most)
        for name, most in MOST_FROM_0.items():
            check_number("Options", name, getattr(self, name), above=-1.0, most=most)


class DeskRobot:
    """The arm, its cameras and its one connection; `run` is its loop, in one thread.

    Args:
        options: of `embodied.robots.simulated`'s command line.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.clock = options, Clock(options.speed)
        self.world = Arm(task=options.task, camera=options.cameras[0], image_size=options.size)
        self._rng = np.random.default_rng(options.seed)
        self._log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if options.log else None
        self._faults, self._cable_until, self._pictures = Faults(), -math.inf, dict[str, bytes]()
        self._client: socket.socket | None = None
        self._inbox, self._outbox, self._unsent = Messages(), deque[tuple[float, bytes]](), bytearray()
        self._frames, self._ticks = 0, 0
        self.stopped: str | None = "not released yet"
        self._target = np.zeros(4)
        self._commanded_s: float | None = None  # of the last command since the release
        self.arrange(options.seed)
        for camera in options.cameras:
            self.world.frame(camera)  # the first takes half a second, in which nothing would move

    # The arm --------------------------------------------------------------------------------------------

    def arrange(self, seed: int) -> None:
        """A person lays the desk out anew and puts the arm at its start."""
        self.world.reset(seed=seed)
        self._target = np.array([*self.world.sent, self.world.opening / OPENING])
        self._halt("not released yet")

    def _halt(self, reason: str) -> None:
        """Brake, and hold still; the first reason is kept."""
        self.world.brake()
        self._target = np.array([*self.world.sent, min(max(self.world.data.ctrl[7] / OPENING, 0.0), 1.0)])
        self._commanded_s = None
        if self.stopped is None:
            self.stopped = reason
            self._note("halt", reason=reason)

    def _tick(self) -> None:
        """The servo's step."""
        now = self.clock.now()
        if self._commanded_s is not None and now - self._commanded_s > self.options.deadman_s:
            self._halt(f"dead-man: no command for {self.options.deadman_s:g} s")
        left = TICK_S if self._commanded_s is None else max(self._commanded_s + REACH_S - now, TICK_S)
        move = (self._target[:3] - self.world.sent) * (TICK_S / left) / STEP
        most = SERVO_SPEED * TICK_S / STEP
        self.world.step(np.array([*np.clip(move, -most, most), 2 * self._target[3] - 1]))
        self._ticks += 1
        speed = self.world.speed()
        self._note("tick", tip=self.world.site("tip").tolist(), speed=float(np.linalg.norm(speed)))
        if self._ticks % STATE_TICKS == 0 and not self._faults.mute:
            self._publish({"type": "state", "t": now, "proprio": self._proprio(speed), "stopped": self.stopped})

    def _proprio(self, speed: np.ndarray) -> list[float]:
        opening = min(max(self.world.opening / OPENING, 0.0), 1.0)
        joints = self.world.joints()
        tip = self.world.site("tip")
        return [
            *tip.tolist(),
            opening,
            *speed.tolist(),
            *self._target[:3].tolist(),
            *joints.tolist(),
            self.world.force(),
        ]

    # The cameras ----------------------------------------------------------------------------------------

    def _film(self) -> None:
        """A frame of every camera."""
        self._frames += 1
        for camera in self.options.cameras:
            if camera in self._faults.lost or self._rng.random() < self._faults.drop:
                continue
            now = self.clock.now()
            if camera not in self._faults.frozen or camera not in self._pictures:
                self._pictures[camera] = self._picture(camera)
            shape = [self.options.size, self.options.size, 3]
            data = self._pictures[camera]
            self._publish(
                {"type": "frame", "camera": camera, "t": now, "index": self._frames, "shape": shape, "data": data}
            )

    def _picture(self, camera: str) -> bytes:
        frame = self.world.frame(camera)
        if self.options.noise:
            noise = self._rng.integers(-self.options.noise, self.options.noise + 1, frame.shape)
            frame = np.clip(frame + noise, 0, 255).astype(np.uint8)
        return frame.tobytes()

    # The connection -------------------------------------------------------------------------------------

    def run(self, listener: socket.socket) -> None:
        """Until the standard input ends (`until_eof`), or for ever."""
        self._publish_nothing()
        tick = film = self.clock.now()
        while True:
            now = self.clock.now()
            if now >= tick:
                tick = max(tick + TICK_S, now - 5 * TICK_S)  # a process that was held up does not race to catch up
                self._tick()
            if now >= film:
                film = max(film + 1 / self.options.fps, now)
                self._film()
            self._send_due()
            pause = max(min(tick, film) - self.clock.now(), 0) / self.clock.speed
            heard = self.clock.now() >= self._cable_until
            watched: list[Any] = [listener, *([self._client] if self._client else [])] if heard else []
            watched += [sys.stdin] if self.options.until_eof else []
            readable, _, _ = select.select(watched, [], [], pause)
            if self._client in readable:
                self._receive()
            if listener in readable:
                self._accept(listener)
            if sys.stdin in readable and not os.read(sys.stdin.fileno(), 4096):
                return

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(LAST_WORDS):  # the end of the last connection may wait behind what it said
            if self._client is not None and select.select([self._client], [], [], 0)[0]:
                self._receive()
        connection, _ = listener.accept()
        connection.setblocking(False)
        if self._client is not None:  # two could not both command it
            with contextlib.suppress(OSError):
                connection.send(packed({"type": "busy"}))
            connection.close()
            return
        self._client, self._inbox = connection, Messages()
        self._publish_nothing()
        self._note("connected")
        cameras = {camera: [self.options.size, self.options.size] for camera in self.options.cameras}
        self._publish({
            "type": "robot", "action_names": ACTION_NAMES, "observation_names": OBSERVATION_NAMES, "cameras": cameras,
            "speed": self.clock.speed, "deadman_s": self.options.deadman_s, "pid": os.getpid(),
        })  # fmt: skip

    def _receive(self) -> None:
        assert self._client is not None
        try:
            data = self._client.recv(65536)
            if not data:
                self._hang_up("the connection ended")
            for message in self._inbox.feed(data):
                self._obey(message)
        except BlockingIOError:  # what was there has been taken back
            return
        except (WireError, OSError) as error:
            self._hang_up(str(error))
        except Exception as error:  # a message that nobody thought of must not end the arm's own process
            self._hang_up(f"{type(error).__name__}: {error}"[:200])

    def _hang_up(self, why: str) -> None:
        self._note("hang up", reason=why)
        if self._client is not None:
            self._client.close()
        self._client = None
        self._halt(f"connection: {why}")

    def _obey(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        answer: dict[str, Any] | None = None
        if kind == "act":
            self._act(message)
        elif kind == "stop":
            self._note("stop")
            self._halt("told to stop")
        elif kind == "release":
            self._note("release")
            self._halt("released")
            self.stopped = None
        elif kind == "faults":
            self._faults = Faults.of(message)
            self._note("faults", faults=self._faults.message())
            self._break()
        elif kind == "scene":
            self.arrange(_whole(message, "seed"))
            answer = {}
        elif kind == "truth":
            answer = {"success": self.world.success(), "degrees": self.world.degrees()}
        else:
            raise WireError(f"no message is of type {kind!r}")
        if answer is not None:
            if len(self._unsent) > 2 * BACKLOG:
                raise WireError("it asks and does not read the answers")
            self._publish({"type": "answer", "id": _whole(message, "id"), **answer})

    def _act(self, message: dict[str, Any]) -> None:
        command, sent_s, now = message.get("command"), message.get("sent_s"), self.clock.now()
        numbers = [*command, sent_s] if isinstance(command, list) else []
        if len(numbers) != 5 or not all(isinstance(each, float) for each in numbers):
            numbers = [math.nan]
        told = {"command": command, "sent_s": sent_s} if len(numbers) == 5 else {"rubbish": repr(message)[:200]}
        self._note("act", **told, refused=self.stopped)
        if not isinstance(sent_s, float) or not np.isfinite(numbers).all():
            self._halt(f"a command must be 4 finite numbers; got {command!r:.100}")
        elif self.stopped is None:
            if sent_s > now:
                self._halt(f"a command came {sent_s - now:.2f} s before it was sent")
                return
            if now - sent_s > self.options.deadman_s:
                self._halt(f"a command came {now - sent_s:.2f} s late")
                return
            self.world.go()
            self._target, self._commanded_s = np.array(command), now

    def _break(self) -> None:
        if self._faults.cable_s:
            self._cable_until = self.clock.now() + self._faults.cable_s
            self._outbox.clear()
        if self._faults.garbage:
            self._outbox.append((-math.inf, self._rng.bytes(self._faults.garbage)))

    def _publish_nothing(self) -> None:
        self._outbox.clear()
        self._unsent.clear()
        self._faults, self._cable_until = Faults(), -math.inf

    def _publish(self, message: dict[str, Any]) -> None:
        """Send a message when its delay is over; lost while the cable is pulled."""
        now = self.clock.now()
        if self._client is None or now < self._cable_until:
            return
        if len(self._unsent) > BACKLOG and message["type"] in ("frame", "state"):
            return  # the other side does not keep up: it gets the next ones
        due = now + self._faults.delay_s + self._faults.jitter_s * self._rng.random()
        due = max(due, self._outbox[-1][0]) if self._outbox else due
        self._outbox.append((due, packed(message)))

    def _send_due(self) -> None:
        while self._outbox and self._outbox[0][0] <= self.clock.now():
            self._unsent += self._outbox.popleft()[1]
        if self._client is None or not self._unsent or self.clock.now() < self._cable_until:
            return
        try:
            sent = self._client.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._hang_up(str(error))
            return
        del self._unsent[:sent]

    def _note(self, kind: str, **what: Any) -> None:
        """Into the log at once: it is read when this process has been killed."""
        if self._log is not None:
            os.write(self._log, (json.dumps({"t": self.clock.now(), "kind": kind, **what}) + "\n").encode())


def _whole(message: dict[str, Any], name: str) -> int:
    """A whole number of a message, from 0.

    Raises:
        WireError: there is none.
    """
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise WireError(f"{name} must be a whole number from 0; got {value!r:.60}")
    return value


def serve(options: Options) -> None:
    """Be the robot; says `ready ADDRESS` on the standard output when it can be connected to.

    Args:
        options: of `embodied.robots.simulated`'s command line.

    Raises:
        ValueError: an address of another machine.
    """
    host, _, port = options.address.rpartition(":")
    if host and host != "127.0.0.1":
        raise ValueError(f"serve: address must be a path or 127.0.0.1:PORT; got {options.address!r}.")
    with socket.socket(socket.AF_INET if host else socket.AF_UNIX) as listener:
        listener.bind((host, int(port)) if host else options.address)
        listener.listen(4)
        robot = DeskRobot(options)
        where = options.address if not host else "{}:{}".format(*listener.getsockname())
        print(f"ready {where}", flush=True)
        try:
            robot.run(listener)
        finally:
            robot.world.close()
            if not host:
                Path(options.address).unlink(missing_ok=True)
