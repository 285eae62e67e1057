"""Label a dataset: the progress and the reward of every frame, by any reward model.

Writes LeRobot's sidecar (`<name>_progress.parquet`: what its reward-weighted training reads, and the raw potential and
reward), or a copy of the dataset with the features `progress.<name>` and `reward.<name>`; `next.reward` stays what it
was. Row t's potential is that of its frame; its reward is that of action t, which leads to the next frame, and the last
frame, whose successor no dataset holds, is taken to stay. Killed, it goes on where it was when it is run again. The
source is never touched, unless in_place=true says so.

    embodied label data=path/to/lerobot reward=clip goal="put the cube in the tray"
    embodied label data=desk-drawer-mixed reward=process columns=columns out=data/labelled
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from embodied import scorers
from embodied.datasets import Dataset, copying, layout
from embodied.datasets.encoding import encode
from embodied.errors import UserError, nearest
from embodied.files import whole
from embodied.goals import any_open, told_goals
from embodied.identity import dataset_identity, scorer_identity
from embodied.literal import resolved
from embodied.opening import COLLECTED, open_dataset, reading
from embodied.settings import check_least
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.progress import tqdm

ROOT = Path("runs", "label")
GOALS = "goals"  # what labels were made for: a JSON list, in a sidecar's metadata
Labels = dict[str, np.ndarray]  # "potential" and "reward" of an episode, (T,) float32


def run(config: DictConfig) -> None:
    """Score every episode, then write all at once."""
    if config.columns not in ("sidecar", "columns"):
        raise UserError(f"columns must be sidecar or columns; got {config.columns!r}.")
    check_least(config, batch=1, threads=1)
    if config.reward.get("_target_") is None:
        raise UserError("reward=true labels nothing: it is the task's own. Choose a reward model.")
    name = config.name or scorers.reward_name(config.reward)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"name must be letters, digits and . _ + - alone; got {name!r}.")
    torch.set_num_threads(config.threads)
    _recover(config.data, in_place=config.in_place)
    dataset = open_dataset(config.data, **reading(config))
    cameras = _cameras(dataset, config.cameras)
    out = _out(config, dataset, name)
    groups = _by_goal(config, dataset)
    goals = [goal for goal in groups if goal is not None] or told_goals(resolved(config)["reward"])
    if config.columns == "sidecar":
        _check_goals(out, goals)
    labels = _label_all(config, dataset, cameras, out, groups)
    progress, low, high = _progress([each["potential"] for each in labels])
    if config.columns == "sidecar":
        about = {"reward_model_path": name, "low": low, "high": high, GOALS: json.dumps(goals, ensure_ascii=False)}
        if len(goals) == 1:
            about["goal"] = goals[0]
        _write_sidecar(out, dataset, labels, progress, about)
    else:
        _write_copy(out, dataset, labels, name, goals, in_place=config.in_place)
    if (low, high) != (0.0, 1.0):
        print(f"Potentials from {low:.4g} to {high:.4g} over this dataset; the sidecar's progress is 0 to 1 of that.")
    rows = sum(len(each["reward"]) for each in labels)
    print(f"Labels: {out} ({len(labels)} episodes, {rows} rows, {name})")
    shutil.rmtree(_parts(out), ignore_errors=True)


# Scoring ------------------------------------------------------------------------------------------------


def _label_all(
    config: DictConfig,
    dataset: Dataset,
    cameras: Sequence[str],
    out: Path,
    groups: Mapping[str | None, Sequence[int]],
) -> list[Labels]:
    """The labels of every episode, those of a run that was killed not made again.

    Labels are kept under what they depend on, so that a changed reward, encoder or dataset never meets old ones.
    """
    labels: dict[int, Labels] = {}
    data, encoder = dataset_identity(dataset, cameras), None
    with tqdm(total=len(dataset), desc="labelling", unit="episode") as bar:
        for goal, members in groups.items():
            indices = list(members)
            scorer = _scorer(config, goal, dataset, cameras, encoder)
            encoder = scorer.encoder
            made_of = f"{scorer_identity(scorer)} {data} {json.dumps(list(cameras))}"
            folder = _parts(out) / hashlib.sha256(made_of.encode()).hexdigest()[:24]
            for i in list(indices):
                try:
                    labels[i] = load_file(folder / f"{i:06d}.safetensors")
                except (FileNotFoundError, SafetensorError):  # not made yet
                    continue
                indices.remove(i)
                bar.update()
            size = 1 if scorer.frames_read == "all" else config.batch  # frames of many do not fit into memory
            for start in range(0, len(indices), size):
                chosen = indices[start : start + size]
                episodes = encode(
                    dataset, scorer.encoder, cameras=cameras, indices=chosen, frames_read=scorer.frames_read,
                    goal=goal or "",
                )  # fmt: skip
                endings = [dataset.recording(i, cameras=()).terminated for i in chosen]
                for i, made in zip(chosen, score(scorer, episodes, endings), strict=True):
                    labels[i] = made
                    folder.mkdir(parents=True, exist_ok=True)
                    with whole(folder / f"{i:06d}.safetensors") as part:
                        save_file(made, part)
                    bar.update()
    return [labels[i] for i in range(len(dataset))]


@torch.inference_mode()
def score(scorer: Scorer, episodes: Sequence[Episode], terminated: Sequence[np.ndarray]) -> list[Labels]:
    """Potentials and rewards of encoded episodes; those of one length are scored together.

    Args:
        scorer: encodes nothing here.
        episodes: T rows each, row t before action t.
        terminated: per episode (T,) bool, whether the task itself ended after action t.
    """
    by_length: dict[int, list[int]] = {}
    for k, episode in enumerate(episodes):
        by_length.setdefault(len(episode), []).append(k)
    labels: dict[int, Labels] = {}
    for members in by_length.values():
        features = _stack([episodes[k].features for k in members])
        potential = scorer.combined(scorer.potentials(features), features)
        following = torch.cat([potential[:, 1:], potential[:, -1:]], 1)
        ended = torch.from_numpy(np.stack([terminated[k] for k in members]))
        rewards = scorer.shaping(potential, following, ended)
        for row, k in enumerate(members):
            labels[k] = {"potential": _numbers(potential[row]), "reward": _numbers(rewards[row])}
    return [labels[k] for k in range(len(episodes))]


def _numbers(values: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.float().cpu().numpy())


def _stack(parts: Sequence[Features]) -> Features:
    """Features of episodes of one length as a batch."""
    if len(parts) == 1:
        return parts[0]

    def join(name: str) -> dict[str, torch.Tensor]:
        return {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

    return Features(views=join("views"), signals=join("signals"), frames=join("frames"), depth=join("depth"))


def _by_goal(config: DictConfig, dataset: Dataset) -> dict[str | None, list[int]]:
    """Which episodes are scored with which goal; None: as the reward's own config says."""
    everything = list(range(len(dataset)))
    if not any_open(resolved(config)["reward"]):
        return {None: everything}
    groups: dict[str | None, list[int]] = {}
    for i in everything:
        instruction = dataset.instruction(i)
        if not instruction:
            number = dataset.span(i).index
            raise UserError(f"goal must be given: episode {number} of {dataset.root} has no instruction. Add goal=…")
        groups.setdefault(instruction, []).append(i)
    return groups


