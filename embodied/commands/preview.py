"""See what the reward model sees: a contact sheet of frames with their scores, before any training.

There is one row each for starts of episodes, an episode of random actions and, where the world has a scripted expert,
an episode of the expert; where one of our worlds has none, states in which the task is solved, drawn by the world. So
for every camera, at the encoder's size. The score is the potential that shaping turns into
reward: with each camera in place of the chosen one, or one score of all the views in env.cameras. Frames in which the
task is solved have a green border. A good reward model gives those the high scores, and a picture that is upside down,
empty or too dark shows here.

    embodied preview env=desk-drawer reward=clip goal="the drawer is open"
    embodied preview env=desk-drawer env.cameras=[front,side] reward=clip goal="the drawer is open"
    embodied preview env=cartpole reward=true out=frames.png
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont

from embodied import scoring
from embodied.building import far_texts, far_worlds
from embodied.building.goals import parts_of
from embodied.building.scorers import make_scorer, reward_name
from embodied.building.worlds import env_maker, reward_cameras
from embodied.envs.experts import expert, has_expert
from embodied.envs.pictures import view
from embodied.envs.spaces import told_success
from embodied.envs.worker import own_view, view_names
from embodied.envs.world import World
from embodied.errors import UserError
from embodied.files import check_place, whole
from embodied.scoring import Layout, Track
from embodied.settings import check_least
from rewards.core import Scorer

PLAIN_SIZE = 224  # pixels of a frame where no encoder asks for a size
MIN_TILE = 128  # smaller frames are enlarged, without smoothing, to be seen
SINGLE = ("start", "solved")  # rows whose frames do not follow one another
TRIES = 2000  # states drawn to find solved ones
MANY_CAMERAS = 4  # of a world with more, only the chosen one is shown
PAGE, INK, SOFT, SOLVED, BAR = (246, 247, 249), (20, 24, 31), (90, 100, 114), (15, 157, 120), (31, 111, 235)


@dataclass
class Strip:
    """One row of the sheet.

    Attributes:
        name: where the frames come from.
        camera: which camera saw them.
        frames: T of (H, W, 3) uint8 RGB.
        solved: T, whether the task is solved there; None where the world does not tell.
        signals: T readings of the robot's own sensors, by name.
        scores: head name, or "reward" for the combined potential -> (T,); empty without a reward model.
        depth: of (H, W) float32, metres: of each episode's first frame, where the world measures it.
    """

    name: str
    camera: str
    frames: list[np.ndarray] = field(default_factory=list)
    solved: list[bool | None] = field(default_factory=list)
    signals: list[dict[str, float]] = field(default_factory=list)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    depth: list[np.ndarray] = field(default_factory=list)


def run(config: DictConfig) -> None:
    """Write the sheet, print the table."""
    check_least(config, columns=1, max_steps=1, threads=1)
    out = Path(config.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"out must end in .png; got {out}.")
    check_place(out, "out")
    torch.set_num_threads(config.threads)
    told = far_texts.warn(config)
    env = env_maker(config)()
    try:
        world, together = env.unwrapped, reward_cameras(config)
        scorer = make_scorer(config, world=world if isinstance(world, World) else None)
        size = PLAIN_SIZE if scorer is None else int(scorer.encoder.image_size[0])
        cameras = list(view_names(env, together)) if together else _cameras(env)
        rows = [_starts(env, cameras, size, config.columns, config.seed)]
        rows.append(_episode(env, cameras, size, config, "random", lambda: lambda: env.action_space.sample()))
        if has_expert(world):
            rows.append(_episode(env, cameras, size, config, "expert", lambda: _expert(world)))
        elif isinstance(world, World) and (solved := _solved(env, world, cameras, size, config.columns, config.seed)):
            rows.append(solved)
        else:
            print(f"No solved state of {config.env.id} is shown: it has no expert, and draws none by itself.")
        own = own_view(env)
    finally:
        env.close()
    if scorer is not None:
        if not told:
            starts = {strip.camera: strip.frames for strip in rows[0]}
            far_worlds.warn(config, scorer.encoder, starts, str(config.env.id))
        for row in rows:
            if together:
                row[0].scores = _scores(scorer, row, tuple(cameras))
                for strip in row[1:]:
                    strip.scores = row[0].scores
            else:
                for strip in row:
                    strip.scores = _scores(scorer, [strip], (own,))
    strips = [strip for row in rows for strip in row]
    sheet = draw(strips, config.columns, _title(config))
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as part:
        sheet.save(part, "PNG")
    if scorer is not None:
        print(table(strips))
    print(f"Contact sheet: {out} ({len(strips)} rows, frames of {size} px)")


# Frames -------------------------------------------------------------------------------------------------


def _cameras(env: gymnasium.Env) -> list[str]:
    """The reward's camera first."""
    chosen, cameras = own_view(env), env.get_wrapper_attr("cameras")
    others = [each for each in cameras if each != chosen] if len(cameras) <= MANY_CAMERAS else []
    return [chosen, *others]


