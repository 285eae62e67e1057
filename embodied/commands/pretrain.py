"""Train the embedded encoder on our worlds, or adapt a larger open_clip model to your own scene.

Renders the scenes with random looks, writes sentences from simulator state, aligns the image and text towers on how
true each sentence is in each frame, judges the result on frames and wordings kept for that, and writes an open_clip
folder that `encoder=open_clip encoder.model=local-dir:FOLDER` takes.

    embodied pretrain
    embodied pretrain scenes.desk.policies=[runs/train/FOLDER]
    embodied pretrain model=ViT-B-32:laion2b_s34b_b79k recipe.lr=1e-5 recipe.epochs=2
    embodied pretrain model=shipped use=[drive] recipe.anchor_weight=0
    embodied pretrain model=shipped use=[mine] +scenes.mine.worlds=[my_module:Mine-v0] +scenes.mine.frames=8000 \\
        +scenes.mine.captions=my_captions.yaml +scenes.mine.facts=my_module:Facts recipe.anchor_weight=0
    embodied pretrain model=shipped use=[cup] +scenes.cup.data=path/to/lerobot +scenes.cup.frames=4000 \\
        +scenes.cup.captions=cup_captions.yaml "+scenes.cup.labels={cup_upright: next.success}"
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from embodied import runs
from embodied.collecting.opening import open_dataset
from embodied.config import compose, given
from embodied.datasets import Dataset
from embodied.envs import WORLDS, world_id
from embodied.envs.captions import SCENE as ALWAYS
from embodied.envs.captions import Captions, vary
from embodied.errors import UserError, nearest
from embodied.files import check_place, whole, write_text
from embodied.literal import load_literal, resolved
from embodied.paths import asset
from embodied.pretraining import knowing
from embodied.pretraining.measures import judge_scene, order_along_expert, retrieval
from embodied.pretraining.recorded import SUCCESS, check_recorded, recorded
from embodied.pretraining.renders import Renders, render, scene_facts
from embodied.settings import check_device, check_least
from embodied.trust import check_trusted, remember
from rewards.encoders import OpenCLIPEncoder
from rewards.encoders.alignment import AlignmentRecipe, Examples, align
from rewards.encoders.towers import Towers

SCENE = ("worlds", "frames", "captions", "policies", "facts", "camera")  # what a scene of the config may have
RECORDED = ("data", "labels", "frames", "captions", "camera")  # and one of recorded episodes
LOOKS = (("own_look", 1.0), ("varied_look", 0.0))  # and the share of frames with the scene's own
HERE = ("workers", "device")  # of the machine at hand, not of the run
FREE = ("run", "resume", "trust", *HERE)  # what may be given to go on with a run
DENIED = 0.3  # share of the sentences of a fact that deny it, where there are wordings for that
TRAIN_SEED, JUDGE_SEED = 2, 900_001  # streams of renders that never meet


def run(config: DictConfig) -> None:
    """Render, align, judge, write. Every stage is kept in the run folder, so a killed run goes on from there.

    Raises:
        UserError: something in the config cannot be had; to resume, other settings than the run's own.
    """
    _check(config)
    folder = Path(config.run or Path("runs", "pretrain", datetime.now(UTC).strftime("%Y%m%d-%H%M%S")))
    resumed = bool(config.resume) and (folder / "config.yaml").is_file()
    if resumed:
        config = _own(config, folder)
    if unknown := [name for name in config.use if name not in config.scenes]:
        raise UserError(
            f"pretrain: use must name scenes of the config; got {unknown[0]!r}. {nearest(unknown[0], config.scenes)}"
        )
    scenes = {name: _checked(name, config.scenes[name]) for name in config.use}
    captions = {name: _captions(name, scene) for name, scene in scenes.items()}
    for name, scene in scenes.items():
        _check_facts(name, scene, captions[name])
    if (frames := sum(scene.frames for scene in scenes.values())) < config.recipe.batch_size:
        raise UserError(
            f"pretrain: recipe.batch_size must be at most {frames}, the frames of all scenes; got "
            f"{config.recipe.batch_size}, of which there would be no batch."
        )
    if config.run and folder.exists() and not (resumed or config.resume):
        raise UserError(f"pretrain: run must be a new folder; got {folder}. Add resume=true to go on with it.")
    check_place(folder, "run")
    model = f"local-dir:{asset('encoder')}" if config.model in ("embedded", "shipped") else config.model
    towers = Towers(model, weights=config.model != "embedded", device=config.device, frozen=list(config.frozen))
    if config.run:
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = runs.fresh_folder(folder)
    with runs.working(folder):
        if not resumed:
            runs.save_config(folder, config)
            remember(resolved(config))
        _pretrain(config, folder, scenes, captions, towers, model)


def _check(config: DictConfig) -> None:
    """Refuse what cannot be, before anything is rendered.

    Raises:
        UserError: so.
    """
    if config.resume and not config.run:
        raise UserError("pretrain: run must say which run resume=true goes on with; got null.")
    if not config.use:
        raise UserError("pretrain: use must name scenes of the config; got none.")
    if config.judge_on not in ("test", "val"):
        raise UserError(f"pretrain: judge_on must be test or val; got {config.judge_on!r}.")
    check_least(config, test_frames=1, workers=1)
    for name, least in {"epochs": 1, "batch_size": 1, "wordings": 1, "max_shift_px": 0, "seed": 0}.items():
        if config.recipe[name] is None or config.recipe[name] < least:
            raise UserError(f"pretrain: recipe.{name} must be at least {least}; got {config.recipe[name]}.")
    if config.recipe.lr is None or not config.recipe.lr > 0:
        raise UserError(f"pretrain: recipe.lr must be above 0; got {config.recipe.lr}.")
    check_device(config.device)


def _pretrain(
    config: DictConfig,
    folder: Path,
    scenes: dict[str, DictConfig],
    captions: dict[str, Captions],
    towers: Towers,
    model: str,
) -> None:
    """Render, align, judge, write what is not there yet."""
    size = towers.image_size[0]
    for i, (name, scene) in enumerate(scenes.items()):
        if "data" in scene:
            _read(folder, name, scene, i, config, towers)
    renders = {
        name: _rendered(folder, f"train-{name}", scene, scene.frames, (TRAIN_SEED, i), 0.25, size, config.workers)
        for i, (name, scene) in enumerate(scenes.items())
    }
    examples, facts = _examples(renders)
    before = _before(model, config, captions, folder, size) if config.model != "embedded" else None

    def draw(fact: int, rng: np.random.Generator) -> tuple[str, bool]:
        scene, name = facts[fact]
        denials = captions[scene].denials.get(name)
        if denials is not None and rng.random() < DENIED:
            return vary(denials["train"].draw(rng), rng, negate=False)[0], True
        return vary(captions[scene].facts[name]["train"].draw(rng), rng)

    def on_epoch(epoch: int, state: dict[str, Any]) -> None:
        _save(folder / "state.pt", state)

    start = time.perf_counter()
    state_file = folder / "state.pt"
    resume = torch.load(state_file, weights_only=True) if state_file.exists() else None
    recipe = AlignmentRecipe(**OmegaConf.to_container(config.recipe))  # pyright: ignore[reportCallIssue]
    align(
        towers.model, towers.preprocess, towers.tokenize, examples, draw, recipe,
        device=towers.device, on_epoch=on_epoch, resume=resume,
    )  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    towers.save(folder / "encoder")

    shipped = OpenCLIPEncoder(f"local-dir:{folder / 'encoder'}", device=config.device)
    knowing.keep(shipped, folder / "encoder", {name: each.frames for name, each in renders.items()})
    judgement = judge(shipped, config, captions, folder, size)
    judgement |= {"minutes": minutes, "frames": len(examples.frames), "before": before}
    (folder / "encoder" / "judgement.json").write_text(json.dumps(judgement, indent=1) + "\n")
    print(summary(judgement))
    if before is not None:
        print(
            "\n".join(
                f"{when}: {line}" for when, told in (("before", before), ("after", judgement)) for line in means(told)
            )
        )
    print(f"Encoder: {folder / 'encoder'}. Use it: encoder=open_clip encoder.model=local-dir:{folder / 'encoder'}")


def _own(config: DictConfig, folder: Path) -> DictConfig:
    """The config that a run was begun with, to go on by: what is rendered and learned already is of its settings.

    Raises:
        UserError: others were given; or it is somebody else's and wants more than it is allowed.
    """
    defaults = compose("pretrain", [])
    OmegaConf.set_struct(defaults, False)
    saved = OmegaConf.merge(defaults, load_literal(folder / "config.yaml"))  # settings that came later as by default
    assert isinstance(saved, DictConfig)
    check_trusted(folder, resolved(saved), config.get("trust"))
    if others := runs.changed(config, saved, "pretrain", FREE):
        raise UserError(
            f"pretrain: {folder} goes on with its own settings; got others for {', '.join(others)}. "
            "Leave them out, or begin a new run."
        )
    for key in HERE:
        if given(config, key):
            saved[key] = config[key]
    return saved


def judge(
    encoder: OpenCLIPEncoder, config: DictConfig, captions: dict[str, Captions], folder: Path, size: int
) -> dict[str, Any]:
    """The figures of the encoder's card, on looks, states and wordings kept for judging."""
    result: dict[str, Any] = {"wordings": config.judge_on, "scenes": {}}
    for i, name in enumerate(config.use):
        scene = config.scenes[name]
        rows: dict[str, Any] = {}
        for look, share in LOOKS[:1] if "data" in scene else LOOKS:
            seed = (JUDGE_SEED + (config.judge_on == "val"), i, int(share))
            kept = f"judge-{config.judge_on}-{name}-{look}"
            held = _rendered(folder, kept, scene, config.test_frames, seed, share, size, config.workers)
            facts = judge_scene(encoder, captions[name], held, config.judge_on, np.random.default_rng(seed))
            rows[look] = {"facts": facts, "retrieval": retrieval(encoder, captions[name], held, config.judge_on)}
        result["scenes"][name] = rows
    if "desk" in config.use and "data" not in config.scenes.desk:
        goals = captions["desk"].goals  # own captions need offer none
        result["order"] = {
            env: order_along_expert(encoder, f"embodied/{env}-v0", goals[fact], range(JUDGE_SEED, JUDGE_SEED + 10))
            for env, fact in DESK_FACTS.items()
            if fact in goals
        }
    return result


