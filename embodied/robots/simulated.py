"""A simulated robot behind the driver's interface: our desk in another process, over a local socket, with faults.

    python -m embodied.robots.simulated --address ./robot.sock --log robot.jsonl

starts one by itself; `SimulatedRobot()` starts its own. With `speed` above 1 it is faster than real time: its physics,
servo, cameras, dead-man timer, the delays of its faults and, through `SimulatedRobot.clock`, the environment's control
periods, ages and limits all pass so many of its seconds in one of ours. Encoding, the policy, the socket and the
operating system are not sped up, so a period leaves them less time.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from embodied.cameras.camera import Frame
from embodied.paths import python_path
from embodied.robots.driver import Clock, DriverError, Observation
from embodied.robots.limits import Bound, Limits
from embodied.robots.wire import ACTION_NAMES, OBSERVATION_NAMES, Faults, Messages, WireError, packed

START_S = 60.0  # for the process to be ready, seconds of ours
ANSWER_S = 10.0  # for an answer, seconds of ours
END_S = 2.0  # for a thread or a killed process to end, seconds of ours
DEADMAN_S = 0.25  # of one that is started, unless its options say another
ROOT_MAX = 80  # bytes of a folder for temporary files in which a socket can be: its whole address has at most 107

# The desk's box (metres) and its 2 cm a control period of 0.05 s; the state's ranges leave room for the servo's lag.
LIMITS = Limits(
    command={
        "gripper_x": Bound(-0.17, 0.25, speed=0.4, acceleration=4.0),
        "gripper_y": Bound(-0.27, 0.27, speed=0.4, acceleration=4.0),
        "gripper_z": Bound(0.012, 0.32, speed=0.4, acceleration=4.0),
        "gripper_opening": Bound(0.0, 1.0, speed=8.0, acceleration=160.0),
    },
    state={
        "gripper_x": (-0.21, 0.29), "gripper_y": (-0.31, 0.31), "gripper_z": (-0.01, 0.36),
        "speed_x": (-1.5, 1.5), "speed_y": (-1.5, 1.5), "speed_z": (-1.5, 1.5),
        "joint1": (-2.79, 2.79), "joint2": (-1.39, 1.89), "joint3": (-2.79, 2.79), "joint4": (0.11, 2.89),
        "joint5": (-2.79, 2.79), "joint6": (-1.19, 3.19), "joint7": (-3.09, 3.09), "force": (0.0, 150.0),
    },
)  # fmt: skip
ABSOLUTE = ("gripper_opening",)  # what the desk's own actions give as a place, not as a move


class SimulatedRobot:
    """The driver of a simulated robot: a command is where the tip shall be, metres, and how wide it opens, 0 to 1.

    Times are by a clock that both processes share, so they must run on one machine.

    Args:
        address: of one that runs already: a unix socket's path, or "127.0.0.1:PORT". None: start one at `connect`, with
            `options`, and end it at `disconnect`.
        speed: of its clock; must be that of the one that runs.
        options: of `embodied.robots.desk_robot.Options` for the one that is started, by name: task, cameras, size, fps,
            noise, seed, deadman_s, log.

    Attributes:
        pid: of its process, once connected.
        deadman_s: after so long without a command it stops by itself, seconds by its clock; of one that runs already,
            once connected.

    Raises:
        ValueError: options for one that runs already.
    """

    def __init__(self, address: str | None = None, *, speed: float = 1.0, **options: Any) -> None:
        if address is not None and options:
            raise ValueError(f"SimulatedRobot: options are for one that is started here; got address and {options}.")
        self.clock = Clock(speed)
        self.action_names: tuple[str, ...] = ACTION_NAMES
        self.observation_names: tuple[str, ...] = OBSERVATION_NAMES
        cameras = options.get("cameras", ("front",))
        self.cameras: tuple[str, ...] = (cameras,) if isinstance(cameras, str) else tuple(cameras)
        self.pid: int | None = None
        self.deadman_s: float | None = options.get("deadman_s", DEADMAN_S) if address is None else None
        self._address, self._options = address, {**options, "cameras": self.cameras}
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._socket: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._news, self._sending = threading.Condition(), threading.Lock()
        self._lost: str | None = "it is not connected"
        self._hold, self._requests = True, 0
        self._state: Observation | None = None
        self._images: dict[str, Frame] = {}
        self._answers: dict[int, dict[str, Any]] = {}

    # The driver -----------------------------------------------------------------------------------------

    def connect(self) -> None:
        if self._socket is not None:
            return
        try:
            self._link(self._address or self._start())
        except DriverError:
            self.disconnect()
            raise

    def observe(self) -> Observation:
        with self._news:
            if self._lost or self._state is None:
                raise DriverError(f"SimulatedRobot: the robot is gone: {self._lost or 'it says nothing'}.")
            return replace(self._state, images=dict(self._images))

    def act(self, command: np.ndarray) -> np.ndarray:
        with self._sending:  # nothing can come between a stop and what it forbids
            if self._hold:
                raise DriverError("SimulatedRobot.act: the robot is stopped. Call release first.")
            self._send({"type": "act", "command": command.tolist(), "sent_s": self.clock.now()})
        return command

    def stop(self) -> None:
        with self._sending:
            self._hold = True
            self._send({"type": "stop"})

    def release(self) -> None:
        with self._sending:
            self._send({"type": "release"})
            self._hold = False

    def disconnect(self) -> None:
        self._close_link()
        if self._process is not None:
            end(self._process)
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    # The bench ------------------------------------------------------------------------------------------

    def inject(self, faults: Faults) -> None:
        """Let something go wrong from now on, or, with `Faults()`, nothing any more."""
        with self._sending:
            self._send(faults.message())

    def arrange(self, seed: int) -> None:
        """What a person does between episodes: lay the desk out anew and put the arm back; needs the robot stopped."""
        self._ask({"type": "scene", "seed": seed})

    def truth(self) -> dict[str, Any]:
        """How things really stand: `success` of the desk's task, and `degrees`. For judging, never for learning."""
        return self._ask({"type": "truth"})

    # The connection -------------------------------------------------------------------------------------

    def _link(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        link = socket.socket(socket.AF_INET if host else socket.AF_UNIX)
        try:
            link.settimeout(ANSWER_S)
            link.connect((host, int(port)) if host else address)
        except OSError as error:
            link.close()
            raise DriverError(f"SimulatedRobot: no robot at {address} ({error}). Is its process running?") from None
        link.settimeout(None)
        self._socket, self._lost, self._state, self._hold = link, None, None, True
        self._images, self._answers, self.pid = {}, {}, None
        self._reader = threading.Thread(target=self._read, args=(link,), name="simulated robot", daemon=True)
        self._reader.start()
        with self._news:
            self._news.wait_for(lambda: self._lost or (self._state and self.pid), ANSWER_S)
            lost = self._lost or (None if self._state and self.pid else "it says nothing")
        if lost:
            raise DriverError(f"SimulatedRobot: {address}: {lost}.")

    def _start(self) -> str:
        """A process of its own, again if the last one is gone."""
        if self._process is not None and self._process.poll() is None:
            assert self._folder is not None
            return f"{self._folder.name}/robot.sock"
        if self._folder is None:
            far = len(os.fsencode(tempfile.gettempdir())) > ROOT_MAX
            self._folder = tempfile.TemporaryDirectory(prefix="robot-", dir="/tmp" if far else None)
        address = f"{self._folder.name}/robot.sock"
        Path(address).unlink(missing_ok=True)
        if self._process is not None:
            end(self._process)
        self._process = start(address=address, speed=self.clock.speed, until_eof=True, **self._options)
        return address

    def _send(self, message: dict[str, Any]) -> None:
        """Never waits: a robot that does not read is lost."""
        if self._lost or self._socket is None:
            raise DriverError(f"SimulatedRobot: the robot is gone: {self._lost}.")
        data = packed(message)
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            self._lose(str(error))
            raise DriverError(f"SimulatedRobot: the robot is gone: {error}.") from None
        if sent < len(data):
            self._lose("it does not read what it is sent")
            raise DriverError("SimulatedRobot: the robot is gone: it does not read what it is sent.")

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._sending:
            self._requests += 1
            request = self._requests
            self._send({**message, "id": request})
        with self._news:
            self._news.wait_for(lambda: self._lost or request in self._answers, ANSWER_S)
            if request not in self._answers:
                raise DriverError(f"SimulatedRobot: no answer: {self._lost or f'none within {ANSWER_S:g} s'}.")
            return self._answers.pop(request)

    def _read(self, link: socket.socket) -> None:
        """The reader thread: keeps the newest of everything."""
        messages = Messages()
        try:
            while data := link.recv(2**18):
                for message in messages.feed(data):
                    with self._news:
                        self._take(message)
                        self._news.notify_all()
            self._lose("the connection ended")
        except Exception as error:  # a robot's rubbish is of many kinds, and nothing may end this thread unsaid
            self._lose(f"it sent rubbish or was cut off ({error})")
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)  # the arm stops when its commander is gone

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "state":
            if len(message["proprio"]) != len(self.observation_names):
                raise WireError(f"{len(message['proprio'])} measurements, not {len(self.observation_names)}")
            proprio, stopped = np.array(message["proprio"], np.float32), message["stopped"]
            if stopped is not None and not isinstance(stopped, str):
                raise WireError("stopped must be a reason or nil")
            self._state = Observation(proprio=proprio, measured_s=float(message["t"]), stopped=stopped)
        elif kind == "frame":
            camera, image = message["camera"], np.frombuffer(message["data"], np.uint8).reshape(message["shape"])
            if camera not in self.cameras or image.ndim != 3:
                raise WireError(f"a frame of camera {camera!r:.60}, {image.shape}")
            self._images[camera] = Frame(image=image, captured_s=float(message["t"]), index=int(message["index"]))
        elif kind == "robot":
            if message["speed"] != self.clock.speed:
                raise WireError(f"its speed is {message['speed']}, not {self.clock.speed}")
            if (tuple(message["action_names"]), tuple(message["observation_names"])) != (
                ACTION_NAMES,
                OBSERVATION_NAMES,
            ):
                raise WireError("it is another robot")
            self.cameras, self.pid = tuple(message["cameras"]), int(message["pid"])
            self.deadman_s = float(message["deadman_s"])
        elif kind == "answer":
            self._answers = {int(message["id"]): message}  # nobody waits for an older one
        elif kind == "busy":
            raise WireError("somebody else is connected")
        else:
            raise WireError(f"a message of type {kind!r}")

    def _lose(self, why: str) -> None:
        with self._news:
            self._lost = self._lost or why
            self._news.notify_all()

    def _close_link(self) -> None:
        if self._socket is None:
            return
        self._lose("it is not connected")  # the robot stops where the connection ends
        with suppress(OSError):  # gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._reader is not None:
            self._reader.join(END_S)
        self._socket.close()
        self._socket, self._reader = None, None


