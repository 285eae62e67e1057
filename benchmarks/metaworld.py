"""Meta-World's tasks, imitated from pictures: 25 demonstrations of the scripted experts that its package ships.

The policy is the embedded one of `embodied finetune`, reading two cameras and the hand's place (never Meta-World's own
observation, which holds the objects' places). Its encoder is, in turn, the shipped one as it is; the shipped one after
`embodied pretrain` on these scenes, from frames of other starts and what the worlds say is solved; and, as the
controls, one of random weights, and none (own readings alone). All are judged on the same starts, which chose nothing;
`success` is of the last step, `at_any_step` is what Meta-World's own protocol counts. A task whose expert leaves the
success again (door-open pulls past it) has no demonstrations that end solved, and is not among these.

    python -m benchmarks.metaworld                              # goes on where it was interrupted
    python -m benchmarks.metaworld 'tasks=["push"]' 'seeds=[0]' 'ways=["shipped"]' record=false
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import others, read_options, record
from benchmarks.tuned import of_suite, row, voided
from embodied.files import write_text
from embodied.finetuning.stages import FinetuningRun

SENTENCES = {  # task -> how one says that it is solved, to teach the encoder; the last two judge what it learned
    "drawer-open": [
        "the drawer is open", "the green drawer is pulled out", "an open drawer", "the robot has opened the drawer",
        "the drawer stands open", "the drawer has been pulled out",
    ],
    "button-press-topdown": [
        "the button is pressed", "the red button is down", "a pressed button", "the robot has pressed the button",
        "the button has been pushed down", "the button is held down",
    ],
    "window-open": [
        "the window is open", "the window is slid aside", "an open window", "the robot has opened the window",
        "the window stands open", "the window has been slid open",
    ],
    "push": [
        "the red puck is at the green goal", "the puck lies on the green mark", "the puck has reached the goal",
        "the robot has pushed the puck to the goal", "the puck is where it belongs", "the puck was pushed to the mark",
    ],
    "door-close": [
        "the door is closed", "the door is shut", "a closed door", "the robot has closed the door",
        "the door has been shut", "the door stands shut",
    ],
}  # fmt: skip
WAYS = {
    "shipped": "the shipped encoder", "taught": "the shipped encoder taught these scenes",
    "random": "an encoder of random weights (control)", "blind": "own readings only (control)",
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "tasks": list(SENTENCES), "ways": list(WAYS), "seeds": [0, 1, 2], "demonstrations": 25, "episodes": 50,
    "steps": 2000, "execute": 4, "frames": 1200, "epochs": 4, "record": True,
}  # fmt: skip
ROOT = Path("runs", "benchmarks", "metaworld")
CAMERAS, SIZE, LONGEST = ("corner2", "gripperPOV"), 192, 150
LEAST = 0.7  # success; a control that has it leaves the claim unproven


def taught(options: Mapping[str, Any]) -> Path:
    """The shipped encoder after all these scenes, taught now unless it was before."""
    folder = ROOT / f"taught-{options['frames']}x{options['epochs']}"
    if not (folder / "encoder" / "open_clip_config.json").is_file():
        words = ["model=shipped", f"use=[{','.join(SENTENCES)}]", f"run={folder}", "resume=true", "workers=1"]
        words += [f"recipe.epochs={options['epochs']}", "recipe.lr=8e-4", "test_frames=200"]
        for task, sentences in SENTENCES.items():
            captions = ROOT / f"{task}.yaml"
            told = {"train": sentences[:-2], "val": sentences[-2:-1], "test": sentences[-1:]}
            scene = {
                "train": ["a robot at a table"],
                "val": ["a robot arm by a table"],
                "test": ["a robot and a table"],
            }
            captions.parent.mkdir(parents=True, exist_ok=True)
            about = {"goals": {"success": sentences[0]}, "facts": {"scene": scene, "success": told}}
            write_text(captions, yaml.safe_dump(about))
            words += [f"+scenes.{task}.worlds=[metaworld/{task}-v3]", f"+scenes.{task}.captions={captions}"]
            words += [f"+scenes.{task}.frames={options['frames']}", f"+scenes.{task}.camera={CAMERAS[1]}"]
        command = [sys.executable, "-m", "embodied.cli", "pretrain", *words]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder / "encoder"


def eyes(way: str, options: Mapping[str, Any]) -> list[str]:
    """The settings of a policy that looks in one of the ways."""
    if way == "taught":
        return ["encoder=open_clip", f"encoder.model=local-dir:{taught(options)}"]
    if way == "random":
        return ["encoder=open_clip", "encoder.model=local-dir:sim_assets/encoder", "encoder.pretrained=random"]
    return ["policy.places=0"] if way == "blind" else []


def session(task: str, way: str, seed: int, options: Mapping[str, Any]) -> FinetuningRun:
    """A fine-tuning of the task's demonstrations, collected first if they are not there."""
    return of_suite(
        f"metaworld/{task}-v3", ROOT / f"{task}-demonstrations", ROOT / f"{task}-{way}-s{seed}", seed, options,
        *eyes(way, options), cameras=CAMERAS, size=SIZE, longest=LONGEST,
    )  # fmt: skip


def imitated(task: str, way: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """One policy, trained and judged unless that was done."""
    made = session(task, way, seed, options)
    file = made.folder / "policy" / "episodes.json"
    if not file.is_file() or len(json.loads(file.read_text("utf-8"))) != options["episodes"]:
        policy = made.train("policy", made.fresh(), made.rows.usable.astype(float), made.rows)
        made.judge("policy", policy)
    return {"rows": json.loads(file.read_text("utf-8")), "execute": options["execute"], "tried": {}}


def beside(claim: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row beside its task's controls, as far as they are measured; a control as it is."""
    about, _, way = claim["claim"].rpartition(", ")
    if "control" in way:
        return dict(claim)
    by_itself = {key: value for key, value in claim.items() if key != "passed"}
    by_itself |= {"bar": f">= {LEAST}", "met": claim["value"] >= LEAST}
    return voided(by_itself, [f"{about}, {told}" for told in WAYS.values() if "control" in told], rows)


def main() -> None:
    """Way by way, the controls by the first seed alone, recording after every policy."""
    options = read_options(OPTIONS)
    rows: dict[str, dict[str, Any]] = {}
    done: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in options["seeds"]:
        for task in options["tasks"]:
            for way in options["ways"]:
                control = "control" in WAYS[way]
                if control and seed != options["seeds"][0]:
                    continue
                found = done.setdefault((task, way), [])
                found.append(imitated(task, way, seed, options))
                claim = f"{task}, {options['demonstrations']} demonstrations of its expert, {WAYS[way]}"
                rows[claim] = row(
                    claim, found, options["seeds"][: len(found)], f"< {LEAST}" if control else f">= {LEAST}"
                )
                if control:
                    rows[claim]["met"] = rows[claim]["value"] < LEAST
                print(f"{claim}: {rows[claim]['value']:.3f} {rows[claim]['by_seed']}", flush=True)
                if options["record"]:
                    every = [*rows.values(), *others("metaworld", list(rows.values()))]
                    record("metaworld", [beside(each, every) for each in every])


if __name__ == "__main__":
    main()