def _look(env: gymnasium.Env, strips: list[Strip], size: int, info: dict[str, Any], *, first: bool) -> None:
    """Add what every camera sees now, and how far it is where an episode begins."""
    signals = env.get_wrapper_attr("signals")() if env.has_wrapper_attr("signals") else {}
    own = own_view(env)
    for strip in strips:
        if first and env.has_wrapper_attr("depth"):
            strip.depth.append(env.get_wrapper_attr("depth")(camera=strip.camera, image_size=size))
        strip.frames.append(view(env, size, **({} if strip.camera == own else {"camera": strip.camera})))
        strip.solved.append(told_success(info))
        strip.signals.append(signals)


def _starts(env: gymnasium.Env, cameras: list[str], size: int, count: int, seed: int) -> list[Strip]:
    strips = [Strip("start", camera) for camera in cameras]
    for i in range(count):
        _, info = env.reset(seed=seed + i)
        _look(env, strips, size, info, first=True)
    return strips


def _solved(
    env: gymnasium.Env, world: World, cameras: list[str], size: int, count: int, seed: int
) -> list[Strip] | None:
    """States that the world draws and in which the task is solved; None where it draws too few."""
    strips, rng = [Strip("solved", camera) for camera in cameras], np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(TRIES):
        world.sample_state(rng)
        if world.success():
            _look(env, strips, size, {"is_success": True}, first=True)
        if len(strips[0].frames) == count:
            return strips
    return None


def _episode(
    env: gymnasium.Env,
    cameras: list[str],
    size: int,
    config: DictConfig,
    name: str,
    policy: Callable[[], Callable[[], Any]],
) -> list[Strip]:
    """One episode; `policy` is called after the reset and gives what makes the actions."""
    strips = [Strip(name, camera) for camera in cameras]
    env.action_space.seed(config.seed)
    _, info = env.reset(seed=config.seed)
    act = policy()
    _look(env, strips, size, info, first=True)
    for _ in range(config.max_steps):
        _, _, terminated, truncated, info = env.step(act())
        _look(env, strips, size, info, first=False)
        if terminated or truncated:
            break
    return strips


def _expert(world: gymnasium.Env) -> Callable[[], np.ndarray]:
    act = expert(world)
    return lambda: act(world)


