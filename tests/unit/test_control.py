"""Steering a watch: a real pseudo-terminal's keys, real HTTP requests, and what is drawn."""

import contextlib
import errno
import fcntl
import http.client
import io
import json
import os
import pty
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections import deque
from concurrent.futures import Future

import numpy as np
import pytest

from embodied.cameras.camera import Frame
from embodied.errors import UserError
from embodied.scoring.streaming import Reading
from embodied.serving import tokens
from embodied.watching.control import MAX_BODY, MOST, ControlServer, Keys
from embodied.watching.live_scoring import MAX_GOAL
from embodied.watching.terminal_view import TerminalView, one_line, pictures
from embodied.watching.watched import Watched
from tests.waiting import until


class Pipe:
    """What was asked of the pipeline."""

    def __init__(self, error=None):
        self.asked, self._error = [], error

    def ask(self, what, text):
        self.asked.append((what, text))
        future = Future()
        if self._error is None:
            future.set_result(f"{what} done")
        else:
            future.set_exception(self._error)
        return future

    def status(self):
        return {"scored": 7}


# Keys ---------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal():
    """Both ends of a pseudo-terminal: (a person's, the program's)."""
    person, program = pty.openpty()
    yield person, program
    os.close(person)
    os.close(program)


def press(keys, person, text):
    os.write(person, text if isinstance(text, bytes) else text.encode())
    keys.poll()


def test_every_key_does_what_the_legend_says(terminal):
    person, program = terminal
    pipe = Pipe()
    keys = Keys(pipe.ask, program)
    keys.poll()  # waits for nothing
    press(keys, person, "n x")
    press(keys, person, "q")
    assert pipe.asked == [("episode", ""), ("mark", ""), ("quit", "")]
    keys.close()


def test_a_goal_is_typed_corrected_and_taken(terminal):
    person, program = terminal
    pipe = Pipe()
    keys = Keys(pipe.ask, program)
    press(keys, person, "gthe cup is nq\x7f")
    assert keys.typed == "the cup is n"
    accent = "é".encode()
    press(keys, person, accent[:1])  # half a letter
    press(keys, person, accent[1:] + b"\r")
    assert pipe.asked == [("goal", "the cup is né")]
    assert keys.typed is None
    press(keys, person, "gforget it")
    press(keys, person, "\x1b")
    press(keys, person, "\x1b[A")  # an arrow is no letter
    press(keys, person, "g \r")
    press(keys, person, "gwrong\x15right\r")
    assert pipe.asked[1:] == [("goal", "right")]
    keys.close()


def test_a_goal_that_is_too_long_is_not_cut_to_fit(terminal):
    person, program = terminal
    pipe = Pipe()
    keys = Keys(pipe.ask, program)
    keys.typed = ""
    for _ in range(20):
        press(keys, person, "x" * 500)
    press(keys, person, "\r")
    assert len(pipe.asked[0][1]) == MAX_GOAL + 1
    keys.close()


def test_the_terminal_is_put_back_as_it_was(terminal):
    _, program = terminal
    before = termios.tcgetattr(program)
    keys = Keys(Pipe().ask, program)
    assert termios.tcgetattr(program) != before
    keys.close()
    assert termios.tcgetattr(program) == before


def test_a_terminal_that_went_away_is_survived():
    person, program = pty.openpty()
    pipe = Pipe()
    keys = Keys(pipe.ask, program)
    os.close(person)
    keys.poll()
    keys.close()
    os.close(program)
    assert pipe.asked == []


