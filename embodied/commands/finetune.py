"""Fine-tune a policy that reads cameras, a sentence and the robot's own readings, from demonstrations good and bad.

The demonstrations' frames are encoded once. The success reward, which is fitted to the few episodes that a person
labelled or was fitted before, says from pixels which demonstrations were solved. The policy imitates those, in chunks
of actions; how many actions of a chunk it executes is chosen on validation starts. Then it is judged beside imitation
of everything, on the same starts of the world that the data come from, and report.html says by a paired test whether it
is better. After a kill, resume=true continues the same curve. run=… stages=[…] adds to a finished run:

  rollouts     starts where the policy fails are tried again with noise; what the success reward accepts is imitated too
  corrections  the policy acts, then the scripted expert takes over; what the expert did from there is imitated too
  chunked_rl   a critic learns from all episodes, good and bad, what chunks of actions lead to, and the policy follows
               it; it takes the former one's place only where the paired test says that it is better
  world        what actions lead to is learned from all that was recorded; if that tells the truth, the policy practises
               there, and what comes of it stands only where a paired test on validation starts says that it is better

    embodied collect env=desk-place policy=mixed episodes=60 cameras=[front,wrist] out=demos/place
    embodied finetune data=demos/place
    embodied finetune run=latest stages=[rollouts]
    embodied finetune run=latest stages=[chunked_rl] rl.actor=td3_bc
    embodied finetune run=latest stages=[world] world.data=[demos/mixed]
    embodied finetune data=demos/place labels.weights=progress policy.head=flow
    embodied finetune data=path/to/lerobot env=desk-place 'policy.names={observation.images.front: cam_high}'
    embodied finetune data=path/to/lerobot policy.backbone=HuggingFaceTB/SmolVLM2-500M-Video-Instruct
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from embodied import runs
from embodied.building.build import build
from embodied.config import compose, given
from embodied.errors import UserError, nearest
from embodied.finetuning import backbones, imagining, inputs, judging, labels, worlds
from embodied.finetuning.report import write_finetuning
from embodied.finetuning.stages import BASELINE, CHUNKED, STAGES, WORLD, FinetuningRun, began_from, chunked_settings
from embodied.finetuning.training import POLICY
from embodied.literal import load_literal, resolved
from embodied.reports.page import read_progress
from embodied.settings import check_device, check_execute, check_least
from embodied.trust import check_trusted, remember
from policies.vla.choosing import BestOfN
from policies.vla.core import TOKENS, ChunkPolicy
from policies.vla.heads import HEADS
from policies.vla.stats import KINDS


def run(config: DictConfig) -> None:
    """Check, encode, imitate, judge, report."""
    config, folder = _opened(config)
    OmegaConf.set_struct(config, False)
    config.env = config.get("env")  # no world was asked for: see _world
    _check(config)
    torch.set_num_threads(config.threads)
    if config.policy.backbone is not None:  # is it there, and does it read pictures: before a frame is decoded
        backbones.chosen(config, backbones.device_of(config))
    planned = inputs.plan(config)
    labels.check_data(config, planned)
    if folder is None and config.env is None:
        config.env = worlds.worlds_of_data(planned)
    if config.evaluate:
        worlds.check(config, planned)
    if WORLD in config.stages:
        if len(several := worlds.names(config)) > 1:
            raise UserError(f"stages=[world] needs data of one world; they come from {', '.join(several)}.")
        imagining.more_data(config, planned)
    encoder = build(config.encoder)
    begun = folder is not None
    folder = folder or _begun(config)
    with runs.working(folder):
        if begun:
            runs.save_config(folder, config)
        runs.write_run(folder, status="running")
        try:
            session = FinetuningRun(config, folder, encoder, planned)
            told = _stages(session)
        except BaseException as error:
            runs.write_run(folder, status="interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        runs.write_run(folder, status="finished")
        print(f"{told} Report: {write_finetuning(folder)}")


def _stages(session: FinetuningRun) -> str:
    """Do what is not done yet; returns the end in words."""
    config, planned = session.config, session.plan
    print(f"data      {_told(planned)}", flush=True)
    found, _ = session.labelled
    print(f"labels    {found.told()} (labels.weights={config.labels.weights})", flush=True)
    for sentence in session.unheard() if config.evaluate else ():
        said = " and ".join(f"“{each}”" if each else "nothing" for each in session.sentences)
        print(f"{'':9} Careful: it is judged by “{sentence}”, which no demonstration says; they say {said}. "
              "Set policy.instruction to what they say.", flush=True)  # fmt: skip
    for wrong in (*worlds.off_pace(config, planned.fps), *worlds.misplaced(config, planned)) if config.evaluate else ():
        print(f"{'':9} Careful: {wrong}", flush=True)
    results: dict[str, Any] = {}
    weights = labels.row_weights(config, found, planned, encoder=session.encoder, rows=session.rows)
    usable = session.rows.usable.astype(float)
    todo = {"imitate": weights}
    if config.baseline and not (weights == usable).all():
        todo = {BASELINE: usable} | todo
    policy, name = None, ""
    for name, each in todo.items():
        policy = session.train(name, session.fresh(), each, session.rows)
        _judge(session, name, policy, each, results)
    gathered: list[str] = []
    for stage in [stage for stage in STAGES[1:] if stage in config.stages and stage not in (CHUNKED, WORLD)]:
        assert policy is not None
        found = session.grow(stage, policy, name)
        gathered.append(stage)
        told = ", ".join(f"{key} {value}" for key, value in found.items() if value is not None)
        print(f"{stage:9} {told}", flush=True)
        rows, more = session.grown(gathered, weights)
        policy, name = session.train(stage, session.fresh(), more, rows), stage
        _judge(session, stage, policy, more, results)
    former = name
    if CHUNKED in config.stages:
        assert policy is not None
        learned, name = session.learn(policy, weights, gathered, former), CHUNKED
        _judge(session, name, learned, None, results)
        _ranked(session, policy, former)
    if WORLD in config.stages:
        assert policy is not None
        policy, name = _practised(session, policy, former, results), WORLD
        _judge(session, name, policy, None, results)
    runs.write_run(session.folder, policy=name if results else former)
    if not results:
        kept = "" if name == former else f" The former policy, {former}, is kept."
        why = "No world to try it in: it" if config.env is None else "It"
        return f"{why} was trained, and not judged.{kept}"
    about = session.conclude(results)
    if "compared" not in about:
        return "There is nothing to compare it with."
    kept = "" if about["policy"] == name else f" The former policy, {about['policy']}, is kept."
    return judging.verdict(about["compared"]) + kept


def _practised(session: FinetuningRun, policy: ChunkPolicy, before: str, results: Mapping[str, Any]) -> ChunkPolicy:
    """Practise in a learned world; one that is not true is refused, and what it said stands in the report."""
    try:
        return session.practise(policy, before, lambda told: print(f"{WORLD:9} {told}", flush=True))
    except UserError:
        runs.write_run(session.folder, policy=before)
        if results:
            session.conclude(results)
        write_finetuning(session.folder)
        raise


def _ranked(session: FinetuningRun, policy: ChunkPolicy, before: str) -> None:
    """Judge the critic, and tell how it went."""
    found = session.ranked(policy, before)
    if found is None:
        return
    told = f"the critic at {found['moments']} moments"
    if found["auroc"] is None:
        told += ": at each, all chunks led to the same end; nothing can be said"
    else:
        told += (
            f", of which {found['mixed']} tell chunks apart: AUROC {found['auroc']:.2f}; success of its choice "
            f"{found['best']:.0%}, of the policy's own chunk {found['own']:.0%}, of any {found['random']:.0%}"
        )
    print(f"{'':9} {told}", flush=True)


def _judge(
    session: FinetuningRun,
    name: str,
    policy: ChunkPolicy | BestOfN,
    weights: np.ndarray | None,
    results: dict[str, Any],
) -> None:
    """Judge a stage's policy where there is a world, and tell how it went."""
    imitated = "" if weights is None else f"{int((weights > 0).sum())} of {len(weights)} rows, "
    print(f"{name:9} {imitated}{_curve(session, name)}", flush=True)
    rows = session.judge(name, policy)
    if rows is not None:
        results[name] = rows
        print(f"{'':9} {judging.told_rate(rows)}; {_steps(session, name, policy)}", flush=True)
        for world, each in judging.by_world(rows).items():
            print(f"{'':9} {world}: {judging.told_rate(each)}", flush=True)


