"""Model libraries and their weights: open_clip and transformers as they are imported here, by name, folder or hub id.

The only file that knows the two; both are imported when an encoder is made, not before.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

CODE = ("trust_remote_code", "code_revision", "custom_code", "auto_map", "custom_pipelines")  # ask for code to be run


def import_open_clip() -> Any:
    """The open_clip module, imported after `cure_torchvision`. Import it through here."""
    import_transformers()  # open_clip loads tokenizers and text towers by it
    import open_clip

    return open_clip


def import_transformers() -> Any:
    """The transformers module, imported after `cure_torchvision`. Import it through here.

    A model's folder or repository may hold code (`auto_map`), which transformers offers to run: by default it asks the
    person at the keyboard. Here the answer is no, also where a library in between does not say so.
    """
    cure_torchvision()
    import transformers
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds that it would wait for a yes
    return transformers


def cure_torchvision() -> None:
    """Let torchvision be imported where its compiled part does not fit this torch.

    A CPU build of torch beside the ordinary torchvision wheel cannot load torchvision's operators, and the import
    then stops at "operator torchvision::nms does not exist". Declaring the schemas is enough: nothing here calls
    them. Does nothing where the operators load.
    """
    spec = importlib.util.find_spec("torchvision")
    if "torchvision" in sys.modules or _TORCHVISION or spec is None or spec.origin is None:
        return
    try:
        for compiled in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(compiled)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _TORCHVISION.append(library)


_TORCHVISION: list[torch.library.Library] = []  # schemas live as long as the library object


def open_clip_source(model: str) -> str:
    """The part of a model's name by which open_clip finds its config and tokenizer.

    Args:
        model: as of `OpenCLIPEncoder`.
    """
    schema, identifier = import_open_clip().factory.parse_model_name(model)
    if schema is None:
        return model.partition(":")[0]
    return f"local-dir:{Path(identifier).expanduser()}" if schema == "local-dir" else model


def load_open_clip(model: str, pretrained: str | None = None) -> Any:
    """An open_clip model in float32 on the CPU; arguments and errors as of `OpenCLIPEncoder`.

    Args:
        model, pretrained: as of `OpenCLIPEncoder`.

    Raises:
        ValueError: an unknown name, or weights that `model` names already.
        FileNotFoundError: weights that are neither here nor to be downloaded.
    """
    open_clip = import_open_clip()
    where = "OpenCLIPEncoder: model"
    source = open_clip_source(model)
    schema, identifier = open_clip.factory.parse_model_name(source)
    weights = pretrained != "random"
    options: dict[str, Any] = {"pretrained_text": False, "load_weights": weights}
    if schema is None:
        _check_name(where, source, open_clip.list_models())
        options |= _named_weights(source, pretrained or model.partition(":")[2])
    elif weights and pretrained is not None:
        raise ValueError(f"OpenCLIPEncoder: pretrained must be null with {schema}:…; got {pretrained!r}.")
    elif schema == "local-dir":
        _check_folder(where, Path(identifier), weights=weights)
    else:
        with explain_missing(where, model, put_folder(identifier)):
            open_clip.get_model_config(model)
            if weights:
                open_clip.pretrained.download_pretrained_from_hf(identifier)
    _check_runs_nothing(where, model, open_clip.get_model_config(source))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # random weights are the same everywhere
        with _as_asked(weights):
            return open_clip.create_model(source, **options)


@contextmanager
def _as_asked(weights: bool) -> Iterator[None]:
    """No warning that a model is random, where that is what was asked for."""
    before = logging.root.manager.disable
    if not weights:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_runs_nothing(where: str, model: str, config: Any) -> None:
    """Refuse a model's config that asks for code beside it to be run, wherever in it.

    Raises:
        ValueError: names the setting.
    """
    for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
        if key in CODE and value:
            raise ValueError(
                f"{where} must come without code of its own; {model!r} has {key}: {value!r} in its config, and nothing "
                "of it is run. Take another copy of the model, or remove that setting."
            )
        if isinstance(value, Mapping | list):
            _check_runs_nothing(where, model, value)


def _named_weights(name: str, tag: str) -> dict[str, Any]:
    """Arguments that make open_clip load one of an architecture's published weights, or a file of them."""
    open_clip = import_open_clip()
    where = f"OpenCLIPEncoder: weights of {name}"
    if tag == "random":
        return {}
    tags = open_clip.list_pretrained_tags_by_model(name)
    if Path(tag).is_file():
        known = [open_clip.get_pretrained_cfg(name, each) for each in tags]
        looks = [{key: each.get(key) for key in ("mean", "std", "interpolation", "resize_mode")} for each in known]
        if any(look != looks[0] for look in looks):
            raise ValueError(
                f"{where}: a file must come with its preprocessing, which differs between weights of {name}; "
                f"got {tag}. Put it in a folder with its open_clip_config.json and give model=local-dir:FOLDER."
            )
        return {"pretrained": tag, "force_preprocess_cfg": looks[0] if looks else None}
    _check_name(where, tag, tags)
    config = open_clip.get_pretrained_cfg(name, tag)
    hub = config.get("hf_hub", "").strip("/")
    url = config.get("url")
    put = put_folder(hub) if hub else f"Download {url} where there is a network, and give pretrained=FILE."
    with explain_missing(where, tag, put):
        open_clip.pretrained.download_pretrained(config)
    return {"pretrained": tag, "force_quick_gelu": bool(config.get("quick_gelu"))}


