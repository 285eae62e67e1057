"""Align an encoder's image and text towers on frames whose facts are known.

A simulator can tell of every sentence how true it is in every frame, so nothing has to be guessed from pairs:

    loss = mean_ij w_ij · BCE(scale · cos(image_i, text_j) + bias, truth_ij)

with truth in [0, 1] graded by nearness, which makes cos a dense goal reward. This is SigLIP's pairwise sigmoid
loss (arXiv 2303.15343, §3.1). Departs: targets are soft and known for all pairs, so no pair is a false negative;
pairs of a frame with another world's sentence are always false, easy, and weigh `cross_weight`; and the same loss
against one free vector per fact (an anchor, dropped at the end) goes beside it, since a text tower that knows no word
yet says the same of every fact and teaches the image tower nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize, pad

from rewards.encoders.frozen import fast_precision
from rewards.progress import tqdm

Drawer = Callable[[int, np.random.Generator], tuple[str, bool]]  # fact -> (sentence, says the opposite)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Frames of several worlds and how far each of F facts holds in them.

    Attributes:
        frames: (N, H, W, 3) uint8.
        degrees: (N, F) in [0, 1]; 0 for facts of another world; NaN where it is unknown, which counts for nothing.
        worlds: (N,) index of the frame's world.
        fact_worlds: (F,) index of the fact's world.
    """

    frames: np.ndarray
    degrees: np.ndarray
    worlds: np.ndarray
    fact_worlds: np.ndarray


@dataclass(frozen=True, kw_only=True)
class AlignmentRecipe:
    """How long and how hard to train.

    Attributes:
        lr: peak learning rate of AdamW, after a linear warm-up over 3 % of the steps, then cosine to 0.
        wordings: sentences drawn per fact and step.
        cross_weight: weight of pairs whose sentence speaks of another world.
        max_shift_px: largest random translation of a training frame.
        anchor_weight: of the loss against anchors; 0 when the towers already know the words.
        epochs: passes over all frames.
        batch_size: frames in one update.
        weight_decay: of AdamW, on weights alone.
        seed: of the order, the draws and the anchors.
    """

    epochs: int = 8
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    wordings: int = 1
    cross_weight: float = 0.2
    max_shift_px: int = 4
    anchor_weight: float = 1.0
    seed: int = 0


