"""The shipped encoder taught a scene that it did not know, by `embodied pretrain`: its judgement before and after.

`drive` is the town, whose facts and captions come with the package. `drawer` is another package's world by its id,
Meta-World's drawer-open, with the facts and captions of `examples/`; its expert and random actions make the frames.
`button` is Meta-World's button-press in the same way, seen from the side. `recorded` is the drawer as someone with a
camera alone would have it: 40 recorded episodes, good and bad, whose rows say whether the drawer is open. Every fifth
episode is kept for judging, and frames look as they were recorded.
Judged on frames and wordings that were kept for that, in the scene's own look and in varied ones: AUROC of the offered
goals, and of wordings that training never met, of facts that hold in 15 frames at least (the hand at the drawer's
handle does not). Nothing is chosen by it. What is finished is not run again.

    python -m benchmarks.own_scenes                        # one core each
    python -m benchmarks.own_scenes scenes=["drawer"] frames=1600 test_frames=400    # as it was recorded
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import load, read_options, record

ROOT = Path("runs", "benchmarks", "own_scenes")
FILMS = ROOT / "films"  # the recorded episodes
SCENES = {
    "drive": [],
    "drawer": [
        "+scenes.drawer.worlds=[metaworld/drawer-open-v3]",
        "+scenes.drawer.captions=examples/drawer_captions.yaml",
        "+scenes.drawer.facts=examples.drawer_facts:DrawerFacts",
    ],
    "button": [
        "+scenes.button.worlds=[metaworld/button-press-v3]",
        "+scenes.button.captions=examples/button_captions.yaml",
        "+scenes.button.facts=examples.button_facts:ButtonFacts",
        "+scenes.button.camera=corner3",
    ],
    "recorded": [
        f"+scenes.recorded.data={FILMS}",
        "+scenes.recorded.captions=examples/drawer_captions.yaml",
        "+scenes.recorded.labels={drawer_open: next.success}",
    ],
}
RECORDED = (
    "env=gym", "env.id=metaworld/drawer-open-v3", "env.max_episode_steps=120", "policy=mixed", "episodes=40",
    "image_size=96", f"out={FILMS}",
)  # fmt: skip
BARS = {"goals": 0.95, "unseen wordings": 0.85}


def taught(scene: str, frames: int, test_frames: int, epochs: int) -> dict[str, Any]:
    """The judgement of `embodied pretrain`, run now unless it was before; `before` is the shipped encoder's."""
    folder = ROOT / f"{scene}-{frames}x{epochs}-{test_frames}"
    file = folder / "encoder" / "judgement.json"
    if not file.exists():
        if scene == "recorded":
            _run("collect", *RECORDED)
        key = f"{'+' if SCENES[scene] else ''}scenes.{scene}.frames={frames}"
        words = ["model=shipped", f"use=[{scene}]", *SCENES[scene], key, f"test_frames={test_frames}", "workers=1"]
        words += [f"recipe.epochs={epochs}", "recipe.lr=8e-4", f"run={folder}", "resume=true"]
        _run("pretrain", *words)
    return json.loads(file.read_text("utf-8")) | {"epochs": epochs, "test_frames": test_frames}


def _run(verb: str, *words: str) -> None:
    command = [sys.executable, "-m", "embodied.cli", verb, *words]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def rows(scene: str, judgement: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean and worst areas of goals and of unseen wordings, before and after, in each look."""
    table = []
    for look, after in judgement["scenes"][scene].items():
        before = judgement["before"]["scenes"][scene][look]["facts"]
        for what, bar in BARS.items():
            then, now = (_areas(facts, what) for facts in (before, after["facts"]))
            if not now:
                continue
            value, name = float(np.mean(list(now.values()))), look.replace("_", " ")
            first = float(np.mean(list(then.values())))
            claim = f"{scene}, {name}, {len(now)} {what}: mean AUROC once taught"
            table.append(
                {
                    "claim": f"{claim} (worst {min(now.values()):.2f}; before, the shipped encoder: {first:.2f})",
                    "value": value,
                    "unit": "AUROC",
                    "bar": f">= {bar}",
                    "met": value >= bar,
                    "n": judgement["test_frames"],
                    "worst": min(now.values()),
                    "by_sentence": {text: [then[text], area] for text, area in now.items()},
                    "frames": judgement["frames"],
                    "epochs": judgement["epochs"],
                }
            )
    return table


def _areas(facts: dict[str, Any], what: str) -> dict[str, float]:
    """Sentence or fact -> AUROC."""
    if what == "goals":
        return {fact: row["goal"] for fact, row in facts.items() if row["goal"] is not None}
    return {text: area for row in facts.values() for text, area in row["unseen"].items()}


def main() -> None:
    """Teach what is missing, judge, record; scenes that are not asked for keep what was recorded."""
    options = read_options({"scenes": list(SCENES), "frames": 8000, "test_frames": 1000, "epochs": 4})
    if unknown := set(options["scenes"]) - set(SCENES):
        raise SystemExit(f"scenes must be among {', '.join(SCENES)}; got {', '.join(sorted(unknown))}.")
    table = {row["claim"]: row for row in load() if row["benchmark"] == "own_scenes"}
    for scene in options["scenes"]:
        table = {claim: row for claim, row in table.items() if not claim.startswith(f"{scene}, ")}
        judgement = taught(scene, options["frames"], options["test_frames"], options["epochs"])
        table |= {row["claim"]: row for row in rows(scene, judgement)}
        print(record("own_scenes", table.values()))
    for row in table.values():
        print(f"{row['claim']}: {row['value']:.3f}, worst {row['worst']:.3f}")


if __name__ == "__main__":
    main()
