"""A reward server: how near 32 clients come to scoring offline, what one that misbehaves does to others, two replicas.

Rate: `embodied serve` with the embedded encoder on one thread of one core; 32 sessions of one client process on the
other core send raw frames of the encoder's size, eight moments a message, each waiting for its answer. Offline is
the same scorer on the same frames in batches, one thread, in turn with the server: encoding, heads, combination.

Abuse: eight sessions send one frame ten times a second, by themselves and then beside one client that at the same time
sends rubbish, bodies that are too large, images that claim to be huge, half requests, and holds connections open a byte
a second; p95 of the eight, with against without, in turn.

Replicas: `embodied serve replicas=2`, by Ray Serve, against one server without Ray, in turn, a thread each and both
cores for all of it; ViT-B-32 of random weights, whose speed is that of trained ones, as only a model that keeps a core
busy wants a second one. 32 clients post one moment after another.

    python -m benchmarks.serving                       # quiet machine; replicas want `pip install .[ray]`
    python -m benchmarks.serving parts=abuse repeats=1 seconds=10 record=false
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import websockets

from benchmarks.common import read_options, record
from embodied.building.build import build
from embodied.building.scorers import make_scorer
from embodied.config import compose
from embodied.serving import protocol
from embodied.serving.http_client import Client
from rewards.core import Features, Scorer

CLIENTS, MOMENTS, GOOD, HZ = 32, 8, 8, 10.0
BATCH = 64
GOAL = "the drawer is open"
OPTIONS: dict[str, Any] = {"parts": "rate,abuse,replicas", "repeats": 3, "seconds": 20.0, "record": True}


@contextmanager
def server(*words: str, cores: int = 1) -> Iterator[int]:
    """`embodied serve` with more `words` on the first so many cores; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "embodied.cli", "serve", "reward=clip", f"reward.goal={GOAL}", f"port={port}"]
    own = sorted(os.sched_getaffinity(0))[:cores]
    child = subprocess.Popen(
        [*command, "threads=1", "token=false", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, own),
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{protocol.HEALTH}", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {child.poll()}") from None
                time.sleep(0.2)
        yield port
    finally:
        child.terminate()
        child.wait()


async def session(port: int, frames: np.ndarray, until: float, period_s: float = 0.0) -> list[float]:
    """Send the same moments again and again, every `period_s` or as soon as they are answered; seconds of each."""
    message = protocol.pack({"type": "frames", "images": {"main": protocol.encode_images(frames)}})
    seconds = []
    uri = f"ws://127.0.0.1:{port}{protocol.STREAM}"
    async with websockets.connect(uri, compression=None, max_size=None) as socket:
        await socket.send(protocol.pack({"type": "open"}))
        assert protocol.unpack(await socket.recv(False))["type"] == "opened"
        while time.monotonic() < until:
            start = time.monotonic()
            await socket.send(message)
            answer = protocol.unpack(await socket.recv(False))
            assert answer["type"] in ("reading", "readings"), answer
            seconds.append(time.monotonic() - start)
            await asyncio.sleep(max(0.0, period_s - seconds[-1]))
    return seconds


# Rate ---------------------------------------------------------------------------------------------------


def offline(scorer: Scorer, frames: torch.Tensor, seconds: float) -> float:
    """Frames a second of the scorer alone."""
    done, start = 0, time.monotonic()
    with torch.inference_mode():
        while time.monotonic() - start < seconds:
            features = Features(views={"main": scorer.encode(frames)[None]})
            scorer.combined(scorer.potentials(features), features)
            done += len(frames)
    return done / (time.monotonic() - start)


def rate(repeats: int, seconds: float) -> list[dict[str, Any]]:
    """The server's frames a second against the scorer's alone."""
    torch.set_num_threads(1)
    scorer = make_scorer(compose("serve", ["reward=clip", f"reward.goal={GOAL}"]))
    assert scorer is not None
    size = scorer.encoder.image_size
    frames = np.random.default_rng(0).integers(0, 256, (BATCH, *size, 3), dtype=np.uint8)
    offline(scorer, torch.from_numpy(frames), 2)
    alone, served = [], []
    cores = sorted(os.sched_getaffinity(0))
    with server() as port:

        async def together() -> list[list[float]]:
            until = time.monotonic() + seconds
            return await asyncio.gather(*(session(port, frames[:MOMENTS], until) for _ in range(CLIENTS)))

        for k in range(repeats + 1):  # the first warms up
            os.sched_setaffinity(0, cores[:1])
            own = offline(scorer, torch.from_numpy(frames), seconds if k else 2)
            os.sched_setaffinity(0, cores[-1:])
            start = time.monotonic()
            answers = asyncio.run(together())
            both = MOMENTS * sum(map(len, answers)) / (time.monotonic() - start)
            if k:
                alone.append(own)
                served.append(both)
                print(f"offline {own:.0f}, served {both:.0f} frames/s", flush=True)
        os.sched_setaffinity(0, cores)
    ratios = [a / b for a, b in zip(served, alone, strict=True)]
    value = float(np.median(ratios))
    speeds = f"{np.median(served):.0f} against {np.median(alone):.0f} frames/s"
    return [
        {
            "claim": f"{CLIENTS} clients of one server against scoring offline, one thread each ({speeds})",
            "value": value,
            "unit": "ratio",
            "bar": ">= 0.85",
            "met": value >= 0.85,
            "n": repeats,
            "ratios": ratios,
            "frames": f"{size[0]} px, raw, {MOMENTS} moments a message",
        }
    ]


# Abuse --------------------------------------------------------------------------------------------------