def _told(planned: inputs.PolicyPlan) -> str:
    datasets = [source.dataset for source in planned.sources]
    count = sum(len(each) for each in datasets)
    rows = sum(each.length(i) for each in datasets for i in range(len(each)))
    return (
        f"{count} episodes, {len(planned.cameras)} cameras ({', '.join(planned.cameras)}), {rows} rows, "
        f"{planned.fps:g} fps; action {len(planned.actions)}, own readings {len(planned.states)}"
    )


HERE = ("device", "eval_episodes", "evaluate", "threads", "videos")  # what a run that goes on may have otherwise
FREE = ("run", "resume", "stages", "trust", *HERE)
OF_STAGES = {  # settings of later stages, which may be given until this of the run's folder is begun
    "own": ("rollouts", "corrections"), "rl": (CHUNKED,), "ranked": (CHUNKED,),
    "world": (f"{WORLD}/{imagining.MODEL}",), "rloo": (f"{WORLD}/{imagining.PRACTICE}",),
}  # fmt: skip
LATE = (CHUNKED, WORLD)  # both go on from the policy of the stages before
CURVES = {"train/error": "error", "train/critic": "critic's error", "validation/error": "held out"}


def _curve(session: FinetuningRun, name: str) -> str:
    """The last of a stage's errors, in words."""
    curves = read_progress(session.folder / name / "progress.csv")
    parts = [f"{label} {curves[key][1][-1]:.4f}" for key, label in CURVES.items() if curves.get(key, ([], []))[1]]
    return ", ".join(parts) or "trained"


