"""Watching a camera: how old a reward is when it comes, and an hour of a camera that misbehaves.

Latency: `benchmarks.clock_camera` draws the time into its pictures and sends them twice as fast as the model can
encode; the age of each reward is its time minus the picture's, so drawing, JPEG, the network, decoding, waiting,
encoding and scoring are all in it. The model is a ViT-B-32 with random weights, whose speed is that of trained ones.

Endurance: `embodied watch`, as its user starts it, with the default record, on a 30 Hz camera in which every minute
another fault happens for three seconds: no pictures, connection gone, another size, half pictures, empty pictures.
Memory is that of its processes, after the first tenth. A gap is marked if a stale line came within it and no line that
claims to be fresh was captured in it; the camera goes on after the watch was stopped, and those faults are none.

Growth: what a reading costs of rewards that read the past, late in a long episode against early in it; scored whole
at each row, as they are offline, it would cost `whole_ms`. Rows are noise, which cost what pictures' features do.

    python -m benchmarks.live                                  # quiet machine; 10 minutes, then an hour
    python -m benchmarks.live parts=latency minutes=1 record=false
    python -m benchmarks.live parts=endurance minutes=60       # may run beside other work
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock_camera import read_stamp
from benchmarks.common import read_options, record
from benchmarks.measure import tree_memory
from embodied.cameras import open_source
from embodied.scoring.streaming import EpisodeStream
from embodied.watching.live_scoring import LocalScoring
from embodied.watching.pipeline import Pipeline
from embodied.watching.watched import Watched
from rewards.clip_goal import clip_scorer
from rewards.combine import WeightedSum
from rewards.core import Episode, Features, Head, Scorer
from rewards.demonstration import Demonstration
from rewards.encoders import OpenCLIPEncoder, embedded_encoder
from rewards.hop_model import Recipe
from rewards.process import ProcessReward
from rewards.rapl import RAPL
from rewards.shaping import PotentialShaping

MODEL, SIZE = "ViT-B-32", 224
OPTIONS: dict[str, Any] = {"parts": "latency,growth,endurance", "minutes": 0.0, "record": True}
MINUTES = {"latency": 10.0, "growth": 0.0, "endurance": 60.0}
SLACK_S = 1.0  # of a fault's ends, for pictures on their way and the age at which one counts as stale
GAPS = ("stall", "gone", "broken", "empty")
ROWS, EARLY, PAIRS = 10_000, 100, 1000  # the first, five and a half minutes at 30 Hz
GROWTH_BAR, WARM = 0.02, 0.1


@contextmanager
def camera(fps: float, *settings: str) -> Iterator[str]:
    """A clock camera in a process of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.clock_camera", str(port), str(fps), *settings]
    child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/stream.mjpg"
    finally:
        child.terminate()
        child.wait()


# Latency ------------------------------------------------------------------------------------------------


class Ages:
    """A sink that reads the time in every picture that got a reward."""

    name = "ages"

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.age_s: list[float] = []

    def write(self, watched: Watched) -> None:
        if watched.reading is not None:
            now = time.monotonic()
            self.at_s.append(now)
            self.age_s.append(now - read_stamp(watched.frames["main"].image) / 1000)

    def close(self) -> None:
        pass