def summary(judgement: dict[str, Any]) -> str:
    """A table: AUROC of the goal, of wordings, the worst unseen one and denials; rank correlation with graded truth."""
    names = "".join(f" {name:>6}" for name in ("goal", "seen", "unseen", "worst", "denied", "degree"))
    lines = [f"{'scene':9} {'look':12} {'fact':15}{names}"]
    for scene, looks in judgement["scenes"].items():
        for look, rows in looks.items():
            for fact, row in rows["facts"].items():
                unseen, denied = list(row["unseen"].values()), list(row.get("denied", {}).values())
                goal = f"{row['goal']:6.3f}" if row["goal"] is not None else "     -"
                against = f"{np.mean(denied):6.3f}" if denied else "     -"
                lines.append(
                    f"{scene:9} {look:12} {fact:15} {goal} {row['seen']:6.3f} {np.mean(unseen):6.3f} "
                    f"{min(unseen):6.3f} {against} {row['degree']:6.3f}"
                )
            lines.append(f"{scene:9} {look:12} retrieval at 1: {rows['retrieval']:.3f}")
    for env, row in judgement.get("order", {}).items():
        lines.append(f"{env:22} along the expert: time {row['time']:.3f}, true reward {row['env_reward']:.3f}")
    return "\n".join(lines)


