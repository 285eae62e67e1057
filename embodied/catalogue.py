"""What there is to choose, with a line each; read from the configs, so it cannot name what is not there.

A config's first line, a comment, says what it is. What a reward needs stands here, or is what its config leaves open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from embodied import paths

KINDS = {  # kind -> how it is written
    "worlds": "env=NAME",
    "rewards": "reward=NAME, or several: reward=[a,b]",
    "models": "reward=pretrained reward.model=NAME",
    "combinations": "reward.combine=NAME",
    "encoders": "encoder=NAME",
    "learners": "policy=NAME",
    "sources": "source=…, of embodied watch",
}

_GROUPS = {"rewards": "reward", "combinations": "reward/combine", "encoders": "encoder", "learners": "policy"}
_SENTENCE, _DEMOS = "a sentence true of success (goal)", "demonstrations (reward.demos) or a fitted reward.model"
_LABELLED = "labelled episodes, failures among them (reward.demos), or a fitted reward.model"
_CHAT = "an instruction (goal) and a chat model (reward.vlm)"
_NEEDS = {
    "clip": _SENTENCE,
    "contrast": "a sentence true of success and one of failure (goal, reward.negative)",
    "synthesis": "the two sentences of contrast, and readings of the robot",
    "softmax": "a sentence true of success and some of other outcomes (goal, reward.negative)",
    "calibrated": "a sentence true of success and a threshold (goal, reward.threshold)",
    "keypoint": "an instruction (goal; the world's by default), best a calibrated camera or demonstrations",
    "demonstration": _DEMOS,
    "xirl": _DEMOS,
    "rapl": _DEMOS,
    "process": _DEMOS,
    "success": _LABELLED,
    "goal_image": "pictures of the goal (reward.goal_images) and demonstrations, or a fitted reward.model",
    "preference": "comparisons, a chat model or a sentence to compare by, and episodes (reward.demos)",
    "vpl": "comparisons of several people (reward.labels) and episodes (reward.demos)",
    "grm_vlm": _CHAT,
    "topreward_chat": _CHAT,
    "gvl_chat": _CHAT,
    "pretrained": "an instruction (goal) and a model's name (reward.model), with its weights here or on a server",
    "remote": "a server (embodied serve) at reward.url",
    "true": "",
}
_SOURCES = {
    "0, /dev/video0": "a camera of this machine",
    "rtsp://HOST/STREAM": "a network camera",
    "http://HOST/PATH": "MJPEG or a video over HTTP",
    "zmq://HOST:PORT/CAMERA": "LeRobot's cameras over ZeroMQ; needs the extra zmq",
    "film.mp4": "a video file; a folder of images likewise",
    "dataset:FOLDER#EPISODE/CAMERA": "an episode of a LeRobot dataset",
    "env:WORLD/CAMERA": "one of our worlds, such as env:desk-drawer",
    "realsense:SERIAL": "an Intel RealSense; needs the extra realsense",
    "ros2:/TOPIC": "a ROS 2 image topic; needs rclpy",
    "{front: 0, side: 1}": "several cameras by name",
}


class Entry(NamedTuple):
    """One choice.

    Attributes:
        name: as it is written.
        text: what it is; of a world, the task as an order and, where there is one, the sentence true of its success.
        needs: what it wants from the user; "" where nothing.
    """

    name: str
    text: str
    needs: str


def entries(kind: str) -> list[Entry]:
    """The choices of one of `KINDS`, in the order of their names."""
    if kind == "worlds":
        return [*_worlds(), Entry("gym", first_line("env", "gym"), "an environment's id (env.id)")]
    if kind == "sources":
        return [Entry(name, text, "") for name, text in _SOURCES.items()]
    if kind == "models":
        from rewards.pretrained import MODELS

        return [
            Entry(name, _sentence(each.about), f"the weights {each.weights}" if each.weights else "weights of your own")
            for name, each in sorted(MODELS.items())
        ]
    group = _GROUPS[kind]
    files = sorted((paths.configs() / group).glob("*.yaml"))
    names = [file.stem for file in files if not file.stem.startswith("_")]
    return [Entry(name, first_line(group, name), _needs(kind, group, name)) for name in names]


def _sentence(text: str) -> str:
    """Words as a sentence of their own."""
    return f"{text[:1].upper()}{text[1:]}."


def _worlds() -> list[Entry]:
    """Ours, without making any of them."""
    from embodied.envs.tasks import WORLDS

    found = []
    for name, task in sorted(WORLDS.items()):
        scene, (order, fact) = name.partition("-")[0], task.told()
        goals = yaml.safe_load(paths.asset(f"{scene}/captions.yaml").read_text("utf-8"))["goals"]
        sentence = f"; “{goals[fact]}”" if fact in goals else ""
        found.append(Entry(name, f"{order}{sentence}", ""))
    return found


def first_line(group: str, name: str) -> str:
    """What a config's first line says of it."""
    line = (paths.configs() / group / f"{name}.yaml").read_text("utf-8").partition("\n")[0]
    return line.removeprefix("# ") if line.startswith("# ") and not line.startswith("# @") else ""


def _needs(kind: str, group: str, name: str) -> str:
    if kind == "rewards" and name in _NEEDS:
        return _NEEDS[name]
    config: dict[str, Any] = yaml.safe_load((paths.configs() / group / f"{name}.yaml").read_text("utf-8"))
    prefix = group.replace("/combine", "").replace("/", ".")
    return ", ".join(f"{prefix}.{key}" for key, value in config.items() if value == "???")


def comments(verb: str, chosen: Mapping[str, str]) -> dict[str, str]:
    """What the config files say of each dotted key, and in their first line of the group.

    A comment may go on in a line of its own, indented deeper than its key.

    Args:
        verb: whose config it is.
        chosen: group -> the choice made in it.
    """
    said: dict[str, str] = {}
    for group, name in {"": verb, **chosen}.items():
        file = paths.configs() / group / f"{name}.yaml"
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        if group and lines and lines[0].startswith("# "):
            said[group] = lines[0][2:]
        last, depth = "", 0  # the key whose comment may go on, and its indentation
        for key, line in _keyed(lines):
            comment = re.search(r"(?:^|\s)#\s+(.*)$", line)
            indent = len(line) - len(line.lstrip(" "))
            if key:
                last, depth = f"{group}.{key}" if group else key, indent
            if comment and key:
                said[last] = comment[1]
            elif comment and last in said and indent > depth:
                said[last] += f" {comment[1]}"
    return said


def commented(lines: Sequence[str], said: Mapping[str, str]) -> list[str]:
    """Lines of YAML with what is said of their keys."""
    return [f"{line}  # {said[key]}" if key in said else line for key, line in _keyed(lines)]


def _keyed(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The dotted key of each line of YAML, empty where there is none, and the line."""
    above: list[tuple[int, str]] = []
    for line in lines:
        found = re.match(r"( *)(\w+):", line)
        if found:
            indent = len(found[1])
            above = [(depth, key) for depth, key in above if depth < indent] + [(indent, found[2])]
        yield ".".join(key for _, key in above) if found else "", line
