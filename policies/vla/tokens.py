"""Actions as words, one after another: OpenVLA's way, kept beside the slots that are answered at once, to compare with.

Shape letters: B batch, H actions of a chunk, A action, K = H·A tokens, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from policies.vla.pretrained import Backbone, Given

BINS = 256


class TokenHead(nn.Module):
    """Each entry of each action is one of 256 bins of [-1, 1], and is said after all before it.

    Args:
        width: D.
        actions: A.

    Source: OpenVLA (arXiv 2406.09246). Departs: the bins have embeddings and logits of their own, where OpenVLA writes
        over the last 256 words of its vocabulary; the prefix is computed once.
    """

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.actions = actions
        self.words = nn.Embedding(BINS + 1, width)  # the last one begins
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, BINS))
        nn.init.normal_(self.words.weight, std=0.02)

    def loss(
        self, body: Backbone, given: Given, chunk: Float[Tensor, "B H A"], pad: Bool[Tensor, "B H"]
    ) -> Float[Tensor, " B"]:
        """Cross-entropy of each row, of the true token after the true ones before it; padded actions do not count."""
        tokens = binned(chunk).flatten(1)
        begun = torch.cat([torch.full_like(tokens[:, :1], BINS), tokens[:, :-1]], 1)
        logits = self.out(body.answer(given, self.words(begun), causal=True))
        error = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        real = (~pad).float()
        return (error.view(chunk.shape).mean(-1) * real).sum(-1) / real.sum(-1).clamp_min(1)

    def sample(self, body: Backbone, given: Given, horizon: int) -> Float[Tensor, "B H A"]:
        """The likeliest token each time, as the middle of its bin."""
        cache = body.remember(given)
        last = torch.full((len(given.tokens),), BINS, device=given.tokens.device)
        said = []
        for at in range(horizon * self.actions):
            last = self.out(body.follow(given, self.words(last)[:, None], cache, at)).argmax(-1)
            said.append(last)
        return middles(torch.stack(said, 1)).unflatten(1, (horizon, self.actions))


def binned(values: Float[Tensor, "*B"]) -> Int64[Tensor, "*B"]:
    """The bin of each value of [-1, 1]; what lies outside is in the last one.

    Args:
        values: actions, normalised.
    """
    return ((values + 1) / 2 * BINS).floor().clamp(0, BINS - 1).long()


def middles(bins: Int64[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """The middle of each bin.

    Args:
        bins: of `binned`.
    """
    return (bins.float() + 0.5) * 2 / BINS - 1