def means(judgement: dict[str, Any]) -> list[str]:
    """A line a scene and look: mean AUROC of offered goals, mean and worst of unseen wordings and of denials."""
    lines = []
    for scene, looks in judgement["scenes"].items():
        for look, rows in looks.items():
            goals = [row["goal"] for row in rows["facts"].values() if row["goal"] is not None]
            unseen = [area for row in rows["facts"].values() for area in row["unseen"].values()]
            told = f"{np.mean(goals):.3f}" if goals else "-"
            rest = f"{np.mean(unseen):.3f}, worst {min(unseen):.3f}" if unseen else "-"
            line = f"{scene}, {look}: AUROC of goals {told}, of unseen wordings {rest}"
            denied = [area for row in rows["facts"].values() for area in row.get("denied", {}).values()]
            line += f", of denials {np.mean(denied):.3f}, worst {max(denied):.3f} (right is 0)" if denied else ""
            lines.append(line)
    return lines


def _before(model: str, config: DictConfig, captions: dict[str, Captions], folder: Path, size: int) -> dict[str, Any]:
    """The judgement of the model that training starts from, kept in the run folder."""
    file = folder / "before.json"
    if not file.exists():
        told = judge(OpenCLIPEncoder(model, device=config.device), config, captions, folder, size)
        write_text(file, json.dumps(told, indent=1) + "\n")
    return json.loads(file.read_text("utf-8"))


