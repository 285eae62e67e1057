"""Episodes from a LeRobot dataset, v3.0 or v2.x, with pyarrow and PyAV alone.

Shape letters: T frames of an episode; A action; H, W image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from embodied.datasets import layout, recovery
from embodied.datasets.pictures import Pictures
from embodied.datasets.places import EpisodePlaces, Span, check_info, check_own
from embodied.datasets.rows import Rows
from embodied.datasets.video import SHARE
from embodied.errors import UserError, nearest
from rewards.phrases import plain

SUCCESS = "next.success"  # the column that tells success, unless another is named
YES = 0.5  # from which a number in it counts as success
SURPLUS = ("refuse", "after", "before")
NAMED = 8  # datasets, at most, that an error names


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode. Row t is what was there before action t; what was there after the last one is in `Dataset.last`.

    Attributes:
        frames: camera -> (T, H, W, 3) uint8 RGB; the cameras that were asked for.
        actions: (T, A) float32; (T, 0) where the dataset has none.
        signals: name -> (T,) float32, the robot's own readings (`observation.state`).
        env_rewards: (T,) float32, the task's own reward after action t, NaN where it is missing; None where there is
            none.
        success: (T,) bool, whether the task was solved after action t; None where the dataset does not tell.
        terminated: (T,) bool, whether the task itself ended after action t; all False where the dataset does not
            tell endings from cuts (`next.truncated`).
        instruction: the task in words; "" where there are none, or several in turn (`Dataset.instructions`).
        index: of the episode, from 0.
        kind: which policy acted ("expert", "noisy", "near_miss", "failure", "random", …), or one of
            `embodied.datasets.kinds`; "" where unknown.
        steps: rows at which the task's steps end, ascending, the last row included; () where they are not marked.
    """

    frames: Mapping[str, np.ndarray]
    actions: np.ndarray
    signals: Mapping[str, np.ndarray]
    env_rewards: np.ndarray | None
    success: np.ndarray | None
    terminated: np.ndarray
    instruction: str
    index: int
    kind: str
    steps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.actions)


