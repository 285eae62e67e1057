"""LfVoid: an ensemble of discriminators tells goal images from frames of the robot at work; what it takes for a goal
image is rewarded. Goal images come from files, from an image-editing model, or, for testing, from a simulator.

Shape letters: K members, B batch, T time, D feature width, N rows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from rewards.compose import as_scorer
from rewards.core import Encoder, Episode, Features, Scorer
from rewards.members import Members, check_episodes, descend, fitted_views, flat
from rewards.pictures import rgb
from rewards.storage import group_of, joined, load_fitted, save_fitted

KIND = "goal_image"
FORMS = ("mean", "log_ratio")
LOGIT_BOUND = 6.0  # of each member: D within 0.0025 to 0.9975
Pictures = UInt8[Tensor, "N H W 3"]


class GoalDiscriminators:
    """Reward by K discriminators D_k of goal images (1) against the robot's own frames (0).

        mean:       r = mean_k D_k − penalty·std_k D_k
        log_ratio:  r = mean_k [log D_k − log(1 − D_k)] − penalty·std_k [log D_k − log(1 − D_k)]

    Members differ by their initial weights, the order of their batches being one. Positives are the features of goal
    images and of augmented copies, with Gaussian noise on top; both classes weigh half. Log-odds are clipped to ±6.

    Args:
        positives: camera -> (N, D) features of goal images.
        negatives: camera -> (N', D) features of frames that are not the goal: first frames, replay.
        members: K ≥ 1.
        form: "mean" or "log_ratio".
        penalty: of the members' disagreement, ≥ 0.
        noise: standard deviation of the noise on positives and negatives, of the features' own scale.
        steps: of each fit.
        seed: same seed, same discriminators.

    Raises:
        ValueError: a value out of range, or negatives without one of the cameras.
    Source: LfVoid, arXiv 2307.07837: goal images edited by a diffusion model, a discriminator ensemble as reward.
        The paper's formula was not found and its reward code is not released: both forms are RECONSTRUCTIONS
        [G]. Departs: discriminators on an encoder's features instead of images.
    """

    name, pointwise = KIND, True

    def __init__(
        self,
        positives: Mapping[str, Float[Tensor, "N D"]],
        negatives: Mapping[str, Float[Tensor, "M D"]],
        *,
        members: int = 5,
        form: str = "mean",
        penalty: float = 0.0,
        noise: float = 0.3,
        steps: int = 300,
        seed: int = 0,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"{KIND}: form must be one of {', '.join(FORMS)}; got {form!r}.")
        if members < 1 or penalty < 0 or noise < 0 or steps < 1:
            raise ValueError(
                f"{KIND}: members and steps must be ≥ 1, penalty and noise ≥ 0; "
                f"got {members}, {steps}, {penalty}, {noise}."
            )
        self.positives = {camera: rows.float().cpu() for camera, rows in positives.items()}
        self.form, self.penalty = form, penalty
        self._how = {"members": members, "noise": noise, "steps": steps, "seed": seed}
        self.refit(negatives)

    def refit(self, negatives: Mapping[str, Float[Tensor, "M D"]]) -> None:
        """Fit all members anew against these negatives (replay features, as learning goes on).

        The reward changes: relabel stored transitions, and never difference potentials of two fits. Once a policy
        succeeds its frames are negatives too, and D sinks towards one half there: keep the goal frames out, or few.
        Deterministic: same positives, negatives and seed, same discriminators.

        Raises:
            ValueError: a camera of the goal images is missing, or there are no rows.
        """
        missing = [camera for camera in self.positives if not len(negatives.get(camera, ()))]
        if missing:
            raise ValueError(f"{KIND}: negatives must hold rows of every camera; got none of {', '.join(missing)}.")
        against = {camera: negatives[camera].float().cpu() for camera in self.positives}
        both = {camera: torch.cat([rows, against[camera]]) for camera, rows in self.positives.items()}
        goals = len(next(iter(self.positives.values())))
        count = len(next(iter(both.values())))
        label = (torch.arange(count) < goals).float()
        weight = torch.where(label == 1, 0.5 * count / goals, 0.5 * count / (count - goals))
        seed, noise = self._how["seed"], self._how["noise"]
        self.members = Members(both, count=self._how["members"], seed=seed)
        rng = torch.Generator().manual_seed(seed + 1)
        scales = {camera: noise * (rows - rows.mean(0)).square().mean().sqrt() for camera, rows in both.items()}

        def loss(rows: Tensor) -> Tensor:
            noisy = {
                camera: view[rows] + scales[camera] * torch.randn(len(rows), view.shape[1], generator=rng)
                for camera, view in both.items()
            }
            # each view by itself: one that always tells would leave the others untaught
            logits = torch.stack([self.members.view(i, noisy[camera]) for i, camera in enumerate(both)])
            target, each = label[rows].expand_as(logits), weight[rows]
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, target, each.expand_as(logits))

        descend(self.members, loss, count, steps=self._how["steps"], seed=seed)
        self.members.set_floors(both)

    @torch.no_grad()
    def logits(self, features: Features) -> Float[Tensor, "K B T"]:
        """log D_k − log(1 − D_k) of each member, within ±6; a missing view counts as the least it said in fitting."""
        views = flat(fitted_views(features, list(self.positives), KIND), self.members)
        said = self.members(views).clamp(-LOGIT_BOUND, LOGIT_BOUND)
        return said.unflatten(1, features.main.shape[:2])

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """r of each frame: at most 1 ("mean") or 6 ("log_ratio")."""
        return ensemble_reward(self.logits(features), self.form, self.penalty).to(features.main)

    def save(self, folder: Path, encoder: Encoder) -> None:
        """Write a folder that `load` reads."""
        config = self._how | {"form": self.form, "penalty": self.penalty, "cameras": list(self.positives)}
        tensors = joined({"members": self.members.state_dict(), "positives": self.positives})
        save_fitted(folder, kind=KIND, encoder=encoder, config=config, tensors=tensors)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> GoalDiscriminators:
        """The discriminators that `save` wrote, with their goal features, so that they can be refitted."""
        config, tensors = load_fitted(folder, kind=KIND, encoder=encoder)
        head = cls.__new__(cls)
        head.form, head.penalty = config["form"], config["penalty"]
        head._how = {key: config[key] for key in ("members", "noise", "steps", "seed")}
        head.positives = {camera: tensors[f"positives/{camera}"] for camera in config["cameras"]}
        head.members = Members.restore(config["cameras"], group_of(tensors, "members"))
        return head


def ensemble_reward(logits: Float[Tensor, "K B T"], form: str, penalty: float) -> Float[Tensor, "B T"]:
    """Mean of K members less `penalty` times their standard deviation; see `GoalDiscriminators`.

    Args:
        logits: of K members.
        form: "mean" or "log_ratio".
        penalty: how many standard deviations are subtracted.
    """
    each = logits.sigmoid() if form == "mean" else logits
    return each.mean(0) - penalty * each.std(0, correction=0)


# Goal images ------------------------------------------------------------------------------------------------------


def read_images(paths: Sequence[str | Path]) -> Pictures:
    """RGB pictures of one size.

    Args:
        paths: of the files.

    Raises:
        FileNotFoundError: a path that is no file.
        ValueError: a file that is no picture, or pictures of several sizes.
    """
    pictures = []
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"{KIND}: goal_images must be picture files; there is no {path}.")
        try:
            pictures.append(rgb(Image.open(path)))
        except (OSError, ValueError) as error:
            raise ValueError(f"{KIND}: {path} is not a picture that can be read ({error}).") from error
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise ValueError(f"{KIND}: goal_images must be of one size; got {', '.join(map(str, sizes))}.")
    return torch.from_numpy(np.stack(pictures))


def augment(pictures: Pictures, copies: int, seed: int) -> UInt8[Tensor, "M H W 3"]:
    """The pictures, then `copies` variants of each: shifted by up to 4 % of their size, brighter or darker by 10 %.

    Args:
        pictures: of one size.
        copies: variants of each.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    reach = max(1, round(0.04 * min(pictures.shape[1:3])))
    found = [pictures]
    for _ in range(copies):
        for picture in pictures:
            down, right = (int(step) for step in rng.integers(-reach, reach + 1, 2))
            padded = np.pad(picture.numpy(), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
            high, wide = picture.shape[:2]
            moved = padded[reach + down :, reach + right :][:high, :wide] * rng.uniform(0.9, 1.1)
            found.append(torch.from_numpy(moved.clip(0, 255).astype(np.uint8))[None])
    return torch.cat(found)


def edit_images(
    pictures: Pictures, prompt: str, *, model: str, seed: int = 0, device: str = "cpu", **settings: Any
) -> Pictures:
    """The pictures as an image-editing model thinks they look once `prompt` holds; needs the diffusers package.

    Args:
        pictures: of the scene before the task.
        prompt: what to change ("open the drawer").
        model: hub id or folder of a pipeline that takes `prompt` and `image`, such as timbrooks/instruct-pix2pix.
        seed: of the model's noise.
        device: where it runs.
        settings: passed to the pipeline (num_inference_steps, guidance_scale, image_guidance_scale…).

    Raises:
        ModuleNotFoundError: diffusers is not installed.
        FileNotFoundError: the model is not here and was not fetched.
    Source: LfVoid edits by prompt-to-prompt with null-text inversion and directed attention on Stable Diffusion 1.4
        (50 steps, guidance 7.5). Departs: any instruction-following editor, one call.
    """
    if importlib.util.find_spec("diffusers") is None:
        raise ModuleNotFoundError(
            f"{KIND}: edit needs the diffusers package, which is not installed. Run "
            "`pip install diffusers accelerate`, or give finished goal_images and no edit."
        )
    from diffusers import DiffusionPipeline  # pyright: ignore[reportMissingImports]

    try:
        pipeline = DiffusionPipeline.from_pretrained(model).to(device)
    except OSError as error:
        raise FileNotFoundError(
            f"{KIND}: edit.model {model!r} is not on this machine and was not fetched. Run `hf download {model} "
            f"--local-dir FOLDER` where there is a network, and give that folder. ({str(error).splitlines()[0][:200]})"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    edited = []
    for i, picture in enumerate(pictures):
        rng = torch.Generator().manual_seed(seed + i)
        image = Image.fromarray(picture.numpy())
        made = pipeline(prompt=prompt, image=image, generator=rng, **settings).images[0]
        edited.append(np.asarray(made.convert("RGB").resize(image.size)))
    return torch.from_numpy(np.stack(edited))


# What the config names --------------------------------------------------------------------------------------------


def goal_image_scorer(
    *,
    encoder: Encoder,
    goal_images: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    model: str | None = None,
    demos: Sequence[Episode] = (),
    edit: Mapping[str, Any] | None = None,
    copies: int = 4,
    discriminators: Mapping[str, Any] | None = None,
    shaping: Mapping[str, Any] | None = None,
) -> Scorer:
    """`GoalDiscriminators` as a scorer.

    Args:
        encoder: embeds goal images and frames.
        goal_images: picture files or (H, W, 3) uint8 arrays, of the demos' first camera; or camera -> those. With
            `edit`, pictures of the scene before the task.
        model: folder of fitted discriminators, instead of goal_images and demos.
        demos: the negatives: the first quarter of every episode, and all of those known to have failed.
        edit: arguments of `edit_images` but the pictures; None: the goal images are finished.
        copies: augmented copies of each goal image, ≥ 0.
        discriminators: arguments of `GoalDiscriminators` but the rows.
        shaping: arguments of `PotentialShaping`.

    Raises:
        ValueError, TypeError, FileNotFoundError: nothing to fit on, or as the parts say.
    """
    how = dict(discriminators or {})
    if model is not None:
        head = GoalDiscriminators.load(model, encoder)
    else:
        check_episodes(demos, KIND)
        cameras = list(demos[0].features.views)
        if isinstance(goal_images, (str, int)) or not goal_images:
            raise ValueError(
                f"{KIND}: goal_images must be pictures of the goal, a list or camera -> list; got {goal_images!r}."
            )
        given = goal_images if isinstance(goal_images, Mapping) else {cameras[0]: goal_images}
        if strange := [camera for camera in given if camera not in cameras]:
            raise ValueError(f"{KIND}: goal_images must be of cameras {', '.join(cameras)}; got {', '.join(strange)}.")
        seed = int(how.get("seed", 0))
        pictures = {camera: _pictures(each) for camera, each in given.items()}
        if len({len(each) for each in pictures.values()}) > 1:
            raise ValueError(f"{KIND}: goal_images must be as many of every camera, in one order.")
        if edit is not None:
            pictures = {camera: edit_images(each, **edit) for camera, each in pictures.items()}
        positives = {
            camera: encoder.encode_images(augment(each, copies, seed)).float().cpu()
            for camera, each in pictures.items()
        }
        head = GoalDiscriminators(positives, start_rows(demos), **how)
    return as_scorer(encoder, {KIND: head}, shaping)


def start_rows(episodes: Sequence[Episode]) -> dict[str, Float[Tensor, "N D"]]:
    """Camera -> rows that are surely not the goal: each episode's first quarter, and all of the known failures.

    Args:
        episodes: encoded.
    """
    ends = [len(e) if e.success is False else max(1, len(e) // 4) for e in episodes]
    return {
        camera: torch.cat([e.features.views[camera][0, :end] for e, end in zip(episodes, ends, strict=True)])
        for camera in episodes[0].features.views
    }


def _pictures(given: Sequence[Any]) -> Pictures:
    """Files or arrays as one tensor."""
    if all(isinstance(each, (str, Path)) for each in given):
        return read_images(given)
    return torch.from_numpy(np.stack([np.asarray(each, np.uint8) for each in given]))