DESK_FACTS = {
    "desk-reach": "touch_red",
    "desk-push": "red_on_mark",
    "desk-press": "button_pressed",
    "desk-drawer": "drawer_open",
    "desk-close": "drawer_closed",
    "desk-lift": "red_lifted",
    "desk-place": "red_in_tray",
    "desk-stack": "red_on_green",
}


def _checked(name: str, scene: DictConfig) -> DictConfig:
    """A scene of the config that has what it must.

    Raises:
        UserError: no worlds, no frames, or a setting that there is not.
    """
    known = RECORDED if "data" in scene else SCENE
    if strange := [key for key in scene if key not in known]:
        kind = "of recorded episodes" if "data" in scene else "of worlds"
        raise UserError(f"pretrain: scenes.{name}, {kind}, has no {strange[0]}. {nearest(str(strange[0]), known)}")
    worlds = scene.get("worlds")
    if "data" not in scene and (not isinstance(worlds, ListConfig) or not worlds):
        raise UserError(
            f"pretrain: scenes.{name}.worlds must be a list of worlds, as env.id takes them; got {worlds}. "
            f"Try +scenes.{name}.worlds=[metaworld/drawer-open-v3]."
        )
    frames = scene.get("frames")
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
        raise UserError(f"pretrain: scenes.{name}.frames must be a whole number, at least 1; got {frames}.")
    return scene


def _captions_file(name: str, scene: DictConfig) -> Path:
    given = scene.get("captions")
    return Path(given) if given else asset(name) / "captions.yaml"


def _captions(name: str, scene: DictConfig) -> Captions:
    """The wordings of a scene.

    Raises:
        UserError: no such file, or not what a captions file is.
    """
    file = _captions_file(name, scene)
    if not file.is_file():
        raise UserError(
            f"pretrain: scenes.{name}.captions must be a captions file; got {file}, which is not there. "
            f"Write one after {asset('cartpole') / 'captions.yaml'}."
        )
    return Captions.load(file)


def _check_facts(name: str, scene: DictConfig, captions: Captions) -> None:
    """Refuse worlds that are not there or tell nothing, and captions that leave some of it unsaid.

    Raises:
        UserError: says which.
    """
    if "data" in scene:
        known: Any = _labels(scene)
        check_recorded(_dataset(name, scene), known, scene.get("camera"))
    else:
        known = scene_facts(_ids(scene), 32, scene.get("facts"), scene.get("camera"))
    if missing := [fact for fact in (ALWAYS, *known) if fact not in captions.facts]:
        raise UserError(
            f"pretrain: {_captions_file(name, scene)} must have wordings of every fact of {name}, and of {ALWAYS}, "
            f"which always holds; got none of {', '.join(missing)}."
        )


def _dataset(name: str, scene: DictConfig) -> Dataset:
    return open_dataset(str(scene.data), setting=f"scenes.{name}.data")


