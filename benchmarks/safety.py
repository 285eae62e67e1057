"""Does anything unsafe reach a robot, and how soon does it stand still when something is lost?

Random policies, wild ones among them, drive the simulated robot (another process, a real socket) through episodes in
which something goes wrong at a random moment. The robot's own log is the evidence, checked here by arithmetic that
shares nothing with the code that keeps the limits: every command against the range, the speed, the acceleration and the
rate; and when the tip came to rest (below a tenth of the greatest speed that can be commanded, 0.07 m/s, for good).

Periods are counted from when the loss is established: a camera's newest frame, or the time since the last command, has
passed the age that `MaxAge` allows; the operator asked; the connection closed; the dead-man timer ran out. Until the
robot has the stop they are counted by the clock, and while it brakes by the physics' own ticks: a tick that a busy
machine delays moves nothing. By the clock alone (`by_the_clock_worst`), and after the last command, is recorded beside.

    python -m benchmarks.safety                       # 1,000 episodes, 35 minutes; goes on where it was interrupted
    python -m benchmarks.safety episodes=50 speed=2 fresh=true
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import read_options, record
from embodied.robots.desk_robot import TICK_S
from embodied.robots.driver import DriverError
from embodied.robots.env import RobotEnv
from embodied.robots.simulated import ABSOLUTE, LIMITS, SimulatedRobot, end, start
from embodied.robots.wire import Faults
from rewards.progress import tqdm

OPTIONS = {"episodes": 1000, "speed": 1.0, "steps": 40, "seed": 0, "fresh": False, "record": True}
FOLDER = Path("runs", "benchmarks", "safety")
CTRL_HZ, DEADMAN_S = 20.0, 0.25
AT_REST = 0.1 * 0.4 * 3**0.5  # m/s: 0.4 along each axis may be commanded
SETTLE_S = 0.35  # watched after an episode, seconds of the robot

FAULTS = {
    "none": None,
    "delay": Faults(delay_s=0.05, jitter_s=0.05),
    "drop": Faults(drop=0.3),
    "camera": Faults(lost=("front",)),
    "frozen": Faults(frozen=("front",)),
    "late": Faults(delay_s=1.0),
    "mute": Faults(mute=True),
    "cable": Faults(cable_s=0.8),
    "garbage": Faults(garbage=2048),
    "policy": None,  # thinks for too long
    "nan": None,
    "operator": None,
    "commander": None,  # its connection ends, as when its process is killed
}
CAUSES = {  # what the stop must be for
    "camera": "camera front: ", "frozen": "camera front picture: ", "mute": "observation: ", "policy": "policy: ",
    "nan": "action: ", "operator": "operator: ", "garbage": "robot: ",
}  # fmt: skip
CAMERA, POLICY = ("camera", "frozen"), ("policy", "commander")


class Bench:
    """The robot in its process, its environment and its log."""

    def __init__(self, speed: float) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.log = FOLDER / "robot.jsonl"
        self.log.unlink(missing_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="safety-")
        address = f"{self._folder.name}/robot.sock"
        self._process = start(address=address, speed=speed, log=str(self.log.resolve()), deadman_s=DEADMAN_S)
        self.robot = SimulatedRobot(address, speed=speed)
        self.asked = False
        self.seed = 0
        self.env = RobotEnv(
            self.robot,
            LIMITS,
            ctrl_hz=CTRL_HZ,
            absolute=ABSOLUTE,
            operator=lambda: self.asked,
            reset=lambda env: self.robot.arrange(self.seed),
        )

    def close(self) -> None:
        self.env.close()
        end(self._process)
        self._folder.cleanup()

    def episode(self, index: int, kind: str, steps: int, seed: int) -> dict[str, Any]:
        """Drive one episode and judge the robot's log of it."""
        rng = np.random.default_rng([seed, index])
        style, at = int(rng.integers(4)), int(rng.integers(5, steps - 10))
        clock, self.seed, self.asked = self.robot.clock, int(rng.integers(2**31)), False
        heard = self.log.stat().st_size
        with suppress(DriverError):  # a connection that is gone takes its faults with it
            self.robot.inject(Faults())
        self.env.reset()
        cause_s, info, ended, k, begun = None, {}, False, 0, False
        for k in range(steps):
            action = wild(style, k, rng)
            if k == at:
                cause_s, begun = clock.now(), True
                if (faults := FAULTS[kind]) is not None:
                    self.robot.inject(faults)
                elif kind == "policy":
                    clock.sleep(0.4)
                elif kind == "nan":
                    action[int(rng.integers(4))] = np.nan
                elif kind == "operator":
                    self.asked = True
                elif kind == "commander":
                    self.robot.disconnect()
            *_, ended, _, info = self.env.step(action)
            if ended:
                break
        if not ended:
            self.env.pause()
        clock.sleep(SETTLE_S)
        with self.log.open("rb") as file:
            file.seek(heard)
            notes = [json.loads(line) for line in file.read().rpartition(b"\n")[0].splitlines()]
        if kind == "cable":
            clock.sleep(0.8)
        self.asked = False
        stop = self.env.last_stop
        reason = None if stop is None else stop.reason
        ends = {note["kind"] for note in notes} | {str(note.get("reason")).partition(":")[0] for note in notes}
        taken = [note["t"] for note in notes if note["kind"] == "act" and note["refused"] is None]
        if kind == "cable" and "dead-man" in ends and taken:
            cause_s = taken[-1] + DEADMAN_S
        elif stop is not None and not (kind == "commander" and "hang up" in ends):
            cause_s = stop.due_s
        result = {"index": index, "kind": kind, "style": style, "stopped": reason, "steps": k + 1, **violated(notes)}
        result["begun"] = begun  # the fault; a stop before it proves nothing of it
        result["expected"] = expected(kind, reason)
        if stop is not None or kind in ("cable", "commander"):
            result |= standstill(notes, cause_s)
        return result | {"jitter_s": info.get("jitter_s")}