@torch.inference_mode()
def _scores(scorer: Scorer, strips: list[Strip], views: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The potentials of a row, of one strip a view; each start or solved state is an episode of its own."""
    frames = np.stack([strip.frames for strip in strips], axis=1)  # (T, V, H, W, 3)
    layout = Layout(views, tuple(sorted(strips[0].signals[0])))
    encoded = scoring.encode(scorer, frames.reshape(-1, *frames.shape[2:]))
    rows, ended = layout.rows(encoded, strips[0].signals), strips[0].name in SINGLE
    depth = np.stack([strip.depth for strip in strips], axis=1) if strips[0].depth else None  # (starts, V, H, W)
    begins = range(len(rows)) if ended else (0,)
    episodes = []
    for k, first in enumerate(begins):
        last = first + 1 if ended else len(rows)
        episodes.append(Track(rows[first:last], frames=list(frames[first:last])))
        if scorer.frames_read == "first":
            episodes[-1].frames = episodes[-1].frames[:1]
        episodes[-1].depth = None if depth is None else depth[k]
    features = scoring.batch(scorer, episodes, layout)
    potentials = scorer.potentials(features)
    combined = scorer.combined(potentials, features)
    named = potentials if len(potentials) > 1 else {}
    return {name: values.float().flatten().numpy() for name, values in {**named, "reward": combined}.items()}


# What a person sees -------------------------------------------------------------------------------------


def table(strips: list[Strip]) -> str:
    """Lowest, mean, highest and last score of each row and head; and of solved frames, where there are any."""
    header = ("frames", "camera", "head", "lowest", "mean", "highest", "last", "solved", "mean if solved")
    rows: list[tuple[str, ...]] = [header]
    for strip, camera in _scored(strips):
        solved = np.array([each is True for each in strip.solved])
        known = [each for each in strip.solved if each is not None]
        for head, values in strip.scores.items():
            shown = [f"{v:.3f}" for v in (values.min(), values.mean(), values.max(), values[-1])]
            inside = f"{values[solved].mean():.3f}" if solved.any() else ""
            rows.append(
                (strip.name, camera, head, *shown, f"{solved.sum()}/{len(known)}" if known else "unknown", inside)
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _scored(strips: list[Strip]) -> list[tuple[Strip, str]]:
    """Strips with scores of their own, and whose they are; views scored together share theirs."""
    groups: dict[int, list[Strip]] = {}
    for strip in strips:
        groups.setdefault(id(strip.scores), []).append(strip)
    return [(group[0], "+".join(strip.camera for strip in group)) for group in groups.values()]


def draw(strips: list[Strip], columns: int, title: str) -> Image.Image:
    """The contact sheet: a row of evenly spaced frames per strip, the score under each, solved ones framed green."""
    size = strips[0].frames[0].shape[0]
    tile = size * -(-MIN_TILE // size)
    label, gap, foot, head = 104, 10, 26, 44
    width = label + columns * (tile + gap) + gap
    sheet = Image.new("RGB", (width, head + len(strips) * (tile + foot + gap)), PAGE)
    pen = ImageDraw.Draw(sheet)
    big, small = ImageFont.load_default(17), ImageFont.load_default(13)
    pen.text((gap, 13), title, INK, big)
    everything = np.concatenate([strip.scores["reward"] for strip in strips if strip.scores] or [np.zeros(1)])
    low, span = float(everything.min()), float(np.ptp(everything)) or 1.0
    for r, strip in enumerate(strips):
        top = head + r * (tile + foot + gap)
        pen.text((gap, top), strip.name, INK, big)
        pen.text((gap, top + 22), strip.camera, SOFT, small)
        chosen = np.linspace(0, len(strip.frames) - 1, columns).round().astype(int)
        for c, i in enumerate(chosen):
            left = label + c * (tile + gap)
            picture = Image.fromarray(strip.frames[i]).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top))
            if strip.solved[i]:
                pen.rectangle((left - 3, top - 3, left + tile + 2, top + tile + 2), outline=SOLVED, width=3)
            step = "" if strip.name in SINGLE else f"step {i}"
            pen.text((left + tile, top + tile + 5), step, SOFT, small, anchor="rt")
            if strip.scores:
                value = float(strip.scores["reward"][i])
                pen.text((left, top + tile + 5), f"{value:.3f}", INK, small, anchor="lt")
                pen.rectangle((left, top + tile + 21, left + tile - 1, top + tile + 23), fill=(227, 231, 236))
                pen.rectangle(
                    (left, top + tile + 21, left + (value - low) / span * (tile - 1), top + tile + 23), fill=BAR
                )
    return sheet


def _title(config: DictConfig) -> str:
    told = {}
    for part in parts_of(config.reward).values():
        told[str(part.get("goal") or part.get("goals") or "")] = None  # each text once
    return f"{config.env.id}   {reward_name(config.reward)}   {', '.join(told)}"