async def abuse(port: int, until: float) -> int:
    """One client at its worst, all its ways at once; how often it was refused or cut off."""
    refused = 0

    async def post(head: bytes, body: bytes) -> None:
        nonlocal refused
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            writer.write(head + body)
            await writer.drain()
            refused += b" 4" in (await reader.read(64))[:14]
        writer.close()

    def head(length: int, path: str = protocol.SCORE) -> bytes:
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {protocol.MSGPACK}", f"Content-Length: {length}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def rubbish() -> None:
        noise = np.random.default_rng(1).bytes(2000)
        while time.monotonic() < until:
            await post(head(len(noise)), noise)

    async def oversize() -> None:
        while time.monotonic() < until:
            await post(head(1 << 33), b"x" * 1000)

    async def bomb() -> None:
        claim = {"images": {"main": {"raw": b"x", "shape": [60000, 60000, 3]}}}
        body = protocol.pack(claim)
        while time.monotonic() < until:
            await post(head(len(body)), body)

    async def half() -> None:
        while time.monotonic() < until:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head(5000)[:40])
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.close()

    async def loris() -> None:
        while time.monotonic() < until:
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                for byte in head(5000):
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(1)
                    if time.monotonic() > until:
                        break
                writer.close()

    await asyncio.gather(rubbish(), oversize(), bomb(), half(), *(loris() for _ in range(20)))
    return refused


def abused(repeats: int, seconds: float) -> list[dict[str, Any]]:
    """p95 of eight steady clients beside one that misbehaves, against without it."""
    encoder = build(compose("serve", []).encoder)
    frames = np.random.default_rng(0).integers(0, 256, (1, *encoder.image_size, 3), dtype=np.uint8)
    quiet, loud, refusals = [], [], 0
    command = [sys.executable, "-m", "benchmarks.serving", "--abuse"]
    with server() as port:

        async def steady() -> list[list[float]]:
            until = time.monotonic() + seconds
            return await asyncio.gather(*(session(port, frames, until, 1 / HZ) for _ in range(GOOD)))

        asyncio.run(steady())  # warms up
        for _ in range(repeats):
            quiet.append(float(np.percentile(np.concatenate(asyncio.run(steady())), 95)))
            bad = subprocess.Popen([*command, str(port), str(seconds + 2)], stdout=subprocess.PIPE, text=True)
            time.sleep(2)
            loud.append(float(np.percentile(np.concatenate(asyncio.run(steady())), 95)))
            refusals += int(bad.communicate()[0].split()[-1])
            print(f"p95 {quiet[-1] * 1e3:.1f} ms alone, {loud[-1] * 1e3:.1f} ms beside an abuser", flush=True)
    ratios = [a / b for a, b in zip(loud, quiet, strict=True)]
    value = float(np.median(ratios))
    return [
        {
            "claim": f"p95 of {GOOD} clients beside one that misbehaves, against without it",
            "value": value,
            "unit": "ratio",
            "bar": "<= 1.5",
            "met": value <= 1.5,
            "n": repeats,
            "ratios": ratios,
            "p95_ms": {"alone": [1e3 * each for each in quiet], "beside": [1e3 * each for each in loud]},
            "refused": refusals,
        }
    ]


# Replicas -----------------------------------------------------------------------------------------------


def replicas(repeats: int, seconds: float) -> list[dict[str, Any]]:
    """Frames a second of two replicas against those of one server."""
    encoder = ("encoder=open_clip", "encoder.model=ViT-B-32", "encoder.pretrained=random", "encoder.precision=fp32")
    frames = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    body = {"images": {"main": protocol.encode_image(frames)}}
    speeds: dict[int, list[float]] = {1: [], 2: []}

    def post(port: int, until: float) -> int:
        client, done = Client(f"http://127.0.0.1:{port}"), 0
        while time.monotonic() < until:
            done += len(client.ask("POST", protocol.SCORE, body)["combined"])
        return done

    for _ in range(repeats):
        for count, found in speeds.items():
            with server(*encoder, f"replicas={count}", cores=2) as port, ThreadPoolExecutor(CLIENTS) as threads:
                for length in (2, seconds):  # the first warms up
                    start = time.monotonic()
                    done = sum(threads.map(post, [port] * CLIENTS, [start + length] * CLIENTS))
                    speed = done / (time.monotonic() - start)
                found.append(speed)
                print(f"{count} of them: {speed:.1f} frames/s", flush=True)
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    value = float(np.median(ratios))
    told = f"{np.median(speeds[2]):.0f} against {np.median(speeds[1]):.0f} frames/s"
    return [
        {
            "claim": f"two replicas on two cores against one server, ViT-B-32 ({told})",
            "value": value,
            "unit": "ratio",
            "bar": ">= 1.7",
            "met": value >= 1.7,
            "n": repeats,
            "ratios": ratios,
        }
    ]


def main() -> None:
    """Measure what is asked for, each part into a file of its own."""
    if sys.argv[1:2] == ["--abuse"]:
        print(asyncio.run(abuse(int(sys.argv[2]), time.monotonic() + float(sys.argv[3]))))
        return
    options = read_options(OPTIONS)
    for part in options["parts"].split(","):
        measured = {"rate": rate, "abuse": abused, "replicas": replicas}[part]
        table = measured(int(options["repeats"]), float(options["seconds"]))
        if options["record"]:
            record(f"serving_{part}", table)
        for row in table:
            print(f"{row['claim']}: {row['value']:.3f} {row['unit']} (bar {row['bar']})")


if __name__ == "__main__":
    main()