def align(
    model: Any,
    preprocess: Callable[[UInt8[Tensor, "B H W 3"]], Float[Tensor, "B 3 h w"]],
    tokenize: Callable[[Sequence[str]], Tensor],
    examples: Examples,
    draw: Drawer,
    recipe: AlignmentRecipe,
    *,
    device: torch.device,
    on_epoch: Callable[[int, dict], None] | None = None,
    resume: dict | None = None,
) -> None:
    """Train `model` (open_clip's `CLIP` or `CustomTextCLIP`) in place; it ends in eval mode.

    An image tower of which nothing is trained sees every frame once, as it is, and stays to the last bit.

    Args:
        preprocess: raw frames to what `model.encode_image` takes, at the model's size.
        tokenize: M texts to (M, L) int64.
        draw: one training sentence of a fact.
        on_epoch: called after each epoch with its number (from 1) and a state that `resume` takes.
        examples: frames and how true each fact is in each.
        recipe: how long and how hard.
        device: where it trains.

    Raises:
        ValueError: fewer frames than a batch holds.
        FloatingPointError: the loss is NaN or infinite; says the epoch.
    """
    if len(examples.frames) < recipe.batch_size:
        raise ValueError(
            f"align: recipe.batch_size must be at most {len(examples.frames)}, the frames there are; got "
            f"{recipe.batch_size}, of which there would be no batch."
        )
    if getattr(model, "logit_bias", None) is None:
        model.logit_bias = nn.Parameter(torch.tensor(-4.0, device=device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        dim = model.encode_text(tokenize(["a"]).to(device)).shape[-1]
        anchors = nn.Parameter(0.05 * torch.randn(examples.degrees.shape[1], dim).to(device))
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": [*plain, anchors], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=(0.9, 0.98),
    )
    per_epoch = len(examples.frames) // recipe.batch_size
    total = per_epoch * recipe.epochs

    def lr_factor(step: int) -> float:
        warm = max(1, round(0.03 * total))
        return (
            (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor)
    first = 0
    if resume is not None:
        model.load_state_dict(resume["model"])
        anchors.data.copy_(resume["anchors"])
        optimizer.load_state_dict(resume["optimizer"])
        schedule.load_state_dict(resume["schedule"])
        first = resume["epoch"]
    model.to(device, memory_format=torch.channels_last)
    model.train()
    seen = (
        None if any(p.requires_grad for p in model.visual.parameters()) else _seen(model, preprocess, examples, device)
    )
    for epoch in range(first, recipe.epochs):
        rng = np.random.default_rng((recipe.seed, epoch))
        order = rng.permutation(len(examples.frames))
        bar = tqdm(range(per_epoch), desc=f"epoch {epoch + 1}/{recipe.epochs}", mininterval=1.0)
        mean = 0.0
        for i in bar:
            picked = np.sort(order[i * recipe.batch_size : (i + 1) * recipe.batch_size])
            loss = _loss(model, anchors, preprocess, tokenize, examples, picked, draw, recipe, rng, device, seen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            mean += (loss.item() - mean) / (i + 1)
            bar.set_postfix(loss=f"{mean:.4f}")
        if not math.isfinite(mean):
            raise FloatingPointError(f"align: the loss must stay finite; got {mean} in epoch {epoch + 1}. Lower lr.")
        if on_epoch is not None:
            state = {"model": model.state_dict(), "anchors": anchors.data, "optimizer": optimizer.state_dict()}
            on_epoch(epoch + 1, state | {"schedule": schedule.state_dict(), "epoch": epoch + 1, "loss": mean})
    model.eval()


def _loss(
    model: Any,
    anchors: Tensor,
    preprocess: Callable[[Tensor], Tensor],
    tokenize: Callable[[Sequence[str]], Tensor],
    examples: Examples,
    picked: np.ndarray,
    draw: Drawer,
    recipe: AlignmentRecipe,
    rng: np.random.Generator,
    device: torch.device,
    seen: Tensor | None,
) -> Tensor:
    """The loss on the frames `picked` against fresh sentences of every fact; `seen`, (N, D), where images are known."""
    facts = np.repeat(np.arange(examples.degrees.shape[1]), recipe.wordings)
    sentences = [draw(int(fact), rng) for fact in facts]
    texts = tokenize([text for text, _ in sentences]).to(device)
    negated = torch.tensor([flag for _, flag in sentences], device=device)
    truth = torch.from_numpy(examples.degrees[np.ix_(picked, facts)].astype(np.float32)).to(device)
    same = torch.from_numpy(examples.worlds[picked, None] == examples.fact_worlds[facts]).to(device)
    known = ~truth.isnan()
    truth = torch.where(known, truth, 0.0)
    degrees, truth = truth, torch.where(negated & same, 1 - truth, truth)
    # where bf16 is emulated, autocast takes ten times as long as float32
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast_precision(device) == "bf16"):
        if seen is None:
            frames = _augment(torch.from_numpy(examples.frames[picked]).to(device), recipe.max_shift_px, rng)
            images = model.encode_image(preprocess(frames).contiguous(memory_format=torch.channels_last))
        else:
            images = seen[torch.from_numpy(picked)].to(device)
        words = model.encode_text(texts)
    scale, bias = model.logit_scale.exp(), model.logit_bias
    images, words, anchored = (normalize(vectors.float(), dim=-1) for vectors in (images, words, anchors))
    of_fact = slice(None, None, recipe.wordings)  # one column per fact, in order
    weight = torch.where(same, 1.0, recipe.cross_weight) * known

    def loss(texts: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
        logits = scale * images @ texts.T + bias
        return binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum") / weight.sum().clamp(min=1e-6)

    return loss(words, truth, weight) + recipe.anchor_weight * loss(anchored, degrees[:, of_fact], weight[:, of_fact])


@torch.no_grad()
def _seen(
    model: Any, preprocess: Callable[[Tensor], Tensor], examples: Examples, device: torch.device, batch_size: int = 64
) -> Float[Tensor, "N D"]:
    """What an image tower that is not trained says of every frame; it stays in eval mode."""
    model.visual.eval()
    starts = tqdm(range(0, len(examples.frames), batch_size), desc="encoding", mininterval=1.0)
    parts = [
        model.encode_image(preprocess(torch.from_numpy(examples.frames[i : i + batch_size]).to(device))).float().cpu()
        for i in starts
    ]
    return torch.cat(parts)


def _augment(frames: UInt8[Tensor, "B H W 3"], max_shift: int, rng: np.random.Generator) -> UInt8[Tensor, "B H W 3"]:
    """One random shift for the batch; brightness, contrast, tint and pixel noise for each frame."""
    count, height, width, _ = frames.shape
    images = frames.permute(0, 3, 1, 2).float()
    if max_shift:
        top, left = rng.integers(0, 2 * max_shift + 1, 2)
        images = pad(images, (max_shift,) * 4, mode="replicate")[:, :, top : top + height, left : left + width]
    seed = torch.Generator().manual_seed(int(rng.integers(2**62)))
    gain = torch.empty(count, 3, 1, 1).uniform_(0.9, 1.1, generator=seed)
    gain *= torch.empty(count, 1, 1, 1).uniform_(0.8, 1.2, generator=seed)
    shift = torch.empty(count, 1, 1, 1).uniform_(-16, 16, generator=seed)
    images = images * gain.to(images) + shift.to(images)
    images = images + 4 * torch.randn(images.shape, generator=seed).to(images)
    return images.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
