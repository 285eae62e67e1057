"""Keypoint affordance rewards: waypoints from the first frame, progress along them, KAGI's rule with a success model.

Where to go is answered in `rewards.keypoint.plan` and `rewards.keypoint.chat`; here the answer becomes a path, in
metres where camera and depth are known and in the image plane where not, and the robot's position progress on it.

Shape letters: B batch, T time, N points, K waypoints; H, W image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rewards.chat.asking import ChatModel, chat_model
from rewards.clip_goal import CalibratedThreshold
from rewards.core import Encoder, Episode, Features, Head, Scorer
from rewards.grounding import Grounder
from rewards.keypoint.camera import TIP, FoundCamera, Tracker, camera_from_demos
from rewards.keypoint.chat import ChatAnswerer
from rewards.keypoint.path import CalibratedCamera, Way, flat_path, lift_path, path_progress
from rewards.keypoint.plan import Answerer, GrammarAnswerer, PathStop
from rewards.keypoint.rule import KeypointRule, KeypointShaping
from rewards.members import of_goal
from rewards.outcome import GoalDegree

GRIPPER = "the gripper"
OPENING = "gripper_opening"  # signal, 0 shut to 1 open
KEPT_PLANS = 1024  # first frames whose plans are kept


class Walked(NamedTuple):
    """What an episode's next rows need: its way, its frames' size, and where the robot was so far.

    Attributes:
        size: H, W of its frames, px.
        robot: (T, D), x_t in the axes of the way.
        opening: (T,) of the gripper; empty where nothing measures it.
        path: the way that the plan gave.
    """

    path: Way
    size: tuple[int, int]
    robot: np.ndarray
    opening: np.ndarray


@runtime_checkable
class VectorTracker(Protocol):
    """The gripper's place, (u, v) px, in each of N frames of one size, (H, W), from their vectors: a `Grounder`."""

    def point(self, vectors: Float[Tensor, "N D"], size: tuple[int, int]) -> Float[Tensor, "N 2"]: ...


