"""A reward server attacked in every way its tests know, and what its good clients notice.

`embodied serve` with the embedded encoder, a process of its own. A good client scores the same frames by HTTP, a new
connection each time, and in a session, by turns, first by itself and then beside each attack, which is another
process at another address: pictures made to stall a decoder, messages made to overflow a reader, bodies that drip,
refusals without end, sockets that are flooded, goals without end, and mutations of a good message. Counted are answers
to the good client that differ from the scorer's own in this process, statuses of 5xx that mean a fault (503 says that
there is no room), the server's peak memory, and the good client's p95. Then an attacker has the good client's own
address, whose new connections wait for that. Last the server is told to stop under the heaviest pictures.

    python -m benchmarks.attack                           # quiet machine
    python -m benchmarks.attack seconds=2 times=false     # on a busy one: counts and memory alone
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import websockets
from PIL import Image

from benchmarks.common import read_options, record
from embodied.building.scorers import make_scorer
from embodied.config import compose
from embodied.serving import protocol

OPTIONS: dict[str, Any] = {"seconds": 6.0, "times": True, "record": True}
GOAL = "the drawer is open"
SERVE = ["reward=clip", f"reward.goal={GOAL}", "threads=1", "token=false"]
GOOD_S = 0.1  # between the good client's questions
CLOSE = 1e-4  # of an answer to the scorer's own
MEMORY_MB, RATIO, STOP_S = 1500, 3.0, 15.0  # bars: peak, p95 attacked against alone, end after SIGTERM
SHARED_S = 1.5  # bar: p95 at the attacker's own address
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"  # a good client's address, and an attacker's

Attack = Callable[["Target"], Coroutine[Any, Any, None]]


# The attacks --------------------------------------------------------------------------------------------


class Target:
    """A server that is attacked until a time; what was sent and what came back."""

    def __init__(self, port: int, until: float, address: str) -> None:
        self.port, self.until, self.source = port, until, (address, 0)
        self.tried, self.statuses = 0, Counter[str]()

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(HERE, self.port, local_addr=self.source)

    async def post(self, body: bytes, media: str = protocol.MSGPACK, path: str = protocol.SCORE) -> None:
        """One request on a connection of its own."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: {media}\r\n"
        await self.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async def send(self, data: bytes) -> None:
        self.tried += 1
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await self.open()
            try:
                writer.write(data)
                status = await asyncio.wait_for(reader.read(16), 10)
                self.statuses[status[9:12].decode("latin-1") or "cut off"] += 1
            finally:
                writer.close()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, *extra: bytes) -> bytes:
    """A black one."""
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress((b"\0" + bytes(3 * width)) * height, 9)
    return b"".join([head, *extra, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def jpeg(side: int, scans: int = 0, start: bytes = b"") -> bytes:
    """A black progressive one, its last scan so many times more, `start` at its start."""
    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    return data[:2] + start + data[2:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + data[-2:]


def exif(count: int) -> bytes:
    return (b"\xff\xe1\0\x10" + b"Exif\0\0MM\0*\0\0\0\x08") * count


PICTURES: dict[str, Callable[[], list[tuple[str, bytes]]]] = {
    "strips": lambda: [("png", png(16_000_000, 1)), ("png", png(1, 1_000_000))],
    "scans": lambda: [("jpeg", jpeg(1000, 6000))],
    "metadata": lambda: [("jpeg", jpeg(64, start=exif(200_000))), ("png", png(8, 8, chunk(b"abCd", b"") * 300_000))],
    "largest": lambda: [("jpeg", jpeg(4000, 20)), ("png", png(4000, 4000))],  # as slow as is allowed
}


async def pictures(target: Target, made: list[tuple[str, bytes]]) -> None:
    """The same pictures again and again, four at a time."""

    async def one() -> None:
        while not target.over:
            for form, data in made:
                await target.post(data, f"image/{form}")

    await asyncio.gather(*(one() for _ in range(4)))


async def deep(target: Target) -> None:
    while not target.over:
        for depth in (200, 900, 1000, 20_000):
            await target.post(b'{"images": ' + b"[" * depth + b"]" * depth + b"}", protocol.JSON)
            await target.post(b"\x81\xa6images" + b"\x91" * depth + b"\xc0")


async def drips(target: Target) -> None:
    """400 bodies, a byte a second each."""
    head = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"

    async def one() -> None:
        while not target.over:
            target.tried += 1
            with contextlib.suppress(OSError):
                reader, writer = await target.open()
                writer.write(head)
                while not target.over and not reader.at_eof():
                    writer.write(b"x")
                    with contextlib.suppress(TimeoutError):
                        if status := await asyncio.wait_for(reader.read(16), 1):
                            target.statuses[status[9:12].decode("latin-1")] += 1
                            break
                writer.close()
            await asyncio.sleep(0.1)

    await asyncio.gather(*(one() for _ in range(400)))


async def refusals(target: Target) -> None:
    """On one connection, as fast as they are answered."""
    bad = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\nbad"
    while not target.over:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            reader, writer = await target.open()
            while not target.over:
                target.tried += 1
                writer.write(bad)
                answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                length = re.search(rb"content-length: (\d+)", answer)
                await reader.readexactly(int(length[1]) if length else 0)
                target.statuses[answer[9:12].decode()] += 1
            writer.close()


async def sockets(target: Target) -> None:
    """Countless fragments and pings, each in a session of its own."""
    flood = {"fragments": b"\x00\x81\0\0\0\0x" * 4096, "pings": b"\x89\x80\0\0\0\0" * 4096}
    uri = f"ws://127.0.0.1:{target.port}{protocol.STREAM}"
    while not target.over:
        for kind, data in flood.items():
            target.tried += 1
            with contextlib.suppress(OSError, websockets.WebSocketException, TimeoutError):
                async with websockets.connect(
                    uri, compression=None, close_timeout=1, local_addr=target.source
                ) as socket:
                    if kind == "fragments":
                        socket.transport.write(b"\x02\x81\0\0\0\0x")
                    for _ in range(20):
                        socket.transport.write(data)
                    await asyncio.wait_for(socket.wait_closed(), 5)
                    target.statuses[f"closed {socket.close_code}"] += 1


async def goals(target: Target) -> None:
    frame = protocol.encode_image(np.zeros((8, 8, 3), np.uint8))
    for k in range(1_000_000):
        if target.over:
            return
        await target.post(protocol.pack({"images": {"main": frame}, "goal": f"the cup is at {k}"}))


async def mutations(target: Target) -> None:
    """Good messages with bytes changed, left out or repeated."""
    rng = random.Random(0)
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    message = {
        "images": {"main": protocol.encode_images(frames, "png")},
        "goal": "open",
        "signals": {"force": [1.0, 2.0]},
    }
    seeds = [(protocol.pack(message), protocol.MSGPACK), (protocol.to_json(message), protocol.JSON)]
    seeds += [(protocol.encode_image(frames[0], form)[form], f"image/{form}") for form in ("png", "jpeg")]
    while not target.over:
        data, media = rng.choice(seeds)
        changed = bytearray(data)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(changed))
            how = rng.randrange(3)
            if how == 0:
                changed[place] = rng.randrange(256)
            elif how == 1:
                del changed[place : place + rng.randint(1, 9)]
            else:
                changed[place:place] = changed[place : place + rng.randint(1, 9)]
            if not changed:
                break
        await target.post(bytes(changed), media)


OTHERS: dict[str, Attack] = {each.__name__: each for each in (deep, drips, refusals, sockets, goals, mutations)}
ATTACKS = (*PICTURES, *OTHERS)


# The good client ----------------------------------------------------------------------------------------


class Good:
    """Asks the same by HTTP and in a session, by turns."""

    def __init__(self, port: int, frame: np.ndarray, expected: float) -> None:
        self._port, self._expected = port, expected
        self._message = {"images": {"main": protocol.encode_image(frame)}}
        self.seconds: list[float] = []
        self.answers = self.wrong = self.unanswered = 0

    async def run(self, seconds: float) -> list[float]:
        """Seconds that each answer took."""
        self.seconds, until = [], time.monotonic() + seconds
        uri = f"ws://127.0.0.1:{self._port}{protocol.STREAM}"
        async with websockets.connect(uri, compression=None) as socket:
            await socket.send(protocol.pack({"type": "open"}))
            protocol.unpack(await socket.recv(False))
            while time.monotonic() < until:
                await self._timed(self._score())
                await self._timed(self._push(socket))
                await asyncio.sleep(GOOD_S)
        return self.seconds

    async def _timed(self, asking: Awaitable[float]) -> None:
        start = time.monotonic()
        self.answers += 1
        try:
            found = await asyncio.wait_for(asking, 30)
        except (OSError, TimeoutError, KeyError, protocol.RefusedError, websockets.WebSocketException):
            self.unanswered += 1
            found = self._expected
        self.wrong += abs(found - self._expected) > CLOSE
        self.seconds.append(time.monotonic() - start)

    async def _score(self) -> float:
        body = protocol.pack(self._message)
        reader, writer = await asyncio.open_connection(HERE, self._port)
        head = f"POST {protocol.SCORE} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        head += f"Content-Type: {protocol.MSGPACK}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        return float(protocol.unpack(answer.partition(b"\r\n\r\n")[2])["combined"][0])

    async def _push(self, socket: Any) -> float:
        await socket.send(protocol.pack({"type": "frames", **self._message}))
        return float(protocol.unpack(await socket.recv(False))["combined"])


# The measurement ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def server() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`embodied serve`; its port and its process."""
    command = [sys.executable, "-m", "embodied.cli", "serve", *SERVE, "port=0"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline().split(" at ")[1].split()[0].rpartition(":")[2])
        ends = time.monotonic() + 120
        while True:  # it listens before it answers
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{protocol.HEALTH}", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < ends, "the server did not start"
                time.sleep(0.2)
        yield port, child
    finally:
        child.kill()
        child.wait()


def peak_mb(pid: int) -> float:
    """The process' highest memory since it began."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # pyright: ignore[reportOptionalSubscript]


def attacked(kind: str, port: int, seconds: float, address: str = ELSEWHERE) -> subprocess.Popen[str]:
    """Another process that has begun to attack from an address; its last line is what it did, as JSON."""
    command = [sys.executable, "-m", "benchmarks.attack", "--attack", kind, str(port), str(seconds), address]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    return child


def measure(seconds: float, *, times: bool) -> list[dict[str, Any]]:
    """All attacks, one after another, on one server."""
    torch.set_num_threads(1)
    scorer = make_scorer(compose("serve", SERVE))
    assert scorer is not None
    frame = np.random.default_rng(0).integers(0, 256, (*scorer.encoder.image_size, 3), dtype=np.uint8)
    expected = float(scorer.score(torch.from_numpy(frame)[None])[0])
    ratios: dict[str, float] = {}
    statuses: dict[str, dict[str, int]] = {}
    tried = 0
    with server() as (port, child):
        good = Good(port, frame, expected)
        asyncio.run(good.run(2.0))  # warms up
        before, peaks = peak_mb(child.pid), {}
        for kind in ATTACKS:
            alone = float(np.percentile(asyncio.run(good.run(seconds)), 95))
            attacker = attacked(kind, port, 4 * seconds)
            beside = float(np.percentile(asyncio.run(good.run(seconds)), 95))
            told = json.loads(attacker.communicate()[0].splitlines()[-1])
            tried += told["tried"]
            ratios[kind], peaks[kind], statuses[kind] = beside / alone, peak_mb(child.pid), told["statuses"]
            print(f"{kind}: p95 {1e3 * alone:.0f}, attacked {1e3 * beside:.0f} ms; {good.unanswered} lost; {told}")
        attacker = attacked("strips", port, 4 * seconds, HERE)
        shared = float(np.percentile(asyncio.run(good.run(seconds)), 95))
        attacker.communicate()
        attacker = attacked("largest", port, 10.0)
        asyncio.run(good.run(2.0))
        start = time.monotonic()
        child.send_signal(signal.SIGTERM)
        child.wait(120)
        stop_s, ended = time.monotonic() - start, child.returncode
        attacker.communicate()
    faults = sum(count for each in statuses.values() for status, count in each.items() if status in ("500", "502"))
    kinds = f"{len(ATTACKS)} ways ({', '.join(ATTACKS)})"
    peak = max(peaks.values())
    lost = good.wrong + good.unanswered
    rows = [
        row(f"a server attacked in {kinds}: answers to a good client that are wrong or do not come", lost, "answers", 0,
            good.answers, wrong=good.wrong),
        row("the same: answers of 500, a fault of the server", faults, "answers", 0, tried, statuses=statuses),
        row(f"the same: the server's peak memory ({before:.0f} MB before)", peak, "MB", MEMORY_MB, tried,
            peaks_mb=peaks),
        row("the same: exit status after SIGTERM under the heaviest pictures", abs(ended), "status", 0, 1),
    ]  # fmt: skip
    if not times:  # the machine was busy
        return [rows[0] | {"times": "not recorded"}, *rows[1:]]
    worst = max(ratios, key=ratios.__getitem__)
    told = f"the same: p95 of a good client attacked, against alone, the worst attack ({worst})"
    return [
        *rows,
        row(told, ratios[worst], "ratio", RATIO, len(ATTACKS), ratios=ratios),
        row("strips from the good client's own address: its p95", shared, "s", SHARED_S, 1),
        row("the same: from SIGTERM to the end under the heaviest pictures", stop_s, "s", STOP_S, 1),
    ]


def row(claim: str, value: float, unit: str, most: float, n: int, **more: Any) -> dict[str, Any]:
    """One result, which may be at most so much."""
    given = {"claim": claim, "value": value, "unit": unit, "bar": f"<= {most:g}", "met": value <= most, "n": n}
    return given | more


def main() -> None:
    """Measure, or attack for another who measures."""
    if sys.argv[1:2] == ["--attack"]:
        kind, port, seconds, address = sys.argv[2:6]
        attack = partial(pictures, made=PICTURES[kind]()) if kind in PICTURES else OTHERS[kind]
        target = Target(int(port), time.monotonic() + float(seconds), address)
        print("begun", flush=True)
        asyncio.run(attack(target))
        print(json.dumps({"tried": target.tried, "statuses": target.statuses}))
        return
    options = read_options(OPTIONS)
    rows = measure(float(options["seconds"]), times=options["times"])
    if options["record"]:
        record("attack", rows)
    for each in rows:
        print(f"{each['claim']}: {each['value']:.3g} {each['unit']} (bar {each['bar']})")


if __name__ == "__main__":
    main()