def test_in_the_background_the_terminal_is_left_alone():
    """A process in the background that sets or reads its terminal is stopped by the system."""
    code = (
        "import os, pty\n"
        "leader, _ = pty.fork()\n"
        "if leader:\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]))\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os.setpgid(0, 0)\n"
        "    from embodied.watching.control import Keys\n"
        "    keys = Keys(lambda what, text: None, 0)\n"
        "    keys.poll()\n"
        "    keys.close()\n"
        "    os._exit(7)\n"
        "status = os.waitpid(child, os.WUNTRACED)[1]\n"
        "os._exit(99 if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7


def test_keys_need_a_terminal(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(UserError, match="keys=false"):
        Keys(Pipe().ask, file.fileno())


# HTTP ---------------------------------------------------------------------------------------------------


@pytest.fixture
def served():
    pipe = Pipe()
    server = ControlServer(pipe.ask, pipe.status, 0)
    yield pipe, server.port
    server.close()


def request(port, method, path, body=b"{}", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        sent = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, body if method == "POST" else None, sent)
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


def test_what_can_be_asked(served):
    pipe, port = served
    assert request(port, "GET", "/status") == (200, {"scored": 7})
    assert request(port, "POST", "/goal", b'{"goal": "down"}') == (200, {"done": "goal done"})
    assert request(port, "POST", "/episode") == (200, {"done": "episode done"})
    assert request(port, "POST", "/mark", b'{"text": "here"}') == (200, {"done": "mark done"})
    assert pipe.asked == [("goal", "down"), ("episode", ""), ("mark", "here")]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "told"),
    [
        ("/goal", b'{"goal": "' + b"x" * 10_000 + b'"}', {}, 400, "at most 1000 characters; got 10000"),
        ("/goal", b'{"goal": 3}', {}, 400, "a text"),
        ("/goal", b"{}", {}, 400, "a text"),
        ("/goal", b"[1]", {}, 400, "JSON object"),
        ("/goal", b"{", {}, 400, "must be JSON"),
        ("/goal", b"\xff\xfe", {}, 400, "must be JSON"),
        ("/goal", b"[" * 10_000, {}, 400, "must be JSON"),
        ("/goal", b"x", {"Content_Length": str(MAX_BODY + 1)}, 413, "at most"),
        ("/goal", b"x", {"Content_Length": "9" * 5000}, 413, "at most"),
        ("/goal", b"x", {"Content_Length": "-1"}, 411, "Content-Length"),
        ("/goal", b"{}", {"Content_Type": "text/plain"}, 415, "application/json"),
        ("/goal", b"{}", {"Host": "evil.example"}, 403, "host"),
        ("/dance", b"{}", {}, 404, "/goal"),
    ],
)
def test_bad_requests_are_refused_and_harm_nobody(served, path, body, headers, status, told):
    pipe, port = served
    code, answer = request(port, "POST", path, body, **headers)
    assert (code, told in answer["error"]) == (status, True)
    assert pipe.asked == []
    assert request(port, "GET", "/status")[0] == 200
    assert request(port, "GET", "/else")[0] == 404


def test_no_name_server_is_asked(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda host: pytest.fail("a name server that is away would hold it up"))
    pipe = Pipe()
    server = ControlServer(pipe.ask, pipe.status, 0, private=False)
    try:
        assert request(server.port, "GET", "/status")[0] == 200
    finally:
        server.close()


def test_half_a_request_holds_nobody_up(served, monkeypatch):
    _, port = served
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(b"POST /goal HTTP/1.1\r\nHost: localhost\r\nContent-")
        assert request(port, "GET", "/status")[0] == 200


def test_who_does_not_know_the_token_steers_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    pipe = Pipe()
    server = ControlServer(pipe.ask, pipe.status, 0, private=True)
    try:
        assert server.token_file.stat().st_mode & 0o777 == 0o600
        assert server.token_file.parent.stat().st_mode & 0o777 == 0o700
        token = server.token_file.read_text().strip()
        for given in ("", "Bearer", "Bearer wrong", f"Basic {token}", f"Bearer {token[:-1]}", "Bearer s\u00e9cret"):
            for method, path in (("GET", "/status"), ("POST", "/goal"), ("POST", "/mark")):
                status, answer = request(server.port, method, path, b'{"goal": "down"}', Authorization=given)
                assert (status, token in answer["error"]) == (401, False)
        assert pipe.asked == []
        for scheme in ("Bearer", "bearer"):
            assert request(server.port, "GET", "/status", Authorization=f"{scheme} {token}")[0] == 200
        assert request(server.port, "POST", "/mark", Authorization=f"Bearer {token}")[0] == 200
    finally:
        server.close()
    assert list(server.token_file.parent.iterdir()) == []


def test_a_folder_that_others_can_read_keeps_no_token(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tokens.path(tokens.SERVE, 1).parent
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "serve-1").write_text("planted")
    assert tokens.found(tokens.SERVE, 1) is None
    with pytest.raises(UserError, match=r"must be yours alone.*others can read"), tokens.made(tokens.SERVE, 1):
        pass
    folder.chmod(0o700)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (folder / "serve-2").symlink_to(elsewhere)  # as another might have left it
    with tokens.made(tokens.SERVE, 2) as (token, file):
        assert tokens.found(tokens.SERVE, 2) == token == file.read_text().strip()
    assert elsewhere.read_text() == "kept"
    assert tokens.found(tokens.SERVE, 2) is None


def test_drips_and_crowds_hold_no_thread_for_long(served, monkeypatch):
    _, port = served
    monkeypatch.setattr("embodied.watching.control.SOCKET_S", 0.5)
    head = b"POST /goal HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as drip:
        drip.sendall(head)
        with contextlib.suppress(OSError):
            while True:  # a letter at a time, each within any patience for one
                drip.sendall(b"x")
                if select.select([drip], [], [], 0.05)[0]:
                    break
        with contextlib.suppress(ConnectionResetError):
            while drip.recv(100):  # whatever it says, it ends
                pass
    with socket.create_connection(("127.0.0.1", port), timeout=30) as half:
        half.sendall(head + b"Content-Length: 10\r\n\r\n{")
        assert half.recv(100).startswith(b"HTTP/1.0 408")
    monkeypatch.setattr("embodied.watching.control.SOCKET_S", 600.0)
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(3 * MOST)
        ]
        assert request(port, "GET", "/status")[0] == 200
        until(lambda: sum("process_request" in each.name for each in threading.enumerate()) <= 2 * MOST)
        assert crowd[0].recv(1) == b""


