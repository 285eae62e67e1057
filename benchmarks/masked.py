"""What rewards read, by hiding it: successes of the desk's tasks without their robot, and without their object.

The control of `benchmarks.outcome`, whose families are asked here, held to their outcome and fitted once to five
demonstrations. The same films of the expert are drawn three times: as they are, with the robot invisible, and with the
task's object invisible. Credit is what a film ends with above one in which nothing happens, hidden alike, in units of
what the film as it is gains. A reward that reads the outcome keeps its credit without the robot and loses it without
the object. In pushing, lifting, placing and stacking the object is the red cube, else the drawer or the button.

    python -m benchmarks.masked                             # about 3 minutes a task
    python -m benchmarks.masked 'tasks=["drawer"]' record=false
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.common import read_options, record_part
from benchmarks.outcome import CAMERA, DEMOS, SIZE, both, data
from embodied.building.build import build
from embodied.collecting.counterfactual import CounterfactualStarts, Path, put
from embodied.config import compose
from embodied.datasets.kinds import STILL
from embodied.envs.bridge import make
from embodied.envs.desk import Desk
from embodied.judging.cases import in_memory, read_cases
from embodied.judging.judgement import potential
from rewards.clip_goal import clip_scorer
from rewards.core import Encoder, Features, Scorer

TASKS = {
    "drawer": "drawer", "press": "button", "close": "drawer", "push": "red", "lift": "red", "place": "red",
    "stack": "red",
}  # fmt: skip
FAMILIES = ("demonstration", "process", "xirl", "rapl")
KEPT, LOST = 0.8, 0.2
SEED = 8000


def drawn_of(world: Desk, name: str) -> np.ndarray:
    """(geoms,) bool: what draws a body, all that hang on it, and its shadow where it has one of its own."""
    model, found = world.model, [world.model.body(name).id]
    for body in range(found[0] + 1, model.nbody):
        if model.body_parentid[body] in found:
            found.append(body)
    shadow = "shade_hand" if name == "base" else f"shade_{name}"
    return np.isin(model.geom_bodyid, found) | np.array([model.geom(i).name == shadow for i in range(model.ngeom)])


def film(world: Desk, path: Path, hidden: np.ndarray, encoder: Encoder) -> Features:
    """An episode as it is seen with some geoms invisible."""
    model, colours = world.model, world.model.geom_rgba.copy()
    model.geom_rgba[hidden, 3] = 0.0
    frames = []
    for row in path.rows:
        put(world, row)
        frames.append(world.frame(CAMERA, SIZE))
    model.geom_rgba[:] = colours
    return Features(views={CAMERA: encoder.encode_images(torch.from_numpy(np.stack(frames))).float()[None]})


def asked(task: str, encoder: Encoder, starts: int) -> dict[str, dict[str, list[float]]]:
    """Family -> what is hidden -> credit of each start."""
    env: gymnasium.Env = make(f"desk-{task}")
    world = env.unwrapped
    assert isinstance(world, Desk)
    shown = read_cases(data(task, "expert", DEMOS, SEED + 1), encoder, [CAMERA], unlabelled="skip")
    demos = [in_memory(case.episode) for case in shown]
    scorers: dict[str, Scorer] = {"clip": clip_scorer(encoder=encoder, goal=demos[0].instruction)}
    scorers |= {name: both(name, demos, encoder, task, 0)["after"] for name in FAMILIES}
    hidden = {"robot": drawn_of(world, "base"), "object": drawn_of(world, TASKS[task])}
    hidden["nothing"] = np.zeros_like(hidden["robot"])
    drawn, found = CounterfactualStarts(env, SEED), dict[str, dict[str, list[float]]]()
    for start in range(starts):
        paths = {kind: drawn.path(start, kind)[1] for kind in ("expert", STILL)}
        ends: dict[str, dict[str, float]] = {}
        for what, geoms in hidden.items():
            films = {kind: film(world, path, geoms, encoder) for kind, path in paths.items()}
            for name, scorer in scorers.items():
                said = {kind: float(potential(scorer, each)[-1]) for kind, each in films.items()}
                ends.setdefault(name, {})[what] = said["expert"] - said[STILL]
        for name, gains in ends.items():
            for what in ("robot", "object"):
                found.setdefault(name, {}).setdefault(what, []).append(gains[what] / gains["nothing"])
    env.close()
    return found


def rows(task: str, found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Two rows a family."""
    table = []
    for name, credits in found.items():
        for what, values in credits.items():
            mean = float(np.mean(values))
            bar, met = (f">= {KEPT}", mean >= KEPT) if what == "robot" else (f"<= {LOST}", mean <= LOST)
            row = {"claim": f"desk-{task}: credit of a success without its {what}, {name}", "value": mean}
            row |= {"unit": "share of a success's gain", "bar": bar, "met": met, "n": len(values), "seeds": [SEED]}
            table.append(row | {"interval": [min(values), max(values)]})
    return table


def main() -> None:
    """Task by task, recording after each."""
    options = read_options({"tasks": list(TASKS), "starts": 4, "record": True})
    encoder: Encoder = build(compose("judge", []).encoder)
    for task in options["tasks"]:
        table = rows(task, asked(task, encoder, options["starts"]))
        for row in table:
            print(f"{row['claim']}: {row['value']:.2f}", flush=True)
        if options["record"]:
            record_part("masked", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