def start(*, timeout_s: float = START_S, **options: Any) -> subprocess.Popen[bytes]:
    """Start a simulated robot's process and wait until it can be connected to.

    Args:
        timeout_s: for that, seconds of ours.
        options: of `embodied.robots.desk_robot.Options`, by name.

    Raises:
        DriverError: it ended, or was not ready in time; says what it wrote.
    """
    words = [sys.executable, "-P", "-m", "embodied.robots.simulated"]
    for name, value in options.items():
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        else:
            words += [f"--{name}", ",".join(value) if isinstance(value, tuple | list) else str(value)]
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    environment["LP_NUM_THREADS"] = "0"  # draw in the robot's own thread
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads would fill and hold the robot up
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment)
        deadline, said = time.monotonic() + timeout_s, b""
        assert process.stdout is not None
        while not said.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(process.stdout.fileno(), 4096) if ready else b""
            said += data
            if not data:
                end(process)
                errors.seek(0)
                wrote = errors.read().decode(errors="replace").strip()
                raise DriverError(f"The simulated robot did not start: {wrote or f'not ready after {timeout_s:g} s'}")
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a simulated robot's process, whatever state it is in."""
    if process.poll() is None:
        process.kill()
    with suppress(subprocess.TimeoutExpired):  # in the middle of a system call that does not end; it is killed
        process.wait(END_S)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main(arguments: Sequence[str] | None = None) -> None:
    """Be a simulated robot, until killed.

    Args:
        arguments: of the command line; None takes them from there.
    """
    from embodied.robots.desk_robot import Options, serve  # MuJoCo, which the driver does not need

    about = "A simulated robot: the desk, stepped in this process, its arm commanded over a local socket."
    parser = argparse.ArgumentParser(prog="python -m embodied.robots.simulated", description=about)
    told = dict(re.findall(r"^ {8}(\w+): (.*)$", Options.__doc__ or "", re.MULTILINE))
    kinds: dict[str, Any] = {"float": float, "int": int, "str": str, "tuple[str, ...]": _names}
    for each in fields(Options):
        text = told.get(each.name, "").replace("%", "%%")  # python -OO leaves no docstrings
        if each.type == "bool":
            parser.add_argument(f"--{each.name}", action="store_true", help=text)
        else:
            needed = each.default is MISSING
            shown = ",".join(each.default) if isinstance(each.default, tuple) else each.default
            text = text if needed else f"{text} ({shown})" if shown != "" else text
            kind, default = kinds[str(each.type)], None if needed else each.default
            parser.add_argument(f"--{each.name}", type=kind, required=needed, default=default, help=text)
    try:
        options = Options(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.error(str(error))
    serve(options)


if __name__ == "__main__":
    main()
