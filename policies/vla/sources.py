"""Where a pretrained body comes from: its folder, checked, and loaded from safetensors; what is trained; its words."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from policies.vla.families import FAMILIES, Family, natural_size

TRAIN, PRECISIONS, ATTENTION = ("lora", "head", "full"), ("fp32", "bf16"), ("sdpa", "eager")
NOTHING = -1  # a token that is not there
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A backbone, and how it is trained; JSON values alone.

    Attributes:
        source: a hub id, or a folder as `save_pretrained` writes it.
        hash: of its files; "" before it is known.
        train: "lora" (rank and alpha), "head" (what is new alone) or "full".
        rank, alpha: of LoRA, on all its linear layers; what is learned is scaled by alpha / rank.
        film: whether the sentence modulates the vision tower.
        precision: "fp32" or "bf16": of what is frozen; of the computation where all is trained.
        attention: "sdpa" or "eager".
        checkpointing: whether activations are computed again in the backward pass, for memory.
        size: side of a picture.
        augment: whether pictures are cropped and recoloured in training, and cropped in use.

    Raises:
        ValueError: a value that none of them takes.
    """

    source: str
    hash: str = ""
    train: str = "lora"
    rank: int = 32
    alpha: float = 16.0
    film: bool = False
    precision: str = "fp32"
    attention: str = "sdpa"
    checkpointing: bool = False
    size: int = 224
    augment: bool = True

    def __post_init__(self) -> None:
        for name, known in (("train", TRAIN), ("precision", PRECISIONS), ("attention", ATTENTION)):
            if getattr(self, name) not in known:
                raise ValueError(f"Chosen: {name} must be one of {', '.join(known)}; got {getattr(self, name)!r}.")
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"Chosen: rank must be 1 or more and alpha above 0; got {self.rank} and {self.alpha}.")


class Prompts:
    """Instructions as tokens, asked the way a family was trained; marks of the model's own in them are only text.

    Args:
        folder: of the backbone.
        family: of it.

    Attributes:
        before, opening, closing: token numbers, see `Family`.
    """

    def __init__(self, folder: Path, family: Family) -> None:
        import transformers

        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._asked = family.asked
        added = {token.content.lower() for token in self._tokenizer.added_tokens_decoder.values()}
        self._marks = sorted((mark for mark in added if len(mark) > 1), key=len, reverse=True)
        self.before, self.opening, self.closing = (
            torch.tensor(self._ids(text), dtype=torch.long) for text in (family.before, family.opening, family.closing)
        )

    def __call__(self, texts: Sequence[str]) -> Int64[Tensor, "n T"]:
        """Token numbers, `NOTHING` where a sentence is shorter than the longest."""
        rows = [torch.tensor(self._ids(self._asked.format(self._defused(text.strip().lower())))) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NOTHING)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids if text else []

    def _defused(self, text: str) -> str:
        for mark in self._marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text


def fetched(source: str) -> Path:
    """The folder of a backbone; one of the hub is downloaded, but for what is not safetensors, JSON or words.

    Args:
        source: a folder, or a hub id.

    Raises:
        FileNotFoundError: it is neither here nor to be had.
    """
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        return folder
    put = f"Run `hf download {source} --local-dir FOLDER` where there is a network, and give policy.backbone=FOLDER."
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FileNotFoundError(
            f"Backbone: source must be a hub id (OWNER/NAME), or a folder with config.json; got {source!r}. {put}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # no network, no such name, nothing in the cache
        raise FileNotFoundError(f"Backbone: {source!r} is not here and cannot be downloaded. {put}") from error


def content_hash(folder: Path) -> str:
    """SHA-256 of a backbone's weights and config, by name.

    Args:
        folder: of the backbone.
    """
    found = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"], key=lambda file: file.name):
        found.update(file.name.encode())
        with file.open("rb") as data:
            found.update(hashlib.file_digest(data, "sha256").digest())
    return found.hexdigest()


def read_config(folder: Path, source: str) -> Any:
    """A backbone's config.

    Args:
        folder: of the backbone.
        source: named in errors.

    Raises:
        ValueError: no image-text model of `FAMILIES`.
    """
    try:
        kind = str(json.loads((folder / "config.json").read_text("utf-8")).get("model_type"))
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"Backbone: {source} must hold a model's config.json; it is damaged ({error}).") from error
    if kind not in FAMILIES:
        raise ValueError(
            f"Backbone: source must be an image-text model, one of {', '.join(FAMILIES)}; {source!r} is {kind}, which "
            "reads no pictures, or not in a way that is known here."
        )
    import transformers

    return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


def check_size(config: Any, size: int, source: str) -> None:
    """Refuse pictures of a size that a backbone cannot take.

    Args:
        config: the backbone's.
        size: side in pixels.
        source: named in errors.

    Raises:
        ValueError: so.
    """
    step, natural = FAMILIES[config.model_type].step(config), natural_size(config)
    if size < step or size % step or (step == natural and size != step):
        wanted = f"{step}" if step == natural else f"a multiple of {step}"
        raise ValueError(f"Backbone: size must be {wanted} for {source}; got {size}.")


def lora_package() -> Any:
    """The peft module.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Backbone: train=lora needs peft (pip install "embodied-rewards[vla]"). Or take train=head or train=full.'
        ) from error
    return peft


def colours(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that its pictures are normalised by.

    Args:
        folder: of the backbone.

    Raises:
        ValueError: the folder does not say them.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            about = json.loads((folder / name).read_text("utf-8"))
            about = about.get("image_processor", about)
            if "image_mean" in about and "image_std" in about:
                return list(about["image_mean"]), list(about["image_std"])
    raise ValueError(f"Backbone: {folder} must hold preprocessor_config.json with image_mean and image_std.")


def loaded(folder: Path, chosen: Chosen) -> Any:
    """The network without its language head, from safetensors alone, and every weight of it.

    Args:
        folder: of the backbone.
        chosen: precision and attention among it.

    Raises:
        FileNotFoundError: no weights as safetensors.
        ValueError: weights are missing.
    """
    import transformers

    half = chosen.precision == "bf16" and chosen.train != "full"
    try:
        with _quiet(transformers):
            network, about = transformers.AutoModel.from_pretrained(
                folder, dtype=torch.bfloat16 if half else torch.float32, attn_implementation=chosen.attention,
                use_safetensors=True, trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
    except OSError as error:
        raise FileNotFoundError(f"Backbone: {folder} must hold weights as safetensors ({error}).") from error
    if missing := sorted(about["missing_keys"]):
        raise ValueError(f"Backbone: {folder} lacks weights: {', '.join(missing[:3])}, {len(missing)} in all.")
    return network


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its report of a language head that is left out, and its bars."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def add_lora(network: Any, chosen: Chosen) -> None:
    """LoRA on every linear layer, begun from the random numbers that torch gives; OFT's Gaussian start.

    Args:
        network: is changed in place.
        chosen: rank and alpha among it.
    """
    peft = lora_package()
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    config = peft.LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=0.0,
        target_modules=layers,
        init_lora_weights="gaussian",  # pyright: ignore[reportArgumentType]
    )
    peft.inject_adapter_in_model(config, network)
    for name, value in network.named_parameters():
        if "lora_" in name:
            value.data = value.data.float()
