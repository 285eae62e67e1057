"""LIBERO's tasks from their stored starts: what opens, what a scripted expert solves, what is imitated from it.

Every task of a suite is opened, and its first stored starts are played by the scripted expert and by a policy that
rests (control). The time is of an episode at rest of all the suite's steps, with frames of two cameras where a policy
looks, every eighth step. Then demonstrations, from starts that LIBERO's sampler draws, are imitated with the embedded
encoder and judged on the 50 stored starts; `success` is of the last step, `at_any_step` is what LIBERO's own protocol
counts, which stops at the simulator's word. Control: a policy that reads its own readings alone. It needs the package
(pip install .[libero]).

    python -m benchmarks.libero                              # goes on where it was interrupted
    python -m benchmarks.libero 'tasks=[0]' 'imitated=[]' starts=2 record=false
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import read_options, record_part
from benchmarks.tuned import of_suite, row
from embodied.envs.bridge import make
from embodied.envs.experts import expert, has_expert
from embodied.envs.spaces import JUDGED
from embodied.files import write_text
from embodied.finetuning import judging
from embodied.finetuning.stages import FinetuningRun
from policies.vla.core import ChunkPolicy

OPTIONS: dict[str, Any] = {
    "suite": "libero_object", "tasks": list(range(10)), "starts": 5, "imitated": [2], "seeds": [0, 1, 2],
    "demonstrations": 25, "episodes": 50, "steps": 2000, "execute": 4, "controls": True, "record": True,
}  # fmt: skip
ROOT = Path("runs", "benchmarks", "libero")
CAMERAS = ("agentview", "robot0_eye_in_hand")
LOOK, SIZE = 8, 192  # steps between looks, and pixels of a frame
LONGEST = 150  # steps of a demonstration; the scripted expert needs fewer


def opened(suite: str, task: int, starts: int) -> dict[str, Any]:
    """One task: who solves how many of its first stored starts, and CPU seconds of an episode."""
    env = make(f"libero/{suite}/{task}")
    rest = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
    solved: dict[str, list[bool]] = {"expert": [], "rest": []}
    seconds = []
    for seed in range(JUDGED.start, JUDGED.start + starts):
        for who, told in solved.items():
            if who == "expert" and not has_expert(env.unwrapped):
                continue
            began = time.process_time()
            env.reset(seed=seed)
            act, over, info, step = expert(env.unwrapped) if who == "expert" else None, False, {}, 0
            while not over:
                if who == "rest" and step % LOOK == 0:
                    for camera in CAMERAS:
                        env.get_wrapper_attr("frame")(camera=camera, image_size=SIZE)
                _, _, ended, cut, info = env.step(rest if act is None else act(env.unwrapped))
                over, step = ended or cut, step + 1
            told.append(bool(info["is_success"]))
            if who == "rest":
                seconds.append(time.process_time() - began)
    env.close()
    return {"task": task, "instruction": env.unwrapped.instruction, "seconds": seconds, **solved}  # pyright: ignore[reportAttributeAccessIssue]


def session(task: int, seed: int, options: Mapping[str, Any], *more: str, kind: str = "") -> FinetuningRun:
    """A fine-tuning of the task's demonstrations, collected first if they are not there."""
    name, world = f"{options['suite']}-{task}", f"libero/{options['suite']}/{task}"
    return of_suite(
        world, ROOT / f"{name}-demonstrations", ROOT / f"{name}{kind}-s{seed}", seed, options, "env=gym",
        f"env.id={world}", *more, cameras=CAMERAS, size=SIZE, longest=LONGEST,
    )  # fmt: skip


def judged(made: FinetuningRun, name: str, policy: ChunkPolicy) -> dict[str, Any]:
    """A policy on the stored starts, unless that was done."""
    file, execute = made.folder / f"{name}.json", int(made.config.execute)
    if not file.is_file() or len(json.loads(file.read_text("utf-8"))) != made.config.eval_episodes:
        seeds = [JUDGED.start + k for k in range(made.config.eval_episodes)]
        played = made.arena.play(policy, execute, seeds, desc=name)
        write_text(file, json.dumps(judging.as_rows(played)) + "\n")
    return {"rows": json.loads(file.read_text("utf-8")), "execute": execute, "tried": {}}


def imitated(task: int, seed: int, options: Mapping[str, Any], controls: bool) -> dict[str, dict[str, Any]]:
    """One seed's policy and its controls on the stored starts."""
    made = session(task, seed, options)
    policy = made.train("imitate", made.fresh(), made.rows.usable.astype(float), made.rows)
    found = {"imitation": judged(made, "imitation", policy)}
    if controls:
        blind = session(task, seed, options, "policy.places=0", kind="-blind")
        blind.__dict__["eyes"], blind.__dict__["episodes"] = made.eyes, made.episodes
        policy_of_readings = blind.train("imitate", blind.fresh(), blind.rows.usable.astype(float), blind.rows)
        found["own readings only (control)"] = judged(blind, "imitation", policy_of_readings)
    return found


def rows_of_suite(suite: str, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every task of the suite."""
    seconds = [each for task in tasks for each in task["seconds"]]
    rested = [each for task in tasks for each in task["rest"]]
    scripted = [task for task in tasks if task["expert"]]
    solved = [each for task in scripted for each in task["expert"]]
    found: list[dict[str, Any]] = [
        {"claim": f"{suite}: tasks that open from their stored starts", "value": len(tasks), "unit": "tasks",
         "bar": ">= 10" if len(tasks) >= 10 else None, "met": True if len(tasks) >= 10 else None, "n": len(tasks)},
        {"claim": f"{suite}: an episode of all steps, frames of two cameras every {LOOK} steps",
         "value": float(np.mean(seconds)), "unit": "CPU s", "bar": "<= 20, the slowest",
         "met": float(np.max(seconds)) <= 20, "n": len(seconds), "slowest": float(np.max(seconds))},
        {"claim": f"{suite}: a policy that rests (control)", "value": float(np.mean(rested)), "unit": "share",
         "bar": "= 0", "met": not any(rested), "n": len(rested)},
    ]  # fmt: skip
    if solved:
        by_task = {task["instruction"]: float(np.mean(task["expert"])) for task in scripted}
        found.append({"claim": f"{suite}: the scripted expert", "value": float(np.mean(solved)), "unit": "share",
                      "n": len(solved), "by_task": by_task})  # fmt: skip
    return found


def main() -> None:
    """Open, then imitate, recording after every seed."""
    options = read_options(OPTIONS)
    suite, tasks = options["suite"], list[dict[str, Any]]()
    for task in options["tasks"]:
        file = ROOT / f"{suite}-{task}-opened-{options['starts']}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(opened(suite, task, options["starts"])) + "\n")
        tasks.append(json.loads(file.read_text("utf-8")))
        print(tasks[-1], flush=True)
    rows = rows_of_suite(suite, tasks) if tasks else []
    for task in options["imitated"]:
        claim = f"{suite}, task {task}, {options['demonstrations']} scripted demonstrations"
        before, done = list(rows), dict[str, list[dict[str, Any]]]()
        for k, seed in enumerate(options["seeds"]):
            for name, one in imitated(task, seed, options, options["controls"] and k == 0).items():
                done.setdefault(name, []).append(one)
            rows = [
                *before,
                *(row(f"{claim}: {name}", each, options["seeds"][: len(each)]) for name, each in done.items()),
            ]
            if options["record"]:
                record_part("libero", rows)
    for each in rows:
        print(f"{each['claim']}: {each['value']:.3f} {each['unit']}", flush=True)
    if options["record"]:
        record_part("libero", rows)


if __name__ == "__main__":
    main()