def latency(minutes: float) -> list[dict[str, Any]]:
    """Age of rewards against one camera period and one bare encode, and whether it grows."""
    torch.set_num_threads(1)
    encoder = OpenCLIPEncoder(MODEL, pretrained="random", device="cpu", batch_size=1)
    scorer = clip_scorer(encoder=encoder, goal="the drawer is open")
    frame = torch.randint(0, 256, (1, SIZE, SIZE, 3), dtype=torch.uint8)

    def bare(count: int) -> list[float]:
        seconds = []
        with torch.inference_mode():
            for _ in range(count):
                start = time.perf_counter()
                encoder.encode_images(frame)
                seconds.append(time.perf_counter() - start)
        return seconds

    bare(20)
    before = bare(100)
    fps = round(2 / float(np.median(before)))
    ages = Ages()
    with camera(fps, f"height={SIZE}", f"width={SIZE}") as url:
        source = open_source(url)
        pipeline = Pipeline(source, LocalScoring(scorer, source.names), [ages])
        summary = pipeline.run(60 * minutes)
    encode = float(np.median([*before, *bare(100)]))
    at, age = np.array(ages.at_s), np.array(ages.age_s)
    bar = 1 / fps + 1.15 * encode
    p50, p95, p99 = np.percentile(age, [50, 95, 99])
    fifths = [float(np.percentile(part, 95)) for part in np.array_split(age, 5)]
    drift = float(np.polyfit((at - at[0]) / 60, age, 1)[0])
    detail = {
        "encode_ms": encode * 1e3, "camera_hz": fps, "model_hz": summary.model_hz, "dropped": summary.dropped,
        "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "minutes": minutes, "precision": encoder.precision,
        "fifths_p95_ms": [1e3 * each for each in fifths], "load": os.getloadavg()[0],
    }  # fmt: skip
    return [
        {
            "claim": f"{MODEL}, camera at {fps} Hz, twice the model: picture drawn to reward, p95",
            "value": float(p95 * 1e3),
            "unit": "ms",
            "bar": f"<= {bar * 1e3:.1f}",
            "met": bool(p95 <= bar),
            "n": len(age),
            **detail,
        },
        {
            "claim": f"the same over {minutes:g} minutes: p95 of the last fifth against the first",
            "value": fifths[-1] / fifths[0],
            "unit": "ratio",
            "bar": "<= 1.1",
            "met": fifths[-1] <= 1.1 * fifths[0],
            "n": len(age),
            "drift_ms_per_minute": drift * 1e3,
        },
    ]


# Growth -------------------------------------------------------------------------------------------------


def growth(_: float) -> list[dict[str, Any]]:
    """The cost of a reading in an episode of `ROWS` rows."""
    torch.set_num_threads(1)
    encoder = embedded_encoder()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(ROWS, encoder.dim)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    demos = [
        Episode(
            features=Features(views={"main": torch.from_numpy(noise[k * 50 : (k + 1) * 50])[None]}),
            instruction="open it",
            success=True,
        )
        for k in range(5)
    ]
    heads: dict[str, Head] = {
        "process": ProcessReward.fit(demos, encoder=encoder, recipe=Recipe(steps=5)),
        "demonstration": Demonstration.fit(demos, sequenced=True),
        "rapl": RAPL.fit(demos),
    }
    table = []
    for name, head in heads.items():
        scorer = Scorer(encoder, {name: head}, WeightedSum(), PotentialShaping(kind="difference"))
        streams = {"early": EpisodeStream(scorer), "late": EpisodeStream(scorer)}
        for when, count in (("early", EARLY), ("late", ROWS)):
            for row in noise[:count]:
                streams[when].push(row)
        seconds: dict[str, list[float]] = {when: [] for when in streams}
        for row in noise[:PAIRS]:  # by turns, so that a busy machine slows both
            for when, stream in streams.items():
                start = time.perf_counter()
                stream.push(row)
                seconds[when].append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.inference_mode():
            scorer.potentials(Features(views={"main": torch.from_numpy(noise)[None]}))
        whole = time.perf_counter() - start
        early, late = (float(np.median(seconds[when])) * 1e3 for when in ("early", "late"))
        table.append(
            {
                "claim": f"{name}: a reading after {ROWS:,} rows of an episode against one after {EARLY}",
                "value": late / early,
                "unit": "ratio",
                "bar": "<= 1.1",
                "met": late <= 1.1 * early,
                "n": PAIRS,
                "early_ms": early,
                "late_ms": late,
                "whole_ms": whole * 1e3,
            }
        )
    return table


# Endurance ----------------------------------------------------------------------------------------------