def _steps(session: FinetuningRun, name: str, policy: ChunkPolicy | BestOfN) -> str:
    chosen, horizon = session.execute(name, policy), policy.spec.horizon
    how = "as given" if session.config.execute is not None else "chosen on validation starts"
    return f"{chosen} of {horizon} steps executed ({how})"


# Opening --------------------------------------------------------------------------------------------------


def _opened(config: DictConfig) -> tuple[DictConfig, Path | None]:
    """The config to go by, and the run's folder where it goes on."""
    if config.data is not None and not config.resume:
        runs.check_new(config.run, "Leave data out, or add resume=true, to go on.")
        return config, None
    if not (config.resume or config.run or list((runs.ROOT / "finetune").glob("*/run.json"))):
        raise UserError("data must be a LeRobot folder, or a list of them; got none, and no run to go on with.")
    folder = runs.find(config.run or "latest", runs.ROOT / "finetune")
    runs.verb_of(folder, "finetune")
    defaults = compose("finetune", [])
    OmegaConf.set_struct(defaults, False)
    saved = OmegaConf.merge(defaults, load_literal(folder / "config.yaml"))
    assert isinstance(saved, DictConfig)
    check_trusted(folder, resolved(saved), config.get("trust"))
    if others := runs.changed(config, saved, "finetune", (*FREE, *OF_STAGES)):
        raise UserError(
            f"run: {folder} goes on with its own settings; got others for {', '.join(others)}. Leave them out, or "
            f"begin a new run. What a later stage does is set by {', '.join(OF_STAGES)}."
        )
    for key in HERE:
        if given(config, key):
            saved[key] = config[key]
    if given(config, "stages"):
        one = isinstance(config.stages, str)
        saved.stages = config.stages if one else _stages_of(folder, config.stages)
    for group, stages in OF_STAGES.items():
        for key in config[group]:
            if given(config[group], key):
                for stage in stages:
                    _may_change(folder / stage, f"{group}.{key}", saved[group][key], config[group][key])
                saved[group][key] = config[group][key]
    return saved, folder