class KeypointProgress:
    """Progress of the gripper along the way that an answerer saw in the episode's first frame.

    With a calibration and the first frame's depth, the way is in the world. Without depth it is in the image, and the
    gripper's position is projected; or, with `plane`, in the world on that level plane, which is worse wherever things
    are not of one height. Without a calibration, which `camera_from_demos` may find, the gripper is found in every
    frame: from the frame's vector, or by the encoder's map, which is finer and costs more than encoding itself.

    Args:
        answerer: says where to go; asked once per first frame.
        grounder: finds the gripper in frames where there is no calibration; may be None where there is one.
        pointer: finds it from their vectors, and is asked instead of the grounder.
        calibration: camera -> `intrinsics`, `extrinsics`, `size`.
        camera: whose frames are read; None: the first that the calibration names, or the first there is.
        plane: metres; height of all things where there is no depth. None: plan in the image.
        in_image: plan in the image whatever else is known: for a camera of `camera_from_demos`.
        sigma: metres off the way at which progress falls to 1/e.
        reach: metres from a waypoint that count as there; twice as many where the gripper is found in the frames.
        scene_m: metres that an image's height stands for, where there is no calibration or with `in_image`.
        gripper: words for the robot's gripper.

    Raises:
        ValueError: a length that is not positive, a camera without calibration; (score) features without the camera's
            frames or the signals gripper_x, _y, _z.
    """

    name, advances = "keypoint", True

    def __init__(
        self,
        answerer: Answerer,
        *,
        grounder: Tracker | None = None,
        pointer: VectorTracker | None = None,
        calibration: Mapping[str, Mapping[str, Any]] | None = None,
        camera: str | None = None,
        plane: float | None = None,
        in_image: bool = False,
        sigma: float = 0.1,
        reach: float = 0.05,
        scene_m: float = 1.0,
        gripper: str = GRIPPER,
    ) -> None:
        where = type(self).__name__
        for name, value in {"sigma": sigma, "reach": reach, "scene_m": scene_m}.items():
            if not value > 0:
                raise ValueError(f"{where}: {name} must be > 0 metres; got {value}.")
        cameras = {name: CalibratedCamera.read(name, values) for name, values in (calibration or {}).items()}
        camera = camera or next(iter(cameras), None)
        if cameras and camera not in cameras:
            raise ValueError(
                f"{where}: camera must be one of {', '.join(cameras)}, the calibrated ones; got {camera!r}."
            )
        if not cameras and grounder is None and pointer is None:
            raise ValueError(f"{where}: grounder must be given without a calibration, to find the gripper; got None.")
        self._answerer, self._camera, self._gripper = answerer, camera, gripper
        self._grounder, self._pointer = grounder, pointer
        self._calibrated = cameras.get(camera) if camera else None
        self._plane, self._in_image, self._sigma, self._scene_m = plane, in_image, sigma, scene_m
        self._reach = reach if cameras else 2 * reach  # the middle of a gripper in sight is not its tip
        self._plans: dict[bytes, Way] = {}
        self.frames_read = "first" if cameras or pointer else "all"

    def score(self, features: Features) -> Float[Tensor, "B T"]:
        """Φ of each frame, in [0, 1]."""
        return self.advance(features)[0]

    def advance(
        self, features: Features, memory: Sequence[Walked] | None = None
    ) -> tuple[Float[Tensor, "B T"], list[Walked]]:
        """Φ of the frames that follow (see `rewards.core.Head`); costs a little more, the longer the episode."""
        camera = self._camera or next(iter(features.views))
        steps = features.main.shape[1]
        needed = memory is None or self.frames_read == "all"
        if needed and camera not in features.frames:
            raise ValueError(
                f"KeypointProgress.score: features must hold frames of camera {camera!r}; "
                f"got {', '.join(features.frames) or 'none'}."
            )
        frames = features.frames[camera].cpu() if needed else None
        opening = features.signals.get(OPENING)
        if memory is None:
            assert frames is not None
            depths = features.depth.get(camera)
            paths = self.paths(frames[:, 0], None if depths is None else depths.cpu().numpy())
            size = frames.shape[2], frames.shape[3]
            memory = [Walked(path, size, np.zeros((0, path.points.shape[1])), np.zeros(0)) for path in paths]
        rows, walked = [], []
        for b, (path, size, robot, wide) in enumerate(memory):
            robot = np.concatenate([robot, self._robot(features, camera, b, path, size)])
            if opening is not None:
                wide = np.concatenate([wide, opening[b].cpu().numpy().astype(np.float64)])
            held = None if opening is None else wide
            progress = path_progress(path.points, path.gates, robot, held, sigma=self._sigma, reach=self._reach)
            rows.append(progress[-steps:])
            walked.append(Walked(path, size, robot, wide))
        return torch.from_numpy(np.stack(rows)).to(features.main), walked

    def paths(self, frames: UInt8[Tensor, "B H W 3"], depths: np.ndarray | None = None) -> list[Way]:
        """The way from each first frame, with its depth, (B, H, W) metres; the same frame, the same way.

        New frames are answered in one batch.
        """
        keys = [_content(frame, None if depths is None else depths[b]) for b, frame in enumerate(frames)]
        found = {key: self._plans[key] for key in keys if key in self._plans}
        if new := {key: b for b, key in enumerate(keys) if key not in found}:
            stops = self._answerer.stops(frames[list(new.values())])
            for (key, b), each in zip(new.items(), stops, strict=True):
                depth = None if depths is None else depths[b]
                found[key] = self._plans[key] = self._lifted(each, frames.shape[1], frames.shape[2], depth)
            while len(self._plans) > KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
        return [found[key] for key in keys]

    def _lifted(self, stops: Sequence[PathStop], height: int, width: int, depth: np.ndarray | None) -> Way:
        if self._calibrated is None:
            return flat_path(stops, self._scene_m / height)
        camera = self._calibrated.at(height, width)
        up = camera.extrinsics[:2, 2].tolist()
        if self._in_image:
            return flat_path(stops, self._scene_m / height, up)
        if depth is not None or self._plane is not None:
            return lift_path(stops, camera, depth, self._plane or 0.0)
        floor = np.mean([camera.on_plane(stop.at, 0.0) for stop in stops], 0)
        away = float((camera.extrinsics[:3, :3] @ floor + camera.extrinsics[:3, 3])[2])
        return flat_path(stops, away / float(camera.intrinsics[1, 1]), up)

    def _robot(self, features: Features, camera: str, b: int, path: Way, size: tuple[int, int]) -> np.ndarray:
        """x_t, in the axes of the path."""
        if self._calibrated is None:
            return self._seen(features, camera, b, size).numpy().astype(np.float64) * (path.unit or 1.0)
        if missing := [name for name in TIP if name not in features.signals]:
            raise ValueError(
                f"KeypointProgress.score: signals must hold {', '.join(TIP)}; {', '.join(missing)} missing. "
                "Without a calibration the gripper is found in the frames instead."
            )
        tip = torch.stack([features.signals[name][b] for name in TIP], -1).cpu().numpy().astype(np.float64)
        if path.unit is None:
            return tip
        return self._calibrated.at(*size).project(tip) * path.unit

    def _seen(self, features: Features, camera: str, b: int, size: tuple[int, int]) -> Float[Tensor, "T 2"]:
        """Where the gripper is in the image, px."""
        if self._pointer is not None:
            if camera not in features.views:
                raise ValueError(
                    f"KeypointProgress.score: features must hold the view of camera {camera!r}; "
                    f"got {', '.join(features.views)}."
                )
            return self._pointer.point(features.views[camera][b], size)
        assert self._grounder is not None
        frames = features.frames[camera][b].cpu()
        if len(frames) != (steps := features.main.shape[1]):
            raise ValueError(
                f"KeypointProgress.score: frames must be all {steps}, to find the gripper; got {len(frames)}."
            )
        return self._grounder.track(frames, self._gripper)