def expected(kind: str, reason: str | None) -> bool:
    """Whether an episode was stopped for its fault, or for what the arm ran into; or for nothing where nothing was."""
    if kind in ("none", "delay", "drop"):
        return reason is None or reason.startswith("limit: ")
    return reason is not None and reason.startswith((CAUSES.get(kind, ""), "limit: "))


def wild(style: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """(4,) what a policy in trouble might ask for: noise, bang-bang, a wall, or numbers out of all range."""
    if style == 0:
        return rng.uniform(-1, 1, 4)
    if style == 1:
        return rng.choice([-1.0, 1.0], 4)
    if style == 2:
        return np.array([1.0, -1.0, -1.0 if k % 2 else 1.0, 1.0]) * (1 if k % 30 < 20 else -1)
    return rng.normal(size=4) * 10.0 ** rng.integers(0, 12)


# Judging the log ----------------------------------------------------------------------------------------


def violated(notes: list[dict[str, Any]]) -> dict[str, Any]:
    """How many commands the robot got, and how many broke which limit; by the log alone."""
    names = list(LIMITS.command)
    bounds = [LIMITS.command[name] for name in names]
    period = 1 / CTRL_HZ
    found: Counter[str] = Counter()
    commands, tip = 0, None
    before: dict[str, Any] | None = None
    moved: list[float] | None = None
    for note in notes:
        if note["kind"] == "tick":
            tip = note["tip"]
        if note["kind"] == "release":
            before = None
        if note["kind"] != "act":
            continue
        commands += 1
        command = note["command"]
        if not np.isfinite(command).all():
            found["finite"] += 1
            continue
        if before is None:  # from where the arm stood
            away = [0.0] * len(names) if tip is None else [*np.subtract(command[:3], tip), 0.0]
            found["jump"] += any(abs(d) > b.speed * period + 0.01 for d, b in zip(away, bounds, strict=True))
            moved = None
        else:
            gap = note["sent_s"] - before["sent_s"]
            found["rate"] += gap < period * (1 - 1e-6)
            now = [a - b for a, b in zip(command, before["command"], strict=True)]
            found["speed"] += any(abs(d) > b.speed * period * (1 + 1e-9) for d, b in zip(now, bounds, strict=True))
            changes = [[a - b for a, b in zip(now, moved or [0.0] * len(now), strict=True)]]
            most = 1 if moved else 2  # the first command's own move is not in the log: two periods from rest
            changes += [now] if gap > 1.4 * period else []  # after such a gap the targets had come to rest
            found["acceleration"] += not any(
                all(
                    abs(d) <= most * b.acceleration * period**2 * (1 + 1e-6)
                    for d, b in zip(change, bounds, strict=True)
                )
                for change in changes
            )
            moved = now
        found["range"] += any(not b.low <= value <= b.high for value, b in zip(command, bounds, strict=True))
        before = note
    return {"commands": commands, "violations": sum(found.values()), "which": {k: v for k, v in found.items() if v}}


def standstill(notes: list[dict[str, Any]], cause_s: float | None) -> dict[str, Any]:
    """When the tip came to rest for good after a stop, in control periods after its cause.

    Where it did not, `periods` is None and `watched_periods` how long it was looked at.
    """
    ticks = [note for note in notes if note["kind"] == "tick" and note["t"] >= (cause_s or 0.0)]
    acts = [note["t"] for note in notes if note["kind"] == "act" and note["refused"] is None]
    halts = [note["t"] for note in notes if note["kind"] == "halt" and acts and note["t"] >= acts[-1]]
    moving = [k for k, note in enumerate(ticks) if note["speed"] >= AT_REST]
    if cause_s is None or not ticks or (moving and moving[-1] == len(ticks) - 1) or (moving and not halts):
        watched = (ticks[-1]["t"] - cause_s) * CTRL_HZ if ticks and cause_s is not None else 0.0
        return {"periods": None, "watched_periods": watched}
    halting, braking, clock = 0.0, 0.0, 0.0
    if moving:
        last = ticks[moving[-1]]["t"]
        clock = ticks[moving[-1] + 1]["t"] - cause_s
        halting = min(max(halts[0], cause_s), last) - cause_s
        braking = TICK_S * sum(halts[0] <= note["t"] <= last for note in ticks)
    travelled = sum(float(np.linalg.norm(np.subtract(b["tip"], a["tip"]))) for a, b in itertools.pairwise(ticks))
    return {
        "periods": (halting + braking) * CTRL_HZ,
        "halt_periods": halting * CTRL_HZ,
        "clock_periods": clock * CTRL_HZ,
        "after_last_command_s": cause_s + clock - acts[-1] if acts else None,
        "travelled_m": travelled,
    }


# The table ----------------------------------------------------------------------------------------------


def rows(done: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    commands, broken = sum(each["commands"] for each in done), sum(each["violations"] for each in done)
    kinds = Counter(each["kind"] for each in done)
    common = {"seeds": [options["seed"]], "speed": options["speed"], "ctrl_hz": CTRL_HZ}
    faulty = [each for each in done if each["kind"] in CAUSES and each.get("begun", True)]
    missed = [each["index"] for each in faulty if each["stopped"] is None]
    table: list[dict[str, Any]] = [
        {
            "claim": f"random policies with faults, {len(done)} episodes: limit violations that reach the driver",
            "value": broken,
            "unit": f"of {commands} commands",
            "bar": "= 0",
            "met": broken == 0,
            "n": len(done),
            "episodes": dict(kinds),
            "clamped_styles": dict(Counter(str(each["style"]) for each in done)),
            **common,
        },
        {
            "claim": "faults that must stop the arm and did not",
            "value": len(missed),
            "unit": "episodes",
            "bar": "= 0",
            "met": not missed,
            "n": len(faulty),
            "stopped_for_another_reason": [
                {key: each[key] for key in ("index", "kind", "stopped")} for each in done if not each["expected"]
            ],
            **common,
        },
    ]
    groups = {"a lost camera": CAMERA, "a lost policy": POLICY, "any stop": tuple(FAULTS)}
    for name, members in groups.items():
        stops = [each for each in done if each["kind"] in members and "periods" in each]
        stops = stops if members == tuple(FAULTS) else [each for each in stops if each.get("begun", True)]
        if not stops:
            continue
        seen = [each for each in stops if each["periods"] is not None]
        # One not seen at rest took at least as long as it was watched.
        periods = [each["watched_periods"] if each["periods"] is None else each["periods"] for each in stops]
        worst = max(periods)
        after = [each["after_last_command_s"] for each in stops if each.get("after_last_command_s") is not None]
        table.append(
            {
                "claim": f"control periods until the arm stands still after {name}, the worst",
                "value": round(worst, 3),
                "unit": "control periods of 50 ms",
                "bar": "<= 1" if members in (CAMERA, POLICY) else None,  # an arm pressed on something springs back
                "met": worst <= 1 and len(seen) == len(stops) if members in (CAMERA, POLICY) else None,
                "n": len(stops),
                "median": float(np.median(periods)),
                "p99": float(np.percentile(periods, 99)),
                "never_seen_at_rest": len(stops) - len(seen),
                "above_the_bar": sum(each > 1 for each in periods),
                "halt_worst": max((each["halt_periods"] for each in seen), default=None),
                "by_the_clock_worst": max((each["clock_periods"] for each in seen), default=None),
                "travelled_m_worst": max((each["travelled_m"] for each in seen), default=None),
                "after_last_command_s_worst": max(after, default=None),
                **common,
            }
        )
    return table


def main() -> None:
    """Run what is missing and record; every finished episode is kept at once."""
    options = read_options(OPTIONS)
    kept = FOLDER / f"episodes-speed{options['speed']:g}-steps{options['steps']}-seed{options['seed']}.jsonl"
    if options["fresh"]:
        kept.unlink(missing_ok=True)
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = done[: options["episodes"]]
    bench = Bench(options["speed"])
    try:
        kinds = tuple(FAULTS)
        with kept.open("a") as file:
            for index in tqdm(range(len(done), options["episodes"]), initial=len(done), total=options["episodes"]):
                done.append(bench.episode(index, kinds[index % len(kinds)], options["steps"], options["seed"]))
                file.write(json.dumps(done[-1]) + "\n")
                file.flush()
                if index % 200 == 199:
                    bench.close()
                    bench = Bench(options["speed"])  # and a short log
    finally:
        bench.close()
    table = rows(done, options)
    for row in table:
        print(f"{row['claim']}: {row['value']} {row['unit']} (bar {row['bar']}, met {row['met']})")
    if options["record"]:
        print(record("safety", table))


if __name__ == "__main__":
    main()