def _scorer(
    config: DictConfig,
    goal: str | None,
    dataset: Dataset,
    cameras: Sequence[str] | None = None,
    encoder: Encoder | None = None,
) -> Scorer:
    """The reward model, its open goals filled in; where the data are of a world of ours, by that world."""
    scorer = scorers.make_scorer(config, env=dataset.env, goal=goal, views=cameras, encoder=encoder)
    assert scorer is not None
    return scorer


def _check_goals(out: Path, goals: Sequence[str]) -> None:
    """Refuse to write over labels of another goal.

    Raises:
        UserError: a file that holds such, or does not say what it holds.
    """
    if not out.exists():
        return
    try:
        kept = json.loads((pq.read_schema(out).metadata or {})[GOALS.encode()])
    except (KeyError, ValueError, OSError):  # not ours, or from before goals were noted
        kept = None
    if kept != list(goals):
        held = "labels that do not say their goal" if kept is None else f"labels of {_listed(kept)}"
        raise UserError(
            f"out must be a new file, or hold labels of {_listed(goals)}; {out} holds {held}. "
            "Give another with out=… or name=…, or delete it."
        )


def _listed(goals: Sequence[str]) -> str:
    told = ", ".join(repr(goal) for goal in goals[:3]) + (f" and {len(goals) - 3} more" if len(goals) > 3 else "")
    return told or "no goal"


def _progress(potentials: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float, float]:
    """Potentials as progress in [0, 1]: as they are where they all lie there, else between the dataset's extremes."""
    low = min(float(each.min()) for each in potentials)
    high = max(float(each.max()) for each in potentials)
    if low >= 0 and high <= 1:
        return list(potentials), 0.0, 1.0
    return [(each - low) / ((high - low) or 1.0) for each in potentials], low, high


# Writing ------------------------------------------------------------------------------------------------


