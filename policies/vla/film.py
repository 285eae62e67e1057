"""FiLM of a vision tower by the sentence: every block's features are scaled and shifted by what is to be done.

Shape letters: B batch, D of the sentence's embeddings, W of a block's features.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Told:
    """What parts of a network are told while it computes; a copy of the network gets one of its own, empty."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Told:
        return memo.setdefault(id(self), Told())


class FilmAttention(nn.Module):
    """A block's attention, whose sum with what came in is modulated before the block's MLP reads it.

        x ← x + Attn(LN x);   x ← (1 + γ) ⊙ x + β;   γ, β = Linear(mean of the sentence's embeddings)

    Args:
        attention: of the block.
        text: D.
        width: W.
        said: holds (B, D).

    Source: OpenVLA-OFT's `film_vit_wrapper.py`. Departs: γ and β begin at 0, so that nothing is changed at first.
    """

    def __init__(self, attention: nn.Module, text: int, width: int, said: Told) -> None:
        super().__init__()
        self.attention, self.said = attention, said
        self.film = nn.Linear(text, 2 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        self.entered = Told()  # what came into the block

    def forward(self, *arguments: Any, **options: Any) -> Any:
        out = self.attention(*arguments, **options)
        added = out[0] if isinstance(out, tuple) else out
        text, entered = self.said.value, self.entered.value
        assert text is not None, "Backbone.look tells it"
        assert entered is not None, "FilmBlock tells it"
        gamma, beta = self.film(text).chunk(2, -1)
        total = (entered + added).reshape(len(text), -1, added.shape[-1])  # patches of all of a row's images together
        moved = (gamma[:, None].to(total) * total + beta[:, None].to(total)).reshape(added.shape)
        return (added + moved, *out[1:]) if isinstance(out, tuple) else added + moved


class FilmBlock(nn.Module):
    """A block of a vision tower with FiLM; see `FilmAttention`.

    Args:
        block: of the tower.
        name: of its attention.
        text: D.
        width: W.
        said: holds (B, D).
    """

    def __init__(self, block: nn.Module, name: str, text: int, width: int, said: Told) -> None:
        super().__init__()
        self.block = block
        attention = FilmAttention(getattr(block, name), text, width, said)
        setattr(block, name, attention)
        self.entered = attention.entered

    def forward(self, features: Float[Tensor, "*B W"], *arguments: Any, **options: Any) -> Any:
        self.entered.value = features
        return self.block(features, *arguments, **options)
