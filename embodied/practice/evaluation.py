"""How far practice came: both tasks from a reset, without the policy's noise, by the truth where it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embodied.practice.loop import Attempt, Practice, Tally
from embodied.reports.video import OUTCOME, write_video
from embodied.training.evaluation import success_rate
from rewards.progress import tqdm

PLAYED = {"forward": 0, "backward": 1, "again": 0}  # what an evaluation plays in a row -> the task


def play(practice: Practice, seeds: Sequence[int], *, folder: Path | None = None, videos: int = 0) -> dict[str, Any]:
    """Forward from a reset, backward from where that led, and forward again from there, once a seed.

    Args:
        practice: of a world that nothing is learned in meanwhile; its tally is left alone.
        seeds: of the resets.
        folder: where `videos/` is.
        videos: of the first so many.

    Returns:
        `success_rate`, `ci_low`, `ci_high` (None where nobody knows the truth), `known` and `episodes` of the forward
        task from a reset; and under `PLAYED` each these, `said_success` (attempts that ended by the model's yes) and
        `said_wrongly` (those of them that were not true; None where nobody knows).
    """
    played: dict[str, list[Attempt]] = {name: [] for name in PLAYED}
    for i, seed in enumerate(tqdm(seeds, desc="evaluation", unit="episode", leave=False)):
        practice.reset(seed=seed)
        for name, index in PLAYED.items():
            attempt, _ = practice.attempt(index, explore=False, film=folder is not None and i < videos)
            played[name].append(replace(attempt, pictures=[]))
            if folder is not None and attempt.pictures:
                _film(folder, i, name, attempt)
            if not solved(attempt):
                break  # there is nothing to undo
    values = {name: rates(attempts) for name, attempts in played.items()}
    return values["forward"] | values


def solved(attempt: Attempt) -> bool:
    """In truth where it is known, else by the model."""
    return attempt.success if attempt.env_success is None else attempt.env_success


def rates(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Success in truth with its 95 % interval, where it is known, none where a person acted; and how often the model
    said so, rightly or not."""
    known = [each.env_success and not each.person_steps for each in attempts if each.env_success is not None]
    return success_rate(known) | {
        "episodes": len(attempts),
        "said_success": sum(attempt.success for attempt in attempts),
        "said_wrongly": sum(each.success and each.env_success is False for each in attempts) if known else None,
    }


def told(summary: Mapping[str, Any], tally: Tally) -> str:
    """The end in a few lines."""
    parts = []
    for name, where in zip(PLAYED, ("from a reset", "from there", "from there"), strict=True):
        about = summary[name]
        if about["success_rate"] is not None:
            parts.append(f"{name} {where} {about['success_rate']:.0%} of {about['known']}")
        elif about["episodes"]:
            parts.append(
                f"{name} {where} unknown (the model said yes to {about['said_success']} of {about['episodes']})"
            )
    return (
        f"After {tally.steps} steps in {tally.attempts} attempts, a person reset the world {tally.interventions} times "
        f"({tally.stuck_resets} stuck, {tally.planned_resets} planned, {tally.stop_resets} after stops). "
        f"The model said yes to {tally.said_success} attempts, wrongly to {tally.env_said_wrongly} as far as is known. "
        f"Success in evaluation: {', '.join(parts)}."
    )


def _film(folder: Path, i: int, name: str, attempt: Attempt) -> None:
    word = OUTCOME[attempt.env_success]
    rewards = np.zeros(attempt.steps, np.float32)
    rewards[-1:] = attempt.success
    title = f"{name} · {word} · the model says {'yes' if attempt.success else 'no'}"
    write_video(folder / "videos" / f"final_{i}_{name}_{word}.mp4", attempt.pictures, rewards, title=title)
