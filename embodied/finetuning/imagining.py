"""A world to practise in: taught by what was recorded, asked how true it is, and only then practised in.

    rollouts   the policy acts with noise, so that the world sees failures too: demonstrations show none
    model      members, an action-blind control and a reflector are taught on cached maps
    truth      what it foretells of episodes that it was not taught (`embodied.finetuning.truth`); a world that does not
               beat "nothing changed" is refused
    practice   groups of imagined rollouts from one moment, each set against the others (`policies.vla.rloo`)
    kept       the practised policy stands only where a paired test on validation starts says that it is better

FOLDER/  gathered.json  data/  model/  practice/  practised/  kept.json  policy/
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from embodied.datasets import Dataset
from embodied.datasets.windows import EncodedEpisode, Windows, names_of
from embodied.errors import UserError
from embodied.files import write_text
from embodied.finetuning import growing, inputs, judging, labels, truth
from embodied.finetuning.inputs import DataSource
from embodied.finetuning.labels import Teacher
from embodied.finetuning.training import POLICY, advance
from embodied.settings import check_least
from policies.saving import pack, unpack
from policies.vla.core import CONFIG, ChunkPolicy
from policies.vla.rloo import RLOO, ImaginedStarts
from policies.vla.stats import Normaliser
from policies.vla.world import Reflector, Tracks, WorldEnsemble, WorldSpec, build_world
from policies.vla.world_learning import WorldLearning
from rewards.progress import tqdm

EVERY = 5  # updates of practice between rows of its curve, and checkpoints
HELD_OUT = 5  # every so many episodes one is not taught, and asks for the truth
REWARDS = ("success", "process")
MODEL, TRUTH, PRACTICE = "model", "truth.json", "practice"  # what of the stage's folder a setting is of


def check_world(config: Any) -> None:
    """Refuse settings that cannot be, before anything is read.

    Raises:
        UserError: so.
    """
    world, rloo = config.world, config.rloo
    least = {"rollouts": 0, "steps": 1, "batch_size": 1, "unroll": 1, "members": 2, "patch": 1, "tokens": 1, "width": 1}
    check_least(world, **least, layers=1)
    check_least(rloo, updates=1, groups=1, rollouts=2, horizon=1, episodes=1)
    if world.stride not in (1, 2, 4, 8) or world.stride > config.policy.horizon:
        raise UserError(
            "world.stride must be 1, 2, 4 or 8 (it is asked after 8 and 16 actions), and at most policy.horizon "
            f"({config.policy.horizon}); got {world.stride}."
        )
    if world.reward not in REWARDS:
        raise UserError(f"world.reward must be one of {', '.join(REWARDS)}; got {world.reward!r}.")
    if world.width % WorldSpec.heads:
        raise UserError(
            f"world.width must be a multiple of {WorldSpec.heads}, its heads of attention; got {world.width}."
        )
    for name, group in (("world", world), ("rloo", rloo)):
        if not group.learning_rate > 0:
            raise UserError(f"{name}.learning_rate must be more than 0; got {group.learning_rate}.")
    if not rloo.scale > 0 or not 0 < rloo.done <= 1 or not 0 < rloo.clip < 1 or rloo.anchor < 0:
        raise UserError(
            "rloo.scale must be more than 0, rloo.done in (0, 1], rloo.clip in (0, 1) and rloo.anchor 0 or more; "
            f"got {rloo.scale}, {rloo.done}, {rloo.clip} and {rloo.anchor}."
        )
    if config.labels.source != "success":
        raise UserError(
            "stages=[world] needs the success reward, to judge what is imagined: labels.source=success; "
            f"got {config.labels.source}. It may be fitted to other episodes (labels.labelled, labels.model)."
        )
    if "chunked_rl" in config.stages:
        raise UserError("stages must hold chunked_rl or world, not both: each begins with the policy of imitation.")
    if config.policy.head != "l1" or config.policy.backbone is not None:
        raise UserError(
            "stages=[world] practises the embedded policy with policy.head=l1 and policy.backbone=null; got "
            f"{config.policy.head} and {config.policy.backbone}."
        )


# What the world is taught ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorldData:
    """Everything that was recorded, as a world reads it.

    Attributes:
        rows: as windows.
        held_out: (E,) bool, of the episodes.
        own: (E,) bool, demonstrations and the policy's own rollouts.
        targets: (N, 2) what our rewards say of each row: `world.reward`, and success.
        success: (N,) recorded before each row, NaN where it was not; judges the reflector and teaches nothing.
    """

    rows: Windows
    held_out: np.ndarray
    own: np.ndarray
    targets: np.ndarray
    success: np.ndarray


def more_data(config: Any, plan: inputs.PolicyPlan) -> list[DataSource]:
    """The datasets of `world.data`, once it is sure that a world can be learned from them and from the demonstrations.

    Args:
        config: of the run.
        plan: of its data.

    Raises:
        UserError: a dataset that is not there, of another rate, or without one of the cameras.
    """
    given = [config.world.data] if isinstance(config.world.data, str) else list(config.world.data)
    extra = [inputs.open_source(config, str(each), setting="world.data") for each in given]
    for source in extra:
        if source.dataset.fps != plan.fps:
            raise UserError(f"world.data must have {plan.fps:g} fps, as data; {source.dataset.root} has another rate.")
    for source in (*plan.sources, *extra):
        if missing := [name for name in plan.cameras if name not in source.names.cameras]:
            raise UserError(f"stages=[world] needs every camera in every dataset; {source.dataset.root} lacks "
                            f"{missing[0]!r}.")  # fmt: skip
    return extra


def gather(session: Any, folder: Path, policy: ChunkPolicy, execute: int) -> dict[str, Any]:
    """Noisy rollouts of the policy, written as a dataset; not done twice."""
    file, count = folder / "gathered.json", int(session.config.world.rollouts)
    if not file.is_file() or json.loads(file.read_text("utf-8"))["rollouts"] != count:
        shutil.rmtree(folder / "data", ignore_errors=True)
        if count:
            first = session.config.seed + judging.PLANNED + count
            stage = session.arena.stage(policy, count)
            try:
                with tqdm(total=count, desc="world: rollouts", unit="episode", leave=False) as bar:
                    actor = session.arena.actor(
                        policy, stage, execute, noise=session.config.own.noise, seed=session.config.seed
                    )
                    with growing.Episodes(folder / "data", policy, stage, "own") as own:
                        growing.play(
                            actor, stage, range(first, first + count), explore=True, ended=own.add, tick=bar.update
                        )
            finally:
                stage.close()
        write_text(file, json.dumps({"rollouts": count}) + "\n")
    return json.loads(file.read_text("utf-8"))


def know(session: Any, folder: Path, teacher: Teacher) -> WorldData:
    """Read all there is, and have our rewards judge every frame.

    Raises:
        UserError: a dataset of another rate, or without one of the cameras.
    """
    config, plan = session.config, session.plan
    extra = more_data(config, plan)
    tried = [Dataset(folder / "data")] if (folder / "data").is_dir() else []
    own = [DataSource(dataset, names_of(dataset)) for dataset in tried]
    sources = [*plan.sources, *extra, *own]
    episodes: list[EncodedEpisode] = [*session.episodes]
    episodes += inputs.read(replace(plan, sources=(*extra, *own)), session.eyes, desc="world: encoding")
    if any(episode.ratio != 1 for episode in episodes):
        raise UserError("stages=[world] needs data at the policy's rate. Leave policy.fps out.")
    rows = inputs.windows(episodes, plan, config.policy.horizon, session.say)
    done = [teacher.head.probability(each.features)[0].cpu().numpy()
            for source in sources for each in labels.encoded(source, session.encoder, plan.cameras)]  # fmt: skip
    by_process = config.world.reward == "process"
    worth = labels.progress(config, sources, session.encoder, plan) if by_process else done
    targets = [np.stack(pair, 1) for pair in zip(worth, done, strict=True)]
    success = [_recorded(source.dataset, i) for source in sources for i in range(len(source.dataset))]
    count, near = len(episodes), len(session.episodes)
    order = np.arange(count)
    return WorldData(
        rows, order % HELD_OUT == HELD_OUT - 1, (order < near) | (order >= count - sum(map(len, tried))),
        np.concatenate(targets).astype(np.float32), np.concatenate(success),
    )  # fmt: skip


def _recorded(dataset: Dataset, i: int) -> np.ndarray:
    """(T,) success as it was recorded when each frame was seen; nothing was done before the first."""
    if "next.success" not in dataset.features:
        return np.full(dataset.length(i), np.nan)
    told = dataset.columns(i, ["next.success"])["next.success"].reshape(-1).astype(float)
    return np.concatenate([[0.0], told[:-1]])


@dataclass(frozen=True)
class Model:
    """A world that was taught, its control and its reflector, with what they were taught."""

    world: WorldEnsemble
    blind: WorldEnsemble
    reflector: Reflector
    tracks: Tracks
    kept: dict[str, float]


def model(config: Any, folder: Path, known: WorldData) -> Model:
    """Teach a world, or read the one that was taught before.

    Args:
        config: of the run.
        folder: of the model: progress.csv, checkpoints, world.safetensors.
        known: what it is taught.
    """
    rows, settings = known.rows, config.world
    first = rows.batch(np.arange(1)).obs
    spec = WorldSpec(
        cameras={name: (maps.shape[1], maps.shape[2], maps.shape[3]) for name, maps in first.maps.items()},
        stride=settings.stride, patch=settings.patch, tokens=settings.tokens, members=settings.members,
        width=settings.width, layers=settings.layers,
    )  # fmt: skip
    names = [f"action{k}" for k in range(rows.actions().shape[1])]
    state = Normaliser.fit(rows.states(), "mean_std", names=[f"state{k}" for k in range(rows.states().shape[1])])
    action = Normaliser.fit(rows.actions(), "mean_std", names=names)
    world, blind, reflector = build_world(spec, state, action, text=first.text.shape[1], seed=config.seed)
    taught = np.flatnonzero(~known.held_out[rows.episode])
    sample = rows.batch(taught[:: -(-len(taught) // 1500)]).obs
    kept = world.codec.fit(sample.maps)
    blind.codec.load_state_dict(world.codec.state_dict())
    for each in (world, blind):
        each.within(rows.actions())
    parts = [rows.batch(np.arange(k, min(k + 256, len(rows)))).obs for k in range(0, len(rows), 256)]
    tracks = Tracks(
        torch.cat([world.codec.encode(part.maps).half() for part in parts]),
        torch.nan_to_num(state.forward(torch.from_numpy(rows.states()))),
        torch.nan_to_num(action.forward(torch.from_numpy(rows.actions()))),
        rows.episode, torch.from_numpy(known.targets), torch.cat([part.text for part in parts]),
    )  # fmt: skip
    every: dict[str, Any] = {"world": world, "blind": blind, "reflector": reflector}
    file = folder / "world.safetensors"
    if file.is_file():
        unpack("world", every, load_file(file))
    else:
        starts = tracks.starts(spec.stride, ~known.held_out)
        learner = WorldLearning(
            world, blind, reflector, tracks, starts[rows.usable[starts]], steps=settings.steps, unroll=settings.unroll,
            batch_size=settings.batch_size, learning_rate=settings.learning_rate, seed=config.seed,
        )  # fmt: skip
        advance(
            folder, learner, learner.step, dict, checkpoint_every=config.checkpoint_every, log_every=config.log_every,
            name="world",
        )  # fmt: skip
        held = tracks.starts(spec.stride, known.held_out)
        if len(held):
            world.calibrate(tracks.segment(held[:: -(-len(held) // 200)], spec.stride, config.rloo.horizon))
        save_file(pack(every), file)
    return Model(world.eval(), blind.eval(), reflector.eval(), tracks, kept)


# Truth ----------------------------------------------------------------------------------------------------


def tell(config: Any, file: Path, known: WorldData, made: Model) -> dict[str, Any]:
    """Ask for the truth, and write it down; the reward model's own word of real frames stands beside the reflector's.

    Raises:
        UserError: no held-out episode is long enough.
    """
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    rows = truth.windows(made.tracks, known.held_out)
    rows = rows[known.rows.usable[rows]]
    if not len(rows):
        raise UserError(
            f"stages=[world] needs {HELD_OUT} episodes with more than {max(truth.STEPS)} rows: every {HELD_OUT}th is "
            "held out, and asks for the truth. Add world.data=[FOLDER], or world.rollouts=40."
        )
    stride = config.world.stride
    rolled = truth.roll(made.world, made.blind, made.tracks, rows)
    taught = made.tracks.starts(stride, ~known.held_out)
    ends = rows + max(truth.STEPS)
    told = {
        "windows": len(rows), "episodes": len(np.unique(known.rows.episode[rows])), "kept": made.kept,
        "limit": float(made.world.limit), "error": truth.errors(rolled, stride),
        "happened": truth.happened(made.world, made.tracks, taught, rolled, seed=config.seed),
        "same": truth.same(rolled, known.rows.episode[rows], config.seed),
        "reflector": truth.reflected(
            made.reflector, rolled, made.tracks.text[torch.from_numpy(rows)], known.success[ends]
        ),
    }  # fmt: skip
    write_text(file, json.dumps(told, indent=2) + "\n")
    return told


def refusal(told: dict[str, Any]) -> str | None:
    """Why nobody should practise in a world, from its truth; None: one may."""
    worst = {steps: each["world"] for steps, each in told["error"].items() if not each["world"] < 1}
    if not worst:
        return None
    said = ", ".join(f"{value:.2f} after {steps} actions" for steps, value in worst.items())
    return (
        f"stages=[world]: the learned world must foretell held-out episodes better than “nothing changed” (error below "
        f"1 of it); got {said}. Nobody practises in it. More episodes (world.data, world.rollouts) or more world.steps."
    )


# Practice -------------------------------------------------------------------------------------------------


def drawer(known: WorldData, tracks: Tracks, done: float) -> Callable[[torch.Generator, int], ImaginedStarts]:
    """Draws moments to begin at, where the task is not done: any of the demonstrations and own rollouts, and the first
    ones of other data."""
    rows = known.rows
    begin = known.own[rows.episode] | (rows.moment == 0)
    chosen = torch.from_numpy(np.flatnonzero(begin & rows.usable & (known.targets[:, 1] < done)))
    if not len(chosen):
        raise UserError("stages=[world] needs moments where the task is not done yet; the success reward sees none.")

    def draw(random: torch.Generator, count: int) -> ImaginedStarts:
        found = chosen[torch.randint(len(chosen), (count,), generator=random)]
        return ImaginedStarts(tracks.tokens[found].float(), tracks.state[found], tracks.text[found])

    return draw


def practise(config: Any, folder: Path, policy: ChunkPolicy, known: WorldData, made: Model) -> ChunkPolicy:
    """Practise in imagination; the practised policy lies in `folder/practised` too."""
    where = folder / "practised"
    if (where / CONFIG).is_file():
        return ChunkPolicy.load(where).to(policy.device)
    settings = config.rloo
    learner = RLOO(
        policy, made.world, made.reflector, drawer(known, made.tracks, settings.done), steps=settings.updates,
        groups=settings.groups,
        rollouts=settings.rollouts, horizon=settings.horizon, scale=settings.scale, done=settings.done,
        clip=settings.clip, anchor=settings.anchor, learning_rate=settings.learning_rate, seed=config.seed,
    )  # fmt: skip
    advance(folder / PRACTICE, learner, learner.step, dict, checkpoint_every=EVERY, log_every=EVERY, name="practice")
    policy.eval().save(where)
    return policy


def decide(session: Any, folder: Path, former: ChunkPolicy, practised: ChunkPolicy, execute: int) -> dict[str, Any]:
    """Which of the two stands, by a paired test on validation starts; `kept.json` says."""
    file, config = folder / "kept.json", session.config
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    first = config.seed + judging.DECIDING
    seeds = list(range(first, first + config.rloo.episodes))
    results = []
    for word, policy in (("former", former), ("practised", practised)):
        played = judging.as_rows(session.arena.play(policy, execute, seeds, desc=f"world: {word}"))
        results.append([row | {"success": row["ever"]} if config.rloo.simulator_done else row for row in played])
    compared = judging.compare(*results)
    better = compared is not None and judging.better(compared)
    found = {"kept": "practised" if better else "former", "simulator_done": bool(config.rloo.simulator_done)}
    found |= {word: judging.summary(rows) for word, rows in zip(("former", "practised"), results, strict=True)}
    found["compared"] = compared
    write_text(file, json.dumps(found, indent=2) + "\n")
    return found


def stage(session: Any, folder: Path, former: Path, execute: int, say: Callable[[str], None]) -> ChunkPolicy:
    """The whole of it: a world, its truth, practice, and which policy stands.

    Args:
        session: of the run.
        folder: of this stage.
        former: folder of the policy that practises.
        execute: steps of a chunk that it executes.
        say: tells a person how it goes.

    Raises:
        UserError: no world to try it in, or a learned world that is not true enough.
    """
    config = session.config
    if config.env is None:
        raise UserError("stages=[world] needs a world to try the practised policy in. Add env=… when it is begun.")
    _, teacher = session.labelled
    assert teacher is not None, "labels.source is success, see check_world"
    folder.mkdir(parents=True, exist_ok=True)
    policy = ChunkPolicy.load(former).to(session.device)
    gather(session, folder, policy, execute)
    known = know(session, folder, teacher)
    made = model(config, folder / MODEL, known)
    told = tell(config, folder / MODEL / TRUTH, known, made)
    say(told_truth(told))
    if reason := refusal(told):
        raise UserError(reason)
    practised = practise(config, folder, ChunkPolicy.load(former).to(session.device), known, made)
    found = decide(session, folder, policy, practised, execute)
    say(f"{judging.verdict(found['compared'])} Kept: the {found['kept']} policy.")
    chosen = practised if found["kept"] == "practised" else policy
    chosen.save(folder / POLICY)
    return chosen


def told_truth(told: dict[str, Any]) -> str:
    """Truth in a line."""
    parts = [f"error {each['world']:.2f} after {steps} actions (blind {each['blind']:.2f}, nothing changed 1)"
             for steps, each in told["error"].items()]  # fmt: skip
    happened, seen = told["happened"], told["reflector"]["world"]
    parts.append(f"action read back R² {happened['world']['r_squared']:.2f} (real {happened['real']['r_squared']:.2f})")
    if seen is not None:
        parts.append(f"success AUROC {seen:.2f}")
    return "; ".join(parts)