class Dataset:
    """A LeRobot folder, opened for reading.

    Nothing in it is written, but that episodes which a killed writer left behind are packed where nobody writes now.

    Args:
        root: the folder.
        success: the column that tells success: booleans, or numbers that mean yes from 0.5.
        kind: a column of texts that tells in an episode's first row what it is; None: what a dataset of ours notes.
        tolerance: how far a frame's own time may lie from its row's, as a share of a frame's period.
        surplus: where a film has more pictures than its episodes have rows, and nothing says where: "refuse" it, or
            the pictures beyond lie "after" the last row, or "before" the first.

    Attributes:
        root: the folder.
        fps: frames a second.
        features: the entries of `info.json`.
        cameras: short names of cameras, those with colours in the dataset's order, then grey ones; depth is left out.
        spans: where each episode lies; those of no rows are left out.
        env: the `env` config of the world it was collected in; {} elsewhere.
        env_id: that world's id, or None.
        made: settings by which its episodes were made, as whoever wrote it noted them; {} elsewhere.

    Raises:
        UserError: no dataset, a damaged one, or a version other than 2 or 3.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        success: str | None = None,
        kind: str | None = None,
        tolerance: int | float = SHARE,
        surplus: str = SURPLUS[0],
    ) -> None:
        self.root = Path(root)
        meta = self.root / "meta"
        recovery.finish(self.root)
        if not (meta / layout.INFO).is_file():
            raise UserError(_nothing_there(self.root))
        info = check_info(meta / layout.INFO, layout.read_json(meta / layout.INFO))
        self.features: dict[str, dict[str, Any]] = info["features"]
        self.fps = float(info["fps"])
        self._success, told = success or SUCCESS, success is not None
        if told and self._success not in self.features:
            raise UserError(f"success: {self.root} has no column {success!r}. {nearest(str(success), self.features)}")
        if kind is not None and self.features.get(kind, {}).get("dtype") != "string":
            texts = [name for name, feature in self.features.items() if feature.get("dtype") == "string"]
            raise UserError(f"kind must name a column of texts in {self.root}; got {kind!r}. {nearest(kind, texts)}")
        self._kind = kind
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance <= 0.5:
            raise UserError(f"tolerance must be a share of a frame's period, above 0, 0.5 at most; got {tolerance!r}.")
        if surplus not in SURPLUS:
            raise UserError(f"surplus must be {', '.join(SURPLUS)}; got {surplus!r}.")
        self.tolerance, self.surplus = float(tolerance), surplus
        places = EpisodePlaces(self.root, info)
        everything = places.spans()
        self.spans: Sequence[Span] = everything.with_rows()
        if not self.spans:
            raise UserError(f"{self.root}: must hold an episode with frames; it holds {len(everything)} without.")
        self._rows = Rows(self.root, self.features)
        self._pictures = Pictures(self, places, self._rows)
        self.cameras = tuple(self._pictures.keys)
        own = layout.read_json(meta / layout.OWN) if (meta / layout.OWN).is_file() else {}
        self.env, self._own = check_own(meta / layout.OWN, own, everything)
        self.env_id: str | None = self.env.get("id")
        self.made: dict[str, int | float | str] = own.get(layout.MADE) or {}
        if own.get(layout.LEFT_OUT) and surplus == SURPLUS[0]:  # its films hold pictures of episodes that are gone
            self.surplus = "after"
        self._tasks: dict[int, str] | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def length(self, i: int) -> int:
        """T of episode i."""
        return self.span(i).length

    def position(self, index: int) -> int:
        """Which of the episodes has a number in the files (`episode_index`): the same where none was taken out."""
        numbers = [span.index for span in self.spans]
        if index not in numbers:
            whole = numbers == list(range(len(numbers)))
            known = f"from 0 to {len(numbers) - 1}" if whole else f"one of {', '.join(map(str, numbers[:20]))}"
            raise UserError(f"{self.root}: episode must be {known}; got {index}.")
        return numbers.index(index)

    def instruction(self, i: int) -> str:
        """The task of episode i in words; "" where there are none.

        Raises:
            UserError: its frames have several, one after another.
        """
        tasks = list(dict.fromkeys(self.instructions(i)))
        if len(tasks) > 1:
            shown = ", then ".join(repr(task) for task in tasks[:3])
            raise UserError(
                f"goal must be given: the frames of episode {self.span(i).index} of {self.root} have {len(tasks)} "
                f"tasks, {shown}. Add goal=…"
            )
        return tasks[0]

    def instructions(self, i: int) -> list[str]:
        """Each frame's own task, T of them; "" where there are none.

        Raises:
            UserError: the dataset does not say which frames have which.
        """
        span = self.span(i)
        known = self._task_texts()
        indices = self._rows.task_indices(span) if known is not None else None
        if known is None or indices is None:
            if len(span.tasks) > 1:
                raise UserError(
                    f"goal must be given: episode {span.index} of {self.root} has {len(span.tasks)} tasks, and no "
                    "task_index says which frames have which. Add goal=…"
                )
            return list(span.tasks or ("",)) * span.length
        if unknown := sorted(set(indices.tolist()) - set(known)):
            raise UserError(
                f"{span.data} (episode {span.index}): task_index must be one of meta's tasks; got {unknown[0]}."
            )
        return [known[index] for index in indices.tolist()]

    def kind(self, i: int) -> str:
        """Which policy acted in episode i, or what it is (`embodied.datasets.kinds`); "" where unknown."""
        if self._kind is not None:
            return str(self.columns(i, [self._kind])[self._kind].reshape(-1)[0] or "")
        return str(self._note(i).get("kind", ""))

    def steps(self, i: int) -> tuple[int, ...]:
        """Rows at which the steps of episode i's task end; () where they are not marked."""
        return tuple(int(row) for row in self._note(i).get("steps", ()))

    def recording(self, i: int, cameras: Sequence[str] | None = None) -> Recording:
        """Episode i with its frames.

        Args:
            i: from 0.
            cameras: those to decode, short names; None: all; (): none.

        Raises:
            UserError: no such episode or camera; a broken or truncated file, named with the episode.
        """
        span, count = self.span(i), self.length(i)
        wanted = [n for n in ("action", "next.truncated", "next.done", "observation.state") if n in self.features]
        rows = self._rows.columns(span, wanted)
        told = [name for name in ("next.reward", self._success) if name in self.features]
        labels = self._rows.columns(span, told, nulls=True)
        state = rows.get("observation.state", np.zeros((count, 0), np.float32)).reshape(count, -1).astype(np.float32)
        names = layout.column_names(self.features["observation.state"], "state") if state.shape[1] else []
        done, cut = (_flags(rows, name, count) for name in ("next.done", "next.truncated"))
        reward = labels.get("next.reward")
        tasks = list(dict.fromkeys(self._texts(i)))
        return Recording(
            frames={name: self.frames(i, name) for name in (self.cameras if cameras is None else cameras)},
            actions=rows.get("action", np.zeros((count, 0), np.float32)).reshape(count, -1).astype(np.float32),
            signals={name: state[:, k] for k, name in enumerate(names)},
            env_rewards=None if reward is None else self._scalars(span, "next.reward", reward).astype(np.float32),
            success=self._solved(span, labels.get(self._success), done),
            terminated=done & ~cut if "next.truncated" in rows else np.zeros(count, bool),
            instruction=tasks[0] if len(tasks) == 1 else "",
            index=i,
            kind=self.kind(i),
            steps=self.steps(i),
        )

    def columns(self, i: int, names: Iterable[str], *, nulls: bool = False) -> dict[str, np.ndarray]:
        """Any numeric features or texts of episode i: name -> (T, *shape), (T,) for shape [1].

        Args:
            i: from 0.
            names: of the features.
            nulls: give numbers with missing values as floats, NaN where one is missing; else they are refused.
        """
        return self._rows.columns(self.span(i), list(names), nulls=nulls)

    def frames(self, i: int, camera: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """Frames of one camera: (T, H, W, 3) uint8 RGB, or those of some rows, in their order.

        Raises:
            UserError: no such episode, camera or row; damaged files, or a film that has no frame at a row's time.
        """
        return self._pictures.frames(self.span(i), camera, rows)

    def batches(self, i: int, camera: str, size: int = 64) -> Iterator[np.ndarray]:
        """As `frames`, `size` at a time: a long episode does not fit into memory."""
        return self._pictures.batches(self.span(i), camera, size)

    def last(self, i: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What was there after the last action of episode i, where the dataset holds it; nothing elsewhere.

        Returns:
            Camera -> (H, W, 3) uint8 RGB, and feature -> its values.
        """
        index, kept = self.span(i).index, self._note(i).get(layout.LAST, {})
        files = {name: layout.last_file(self.root, name, index) for name in self.cameras}
        frames = {}
        for name, file in files.items():
            if file.is_file():
                try:
                    frames[name] = np.asarray(Image.open(file).convert("RGB"))
                except (OSError, UnidentifiedImageError) as error:
                    raise UserError(f"episode {index}, camera {name}: {file} is damaged: {error}.") from error
        return frames, {name: np.asarray(values, self.features[name]["dtype"]) for name, values in kept.items()}

    def place(self, i: int, camera: str) -> tuple[Path, float]:
        """The file that holds a camera's frames of episode i, and the second at which they begin in it."""
        return self._pictures.place(self.span(i), camera)

    def span(self, i: int) -> Span:
        """Where episode i lies; UserError where there is none."""
        if not 0 <= i < len(self.spans):
            raise UserError(f"{self.root}: episode must be from 0 to {len(self.spans) - 1}; got {i}.")
        return self.spans[i]

    # Inside ---------------------------------------------------------------------------------------------

    def _note(self, i: int) -> Mapping[str, Any]:
        return self._own.get(str(self.span(i).index), {})

    def _texts(self, i: int) -> list[str]:
        """As `instructions`; two where nobody knows which frames have which."""
        span = self.span(i)
        no_index = "task_index" not in self.features or self._task_texts() is None
        return list(span.tasks) if no_index and len(span.tasks) > 1 else self.instructions(i)

    def _task_texts(self) -> dict[int, str] | None:
        """task_index -> text, the same ones worded as the first of them; None where the dataset has no such file."""
        if self._tasks is None:
            new, old = self.root / "meta" / layout.TASKS, self.root / "meta" / "tasks.jsonl"
            if new.is_file():
                self._tasks = layout.read_tasks(new)
            elif old.is_file():
                self._tasks = layout.read_old_tasks(old)
            if self._tasks is not None:
                first: dict[str, str] = {}
                self._tasks = {index: first.setdefault(plain(text), text) for index, text in self._tasks.items()}
        return self._tasks

    def _scalars(self, span: Span, name: str, values: np.ndarray) -> np.ndarray:
        if values.size != span.length or values.dtype.kind not in "biuf":
            raise UserError(f"{self.root}: {name} must be one number a row; got shape {self.features[name]['shape']}.")
        return values.reshape(-1)

    def _solved(self, span: Span, values: np.ndarray | None, done: np.ndarray) -> np.ndarray | None:
        """(T,) bool; None where there is no such column, or it has no value in some row.

        A reward that stands for success is told once, at the row that is done; what follows keeps it.
        """
        if values is None:
            return None
        numbers = self._scalars(span, self._success, values).astype(np.float64)
        if np.isnan(numbers).any():
            return None
        solved = numbers >= YES
        if self._success != SUCCESS and done.any():
            end = int(np.argmax(done))
            solved[end:] = solved[end]
        return solved


def _flags(rows: Mapping[str, np.ndarray], name: str, count: int) -> np.ndarray:
    values = rows.get(name, np.zeros(count, bool))
    if values.size != count:
        raise UserError(f"{name} must be one value a row; got {values.shape} for {count} rows.")
    return values.reshape(count).astype(bool)


def _nothing_there(root: Path) -> str:
    staged = len(list((root / layout.STAGING).glob("episode-*")))
    if staged:
        return f"{root}: is being written, or cannot be finished; {staged} episodes are kept. Try again later."
    lack = f"{root}: must be a LeRobot dataset (with meta/info.json); it "
    inside = _datasets(root)
    if inside:
        more = ", …" if len(inside) > NAMED else ""
        return f"{lack}has none, but holds such: {', '.join(str(root / name) for name in inside[:NAMED])}{more}."
    if root.is_dir():
        return f"{lack}has none."
    beside = _datasets(root.parent)
    return f"{lack}is not there. {nearest(root.name, beside)}" if beside else f"{lack}is not there."


def _datasets(folder: Path) -> list[str]:
    """The names of datasets in a folder."""
    return sorted(path.parent.parent.name for path in folder.glob(f"*/meta/{layout.INFO}"))
