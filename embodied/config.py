"""From the words of a command line to a verb's config: choices of groups, settings, and several rewards as one.

Hydra composes; what a person wrote is checked first, so that a wrong word is named with the nearest right one.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from embodied import paths
from embodied.errors import UserError, nearest
from embodied.words import PLACES, check_grammar, quote, suggestion

if TYPE_CHECKING:
    from omegaconf import DictConfig

GIVEN = "given"  # OmegaConf's flag on what the user set
COUNT_OR_NAME = ("demos", "adapt", "goal_images")  # settings that take a number, or say which
LISTED = {"env": "worlds", "reward": "rewards", "encoder": "encoders", "policy": "learners"}  # by `embodied list`
KNOWING = {"drive": "town", "humanoid": "town"}  # how a world's name begins -> the encoder that knows it
COMPOSED = "_composed"  # the config of several rewards


def choices(group: str) -> list[str]:
    """The configs of a group that a person may choose."""
    return sorted(path.stem for path in (paths.configs() / group).glob("*.yaml") if not path.stem.startswith("_"))


def compose(verb: str, overrides: Sequence[str]) -> DictConfig:
    """The verb's config with the user's overrides.

    Args:
        verb: one of `embodied.cli.verbs()`.
        overrides: Hydra overrides. A sentence (spaces, commas, apostrophes) needs no quotes of its own: the
            shell's are gone by now.

    Returns:
        The config, in struct mode.

    Raises:
        UserError: not an override; an unknown key, group or choice (with the nearest); a value of another type;
            a mandatory value left out.
    """
    from omegaconf import DictConfig, OmegaConf

    groups, values, plain, parts = _choose(verb, overrides)
    base, chosen = _compose(verb, groups)
    if knowing := _knowing(groups, chosen):
        base, _ = _compose(verb, [*groups, *knowing])
    if parts:
        values = [each for word in values for each in _to_parts(word, base)]
    for word in values:
        key = word.split("=", 1)[0]
        if word[0] not in "+~":
            _check_key(key, base)
            for inner in _inside(word, base):
                _check_key(inner, base)
        elif word[0] == "+" and "." not in key:  # nothing would read it
            _check_key(key.lstrip("+"), base)
    config = copy.deepcopy(_compose(verb, groups + knowing + [_filling(word, base) for word in values])[0])
    config.merge_with(plain)
    node: Any
    for key in plain:
        node = config._get_node(key)
        node._set_flag(GIVEN, True)
    for word in groups:
        group = re.split(r"[=@/]", word.lstrip("+"), maxsplit=1)[0]
        node = config._get_node(group) if group in config else None  # an experiment has none of its own
        if OmegaConf.is_config(node):
            node._set_flag(GIVEN, True)  # all of it was chosen
    for word in values:
        if word[0] not in "+~":
            for key in (word.split("=", 1)[0], *_inside(word, base)):
                _check_kind(key, base, config)
        if not word.startswith("~"):
            key = word.split("=", 1)[0].lstrip("+")
            node = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
            node._get_node(key.rpartition(".")[2])._set_flag(GIVEN, True)
    seed = config.get("seed", 0)
    if seed is None or seed < 0:
        raise UserError(f"seed must be at least 0; got {config.seed}.")
    if missing := sorted(key.replace("reward.parts.", "reward.") for key in OmegaConf.missing_keys(config)):
        raise UserError("; ".join(f"{key} is missing: add {key}=…" for key in missing))
    assert isinstance(config, DictConfig)
    return config


def composed(verb: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The verb's config with the choices of groups among the overrides alone, and what was chosen in each group.

    Args:
        verb: one of `embodied.cli.verbs()`.
        overrides: as for `compose`; settings among them are left out.

    Returns:
        The config, and group -> choice.

    Raises:
        UserError: not an override, or an unknown choice.
    """
    groups = _choose(verb, overrides).groups
    config, chosen = _compose(verb, groups)
    if knowing := _knowing(groups, chosen):
        config, chosen = _compose(verb, groups + knowing)
    return copy.deepcopy(config), dict(chosen)


def given(config: DictConfig, key: str) -> bool:
    """Whether the user set one of the verb's own keys on the command line, be it to its default."""
    node: Any = config._get_node(key)
    return bool(node._get_flag(GIVEN))