def _write_sidecar(
    out: Path, dataset: Dataset, labels: Sequence[Labels], progress: Sequence[np.ndarray], about: dict[str, Any]
) -> None:
    """LeRobot's columns, both of its progress modes alike, then ours."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("index", "episode_index", "frame_index")}
    for i in range(len(dataset)):
        for name, values in dataset.columns(i, columns).items():
            columns[name].append(values)
    table: dict[str, np.ndarray] = {name: np.concatenate(parts) for name, parts in columns.items()}
    for mode in ("sparse", "dense"):
        table[f"progress_{mode}"] = np.concatenate(progress).astype(np.float32)
    for name in ("potential", "reward"):
        table[name] = np.concatenate([each[name] for each in labels])
    metadata = {key.encode(): str(value).encode() for key, value in about.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as part:
        pq.write_table(pa.table(table).replace_schema_metadata(metadata), part)


def _write_copy(
    out: Path, dataset: Dataset, labels: Sequence[Labels], name: str, goals: Sequence[str], *, in_place: bool
) -> None:
    """The dataset with two more features, as a whole: made beside its place and moved there."""
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    features = _features(name)
    place = {span.index: i for i, span in enumerate(dataset.spans)}
    values = {key: [each[value] for each in labels] for key, value in features.items()}
    copying.copy(dataset.root, part, lambda source, target: _add_columns(source, target, values, place))
    info = layout.read_json(part / "meta" / layout.INFO)
    info["features"] |= {key: {"dtype": "float32", "shape": [1], "names": None} for key in features}
    (part / "meta" / layout.INFO).write_text(json.dumps(info, indent=2) + "\n", "utf-8")
    own = part / "meta" / layout.OWN
    told = layout.read_json(own) if own.is_file() else {}
    told["labels"] = {**(told.get("labels") or {}), name: {GOALS: list(goals)}}
    own.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    stats = part / "meta" / layout.STATS
    if stats.is_file():
        whole = {key: layout.statistics(np.concatenate([each[v] for each in labels])) for key, v in features.items()}
        stats.write_text(json.dumps(layout.read_json(stats) | whole, indent=2) + "\n", "utf-8")
    if in_place:
        old = _former(out)
        out.rename(old)
        part.rename(out)
        shutil.rmtree(old)
    else:
        part.rename(out)


def _features(name: str) -> dict[str, str]:
    """New column -> which of an episode's labels it holds."""
    return {f"progress.{name}": "potential", f"reward.{name}": "reward"}


def _former(out: Path) -> Path:
    """Where a dataset lies while its labelled copy takes its place."""
    return out.with_name(f".{out.name}.old")


def _recover(data: str, *, in_place: bool) -> None:
    """Undo a kill between the two renames of `_write_copy`; after the second, clear up."""
    for root in (Path(data).resolve(), (COLLECTED / data).resolve()):
        old = _former(root)
        if not (old / "meta" / layout.INFO).is_file():
            continue
        if not root.exists():
            old.rename(root)
        elif in_place:
            shutil.rmtree(old)
            shutil.rmtree(_parts(root), ignore_errors=True)


def _add_columns(
    source: Path, target: Path, values: Mapping[str, Sequence[np.ndarray]], place: Mapping[int, int]
) -> None:
    """A data file again, row group by row group, with one more column per entry, looked up by episode and frame.

    Rows of an episode that the meta data do not name have no label: NaN.
    """
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        # The Hugging Face notes name every column; without them they are read off the file itself.
        notes = {key: value for key, value in (schema.metadata or {}).items() if key != b"huggingface"}
        schema = pa.schema([*schema, *(pa.field(key, pa.float32()) for key in values)], metadata=notes)
        with pq.ParquetWriter(target, schema, compression="snappy") as writer:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                where = [pc.cast(table[name], pa.int64()).to_pylist() for name in ("episode_index", "frame_index")]
                columns = list(table.columns)
                for each in values.values():
                    found = [each[place[i]][t] if i in place else np.nan for i, t in zip(*where, strict=True)]
                    columns.append(pa.chunked_array([pa.array(np.array(found, np.float32))]))
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=max(len(table), 1))


def _cameras(dataset: Dataset, wanted: Any) -> list[str]:
    names = list(dataset.cameras) if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if name not in dataset.cameras:
            raise UserError(f"cameras: {dataset.root} has no {name!r}. {nearest(str(name), dataset.cameras)}")
    return names


def _out(config: DictConfig, dataset: Dataset, name: str) -> Path:
    """Where the labels go, checked before anything is scored."""
    if config.in_place and config.out:
        raise UserError("out must be left out with in_place=true.")
    if config.columns == "sidecar":
        default = (dataset.root if config.in_place else ROOT / dataset.root.name) / f"{name}_progress.parquet"
        out = Path(config.out or default)
        if out.suffix != ".parquet":
            raise UserError(f"out must end in .parquet; got {out}.")
        return out
    out = dataset.root.resolve() if config.in_place else Path(config.out or ROOT / f"{dataset.root.name}-{name}")
    if not config.in_place and out.exists():
        raise UserError(f"out must be a new folder; got {out}.")
    if taken := [key for key in _features(name) if key in dataset.features]:
        raise UserError(f"name must be new: {dataset.root} has {taken[0]} already. Add name=…")
    return out


def _parts(out: Path) -> Path:
    """Finished episodes of a run that is under way, beside what it will write."""
    return out.with_name(f".{out.name}.labels")