def endurance(minutes: float) -> list[dict[str, Any]]:
    """`embodied watch` on a camera with a fault a minute."""
    with tempfile.TemporaryDirectory() as made:
        folder, faults = Path(made, "record"), Path(made, "faults.jsonl")
        with camera(30, "fault_every=60", f"log={faults}") as url:
            command = [sys.executable, "-m", "embodied.cli", "watch", f"source={url}", f"record={folder}"]
            command += ["reward=clip", "reward.goal=the drawer is open", "view=none", "json=false", "threads=1"]
            watch = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
            memory, start = [], time.monotonic()
            while watch.poll() is None and time.monotonic() - start < 60 * minutes:
                time.sleep(5)
                memory.append((time.monotonic() - start, tree_memory(watch.pid).get("Pss", 0) / 1e6))
            ended = time.monotonic()
            ran = ended - start
            alive = watch.poll() is None
            watch.send_signal(signal.SIGINT)
            _, told = watch.communicate(timeout=120)
        print(told.decode()[-2000:])
        lines = [json.loads(line) for line in (folder / "readings.jsonl").read_text().splitlines()]
        kept = sorted(path.name for path in folder.iterdir())
        log = [json.loads(line) for line in faults.read_text().splitlines()] if faults.exists() else []
    marked, unmarked = gaps(lines, [each for each in log if (each.get("began") or each["ended"]) < ended])
    settled = np.array([mb for at, mb in memory if at >= WARM * ran])
    tenth = max(len(settled) // 10, 1)
    growth = float(np.median(settled[-tenth:]) / np.median(settled[:tenth]) - 1)
    fresh = sum(line["reward"] is not None for line in lines)
    return [
        {
            "claim": "embodied watch, 30 Hz camera with a fault every minute: minutes without a crash",
            "value": round(ran / 60, 1),
            "unit": "min",
            "bar": f">= {MINUTES['endurance']:g}",
            "met": alive and watch.returncode in (0, 130) and ran >= 60 * MINUTES["endurance"] - 10,
            "n": len(lines),
            "rewards": fresh,
            "exit": watch.returncode,
            "kept": kept,
        },
        {
            "claim": "the same: growth of memory after the first tenth",
            "value": growth,
            "unit": "share",
            "bar": f"<= {GROWTH_BAR}",
            "met": growth <= GROWTH_BAR,
            "n": len(settled),
            "mb": [round(float(each), 1) for each in settled[:: max(len(settled) // 60, 1)]],
        },
        {
            "claim": "the same: gaps that were marked, of those that there were",
            "value": marked / max(marked + len(unmarked), 1),
            "unit": "share",
            "bar": ">= 1",
            "met": marked > 0 and not unmarked,
            "n": marked + len(unmarked),
            "unmarked": unmarked,
        },
    ]


def gaps(lines: Sequence[dict[str, Any]], log: Sequence[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
    """How many faults that stop the pictures were marked, and those that were not."""
    marked, unmarked = 0, []
    ends = {(each["fault"], i): each["ended"] for i, each in enumerate(log) if "ended" in each}
    for i, each in enumerate(log):
        if "began" not in each or each["fault"] not in GAPS:
            continue
        ended = ends.get((each["fault"], i + 1))
        if ended is None:
            continue  # the run stopped within it
        low, high = each["began"] + SLACK_S, ended - SLACK_S / 2
        within = [line for line in lines if low < line["at_s"] < high]
        lied = [line for line in within if not line["stale"] and line["reward"] is not None]
        if any(line["stale"] for line in within) and not lied:
            marked += 1
        else:
            unmarked.append({**each, "lines": len(within), "fresh": len(lied)})
    return marked, unmarked


def main() -> None:
    """Measure what is asked for, each part into a file of its own."""
    options = read_options(OPTIONS)
    for part in options["parts"].split(","):
        table = {"latency": latency, "growth": growth, "endurance": endurance}[part](
            float(options["minutes"]) or MINUTES[part]
        )
        if options["record"]:
            record(f"live_{part}", table)
        for row in table:
            print(f"{row['claim']}: {row['value']:.3f} {row['unit']} (bar {row['bar']})")


if __name__ == "__main__":
    main()