def given_in(config: DictConfig, key: str) -> bool:
    """Whether the user set a key, or anything in it, by its own name: not as a part of a group that was chosen.

    Args:
        config: the verb's.
        key: dotted.
    """
    from omegaconf import OmegaConf

    node: Any = config
    for part in key.split("."):
        node = node._get_node(part) if OmegaConf.is_config(node) and part in node else None
    inner = () if node is None or not OmegaConf.is_dict(node) or node._is_none() else [n for _, n in flatten(node)]
    return node is not None and any(each._metadata.flags and each._metadata.flags.get(GIVEN) for each in (node, *inner))


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its raw value, inner nodes too.

    Args:
        config: a mapping, not resolved.
        prefix: before each key.
    """
    from omegaconf import DictConfig

    for key in config:
        node = config._get_node(key)
        yield f"{prefix}{key}", node
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from flatten(node, f"{prefix}{key}.")


class _Choice(NamedTuple):
    """Overrides, apart."""

    groups: list[str]  # Hydra's, of the groups' choices
    values: list[str]  # of settings
    plain: dict[str, str | None]  # settings that have a group's name
    parts: list[str]  # rewards that are composed


def _choose(verb: str, overrides: Sequence[str]) -> _Choice:
    """What is a choice of a group and what a setting.

    Raises:
        UserError: not an override, or an unknown choice.
    """
    groups: list[str] = []
    values: list[str] = []
    plain: dict[str, str | None] = {}
    parts: list[str] = []
    base, chosen = _compose(verb, [])
    for word in overrides:
        _check_text(word)
        word = quote(word)
        if word.startswith("goal=") and "goal" not in base and "reward" in chosen:
            word = f"reward.{word}"
        key = re.split(r"[=@]", word.lstrip("+~"), maxsplit=1)[0]
        if not key or ("=" not in word and not word.startswith("~")):
            raise UserError(f"settings are written key=value; got {word!r}.")
        value = check_grammar(word)
        is_group = "." not in key and (paths.configs() / key).is_dir()
        if is_group and key in base and key not in chosen:  # a plain setting; Hydra would look for the group's file
            plain[key] = None if value is None else str(value)
        elif is_group and "=" in word and not word.startswith("~"):
            name = word.split("=", 1)[1]
            if key == "reward":
                parts = _parts(name)
            if key == "reward" and parts:
                name = COMPOSED
            elif name not in choices(key) and not (name == "null" and chosen.get(key, "null") == "null"):
                raise UserError(f"unknown {key} {name!r}. {nearest(name, choices(key), listed=LISTED.get(key))}")
            name = name if name == "null" else f"'{name}'"  # a choice may be called true
            groups.append(f"{'' if key in chosen else '+'}{key}={name}")
        else:
            (groups if is_group else values).append(word)
    if parts:
        groups += [f"+reward@reward.parts.{part}={part}" for part in parts]
        combined, values = _split(values, lambda word: word.startswith("reward.combine="))
        for word in combined:
            name = word.split("=", 1)[1]
            if name not in choices("reward/combine"):
                known = choices("reward/combine")
                told = nearest(name, known, listed="combinations")
                raise UserError(f"reward.combine must be a way to combine; got {name!r}. {told}")
            groups.append(f"reward/combine={name}")
    return _Choice(groups, values, plain, parts)


def _check_text(word: str) -> None:
    """Refuse what is no text before anything is written: no config holds it, and few libraries open such a file.

    Raises:
        UserError: shows the word.
    """
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"settings must be texts in UTF-8; got {word!r}. Rename the file, or set a locale of UTF-8: LC_ALL=C.UTF-8."
        ) from error


def _knowing(groups: list[str], chosen: dict[str, str]) -> list[str]:
    """The choice of the encoder that knows the chosen world, where the user chose none and the default does not."""
    encoder = KNOWING.get(chosen.get("env", "").partition("-")[0])
    if encoder is None or "encoder" not in chosen or any(word.startswith("encoder=") for word in groups):
        return []
    return [f"encoder={encoder}"]


def _parts(value: str) -> list[str]:
    """The names in `[clip,process]`; none where the value is not a list."""
    if not (value.startswith("[") and value.endswith("]")):
        return []
    names = [name.strip() for name in value[1:-1].split(",") if name.strip()]
    known = [name for name in choices("reward") if name != "true"]
    for name in names:
        if name not in known:
            told = nearest(name, known, listed="rewards")
            raise UserError(f"reward={value} must list rewards to compose; got {name!r}. {told}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"reward={value} must list rewards, each once. Several goals of one: reward.goals=[…].")
    return names


def _to_parts(word: str, base: DictConfig) -> list[str]:
    """`reward.clip.goal=x` → `reward.parts.clip.goal=x`; `reward.goal=x` → the same for every part with a goal."""
    found = re.fullmatch(r"([+~]*)reward\.(\w+)(.*)", word, re.DOTALL)
    if found is None or found[2] in base.reward:
        return [word]
    sign, key, rest = found.groups()
    if key in base.reward.parts:
        return [f"{sign}reward.parts.{key}{rest}"]
    having = [name for name, part in base.reward.parts.items() if key in set(part)]
    if not having:
        known = {f"reward.{inner}" for part in base.reward.parts.values() for inner in part if inner[0] != "_"}
        known |= {f"reward.{inner}" for inner in (*base.reward.parts, "combine", "shaping")}
        raise UserError(f"unknown setting 'reward.{key}'. {nearest(f'reward.{key}', known)}")
    return [f"{sign}reward.parts.{name}.{key}{rest}" for name in having]


def _split(words: list[str], chosen: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Those that are chosen, and the others."""
    return [word for word in words if chosen(word)], [word for word in words if not chosen(word)]


