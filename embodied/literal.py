"""Values from outside as a config's data: no text in them is an expression, whatever it looks like.

OmegaConf reads `${…}` in any text as a reference, to another setting or, by `oc.env`, to the environment. A task text,
a dataset's description of its world and the config that somebody else's run was saved with are data, so they go into a
config through here and through nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from embodied.errors import UserError

NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")  # 1e-4: a number to people, not to YAML 1.1

BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789."))


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """A text; breaks of a line that are none to people, of which YAML would make spaces, are written as escapes."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if BREAKS.search(value) else None)


_Dumper.add_representer(str, _text)


def literal(value: Any) -> Any:
    """The same plain value, written so that OmegaConf gives back every text in it as it stands.

    Args:
        value: mappings, lists and what JSON or YAML holds in them.
    """
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list | tuple) else value


def literal_config(values: Mapping[str, Any]) -> DictConfig:
    """A config of plain values from outside; reading it resolves nothing."""
    config = OmegaConf.create(literal(dict(values)))
    assert isinstance(config, DictConfig)
    return config


def load_literal(file: Path) -> DictConfig:
    """A saved config, as data (see `saved_text`).

    Raises:
        UserError: there is none, or it is no mapping in YAML.
    """
    try:
        values = yaml.load(file.read_text("utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(f"{file} must be a saved config; there is none.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file} must be a saved config, in YAML; it is damaged.") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} must be a saved config, in YAML; it holds a {type(values).__name__}.")
    return literal_config(values)


def resolved(config: DictConfig) -> dict[str, Any]:
    """A config's values with every expression of its own resolved, plain."""
    return OmegaConf.to_container(config, resolve=True)  # pyright: ignore[reportReturnType]


def saved_text(config: DictConfig) -> str:
    """What a run keeps of its config: plain YAML, that means the same wherever it is read."""
    return yaml.dump(resolved(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
