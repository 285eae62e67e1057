"""Collect episodes as a LeRobot dataset: from a scripted expert, random actions, a mixture, or a trained policy.

Mixed is what rewards are judged on: the expert, the expert with noise, near misses (all but solved, then stopped or
undone), failures (set out well, then wandered off) and random actions, in declared shares. Each row holds what was
seen before an action and what followed it; rows at which the expert's phases end are marked. Killed, it goes on where
it was when it is run again. A dataset opens in LeRobot itself. Frames are square, as the reward model gets them in
training: of a world whose own pictures are not, the whole picture is squeezed. Of a world that does not tell success
the dataset has no column of it.

    embodied collect env=desk-drawer policy=mixed episodes=40
    embodied collect env=desk-place policy=expert cameras=[front,side,wrist] out=data/place
    embodied collect policy=run:latest episodes=20
"""

from __future__ import annotations

from omegaconf import DictConfig

from embodied.collecting import collect


def run(config: DictConfig) -> None:
    """Collect, and tell what there is."""
    dataset = collect(config)
    kinds = [dataset.kind(i) for i in range(len(dataset))]
    rows = [dataset.recording(i, cameras=()) for i in range(len(dataset))]
    for kind in dict.fromkeys(kinds):
        of = [row for row, its in zip(rows, kinds, strict=True) if its == kind]
        known = [bool(row.success[-1]) for row in of if row.success is not None]
        told = f"solved at the end {sum(known)}" if known else "success is not told"
        if 0 < len(known) < len(of):
            told += f" of {len(known)} that tell"
        print(f"{kind:10} {len(of):4} episodes, {told}")
    size = sum(path.stat().st_size for path in dataset.root.rglob("*") if path.is_file())
    frames = sum(map(len, rows))
    print(f"Dataset: {dataset.root} ({len(rows)} episodes, {frames} rows, {size / 1e6:.1f} MB)")