def _labels(scene: DictConfig) -> dict[str, str]:
    """fact -> column of a scene of recorded episodes."""
    labels = scene.get("labels")
    return dict(SUCCESS) if labels is None else {str(k): str(v) for k, v in resolved(labels).items()}


def _read(folder: Path, name: str, scene: DictConfig, index: int, config: DictConfig, towers: Towers) -> None:
    """Frames of recorded episodes into the run folder, those for training and those kept for judging."""
    dataset = _dataset(name, scene)

    def shrink(frames: np.ndarray) -> np.ndarray:
        return towers.shrink(torch.from_numpy(frames)).numpy()

    kept = f"judge-{config.judge_on}-{name}-{LOOKS[0][0]}"
    for file, count, seed in ((f"train-{name}", scene.frames, TRAIN_SEED), (kept, config.test_frames, JUDGE_SEED)):
        if not _renders_file(folder, file).exists():
            made = recorded(
                dataset, _labels(scene), count, seed=(seed, index), shrink=shrink, camera=scene.get("camera"),
                held=file == kept,
            )  # fmt: skip
            _keep(_renders_file(folder, file), made)


def _ids(scene: DictConfig) -> list[str]:
    return [world_id(world) if world in WORLDS else world for world in scene.worlds]


def _rendered(
    folder: Path,
    name: str,
    scene: DictConfig,
    count: int,
    seed: tuple[int, ...],
    own_look: float,
    size: int,
    workers: int,
) -> Renders:
    """Renders from the run folder, made first if they are not there."""
    file = _renders_file(folder, name)
    if not file.exists():
        trained = _policies(scene) if name.startswith("train-") else None
        made = render(
            _ids(scene), count, seed=seed, image_size=size, own_look=own_look, workers=workers, policies=trained,
            facts=scene.get("facts"), camera=scene.get("camera"),
        )  # fmt: skip
        _keep(file, made)
    with np.load(file) as kept:
        return Renders(kept["frames"], kept["degrees"], tuple(kept["facts"].tolist()))


def _renders_file(folder: Path, name: str) -> Path:
    return folder / "renders" / f"{name}.npz"


def _keep(file: Path, made: Renders) -> None:
    file.parent.mkdir(exist_ok=True)
    with whole(file) as part:
        np.savez(part, frames=made.frames, degrees=made.degrees, facts=np.array(made.facts))


def _policies(scene: DictConfig) -> dict[str, list[Path]]:
    """World id -> the run folders that were trained there."""
    found: dict[str, list[Path]] = {}
    for run in scene.get("policies") or ():
        if not (Path(run) / "config.yaml").is_file():
            raise UserError(f"pretrain: policies must be run folders of embodied train; got {run}.")
        found.setdefault(str(load_literal(Path(run) / "config.yaml").env.id), []).append(Path(run))
    return found


def _examples(renders: dict[str, Renders]) -> tuple[Examples, list[tuple[str, str]]]:
    """All scenes in one table of facts, and what each column says: (scene, fact). "scene" always holds."""
    facts, degrees, worlds, fact_worlds = [], [], [], []
    for index, (scene, part) in enumerate(renders.items()):
        names = ("scene", *part.facts)
        facts += [(scene, fact) for fact in names]
        fact_worlds += [index] * len(names)
        degrees.append(np.concatenate([np.ones((len(part.frames), 1), np.float32), part.degrees], 1))
        worlds += [index] * len(part.frames)
    table = np.zeros((len(worlds), len(facts)), np.float32)
    row = column = 0
    for part in degrees:
        table[row : row + part.shape[0], column : column + part.shape[1]] = part
        row, column = row + part.shape[0], column + part.shape[1]
    frames = np.concatenate([part.frames for part in renders.values()])
    return Examples(frames=frames, degrees=table, worlds=np.array(worlds), fact_worlds=np.array(fact_worlds)), facts


def _save(file: Path, state: dict[str, Any]) -> None:
    with whole(file) as part:
        torch.save(state, part)
