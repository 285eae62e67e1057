"""Published robot reward models by name: where their weights are, and how they are asked.

    scorer = pretrained_scorer(encoder=encoder, goal="the cup is upright", model="robometer-4b")

Each is asked as its repository asks it (`rewards.chat.published`, `rewards.robometer`, `rewards.rewind`); the docs say
what was held to what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from rewards.chat import ChatModel
from rewards.chat.grm import GenerativeGRM
from rewards.chat.published import BLANK_GOAL, GRM_PUBLISHED, PublishedTOPReward, RoboReward, SoleR1
from rewards.chat.reading import questions
from rewards.chat.value_server import ValueServer
from rewards.combine import WeightedSum
from rewards.core import Encoder, Head, Scorer
from rewards.rewind import Rewind
from rewards.robometer import VLMWithHeads, WindowHead
from rewards.sarm import Sarm, SarmHead
from rewards.shaping import PotentialShaping
from rewards.vlm_progress import picture

_here: WeakValueDictionary[str, VLMWithHeads | Rewind | Sarm] = WeakValueDictionary()
SAMPLED = {"temperature": 0.1, "top_p": 0.9, "top_k": 50}  # GRM: FlagOpen/Robo-Dopamine, examples/inference.py
SOLE_SAMPLED = {"temperature": 1.0, "top_p": 0.9, "top_k": 50}  # SOLE-R1: reward_server/config/default.yaml


@dataclass(frozen=True)
class Published:
    """A model that somebody published.

    Attributes:
        weights: hub id; "" where everybody trains their own.
        about: what it is, in a few words.
        kind: how it is asked: "robometer", "rewind", "sarm", "rynnvalue", "roboreward", "topreward", "grm" or
            "sole_r1".
        max_tokens: of an answer.
        sampling: with which its answers were published to be drawn; none: greedy.
        pixels: (least, most) of an image, where it was trained with bounds of its own.
    """

    weights: str
    about: str
    kind: str
    max_tokens: int = 64
    sampling: Mapping[str, float] = field(default_factory=dict)
    pixels: tuple[int, int] | None = None


GRM_PIXELS = (12544, 76800)  # Robo-Dopamine, train/scripts/finetune_grm.sh and examples/inference.py
MODELS: Mapping[str, Published] = {
    "robometer-4b": Published("robometer/Robometer-4B", "progress and success heads on Qwen3-VL", "robometer"),
    "roboreward-4b": Published("teetone/RoboReward-4B", "a grade from 1 to 5 of a film", "roboreward", 128),
    "roboreward-8b": Published("teetone/RoboReward-8B", "a grade from 1 to 5 of a film", "roboreward", 128),
    "topreward": Published("Qwen/Qwen3-VL-8B-Instruct", "how likely 'True' is after a film; zero-shot", "topreward"),
    "grm-2.0-8b": Published(
        "tanhuajie2001/Robo-Dopamine-GRM-2.0-8B-Preview", "hops between two moments of three views", "grm",
        1024, SAMPLED, GRM_PIXELS,
    ),
    "grm-3b": Published(
        "tanhuajie2001/Robo-Dopamine-GRM-3B", "hops between two moments of three views", "grm",
        1024, SAMPLED, GRM_PIXELS,
    ),
    "rewind": Published(
        "rewardfm/rewind-scale-rfm1M-32layers-8frame-20260118-180522", "a transformer over DINOv2 and MiniLM", "rewind"
    ),
    "sarm": Published("", "stages and progress from pictures around a moment and own readings, by LeRobot", "sarm"),
    "rynnvalue": Published(
        "Alibaba-DAMO-Academy/RynnValue-8B", "minus the seconds that remain, from its own server", "rynnvalue"
    ),
    "sole-r1-8b": Published(
        "Philip-MIT/SOLE-R1-8B", "reasons over a montage of moments, says a percentage", "sole_r1", 200, SOLE_SAMPLED
    ),
}  # fmt: skip


SETTINGS: Mapping[str, tuple[str, ...]] = {  # kind -> arguments of its head that a person may set
    "robometer": ("stride", "output", "max_frames", "windows"),
    "rewind": ("stride", "output", "max_frames"),
    "sarm": ("stride", "output"),
    "rynnvalue": ("stride", "max_frames"),
    "roboreward": ("stride", "max_frames", "fps"),
    "topreward": ("stride", "max_frames", "fps", "calibration", "normalize", "between"),
    "grm": ("stride", "fusion", "strength", "epsilon", "between"),
    "sole_r1": ("stride",),
}


LOADED: Mapping[str, tuple[str, ...]] = {  # kind -> what `vlm` may hold, of those that are read by their heads
    "robometer": ("device", "precision", "processor"),
    "rewind": ("device", "images", "texts"),
    "sarm": ("device",),
    "rynnvalue": (),
}
SERVED = ("robometer", "rynnvalue")  # kinds that have a server of their own


def pretrained_scorer(
    *,
    encoder: Encoder,
    goal: str,
    model: str,
    weights: str | None = None,
    vlm: Mapping[str, Any] | ChatModel | None = None,
    asking: Mapping[str, Any] | None = None,
    views: str | Sequence[str] | None = None,
    goal_image: str | None = None,
    shaping: Mapping[str, Any] | None = None,
    **head: Any,
) -> Scorer:
    """A published model as a scorer; other arguments are its head's, those that are None left out.

    Args:
        encoder: for the other heads of a composition; these read images.
        goal: the instruction.
        model: its name, one of `MODELS`.
        weights: a folder or hub id in place of the published one; sarm has none that was published.
        vlm: further arguments of who is asked: with a `url`, of `rewards.chat.asking.ChatEndpoint`, or
            `rewards.chat.value_server.ValueServer` for robometer and rynnvalue; without, of
            `rewards.chat.asking.LocalChat`, `rewards.robometer.VLMWithHeads`, `rewards.rewind.Rewind` or
            `rewards.sarm.Sarm` (device, precision, …). Those that were published for the model (sampling, bounds on
            pixels, length of answers) are filled in.
        asking: arguments of `rewards.chat.reading.Questions`, for models that are asked in words.
        views: cameras in the model's order: outside first, then wrists.
        goal_image: GRM's: a picture of the finished task, of another episode; None: a grey one, as published.
        shaping: arguments of `PotentialShaping`.

    Raises:
        ValueError: an unknown name, or a setting that this model does not have.
        FileNotFoundError: weights or a picture that are not here; says what to put where.
    """
    if model not in MODELS:
        raise ValueError(f"pretrained_scorer: model must be one of {', '.join(MODELS)}; got {model!r}.")
    about, views = MODELS[model], [views] if isinstance(views, str) else views
    if goal_image is not None and about.kind != "grm":
        raise ValueError(f"pretrained_scorer: goal_image must be null for {model}; only GRM measures from a goal.")
    given = {name: value for name, value in head.items() if value is not None}
    if unknown := set(given) - set(SETTINGS[about.kind]):
        known = ", ".join(SETTINGS[about.kind])
        raise ValueError(f"pretrained_scorer: {', '.join(sorted(unknown))} must be null for {model}; it has {known}.")
    if not (weights or about.weights):
        raise ValueError(f"pretrained_scorer: weights must be a folder of your own training for {model}; got none.")
    made = _head(about, goal, weights or about.weights, vlm, asking, views, goal_image, given)
    return Scorer(encoder, {made.name: made}, WeightedSum(), PotentialShaping(**(shaping or {})))


def _head(
    about: Published,
    goal: str,
    weights: str,
    vlm: Mapping[str, Any] | ChatModel | None,
    asking: Mapping[str, Any] | None,
    views: Sequence[str] | None,
    goal_image: str | None,
    given: Mapping[str, Any],
) -> Head:
    if about.kind == "sarm":
        return SarmHead(goal, model=_loaded(about.kind, weights, vlm), views=views, **given)
    if about.kind in LOADED:
        return WindowHead(goal, model=_loaded(about.kind, weights, vlm), views=views, **given)
    try:
        ask = questions(vlm if isinstance(vlm, ChatModel) else chat_settings(about, weights, vlm or {}), asking)
    except FileNotFoundError as error:  # there, the weights are `model`, which is a name here
        raise FileNotFoundError(str(error).replace("give model=", "give reward.weights=")) from error
    if about.kind == "topreward":
        return PublishedTOPReward(goal, ask=ask, view=views[0] if views else None, **given)
    if about.kind == "grm":
        return _grm(goal, ask, views, goal_image, given)
    return {"roboreward": RoboReward, "sole_r1": SoleR1}[about.kind](goal, ask=ask, views=views, **given)


def _loaded(kind: str, weights: str, vlm: Mapping[str, Any] | ChatModel | None) -> Any:
    """A network that is read by its heads: on this machine, loaded once while anyone has it, or on its own server."""
    given = {} if isinstance(vlm, ChatModel) else {name: each for name, each in (vlm or {}).items() if each is not None}
    if kind in SERVED and "url" in given and set(given) <= {"url", "timeout_s"}:
        return ValueServer(kind=kind, **given)
    unknown = sorted(set(given) - set(LOADED[kind]))
    if isinstance(vlm, ChatModel) or unknown or kind == "rynnvalue":
        got = "a chat model" if isinstance(vlm, ChatModel) else ", ".join(unknown) or "no vlm.url"
        known = ", ".join(f"vlm.{name}" for name in LOADED[kind])
        server = "vlm.url of its own server (and vlm.timeout_s)" if kind in SERVED else ""
        taken = " or ".join(filter(None, (known, server)))
        raise ValueError(f"pretrained_scorer: {kind} is read by its heads, so it takes {taken}; got {got}.")
    key = json.dumps([kind, weights, given], sort_keys=True)
    model = _here.get(key)
    if model is None:
        model = _here[key] = {"robometer": VLMWithHeads, "rewind": Rewind, "sarm": Sarm}[kind](weights, **given)
    return model


def _grm(goal: str, ask: Any, views: Sequence[str] | None, goal_image: str | None, given: Mapping[str, Any]) -> Head:
    fusion = given.get("fusion", "forward")
    if goal_image is None and fusion not in ("forward", "incremental"):
        raise ValueError(
            f"pretrained_scorer: fusion must be forward or incremental without a goal_image; got {fusion!r}: a grey "
            "picture is no goal to measure from."
        )
    shown: np.ndarray = BLANK_GOAL if goal_image is None else picture(goal_image)
    settings = {**given, "fusion": fusion}
    return GenerativeGRM(goal, ask=ask, goal={"goal": shown}, views=views, prompt=GRM_PUBLISHED, **settings)


def chat_settings(about: Published, weights: str, vlm: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `rewards.chat.asking.chat_model`: a person's, then what was published for the model.

    Args:
        about: what was published of the model.
        weights: folder or hub id.
        vlm: what a person set; None counts as not set.
    """
    given = {name: value for name, value in vlm.items() if value is not None}
    made: dict[str, Any] = {"model": weights, "max_tokens": about.max_tokens}
    if "url" not in given:
        return {**made, "sampling": dict(about.sampling) or None, "pixels": about.pixels, **given}
    extra: dict[str, Any] = {name: value for name, value in about.sampling.items() if name != "temperature"}
    if about.pixels:
        extra["mm_processor_kwargs"] = dict(zip(("min_pixels", "max_pixels"), about.pixels, strict=True))
    own = {
        "temperature": about.sampling.get("temperature", 0.0),
        "extra": {**extra, **(given.pop("extra", None) or {})},
    }
    return {**made, **own, **given}
