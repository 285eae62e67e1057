"""The embedded encoder on states, looks and wordings kept for judging; writes the tables of its card.

Each of its two sets of weights is judged on the scenes whose worlds take it. What is not asked for keeps what was
recorded.

    python -m benchmarks.encoder
    python -m benchmarks.encoder encoders=["town"]
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from benchmarks.common import load, read_options, record
from embodied.commands.pretrain import judge, summary
from embodied.envs.captions import Captions
from embodied.paths import asset, configs
from rewards.encoders import OpenCLIPEncoder, embedded_encoder

FOLDER = Path("runs", "benchmarks", "encoder")
SCENES = {"desk": ("desk", "reacher", "cartpole"), "town": ("drive", "humanoid")}  # what it knows -> judged on
TOLD = {"desk": "embedded encoder", "town": "town's encoder"}  # how claims begin
SCORES = {"desk": "scores.txt", "town": "scores_town.txt"}  # beside the weights


def main() -> None:
    """Render, judge, record."""
    options = read_options({"encoders": list(SCENES), "frames": 1500})
    if unknown := set(options["encoders"]) - set(SCENES):
        raise SystemExit(f"encoders must be among {', '.join(SCENES)}; got {', '.join(sorted(unknown))}.")
    table = [row for row in load() if row["benchmark"] == "encoder"]
    words = ["judge_on=test", f"test_frames={options['frames']}"]
    for knows in options["encoders"]:
        with initialize_config_dir(str(configs()), version_base="1.3"):
            config = compose("pretrain", overrides=[*words, f"use=[{','.join(SCENES[knows])}]"])
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        encoder = embedded_encoder(knows=knows)
        captions = {name: Captions.load(asset(name) / "captions.yaml") for name in config.use}
        judgement = judge(encoder, config, captions, FOLDER, encoder.image_size[0])
        before = None
        if encoder.reads_denials:
            plain = OpenCLIPEncoder(f"local-dir:{asset('encoder')}")
            before = judge(plain, config, captions, FOLDER, plain.image_size[0])
        scores = summary(judgement)
        (asset("encoder") / SCORES[knows]).write_text(scores + "\n")
        print(scores)
        table = [row for row in table if not row["claim"].startswith(TOLD[knows])]
        table += rows(judgement, config.test_frames, TOLD[knows])
        if before is not None:
            table += denials(judgement, before, config.test_frames, TOLD[knows])
        record("encoder", table)


def rows(judgement: dict[str, Any], frames: int, encoder: str) -> list[dict[str, Any]]:
    """The claims: offered goals, their unseen wordings, facts we offer no goal for, retrieval, order."""
    found = []
    for look in ("own_look", "varied_look"):
        facts = {
            f"{scene}/{fact}": row
            for scene, looks in judgement["scenes"].items()
            for fact, row in looks[look]["facts"].items()
        }
        offered = {name: row for name, row in facts.items() if row["goal"] is not None}
        goals: dict[str, float] = {name: row["goal"] for name, row in offered.items()}
        unseen: dict[str, float] = {text: area for row in offered.values() for text, area in row["unseen"].items()}
        other = {name: row for name, row in facts.items() if row["goal"] is None}
        view = look.replace("_", " ")
        for claim, areas, bar in (
            (f"{encoder}, {view}: AUROC of an offered goal for its success, worst of all", goals, 0.95),
            (f"{encoder}, {view}: AUROC of wordings it never met, of offered goals, worst of all", unseen, 0.90),
        ):
            worst = min(areas, key=areas.__getitem__)
            below = {name: round(area, 3) for name, area in areas.items() if area < bar}
            found.append(
                {
                    "claim": claim,
                    "value": areas[worst],
                    "unit": "AUROC",
                    "bar": f">= {bar:.2f}",
                    "met": areas[worst] >= bar,
                    "n": frames,
                    "mean": float(np.mean(list(areas.values()))),
                    "worst": worst,
                    "below_bar": below,
                    "sentences": len(areas),
                }
            )
        areas = [area for row in other.values() for area in row["unseen"].values()]
        found.append(
            {
                "claim": f"{encoder}, {view}: AUROC of unseen wordings of the other facts, mean",
                "value": float(np.mean(areas)),
                "unit": "AUROC",
                "n": frames,
                "sentences": len(areas),
                "by_fact": {
                    name: round(float(np.mean(list(row["unseen"].values()))), 3) for name, row in other.items()
                },
            }
        )
        found.extend(
            {
                "claim": f"{encoder}, {view}, {scene}: the best of one unseen sentence per fact is true",
                "value": looks[look]["retrieval"],
                "unit": "share",
                "n": frames,
            }
            for scene, looks in judgement["scenes"].items()
        )
    for against in ("time", "env_reward"):
        order = {env: row[against] for env, row in judgement.get("order", {}).items()}
        if not order:
            continue
        found.append(
            {
                "claim": f"{encoder}: rank correlation of the goal's score with {against.replace('_', ' ')} "
                "along the expert's episodes, mean of 8 desk tasks",
                "value": float(np.mean(list(order.values()))),
                "unit": "Spearman",
                "n": 10 * len(order),
                "by_task": order,
            }
        )
    return found


def denials(judgement: dict[str, Any], before: dict[str, Any], frames: int, encoder: str) -> list[dict[str, Any]]:
    """The claims about sentences that deny a fact: their AUROC for it, beside that of the tower that reads the rest.

    Args:
        judgement: of the encoder.
        before: of the one without a text tower for denials.
        frames: of each scene and look.
        encoder: how claims begin.
    """
    found = []
    for look in ("own_look", "varied_look"):
        told, control = (
            {text: area for looks in each["scenes"].values() for row in looks[look]["facts"].values()
             for text, area in row["denied"].items()}
            for each in (judgement, before)
        )  # fmt: skip
        view, high = look.replace("_", " "), {text: round(area, 3) for text, area in told.items() if area > 0.5}
        areas, plain = (np.array(list(each.values())) for each in (told, control))
        for what, value, other, unit, bar in (
            ("AUROC of unseen denials for what they deny, mean", areas.mean(), plain.mean(), "AUROC", 0.2),
            ("unseen denials that read as what they deny", (areas > 0.5).mean(), (plain > 0.5).mean(), "share", 0.1),
        ):
            found.append(
                {
                    "claim": f"{encoder}, {view}: {what}; control, without its tower for denials: {other:.2f}",
                    "value": float(value),
                    "unit": unit,
                    "bar": f"<= {bar} < control",
                    "met": bool(value <= bar < other),
                    "n": frames,
                    "sentences": len(told),
                    "above_half": high,
                }
            )
    return found


if __name__ == "__main__":
    main()