def _check_name(where: str, name: str, choices: Sequence[str]) -> None:
    if name in choices:
        return
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.3) or list(choices)
    raise ValueError(f"{where} must be one that open_clip knows; got {name!r}. Nearest: {', '.join(near[:8])}.")


def _check_folder(where: str, folder: Path, *, weights: bool) -> None:
    """Refuse a folder without open_clip's config, or without weights where they are wanted."""
    missing = [] if (folder / "open_clip_config.json").is_file() else ["open_clip_config.json"]
    if weights and not any(path.suffix in (".safetensors", ".bin", ".pth") for path in folder.glob("*")):
        missing.append("open_clip_model.safetensors")
    if missing:
        raise FileNotFoundError(f"{where}: folder {folder} must hold {' and '.join(missing)}; it does not.")


def put_folder(hub_id: str) -> str:
    """What to do where a repository's files are not here.

    Args:
        hub_id: OWNER/NAME.
    """
    return (
        f"Run `hf download {hub_id} --local-dir FOLDER` where there is a network, copy FOLDER here, "
        "and give model=local-dir:FOLDER."
    )


@contextmanager
def explain_missing(where: str, name: str, put: str) -> Iterator[None]:
    """Say what to download and where to put it, whatever way a download failed; without a network, at once.

    Args:
        where: the caller and what it loads, for the error.
        name: of the weights.
        put: what to do.

    Raises:
        FileNotFoundError: what is loaded inside is neither here nor to be fetched.
        ValueError: it needs a package that is not installed, or wants code of its own to be run.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)  # else it retries for a minute
    try:
        yield
    except ImportError as error:
        if "sentencepiece" not in str(error).lower():
            raise
        raise ValueError(
            f"{where} {name!r} needs the package sentencepiece for its texts, which is not installed. Install it: "
            "pip install 'embodied-rewards[siglip]'."
        ) from error
    except Exception as error:
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise ValueError(
                f"{where} must come without code of its own; {name!r} wants some to be run, and none is."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FileNotFoundError(
            f"{where} {name!r} is not on this machine and was not fetched. {put} ({reason})"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _reachable(url: str) -> bool:
    """Whether a server answers; taken for granted behind a proxy."""
    if getproxies():
        return True
    try:
        socket.create_connection((urlsplit(url).hostname, 443), timeout=3).close()
    except OSError:
        return False
    return True