def _stages_of(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Those that are wanted, and those that were done before; but late ones that go on from another policy are left.

    Raises:
        UserError: one that is wanted went on from a policy that is not the last one before it any more.
    """
    done = [each for each in STAGES if (folder / each / POLICY).is_dir()]
    stages = [each for each in STAGES if each in wanted or each in done]
    former = [each for each in stages if each not in LATE][-1:] or ["imitate"]
    for late in [each for each in LATE if each in done]:
        began = began_from(folder, late) or former[0]
        other = next((each for each in LATE if each != late and each in wanted), None)
        if late in wanted and began != former[0]:
            raise UserError(
                f"stages: {late} went on from {began}, and {former[0]} was added since. Remove "
                f"{folder / late} to do it again from there."
            )
        if late not in wanted and (began != former[0] or other is not None):
            stages.remove(late)
            why = f"it went on from {began}" if other is None else f"it and {other} begin with the same policy"
            print(f"{late:9} is left out from now on, as {why}; it stays in {folder / late}", flush=True)
    return [*stages, *(each for each in wanted if each not in STAGES)]


def _may_change(begun: Path, key: str, was: Any, wanted: Any) -> None:
    """Refuse another setting of a stage that was begun.

    Raises:
        UserError: so.
    """
    if was != wanted and begun.is_dir():
        raise UserError(f"{key} must stay {was}, with which {begun} was begun; got {wanted}. Remove that folder first.")


def _begun(config: DictConfig) -> Path:
    """The run's folder, made."""
    first = config.data if isinstance(config.data, str) else str(config.data[0])
    known = worlds.names(config)
    name = Path(first).name if not known else "+".join(known) if len(known) < 3 else f"{known[0]}+{len(known) - 1}"
    weights = str(config.labels.weights)
    folder = runs.new_folder(runs.ROOT / "finetune", name, weights, config.seed, run=config.run)
    runs.save_config(folder, config)
    remember(resolved(config))
    runs.write_run(folder, verb="finetune", seed=config.seed, command=sys.argv, **runs.facts())
    return folder


def _check(config: DictConfig) -> None:
    """Refuse what cannot be, before anything is made."""
    check_least(
        config, steps=1, batch_size=1, validation=0, choose_episodes=1, eval_episodes=1, num_worlds=1, videos=0,
        threads=1, checkpoint_every=0, log_every=1,
    )  # fmt: skip
    check_least(config.own, starts=1, tries=1, noise=0)
    check_least(config.policy, horizon=1, channels=1, places=0, width=8)
    check_least(config.ranked, moments=0, chunks=2)
    if config.policy.width % 2:
        raise UserError(f"policy.width must be even; got {config.policy.width}.")
    if config.learning_rate is not None and not config.learning_rate > 0:
        raise UserError(f"learning_rate must be more than 0; got {config.learning_rate}.")
    chunked_settings(config)
    check_device(config.device)
    labels.check_labels(config)
    if isinstance(config.stages, str):
        raise UserError(f"stages must be a list; got {config.stages}. Write stages=[{config.stages}].")
    for stage in config.stages:
        if stage not in STAGES:
            raise UserError(f"stages must be of {', '.join(STAGES)}; got {stage!r}. {nearest(str(stage), STAGES)}")
    if CHUNKED in config.stages and config.labels.source == "all":
        raise UserError(
            "stages=[chunked_rl] must know which episodes succeeded; labels.source=all says nothing. Use "
            "labels.source=success or recorded when the run is begun."
        )
    if WORLD in config.stages:
        imagining.check_world(config)
    if config.policy.backbone is not None and {CHUNKED, WORLD} & set(config.stages):
        raise UserError("stages chunked_rl and world are of the embedded policy; they do not go with policy.backbone.")
    backbones.check(config)
    heads = tuple(HEADS) if config.policy.backbone is None else (*HEADS, TOKENS)
    for key, known in (("head", heads), ("normalisation", KINDS)):
        if config.policy[key] not in known:
            raise UserError(f"policy.{key} must be one of {', '.join(known)}; got {config.policy[key]!r}. "
                            f"{nearest(str(config.policy[key]), known)}")  # fmt: skip
    if config.execute is not None:
        check_execute(config.execute, config.policy.horizon)
