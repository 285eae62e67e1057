"""A pretrained vision-language model as a policy's body, by OpenVLA-OFT's recipe: pictures, a sentence, own readings as
one token, and an empty slot for every entry of every action, all of which are answered at once.

    [pictures] [sentence] [own readings] [H·A slots]  ->  what the slots know  ->  (B, H, D)

Departures from OFT: slots are learned, not zeros; they are read where they stand, not one before; what is given keeps
the attention of its pretraining (causal, but PaliGemma's) and does not see the slots, so that the slots alone are new.

Shape letters: B batch, N cameras, P tokens of a picture, T of a sentence, L of what is given, H actions of a chunk, A
action, K = H·A slots, S own readings, D width; s side of a picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from policies.vla.embedded import ChunkObservation, sinusoid
from policies.vla.families import FAMILIES, Family, part, places
from policies.vla.film import FilmBlock, Told
from policies.vla.pictures import cropped, recoloured
from policies.vla.sources import (
    Chosen,
    Prompts,
    add_lora,
    check_size,
    colours,
    content_hash,
    fetched,
    loaded,
    read_config,
)


class Given(NamedTuple):
    """What the slots read.

    Attributes:
        tokens: (B, L, D).
        there: (B, L), which of them exist.
        place: (3, B, L), positions.
        after: (B,), the first position that is free.
        again: (B, N·P, D) each, pictures that are shown to the first layers again.
        pictures: (L,), which tokens are of pictures.
    """

    tokens: Float[Tensor, "B L D"]
    there: Bool[Tensor, "B L"]
    place: Int64[Tensor, "3 B L"]
    after: Int64[Tensor, " B"]
    again: list[Tensor]
    pictures: Bool[Tensor, " L"]


class Backbone(nn.Module):
    """See the module. In place of `policies.vla.embedded.Fusion`.

    Args:
        chosen: which, and how it is trained.
        cameras: names, in order.
        state: S; 0: no own readings.
        actions: A.
        horizon: H.
        mend: whether slots begin as noisy actions (flow, diffusion).

    Attributes:
        chosen: with the hash of its files.
        width: D.

    Raises:
        FileNotFoundError: neither a folder nor to be downloaded.
        ValueError: no image-text model of `FAMILIES`, files that are not what they were, or a size that it cannot take.
        ModuleNotFoundError: train="lora" without peft.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, chosen: Chosen, *, cameras: Sequence[str], state: int, actions: int, horizon: int, mend: bool = False
    ) -> None:
        super().__init__()
        folder = fetched(chosen.source)
        found = content_hash(folder)
        if chosen.hash and chosen.hash != found:
            raise ValueError(
                f"Backbone: {chosen.source} must be what the policy was trained on ({chosen.hash[:12]}); its files "
                f"have changed ({found[:12]})."
            )
        self.chosen, self.cameras, self.horizon, self.actions = (
            replace(chosen, hash=found),
            tuple(cameras),
            horizon,
            actions,
        )
        config = read_config(folder, chosen.source)
        self.family: Family = FAMILIES[config.model_type]
        check_size(config, chosen.size, chosen.source)
        self.network = loaded(folder, chosen)
        self.prompts = Prompts(folder, self.family)
        self.width = int(self.network.config.get_text_config().hidden_size)
        mean, std = colours(folder)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        if chosen.train != "full":
            self.network.requires_grad_(False)
        if chosen.train == "lora":
            add_lora(self.network, chosen)
        if chosen.checkpointing:
            enable = getattr(self.network, "activation_checkpointing_enable", None)  # its name since transformers 5.20
            (enable or self.network.gradient_checkpointing_enable)({"use_reentrant": False})
        width = self.width
        self.said = Told()
        if chosen.film:
            _add_film(self.network, self.family, width, self.said)
        self.state = nn.Sequential(nn.Linear(state, width), nn.GELU(), nn.Linear(width, width)) if state else None
        self.slots = nn.Parameter(0.02 * torch.randn(horizon * actions, width))
        self.noisy = nn.Linear(1, width) if mend else None
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) if mend else None
        self.merge = nn.Sequential(nn.LayerNorm(actions * width), nn.Linear(actions * width, width))

    # Looking ---------------------------------------------------------------------------------------------

    def see(self, obs: ChunkObservation, random: torch.Generator | None = None) -> ChunkObservation:
        """An observation with its pictures as numbers in [0, 1], cropped and, with a generator, augmented."""
        pictures = {}
        for name in self.cameras:
            values = obs.maps[name]
            if values.shape[-1] != self.chosen.size:  # no camera of that name here
                values = values.new_zeros(len(values), 3, self.chosen.size, self.chosen.size)
            values = values.float() / 255
            if self.chosen.augment:
                values = cropped(values, random)
                values = values if random is None else recoloured(values, random)
            pictures[name] = values
        return ChunkObservation(pictures, obs.seen, obs.text, obs.state)

    def look(self, obs: ChunkObservation) -> Given:
        """What is given, as tokens; `obs` of `see`, its text of `prompts`."""
        batch, device = len(obs), self.slots.device
        embed = self.network.get_input_embeddings()
        words = embed(obs.text.clamp_min(0))
        told = (obs.text >= 0).float()[..., None]
        self.said.value = ((words.float() * told).sum(1) / told.sum(1)).detach()
        with self._mixed():
            pictures = torch.stack([obs.maps[name] for name in self.cameras], 1)  # (B, N, 3, s, s)
            pictures = ((pictures - self.mean) / self.std).flatten(0, 1).to(self.network.dtype)
            tokens, again = self.family.look(self.network, pictures)
            seen = torch.stack([obs.seen[name] for name in self.cameras], 1)[..., None]  # (B, N, 1)
            parts: list[Tensor] = []
            there: list[Tensor] = []
            runs: list[tuple[bool, int]] = []

            def add(found: Tensor, exists: Tensor, picture: bool = False) -> None:
                parts.append(found.to(self.network.dtype))
                there.append(exists.expand(batch, found.shape[1]))
                runs.append((picture, found.shape[1]))

            def mark(ids: Tensor, exists: Tensor) -> None:
                if len(ids):
                    add(embed(ids.to(device)).expand(batch, -1, -1), exists)

            always = torch.ones(batch, 1, dtype=torch.bool, device=device)
            mark(self.prompts.before, always)
            for index, each in enumerate(tokens.unflatten(0, (batch, -1)).unbind(1)):
                mark(self.prompts.opening, seen[:, index])
                add(each, seen[:, index], picture=True)
                mark(self.prompts.closing, seen[:, index])
            place = places(self.family, self.network.config, runs, self.chosen.size).to(device)
            known = place.shape[1]
            add(words, obs.text >= 0)
            if self.state is not None:
                add(self.state(obs.state)[:, None], always)
        exists = torch.cat(there, 1)
        first = int(place.max()) + 1 if known else self.family.first
        after = exists[:, known:].long().cumsum(1)
        place = torch.cat(
            [place[:, None].expand(3, batch, known), (first + after - 1).clamp_min(first).expand(3, -1, -1)], 2
        )
        where = torch.cat([torch.full((length,), picture, device=device) for picture, length in runs])
        where = torch.cat([where, where.new_zeros(exists.shape[1] - len(where))])
        return Given(
            torch.cat(parts, 1),
            exists,
            place,
            first + after[:, -1],
            [a.reshape(batch, -1, a.shape[-1]) for a in again],
            where,
        )

    # Answering -------------------------------------------------------------------------------------------

    def slot(
        self, given: Given, noisy: Float[Tensor, "B H A"] | None = None, time: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B H D"]:
        """What the slots of each action know at the end; arguments as of `Fusion.slot`."""
        slots = self.slots.expand(len(given.tokens), -1, -1)
        if self.noisy is not None and self.time is not None and noisy is not None and time is not None:
            slots = slots + self.noisy(noisy.flatten(1)[..., None]) + self.time(sinusoid(time, self.width))[:, None]
        known = self.answer(given, slots)
        return self.merge(known.reshape(len(known), self.horizon, -1))

    def answer(self, given: Given, slots: Float[Tensor, "B K D"], *, causal: bool = False) -> Float[Tensor, "B K D"]:
        """What slots know at the end, all at once.

        Args:
            given: of `look`.
            slots: as they begin.
            causal: whether each sees only those before it, as one after another would (`policies.vla.tokens`).
        """
        batch, count = slots.shape[:2]
        tokens = torch.cat([given.tokens, slots.to(given.tokens.dtype)], 1)
        place = given.after[:, None] + torch.arange(count, device=slots.device)
        place = torch.cat([given.place, place.expand(3, batch, count)], 2)
        mask = see_mask(given.there, count, prefix_causal=self.family.causal, slots_causal=causal)
        known = self._read(tokens, mask, place, given)
        return known[:, -count:].float()

    def remember(self, given: Given) -> Any:
        """A cache of what is given, to which `follow` adds one slot after another."""
        from transformers import DynamicCache

        cache = DynamicCache()
        self._read(given.tokens, see_mask(given.there, 0, prefix_causal=self.family.causal), given.place, given, cache)
        return cache

    def follow(self, given: Given, slot: Float[Tensor, "B 1 D"], cache: Any, at: int) -> Float[Tensor, "B D"]:
        """What one more slot knows, that sees all before it.

        Args:
            given: of `look`.
            slot: as it begins.
            cache: of `remember`; grows.
            at: how many slots there were before it.
        """
        batch = len(slot)
        there = torch.cat([given.there, given.there.new_ones(batch, at + 1)], 1)[:, None, None]
        place = (given.after + at)[:, None].expand(3, batch, 1)
        return self._read(slot.to(given.tokens.dtype), there, place, None, cache)[:, -1].float()

    def _read(
        self, tokens: Tensor, mask: Tensor, place: Tensor, given: Given | None, cache: Any = None
    ) -> Float[Tensor, "B L D"]:
        """The language model's last hidden states; `mask` (B, 1, L, M) is always given, none is implied."""
        shut = torch.finfo(tokens.dtype).min
        added = torch.zeros(mask.shape, dtype=tokens.dtype, device=tokens.device).masked_fill(~mask, shut)
        options: dict[str, Any] = {"position_ids": place if self.family.grid is not None else place[0]}
        if given is not None and given.again:
            where = torch.cat([given.pictures, given.pictures.new_zeros(tokens.shape[1] - len(given.pictures))])
            options["visual_pos_masks"] = where.expand(len(tokens), -1)
            options["deepstack_visual_embeds"] = [each.flatten(0, 1) for each in given.again]
        with self._mixed():
            language = part(self.network, self.family.text)
            found = language(
                inputs_embeds=tokens,
                attention_mask=added,
                past_key_values=cache,
                use_cache=cache is not None,
                **options,
            )
        return found.last_hidden_state

    def _mixed(self) -> Any:
        """Products in bf16 where everything is trained, and so kept in float32."""
        if self.chosen.train == "full" and self.chosen.precision == "bf16":
            return torch.autocast(self.slots.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def see_mask(
    there: Bool[Tensor, "B L"], count: int, *, prefix_causal: bool, slots_causal: bool = False
) -> Bool[Tensor, "B 1 M M"]:
    """Who sees whom, M = L + count: slots see what is given and each other, what is given never sees a slot.

    Args:
        there: which given tokens exist.
        count: slots.
        prefix_causal: whether given tokens see only those before them.
        slots_causal: whether slots see only slots before them.
    """
    batch, length = there.shape
    total = length + count
    exists = torch.cat([there, there.new_ones(batch, count)], 1)
    order = torch.ones(total, total, dtype=torch.bool, device=there.device)
    order[:length, length:] = False
    if prefix_causal:
        order[:length, :length] = order[:length, :length].tril()
    if slots_causal:
        order[length:, length:] = order[length:, length:].tril()
    itself = torch.eye(total, dtype=torch.bool, device=there.device)  # a row that sees nothing is not a number
    return ((order & exists[:, None]) | itself)[:, None]


def _add_film(network: Any, family: Family, text: int, said: Told) -> None:
    """FiLM in every block of the tower."""
    above, _, last = family.blocks.rpartition(".")
    tower, width = part(network, above), int(network.config.vision_config.hidden_size)
    blocks = getattr(tower, last)
    for index, block in enumerate(blocks):
        blocks[index] = FilmBlock(block, family.attention, text, width, said)