@pytest.mark.parametrize(("error", "status"), [(UserError("must stay"), 400), (OSError("gone"), 503)])
def test_a_wish_that_cannot_be_met_is_answered(error, status):
    server = ControlServer(Pipe(error).ask, dict, 0)
    try:
        assert request(server.port, "POST", "/goal", b'{"goal": "down"}') == (status, {"error": str(error)})
    finally:
        server.close()


def test_a_wish_that_comes_too_late_is_not_done_after_all(monkeypatch):
    monkeypatch.setattr("embodied.watching.control.ANSWER_S", 0.05)
    late: Future[str] = Future()
    server = ControlServer(lambda what, text: late, dict, 0)
    try:
        status, answer = request(server.port, "POST", "/episode")
    finally:
        server.close()
    assert (status, late.cancelled()) == (503, True)
    assert "not done within" in answer["error"]


def test_a_port_that_is_taken_is_said(served):
    _, port = served
    with pytest.raises(UserError, match=f"control={port} cannot be listened on"):
        ControlServer(Pipe().ask, dict, port)


# The view -----------------------------------------------------------------------------------------------


def moment(reading=True, frames=1, **more):
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, :4, 0] = 255
    names = ("front", "side")[:frames]
    made = Reading(0, 3, {"clip": 0.25, "bad\x1b[2J": 0.5}, 0.3, 0.1) if reading else None
    values = {
        "frames": {name: Frame(image=image, captured_s=0.0, index=0) for name in names},
        "reading": made, "at_s": 0.0, "time": 0.0, "normalised": {"clip": 0.5, "bad\x1b[2J": 1.0} if reading else {},
        "latencies_s": {"p50": 0.01, "p95": 0.02, "p99": 0.03}, "dropped": 5, "model_hz": 12.3, "age_s": 0.004,
        "goal": "the drawer is open",
    }  # fmt: skip
    return Watched(**values | more)


class Screen(io.StringIO):
    """A terminal, as far as is asked."""

    def isatty(self):
        return True


def test_the_block_shows_every_figure_and_is_drawn_over_itself(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    screen, times = Screen(), deque([0.0, 1.0, 1.01, 2.0])
    view = TerminalView(screen, picture=True, typed=lambda: "a cup", clock=times.popleft)
    view.tell("main lost: no cable\x1b[2J")
    view.write(moment(success=True, smoothed=0.7))
    first = screen.getvalue()
    shown = ("0.2500", "12.3 Hz", "p50 10 p95 20 p99 30", "age 4 ms", "dropped 5", "YES", "the drawer is open",
             "new goal: a cup", "main lost", "\x1b[38;2;255;0;0")  # fmt: skip
    for text in shown:
        assert text in first
    assert "\x1b[2J" not in first  # what a goal or a camera says never steers the terminal
    view.write(moment(reading=False, stale=True, age_s=2.0))
    second = screen.getvalue()[len(first) :]
    assert second.startswith(f"\x1b[{first.count(chr(10))}A")
    assert "STALE" in second
    assert "age 2000 ms" in second
    before = screen.getvalue()
    view.write(moment())  # too soon
    assert screen.getvalue() == before
    view.close()
    assert len(screen.getvalue()) > len(before)


def test_nothing_is_wider_or_higher_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "8")
    screen = Screen()
    view = TerminalView(screen, picture=True, clock=lambda: 0.0)
    view.write(moment(goal="x" * 900))
    assert screen.getvalue().count("\n") <= 7


def test_the_terminal_that_is_drawn_on_tells_its_size():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as screen:
        TerminalView(screen, picture=False, clock=lambda: 0.0).write(moment(goal="杯子是直立的" * 30))
        drawn = os.read(master, 65536).decode()
    os.close(master)
    goal = next(line for line in drawn.splitlines() if "goal" in line)
    assert len(goal.removesuffix("\x1b[K")) == 60
    assert drawn.index("\x1b[?7l") < drawn.index("goal") < drawn.index("\x1b[?7h")  # its wide characters are cut


def test_a_file_gets_lines_now_and_then():
    out, times = io.StringIO(), deque([0.0, 1.0, 3.0])
    view = TerminalView(out, clock=times.popleft)
    for _ in range(3):
        view.write(moment())
    view.tell("hello")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == one_line(moment())
    assert "\x1b" not in out.getvalue()
    assert "STALE" in one_line(moment(reading=False, stale=True))
    assert "no reading" in one_line(moment(reading=False))


def test_pictures_keep_their_shape_side_by_side():
    made = pictures(moment(frames=2).frames, columns=61, rows=30)
    assert len(made) == round(29 * 6 / 8) // 2
    assert {line.count("▀") for line in made} <= {2 * w for w in range(26, 30)}
    assert pictures(moment().frames, columns=61, rows=2) == []


def test_a_view_that_cannot_be_written_is_an_os_error():
    class Gone(Screen):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input"):
        TerminalView(Gone(), picture=False, clock=lambda: 0.0).write(moment())