def _compose(verb: str, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    """The config, and the choice made in each of our groups: to read, for the next call gets the same."""
    return _compose_once(verb, tuple(overrides), paths.configs())


@lru_cache(maxsize=128)  # Hydra takes a tenth of a second, and the same is asked for several times a command
def _compose_once(verb: str, overrides: tuple[str, ...], folder: Path) -> tuple[DictConfig, dict[str, str]]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    if not (folder / f"{verb}.yaml").is_file():
        raise UserError(f"{folder / verb}.yaml is missing. Install the package again.")
    state = GlobalHydra.instance()
    callers, state.hydra = state.hydra, None  # whoever calls us may use Hydra too
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            config = hydra.compose(verb, list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = callers  # Hydra has put a copy in the place of the one above
    chosen = {k: str(v or "null") for k, v in config.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    with open_dict(config):
        del config["hydra"]
        for part in (config.get("reward") or {}).get("parts", {}).values():
            part.pop("shaping", None)  # the whole is shaped, once
    return config, chosen


def _filling(word: str, base: DictConfig) -> str:
    """An override as Hydra wants it: a mapping that is empty by default may get any keys (`policy.names={a: b}`)."""
    from omegaconf import DictConfig, OmegaConf

    key, _, value = word.partition("=")
    if word[0] in "+~" or not value.startswith("{"):
        return word
    default = OmegaConf.select(base, key)
    return f"++{word}" if isinstance(default, DictConfig) and not default else word


def _check_key(key: str, base: DictConfig) -> None:
    known = dict(flatten(base))
    if key not in known:
        if key == "reward.goal" and "reward" in known:
            raise UserError(f"goal must be left out: {_no_goal(base)}.")
        told = f"unknown setting {key!r}. {suggestion(key, known)}"
        raise UserError(told.replace("reward.parts.", "reward."))


def _inside(word: str, base: DictConfig) -> list[str]:
    """The keys of the mapping that a setting is set to; none where any will do, as where it is empty by default."""
    from omegaconf import DictConfig, OmegaConf

    key = word.split("=", 1)[0]
    known, value = OmegaConf.select(base, key), check_grammar(word)
    if not (isinstance(value, Mapping) and isinstance(known, DictConfig) and known):
        return []
    return [f"{key}.{each}" for each, _ in flatten(OmegaConf.create(dict(value)))]


def _no_goal(base: DictConfig) -> str:
    """Why a reward has no goal."""
    target = base.reward.get("_target_")
    if target is None:
        return "reward=true is the task's own, and follows none"
    name = str(target).rpartition(".")[2].removesuffix("_scorer")
    return f"reward={name} follows none, for its demonstrations or pictures say what the task is"


def _check_kind(key: str, base: DictConfig, config: DictConfig) -> None:
    """Numbers, switches, lists and mappings stay what they are; 1e6 is a whole number where one is wanted."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    default, value = OmegaConf.select(base, key), OmegaConf.select(config, key)
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{key} must be a number; got nan.")
    if isinstance(default, DictConfig) and not isinstance(value, DictConfig) and (value is not None or "." not in key):
        example = f"{key}={{{next(iter(default), 'name')}: …}}"
        raise UserError(f"{key} must be a mapping, as {example}; got {value!r}.")
    group, _, name = key.rpartition(".")
    holder = OmegaConf.select(base, group) if group else base
    place, missing = name in PLACES, isinstance(holder, DictConfig) and OmegaConf.is_missing(holder, name)
    if missing and value is None:
        raise UserError(f"{key} must be given; got null.")
    one = isinstance(default, str) or (place and (missing or key != "data"))  # finetune takes several data
    if isinstance(value, ListConfig) and one and not isinstance(default, ListConfig):
        raise UserError(f"{key} must be one text; got {value}.")
    if isinstance(default, ListConfig) and value is not None and not isinstance(value, ListConfig):
        raise UserError(f"{key} must be a list; got {value}. Write {key}=[{value}].")
    if name in COUNT_OR_NAME and not isinstance(value, float):
        return  # the reward says what it takes
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{key} must be true or false; got {value!r}.")
    elif isinstance(default, int) and isinstance(value, float) and value.is_integer():
        OmegaConf.update(config, key, int(value))
    elif isinstance(default, int | float) and value is not None:
        wanted = "a whole number" if isinstance(default, int) else "a number"
        if isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else int | float):
            raise UserError(f"{key} must be {wanted}; got {value!r}.")
