"""A fine-tuned policy in a world, as often as one likes: what `embodied evaluate` does with a run of `finetune`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from embodied.config import given
from embodied.errors import UserError
from embodied.files import write_text
from embodied.finetuning import backbones, inputs, judging, worlds
from embodied.finetuning.training import POLICY
from embodied.literal import load_literal, resolved
from embodied.reports.video import OUTCOME, write_video
from embodied.settings import check_execute
from embodied.trust import check_trusted
from policies.vla.choosing import BestOfN, load_acting
from policies.vla.core import CONFIG, ChunkPolicy
from policies.vla.lerobot import LeRobotPolicy

SEEN = ("looks", "distractors")  # of the world, as it is tried
OWN = ("instruction", "execute", "ensemble", "delay", "go_on")  # settings of `embodied evaluate` that are of these runs
NOT_HERE = ("imagined", "align")


def load(
    folder: Path, device: str, *, trust: Iterable[str] | None = None
) -> tuple[ChunkPolicy | BestOfN, DictConfig, int]:
    """A run's policy, its config, and how many steps of a chunk it executes.

    Raises:
        UserError: the run stopped before it had one.
    """
    about = json.loads((folder / "run.json").read_text("utf-8"))
    name = about.get("policy")
    if not name or not (folder / name / POLICY / CONFIG).is_file():
        raise UserError(
            f"run must hold a policy; {folder} stopped before its first. Go on: embodied finetune run={folder}"
        )
    config = load_literal(folder / "config.yaml")
    check_trusted(folder, resolved(config), trust)
    with backbones.explained():
        policy = load_acting(folder / name / POLICY)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return policy.to(where), config, int(about.get("execute") or policy.spec.horizon)


def evaluate(config: DictConfig, folder: Path) -> str:
    """Judge a run's policy by a config of `embodied evaluate`; writes evaluate.json and videos into the run.

    Returns:
        What it did, in a line.

    Raises:
        UserError: no policy, or no world to try it in.
    """
    torch.set_num_threads(config.threads)
    policy, trained, execute = load(folder, config.device, trust=config.get("trust"))
    if config.get("env") is not None:
        OmegaConf.set_struct(trained, False)
        trained.env = config.env
    if trained.get("env") is None:
        raise UserError("env must say in which world to try it: the data come from none of ours. Add env=…")
    for key in NOT_HERE:
        if given(config, key):
            raise UserError(f"{key} is for runs of embodied train; {folder} is of embodied finetune. Leave it out.")
    OmegaConf.set_struct(trained, False)
    for env in [trained.env] if isinstance(trained.env, DictConfig) else trained.env:
        for key in SEEN:
            if config[key] is not None:
                env[key] = config[key]
    for wrong in worlds.off_pace(trained, policy.spec.fps):
        print(f"Careful: {wrong}", file=sys.stderr)
    eyes, say = inputs.senses(policy, trained.encoder)
    sentence = trained.policy.instruction if config.instruction is None else str(config.instruction)
    arenas = worlds.arenas(trained, eyes, say, num_worlds=config.num_worlds, instruction=sentence)
    seeds = list(range(config.seed, config.seed + config.episodes))
    if config.execute is not None:
        check_execute(config.execute, policy.spec.horizon)
        execute = int(config.execute)
    how = {"ensemble": config.ensemble, "delay": int(config.delay), "go_on": bool(config.go_on)}
    try:
        film = seeds[: config.videos]
        played = judging.play_all(arenas, policy, execute, seeds, desc="evaluation", film=film, **how)
    except ValueError as error:
        if not str(error).startswith("ChunkActor: "):
            raise
        raise UserError(str(error).removeprefix("ChunkActor: ")) from error
    (folder / "videos").mkdir(exist_ok=True)
    for i, each in enumerate(each for each in played if each.pictures):
        word = OUTCOME[each.success]
        for old in (folder / "videos").glob(f"{i}_evaluate_*.mp4"):
            old.unlink()
        file = folder / "videos" / f"{i}_evaluate_{word}.mp4"
        title = " · ".join(filter(None, ("evaluate", each.world, f"start {each.seed}", word)))
        write_video(file, each.pictures, each.rewards, title=title)
    rows = judging.as_rows(played)
    known = [str(one.env.id) for _, one in worlds.worlds(trained)]
    found = {"env": known[0] if len(known) == 1 else known, "instruction": sentence, "seed": config.seed}
    found |= {"execute": execute} | how | judging.summary(rows)
    if several := judging.by_world(rows):
        found["worlds"] = {name: judging.summary(each) for name, each in several.items()}
    write_text(folder / "evaluate.json", json.dumps(found | {"episodes_played": rows}, indent=2) + "\n")
    steps = "" if found["steps_to_success"] is None else f", {found['steps_to_success']:.0f} steps to it"
    told = f"Success {judging.told_rate(rows)} of {', '.join(known)}{steps}; {execute} steps of a chunk executed."
    return "\n".join([*(f"{name}: {judging.told_rate(each)}" for name, each in several.items()), told])


def lerobot_policy(folder: str | Path, *, device: str = "auto", trust: Iterable[str] | None = None) -> LeRobotPolicy:
    """A run's policy under LeRobot's signatures.

    Args:
        folder: of `embodied finetune`.
        device: see `embodied evaluate`.
        trust: what its config may reach out to.

    Raises:
        UserError: no policy there.
    """
    policy, config, execute = load(Path(folder), device, trust=trust)
    eyes, say = inputs.senses(policy, config.encoder)
    return LeRobotPolicy(policy, eyes, say, execute=execute)
