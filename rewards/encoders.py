"""Frozen image and text towers: any open_clip or transformers model, and the embedded encoder.

The only file that knows open_clip and transformers; both are imported when an encoder is made, not before.
Shape letters: B batch, D feature width, M texts; H, W image.
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
from torch import Tensor, nn

from rewards.frozen import FrozenEncoder
from rewards.maps import open_clip_maps, transformers_maps
from rewards.preprocess import open_clip_preprocess, transformers_preprocess

CODE = ("trust_remote_code", "code_revision", "custom_code", "auto_map", "custom_pipelines")  # ask for code to be run


class OpenCLIPEncoder(FrozenEncoder):
    """Any open_clip model.

    Args:
        model: `ViT-B-32:laion2b_s34b_b79k` (architecture:weights), `local-dir:FOLDER` (open_clip_config.json beside
            the weights) or `hf-hub:OWNER/NAME`.
        pretrained: weights tag or file, when `model` is an architecture alone; "random" for seeded random weights
            (speed measurements and tests).
        precision: "auto" (bf16 weights and inputs where that is faster, else fp32), "fp32", "bf16",
            "fp16", or "int8" (the image tower's linear layers, on the CPU; see `rewards.int8`). Unit vectors come out
            in float32 always.
        device: "auto" (CUDA if there is one), or a torch device.
        batch_size: frames per forward pass.
        compile: whether to `torch.compile` the image tower (slow first call; batches are padded to one shape).
        resize: how a frame that is not square is brought to the model's size, in place of the model's own way: "squash"
            (the ratio is lost; VLM-RM's), "shortest" (the ends are cut off) or "longest" (the rest is filled).

    Raises:
        ValueError: an unknown architecture or weights tag, names the nearest; weights that int8 would change; a folder
            or repository that wants code of its own to be run, which is never done.
        FileNotFoundError: weights that are neither here nor to be downloaded; says what to put where.
    """

    def __init__(
        self,
        model: str,
        *,
        pretrained: str | None = None,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 64,
        compile: bool = False,
        resize: str | None = None,
    ) -> None:
        super().__init__(model, precision, device, batch_size)
        where = type(self).__name__
        open_clip = import_open_clip()
        towers, source = load_open_clip(model, pretrained), open_clip_source(model)
        with _explain_missing(f"{where}: the tokenizer of", model, _put_folder(source.partition(":")[2] or source)):
            self._tokenizer = open_clip.get_tokenizer(source)
        self.context_length = self._tokenizer.context_length
        self.dim = open_clip.get_model_config(source)["embed_dim"]
        self._set_preprocess(open_clip_preprocess(towers.visual), resize)
        self._maps = open_clip_maps(towers.visual)
        self._use_image_tower(towers.visual, [towers.visual], compile)
        towers.visual = None  # what is left embeds texts, in float32
        self._text_model = towers.eval().requires_grad_(False).to(self.device)

    def _count_tokens(self, text: str) -> int:
        if hasattr(self._tokenizer, "tokenizer"):  # a transformers tokenizer
            text = self._tokenizer.clean_fn(text)
            extra = 3 if self._tokenizer.tokenizer_mode == "clips" else 0
            return len(self._tokenizer.tokenizer(text, add_special_tokens=not extra).input_ids) + extra
        return len(self._tokenizer.encode(text)) + 2

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return self._text_model.encode_text(self._tokenizer(texts).to(self.device))


class TransformersEncoder(FrozenEncoder):
    """Any transformers CLIP or SigLIP (1 and 2, fixed size), and image-only towers such as DINOv2 and DINOv3.

    Args:
        model: hub id (`google/siglip2-base-patch16-224`) or a local folder as `save_pretrained` writes it.
        precision, device, batch_size, compile, resize: see `OpenCLIPEncoder`.

    Raises:
        ValueError: a model whose processor or towers do not give one vector per fixed-size image; a folder or
            repository that wants code of its own to be run, which is never done; a package that is missing.
        FileNotFoundError: weights that are neither here nor to be downloaded; says what to put where.
    SigLIP's texts are lower-cased, as those it was trained on: SigLIP 2's published tokenizer leaves that to its user.
    Departs: an image-only tower gives its pooled output; `encode_texts` then raises.
    """

    def __init__(
        self,
        model: str,
        *,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 64,
        compile: bool = False,
        resize: str | None = None,
    ) -> None:
        super().__init__(model, precision, device, batch_size)
        where = type(self).__name__
        transformers = import_transformers()
        with _explain_missing(
            f"{where}: model",
            model,
            f"Run `hf download {model} --local-dir FOLDER` where there is a "
            "network, copy FOLDER here, and give model=FOLDER.",
        ):
            network = transformers.AutoModel.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
            processor = transformers.AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
            self._tokenizer = None
            if hasattr(network, "get_text_features"):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        if network.config.model_type == "siglip2":
            raise ValueError(
                f"{where}: model must take images of one size; got {model!r}, a NaFlex model. "
                "Use a fixed-size one, such as google/siglip2-base-patch16-224."
            )
        self._set_preprocess(transformers_preprocess(processor, f"{where}: model {model!r}"), resize)
        self._network = network
        self._lower = "siglip" in network.config.model_type
        if self._tokenizer is not None:
            self.context_length = network.config.text_config.max_position_embeddings
        parts = [child for name, child in network.named_children() if "text" not in name]  # texts stay in float32
        self._maps = transformers_maps(network)
        self._use_image_tower(_Pooled(network), parts, compile)
        black = torch.zeros(1, *self._preprocess.crop, 3, dtype=torch.uint8)
        self.dim = self._encode_batch(black).shape[-1]

    def _count_tokens(self, text: str) -> int:
        if self._tokenizer is None:
            raise ValueError(
                f"{type(self).__name__}.encode_texts: model must have a text tower; got {self.name!r}, which only "
                "reads images. Use a CLIP or SigLIP model for text goals."
            )
        return len(self._tokenizer(self._cased(text)).input_ids)

    def _cased(self, text: str) -> str:
        return text.lower() if self._lower else text

    def _embed_texts(self, texts: list[str]) -> Tensor:
        assert self._tokenizer is not None  # _count_tokens raised
        texts = [self._cased(text) for text in texts]
        tokens = self._tokenizer(texts, padding="max_length", max_length=self.context_length, return_tensors="pt")
        if "siglip" in self._network.config.model_type:  # trained with padding unmasked
            tokens.pop("attention_mask", None)
        return _pooled(self._network.get_text_features(**tokens.to(self.device)))


class _Pooled(nn.Module):
    """A transformers model as images -> one vector each."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._features = getattr(network, "get_image_features", network)

    def forward(self, images: Tensor) -> Tensor:
        return _pooled(self._features(pixel_values=images))


def _pooled(output: Any) -> Tensor:
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled


def embedded_encoder(**options: Any) -> OpenCLIPEncoder:
    """The small encoder that ships with the package, trained on renders of its own worlds.

    Args:
        options: `precision`, `device`, `batch_size`, `compile`, `resize` of `OpenCLIPEncoder`.

    Raises:
        FileNotFoundError: this copy of the package lacks it.
    """
    root = Path(__file__).resolve().parent.parent
    folders = [root / "sim_assets" / "encoder", root / "embodied" / "sim_assets" / "encoder"]  # checkout, wheel
    for folder in folders:
        if (folder / "open_clip_config.json").is_file():
            encoder = OpenCLIPEncoder(f"local-dir:{folder}", **options)
            encoder.name = encoder.name.replace(f"local-dir:{folder}", "embedded")
            return encoder
    raise FileNotFoundError(
        f"embedded_encoder: {folders[0]} must hold open_clip_config.json and weights; it does not. "
        "Reinstall the package, or train one: embodied pretrain"
    )


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
    """The part of a model's name by which open_clip finds its config and tokenizer."""
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
        with _explain_missing(where, model, _put_folder(identifier)):
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
    put = _put_folder(hub) if hub else f"Download {url} where there is a network, and give pretrained=FILE."
    with _explain_missing(where, tag, put):
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


def _put_folder(hub_id: str) -> str:
    return (
        f"Run `hf download {hub_id} --local-dir FOLDER` where there is a network, copy FOLDER here, "
        "and give model=local-dir:FOLDER."
    )


@contextmanager
def _explain_missing(where: str, name: str, put: str) -> Iterator[None]:
    """Say what to download and where to put it, whatever way a download failed; without a network, at once."""
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