def _content(frame: Tensor, depth: np.ndarray | None) -> bytes:
    """What a frame and its depth are known by."""
    content = hashlib.sha1(frame.numpy().tobytes(), usedforsecurity=False)
    content.update(b"" if depth is None else depth.tobytes())
    return content.digest()


def keypoint_scorer(
    *,
    encoder: Encoder,
    goal: str | None = None,
    answerer: str | ChatModel | Mapping[str, Any] = "embedded",
    calibration: Mapping[str, Mapping[str, Any]] | None = None,
    camera: str | None = None,
    path: Mapping[str, Any] | None = None,
    success: Head | Mapping[str, Any] | None = None,
    demos: Sequence[Episode] | None = None,
    dense: float = 0.25,
    shaping: Mapping[str, Any] | None = None,
    fits: MutableMapping[Any, FoundCamera | None] | None = None,
) -> Scorer:
    """Progress along the keypoints of an instruction, and a success model beside it, by KAGI's rule.

    Args:
        encoder: an open_clip or transformers model with maps (see `Grounder`).
        goal: an instruction: "open the drawer".
        answerer: "embedded" (plan grammar and grounding), a chat model, or its arguments
            (`rewards.chat.asking.chat_model`) and perhaps `cache`, a folder of answers.
        calibration: camera -> `intrinsics`, `extrinsics`, `size`. None or empty: found from the demos, where these have
            frames and the robot's readings (`camera_from_demos`); else all is planned and tracked in the image.
        camera: see `KeypointProgress`.
        path: `plane`, `sigma`, `reach`, `scene_m`, `gripper` of `KeypointProgress`.
        success: a head that gives 1 on success; or `goal` (a sentence true of success; None: the instruction) and
            `threshold` on its cosine (None: a `rewards.outcome.GoalDegree` of the demos, of those of this goal where
            some say so; without any, or where the sentence does not tell their ends from their starts, there is no
            success model).
        demos: recorded episodes, for that and for the camera.
        dense: see `KeypointRule`.
        shaping: `kind`, `discount`, `scale` of `KeypointShaping`.
        fits: of the same arguments but the goal: the cameras that were found. None: nothing is shared.

    Raises:
        ValueError: no goal, one that the grammar does not understand, or an argument out of range.
    """
    if not goal:
        raise ValueError('keypoint_scorer: goal must be given; got none. Try goal="open the drawer".')
    grounder = Grounder(encoder)
    if answerer == "embedded":
        answers: Answerer = GrammarAnswerer(goal, grounder)
    elif isinstance(answerer, str):
        raise ValueError(
            f"keypoint_scorer: answerer must be embedded or a chat model; got {answerer!r}. Give answerer.url."
        )
    else:
        options = dict(answerer) if isinstance(answerer, Mapping) else {}
        cache = options.pop("cache", None)
        answers = ChatAnswerer(
            goal, chat_model(options or answerer), grounder, cache=None if cache is None else Path(cache)
        )
    path = dict(path or {})
    gripper = path.get("gripper", GRIPPER)
    if not calibration and demos:
        seen = camera or next(iter(demos[0].features.frames), "")
        fits = {} if fits is None else fits
        if seen not in fits:
            fits[seen] = camera_from_demos(demos, grounder, gripper, seen)
        found = fits[seen]
        if found is not None:
            calibration = {seen: asdict(found.camera)}
            path |= {"in_image": True, "scene_m": found.scene_m}
    heads: dict[str, Head] = {
        KeypointProgress.name: KeypointProgress(
            answers,
            grounder=grounder,
            pointer=grounder if grounder.points(gripper) else None,
            calibration=calibration,
            camera=camera,
            **path,
        )
    }
    if (judge := _success_head(success, goal, encoder, demos or ())) is not None:
        heads["success"] = judge
    return Scorer(encoder, heads, KeypointRule(dense), KeypointShaping(dense=dense, **(shaping or {})))


def _success_head(
    success: Head | Mapping[str, Any] | None, goal: str, encoder: Encoder, demos: Sequence[Episode]
) -> Head | None:
    if isinstance(success, Head):
        return success
    options = dict(success or {})
    sentence, threshold = options.pop("goal", None) or goal, options.pop("threshold", None)
    if options:
        raise ValueError(f"keypoint_scorer: success must hold goal and threshold; got {', '.join(options)} besides.")
    if threshold is None:
        return GoalDegree.fit(encoder.encode_texts([sentence])[0], of_goal(demos, goal))
    return CalibratedThreshold(sentence, encoder=encoder, threshold=threshold, penalty=0.0)
