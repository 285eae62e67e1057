"""Frames of recorded episodes with what was said of them: for an encoder of a camera that no simulator has.

A label is a column of the dataset: yes and no, or how far a fact holds, in [0, 1]; a missing value is unknown, and
neither trains nor judges. A column `next.…` tells what is after the action of its row, and so speaks of the row that
follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from embodied.datasets import Dataset
from embodied.errors import UserError, nearest
from embodied.pretraining.renders import Renders
from rewards.progress import tqdm

KEPT_EVERY = 5  # one episode in so many is kept for judging
SUCCESS = {"success": "next.success"}  # what is told of an episode unless a scene says what else


def recorded(
    dataset: Dataset,
    labels: Mapping[str, str],
    count: int,
    *,
    seed: tuple[int, ...],
    shrink: Callable[[np.ndarray], np.ndarray],
    camera: str | None = None,
    held: bool = False,
) -> Renders:
    """`count` frames of labelled episodes; half of them show some fact as true, where so many do.

    Args:
        dataset: of at least `KEPT_EVERY` episodes.
        labels: fact -> column.
        count: at most; every frame is taken once.
        seed: of the draw.
        shrink: (T, H, W, 3) uint8 frames to the encoder's size.
        camera: whose frames; None: the dataset's first.
        held: take them from the episodes that are kept for judging, not from the others.

    Returns:
        Frames and degrees, NaN where a fact is unknown.

    Raises:
        UserError: no such column or camera, values out of [0, 1], too few episodes, or nothing labelled.
    """
    check_recorded(dataset, labels, camera)
    order = np.random.default_rng(0).permutation(len(dataset))
    kept = set(order[::KEPT_EVERY].tolist())
    said = {i: _said(dataset, i, labels) for i in range(len(dataset)) if (i in kept) == held}
    rows = [(i, row) for i, told in said.items() for row in np.flatnonzero(~np.isnan(told).all(1)).tolist()]
    if not rows:
        raise UserError(
            f"pretrain: {dataset.root} must hold labels; {', '.join(labels.values())} are missing everywhere."
        )
    picked: dict[int, list[int]] = {}
    for i, row in _drawn(rows, np.array([(said[i][row] == 1).any() for i, row in rows]), count, seed):
        picked.setdefault(i, []).append(row)
    frames, degrees = [], []
    for i in tqdm(sorted(picked), desc=f"reading {dataset.root.name}", unit="episode"):
        wanted = sorted(picked[i])
        frames.append(shrink(dataset.frames(i, camera or dataset.cameras[0], wanted)))
        degrees.append(said[i][wanted])
    return Renders(np.concatenate(frames), np.concatenate(degrees).astype(np.float32), tuple(labels))


def check_recorded(dataset: Dataset, labels: Mapping[str, str], camera: str | None) -> None:
    """Refuse what `recorded` cannot read, before anything is read.

    Args:
        dataset, labels, camera: see `recorded`.

    Raises:
        UserError: no such column or camera, or too few episodes.
    """
    if len(dataset) < KEPT_EVERY:
        raise UserError(
            f"pretrain: {dataset.root} must hold at least {KEPT_EVERY} episodes, one of which is kept for judging; "
            f"got {len(dataset)}."
        )
    if camera is not None and camera not in dataset.cameras:
        raise UserError(
            f"pretrain: camera must be one of {dataset.root}; got {camera!r}. {nearest(camera, dataset.cameras)}"
        )
    for column in labels.values():
        if column not in dataset.features:
            raise UserError(
                f"pretrain: labels must name columns of {dataset.root}; got {column!r}. "
                f"{nearest(column, dataset.features)}"
            )


def _drawn(rows: list[tuple[int, int]], true: np.ndarray, count: int, seed: tuple[int, ...]) -> list[tuple[int, int]]:
    """`count` of the rows, half of them true where so many are."""
    rng = np.random.default_rng(seed)
    yes, no = (rng.permutation(np.flatnonzero(which)) for which in (true, ~true))
    half = min(len(yes), max(count // 2, count - len(no)))
    return [rows[k] for k in np.concatenate([yes[:half], no[: count - half]])]


def _said(dataset: Dataset, i: int, labels: Mapping[str, str]) -> np.ndarray:
    """(T, F) how far each fact holds in each frame of episode i; NaN where that is unknown."""
    columns = dataset.columns(i, labels.values(), nulls=True)
    told = np.full((dataset.length(i), len(labels)), np.nan)
    for k, column in enumerate(labels.values()):
        values = np.asarray(columns[column])
        if values.size != len(told) or values.dtype.kind not in "biuf":
            raise UserError(f"pretrain: {column} of {dataset.root} must be one number a row; got {values.dtype}.")
        values = values.reshape(-1).astype(np.float64)
        if ((values < 0) | (values > 1)).any():
            raise UserError(
                f"pretrain: {column} of {dataset.root} must be yes, no or a number in [0, 1]; got "
                f"{np.nanmin(values):g} to {np.nanmax(values):g} in episode {i}."
            )
        if column.startswith("next."):
            told[1:, k] = values[:-1]
        else:
            told[:, k] = values
    return told
