"""Goals in words that the embedded encoder was never taught: its score of such a text says nothing, and looks like any.

The encoder is small and knows what its captions say (`sim_assets/*/captions.yaml`). A text that names a thing or a
colour that no caption of its world names falls somewhere among those it knows: "a cat on a sofa" scores above the right
goal.
"""

from __future__ import annotations

import re
import sys
from functools import cache

from omegaconf import DictConfig

from embodied.building.goals import ASKED, NAMED, parts_of, takes_goal, told_goals
from embodied.envs import WORLDS, is_world, tasks, world_scene
from embodied.envs.captions import Captions, words
from embodied.literal import resolved
from embodied.paths import asset
from rewards.phrases import COLOURS, noun_phrases

EMBEDDED = "rewards.encoders.embedded_encoder"
ENCODERS = {"embedded": "desk", "town": "town"}  # choice -> what it knows
TAUGHT = {  # what the embedded encoder knows, by `encoder.knows` -> the scenes that it learned
    "desk": ("desk", "reacher", "cartpole", "humanoid"),
    "town": ("drive", "humanoid"),
}
_COLOUR = re.compile(f"(?:{COLOURS})$")


def goals_read(config: DictConfig) -> list[str]:
    """The goals of a verb's config that its encoder reads: none of those that another model is asked about."""
    if config.reward.get("_target_") is None:
        return []
    read = [part for part in parts_of(resolved(config.reward)).values() if takes_goal(part)]
    return [goal for part in read if part["_target_"] not in (*ASKED, *NAMED) for goal in told_goals(part)]


def warn(config: DictConfig) -> bool:
    """Say on standard error which goals of a verb's config name what its encoder was never taught, or that its world or
    that world's task is such a thing.

    Only the embedded encoder's captions are known; of other encoders nothing is said.

    Returns:
        Whether its pictures were never taught, so that nobody need look at them.
    """
    goals = goals_read(config)
    env_id, ours = str(config.env.id), is_world(config.env.id)
    if config.encoder.get("_target_") != EMBEDDED or not goals:
        return False
    names = [env_id.removeprefix("embodied/").removesuffix("-v0")] if ours else WORLDS
    scenes = {world_scene(name) for name in names}
    taught = set(TAUGHT[str(config.encoder.get("knows", "desk"))])
    if not scenes & taught:
        knowing = next(name for name, knows in ENCODERS.items() if scenes & set(TAUGHT[knows]))
        print(
            f"encoder: these weights were never taught pictures of {env_id}, so their scores there say nothing. "
            f"Take encoder={knowing}, which was, or a larger: encoder=open_clip.",
            file=sys.stderr,
        )
        return True
    if ours and not offered(names[0]):
        print(
            f"encoder: no sentence is offered for what {env_id} asks for, since the embedded encoder was never taught "
            f"to see it; its scores may say something else. Teach one (embodied pretrain), or take a larger: "
            "encoder=open_clip.",
            file=sys.stderr,
        )
    known = known_words(tuple(sorted(scenes & taught)))
    for goal in dict.fromkeys(goals):
        if unknown := unknown_words(goal, known):
            named = ", ".join(repr(word) for word in unknown)
            where = f"of {env_id}" if ours else "of any world"
            print(
                f"goal: {goal!r} names what the embedded encoder was never taught, {named}: no caption {where} has it, "
                "so its scores say nothing of it. Use words of the captions (embodied list what=worlds), or take an "
                "encoder that knows it: encoder=open_clip.",
                file=sys.stderr,
            )
    return False


def unknown_words(text: str, known: frozenset[str]) -> list[str]:
    """The things and colours that a text names and `known` lacks, each once, in its order.

    A thing is the last word of a noun phrase, in whatever ending; what else describes it does not count, but for its
    colour.
    """
    found: dict[str, None] = {}
    for phrase in (part for name in noun_phrases(text) for part in name.split(" of ")):
        *before, thing = words(phrase)
        for word in before:
            if _COLOUR.match(word) and word not in known:
                found[word] = None
        if known.isdisjoint(_endings(thing)):
            found[thing] = None
    return list(found)


def offered(world: str) -> bool:
    """Whether there is a sentence that we offer for what one of `WORLDS` asks for."""
    return tasks.WORLDS[world].told()[1] in Captions.load(asset(world_scene(world)) / "captions.yaml").goals


@cache
def known_words(scenes: tuple[str, ...]) -> frozenset[str]:
    """Every word of the training captions of some scenes (folders of `sim_assets/`)."""
    captions = [Captions.load(asset(scene) / "captions.yaml") for scene in scenes]
    wordings = [splits["train"] for each in captions for splits in each.facts.values()]
    return frozenset(word for each in wordings for word in each.words())


def _endings(word: str) -> set[str]:
    """A word with and without the endings of a plural and of a verb."""
    stems = {word.removesuffix(ending) for ending in ("s", "es", "ed", "ing")}
    return {word, f"{word}s", f"{word}es", *stems}
