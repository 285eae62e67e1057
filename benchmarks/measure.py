"""What the speed benchmarks share: two cores, a child process per measurement, the memory of a tree of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from embodied.training.log import RunLog
from embodied.training.loop import Job, Training

CORES = 2
SAMPLE_S = 0.5  # between looks at the memory, which cost a little; a peak that is shorter may be missed


def use_two_cores() -> None:
    """Keep this process, and all it starts, on two cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def in_child(module: str, job: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run `MODULE.child(JOB)` in a process and return the JSON of its last line, with what it held at most.

    Returns:
        The child's own numbers, and `pss_gb` (memory of all its processes, shared pages once) and `rss_gb` (shared
        pages once per process), each the highest seen.

    Raises:
        RuntimeError: it failed; its errors went to stderr.

    `environment` adds variables to the child's.
    """
    # Not as the main module, which every process of its own would import again, torch and all; the command has none.
    code = f"import json, sys, {module}; {module}.child(json.loads(sys.argv[1]))"
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(job)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | dict(environment or {}))
    peaks = {"Pss": 0, "Rss": 0}
    running = True
    while running:
        with suppress(subprocess.TimeoutExpired):
            child.wait(SAMPLE_S)
            running = False
        for key, value in tree_memory(child.pid).items():
            peaks[key] = max(peaks[key], value)
    assert child.stdout is not None
    lines = child.stdout.read().splitlines()
    if child.returncode or not lines:
        raise RuntimeError(f"{module}: {dict(job)} ended with exit code {child.returncode}.")
    return json.loads(lines[-1]) | {"pss_gb": peaks["Pss"] / 1e9, "rss_gb": peaks["Rss"] / 1e9}


def tree_memory(pid: int) -> dict[str, int]:
    """Bytes of a process and its descendants: Pss and Rss, summed."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(folder.name))
    total, waiting = {"Pss": 0, "Rss": 0}, [pid]
    while waiting:
        each = waiting.pop()
        waiting += parents.get(each, [])
        with suppress(OSError):
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()[1:]:
                key, value = line.split()[:2]
                if (key := key.rstrip(":")) in total:
                    total[key] += 1024 * int(value)
    return total


class Rounds:
    """When each round (collect, label, update) of a training ended; the first ones warm up.

    Args:
        training: whose rounds.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._ended: list[tuple[float, int]] = []
        count = training.learner.pace.rollout_steps * training.collector.worlds.num_envs
        self.job = Job(count, self._mark)

    def _mark(self) -> None:
        self._ended.append((time.perf_counter(), self._training.steps))

    def rate(self, warm: int) -> float:
        """Transitions per second after `warm` ≥ 1 rounds, up to now; call right after `train`."""
        began, steps = self._ended[warm - 1]
        return (self._training.steps - steps) / (time.perf_counter() - began)


class Silent(RunLog):
    """A log that keeps nothing."""

    def __init__(self) -> None:
        self._last, self._means = {}, {}

    def write(self, steps: int) -> None:
        self._last, self._means = {}, {}


def medians(results: Sequence[Mapping[str, Any]], key: str) -> float:
    """The median of one number of several runs."""
    return float(np.median([result[key] for result in results]))


def paired(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Ratio ours / theirs of runs made in turn: its median and its range."""
    ratios = [a[key] / b[key] for a, b in zip(ours, theirs, strict=True)]
    return {"value": float(np.median(ratios)), "n": len(ratios), "ratios": ratios}
