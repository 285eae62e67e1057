"""Numbers of a robot to numbers of a network and back, in the conventions of others; kept with the policy.

Shape letters: N rows, F entries of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

KINDS = ("quantile", "mean_std", "min_max", "none")
EPSILON = 1e-8


@dataclass(frozen=True)
class Normaliser:
    """x̂ = (x − shift) / scale, entry by entry.

        quantile   2(x − q01)/(q99 − q01 + ε) − 1, clipped to [-1, 1]   (OpenVLA-OFT)
        mean_std   (x − mean)/(std + ε)                                 (LeRobot)
        min_max    2(x − min)/(max − min + ε) − 1                       (OFT's ALOHA, LeRobot's diffusion policy)

    Entries that never change become 0, and come back as what they were.

    Attributes:
        kind: one of `KINDS`.
        names: of the F entries, in order.
        shift, scale: (F,) float64.
        constant: (F,) bool.
        kept: (F,) bool, entries that stay as they are, such as a gripper that is open or shut.

    Source: OFT's `rlds/utils/data_utils.py`, LeRobot's normaliser. Departs: OFT alone sets constant entries to 0;
        LeRobot would divide by ε, which makes anything of an unseen value.
    """

    kind: str
    names: tuple[str, ...]
    shift: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]
    constant: Bool[np.ndarray, " F"]
    kept: Bool[np.ndarray, " F"]

    @classmethod
    def fit(
        cls, values: Float[np.ndarray, "N F"], kind: str, *, names: Sequence[str], keep: Sequence[str] = ()
    ) -> Normaliser:
        """Statistics of the rows that are finite.

        Args:
            values: of all rows.
            kind: one of `KINDS`.
            names: F different ones.
            keep: those that stay as they are.

        Raises:
            ValueError: an unknown kind or name, or no finite row.
        """
        if kind not in KINDS:
            raise ValueError(f"Normaliser: kind must be one of {', '.join(KINDS)}; got {kind!r}.")
        if unknown := [name for name in keep if name not in names]:
            raise ValueError(f"Normaliser: keep must be of {', '.join(names)}; got {unknown[0]!r}.")
        rows = values[np.isfinite(values).all(1)].astype(np.float64)
        if not len(rows):
            raise ValueError(f"Normaliser: values must hold a finite row; got none of {len(values)}.")
        low, high = (rows.min(0), rows.max(0)) if kind != "quantile" else np.quantile(rows, [0.01, 0.99], axis=0)
        constant = rows.max(0) == rows.min(0)
        if kind == "mean_std":
            shift, scale = rows.mean(0), rows.std(0) + EPSILON
        else:
            scale = (high - low + EPSILON) / 2
            shift = low + scale
        kept = np.array([name in keep for name in names], bool) | (kind == "none")
        # Of an entry that all but 2 % of rows share, the quantiles meet: its whole range is taken.
        met = (scale <= EPSILON) & ~constant
        shift = np.where(met, (rows.max(0) + rows.min(0)) / 2, shift)
        scale = np.where(met, (rows.max(0) - rows.min(0)) / 2, scale)
        shift = np.where(kept, 0.0, np.where(constant, rows[0], shift))
        scale = np.where(kept | constant, 1.0, scale)
        return cls(kind, tuple(names), shift, scale, constant & ~kept, kept)

    def forward(self, values: Float[Tensor, "*B F"]) -> Float[Tensor, "*B F"]:
        """To the network's numbers, float32."""
        out = (values.double() - torch.from_numpy(self.shift)) / torch.from_numpy(self.scale)
        if self.kind == "quantile":
            out = torch.where(torch.from_numpy(self.kept), out, out.clamp(-1, 1))
        return out.masked_fill(torch.from_numpy(self.constant), 0.0).float()

    def backward(self, values: Float[Tensor, "*B F"]) -> Float[Tensor, "*B F"]:
        """From the network's numbers, float32."""
        values = values.double().masked_fill(torch.from_numpy(self.constant), 0.0)
        return (values * torch.from_numpy(self.scale) + torch.from_numpy(self.shift)).float()

    def as_dict(self) -> dict[str, Any]:
        """JSON values that `from_dict` reads."""
        arrays = {name: getattr(self, name).tolist() for name in ("shift", "scale", "constant", "kept")}
        return {"kind": self.kind, "names": list(self.names), **arrays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normaliser:
        """What `as_dict` gave.

        Raises:
            ValueError: arrays of other lengths than the names.
        """
        arrays: dict[str, Any] = {name: np.array(values[name], np.float64) for name in ("shift", "scale")}
        arrays |= {name: np.array(values[name], bool) for name in ("constant", "kept")}
        if {len(array) for array in arrays.values()} != {len(values["names"])}:
            raise ValueError(f"Normaliser: its arrays must have {len(values['names'])} entries, one a name.")
        return cls(kind=str(values["kind"]), names=tuple(values["names"]), **arrays)
