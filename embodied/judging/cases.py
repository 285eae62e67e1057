"""The episodes that rewards are judged on: labelled ones, and those in which robot and outcome part ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embodied.collecting import COUNTERFACTUAL as POLICY
from embodied.collecting.opening import open_dataset
from embodied.datasets import Dataset
from embodied.datasets.encoding import Encoded, LaterEpisode
from embodied.datasets.kinds import COUNTERFACTUAL
from embodied.envs import DESK
from embodied.errors import UserError
from embodied.judging.charts import FILM_FRAMES
from embodied.judging.figures import Case, Division
from embodied.judging.quality import grades
from rewards.core import Encoder, Episode
from rewards.progress import tqdm

STARTS = 8  # of counterfactual episodes that are collected


def read_cases(
    dataset: Dataset, encoder: Encoder, cameras: Sequence[str], *, unlabelled: str, frames_read: str = "none",
    goal: str = "", quality: str | None = None,
) -> list[Case]:  # fmt: skip
    """The labelled episodes, whose features are read when they are scored: a large dataset is not held in memory.

    LeRobot's row t holds what was seen before action t and what followed it; a case's row holds what is true of what is
    seen there, so labels and rewards move one row on.

    Args:
        unlabelled: "skip" episodes without a label, or count them as a "success".
        frames_read: which pictures to keep; see `embodied.datasets.encoding.Encoded`.
        goal: what the task is, where the person says it; "": each episode's own text.
        quality: a column that grades episodes (`embodied.judging.quality`); it labels those that nothing
            else labels, and those that it does not grade are left out.

    Raises:
        UserError: no such column, or one that cannot be read as grades.
    """
    cases = []
    graded = grades(dataset, quality) if quality else None
    encoded = Encoded(dataset, encoder, cameras=cameras, frames_read=frames_read, goal=goal)
    for i in tqdm(range(len(dataset)), desc="encoding", unit="episode", leave=False, delay=2):
        encoded.make(i)
        recording = dataset.recording(i, cameras=())
        episode = encoded.later(i, recording)
        grade = graded[i] if graded else None
        if graded and grade is None:
            continue
        if episode.success is None and grade is not None:
            episode = replace(episode, success=grade.success)
        if episode.success is None and unlabelled == "success":
            episode = replace(episode, success=True)
        if episode.success is None or len(episode) < 2:
            continue
        solved = None if recording.success is None else np.append(False, recording.success[:-1])
        rewards = None if recording.env_rewards is None else np.append(np.nan, recording.env_rewards[:-1])
        cases.append(
            Case(episode=episode, index=i, kind=recording.kind, solved=solved, env_rewards=rewards, grade=grade)
        )
    return cases


def in_memory(episode: Episode | LaterEpisode) -> Episode:
    """An episode whose features stay, for whoever fits to them."""
    return episode.now() if isinstance(episode, LaterEpisode) else episode


def showing(cases: Sequence[Case], frames_read: str) -> list[Case]:
    """The same cases with other pictures beside their features; see `embodied.datasets.encoding.Encoded`."""
    made: dict[int, Encoded] = {}
    found = []
    for case in cases:
        episode = case.episode
        if isinstance(episode, LaterEpisode):
            encoded = made.get(id(episode.encoded)) or episode.encoded.reading(frames_read)
            made[id(episode.encoded)] = encoded
            episode = replace(episode, encoded=encoded)
        found.append(replace(case, episode=episode))
    return found


def counterfactuals_for(
    dataset: Dataset, wanted: str | bool | None, cameras: Sequence[str], cases: Sequence[Case]
) -> Dataset | None:
    """Counterfactual episodes of their own; None where the data mark theirs, or there are none to be had.

    Args:
        dataset: the judged data.
        wanted: a folder or a name; False: none; None: of our worlds that have an expert, collected if not there.
        cameras: that are judged.
        cases: of the judged data.

    Raises:
        UserError: the dataset that the config names has not the cameras.
    """
    if wanted is False:
        return None
    if wanted is not None:
        found = open_dataset(str(wanted), setting="counterfactual")
        if missing := [name for name in cameras if name not in found.cameras]:
            raise UserError(
                f"counterfactual: {found.root} must have the cameras that are judged; it lacks {missing[0]}."
            )
        return found
    world = str(dataset.env_id).removeprefix("embodied/").removesuffix("-v0")
    marked = any(case.kind in COUNTERFACTUAL for case in cases)
    if marked or world not in DESK or dataset.env.get("kwargs"):
        return None
    from embodied.collecting.counterfactual import kinds_of  # MuJoCo, which whoever judges recorded data does without

    kinds = kinds_of(world.removeprefix("desk-"))
    found = open_dataset(f"{world}-{POLICY}", setting="counterfactual", episodes=STARTS * len(kinds))
    return found if set(cameras) <= set(found.cameras) else None


def first_of_kinds(dataset: Dataset, division: Division, camera: str) -> dict[str, np.ndarray]:
    """Kind -> frames of its first counterfactual episode, from start to end."""
    found: dict[str, np.ndarray] = {}
    for case in division.counterfactual:
        kind = case.kind if case.kind in COUNTERFACTUAL else case.group
        if kind not in found:
            rows = np.linspace(0, len(case.episode) - 1, FILM_FRAMES).round().astype(int).tolist()
            found[kind] = dataset.frames(case.index, camera, rows)
    return found
