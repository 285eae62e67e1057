"""Linear layers in 8-bit integers on the CPU: a quarter of the weights' memory, and about half the time where the
processor multiplies integers fast (VNNI or AMX on x86).

    y = s_x s_w ∘ (x_q W_q) + b,    s_x = max|x| / 127 of each row,    s_w = max|w| / 127 of each output

Rows are quantised as they come, each by itself, so a frame's numbers do not depend on its batch.
Shape letters: B batch, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST = 1e-12  # largest number of a row that is all zeros


class Int8Linear(nn.Module):
    """A linear layer whose weights, and inputs on their way in, are 8-bit integers.

    Args:
        weight: (outputs, inputs) float32.
        bias: (outputs,); None: none.

    Source: dynamic quantisation by row and by output channel, as of LLM.int8 (arXiv 2208.07339) without its outliers.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scale = weight.abs().amax(1).clamp(min=LEAST) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) float32 -> (…, outputs) float32."""
        rows = x.reshape(-1, x.shape[-1])
        size = rows.abs().amax(1, keepdim=True).clamp_(min=LEAST).div_(127)
        products = torch._int_mm(rows.div(size).round_().to(torch.int8), self.weight)  # pyright: ignore[reportPrivateImportUsage]
        y = products.float().mul_(size)
        return torch.addcmul(self.bias, y, self.scale, out=y).view(*x.shape[:-1], -1)


class Int8Attention(nn.Module):
    """Self-attention with the arguments and the weights of an `nn.MultiheadAttention`, its projections in int8."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.project = Int8Linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out = Int8Linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """(B, T, D), three times the same, -> (B, T, D)."""
        assert query is key is value
        assert not need_weights
        batch, count, dim = query.shape
        parts = self.project(query).view(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts.unbind(0), attn_mask=attn_mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, dim)), None


def quantize(module: nn.Module) -> None:
    """Replace the linear layers and the self-attentions inside a float32 module by ones in int8."""
    for name, child in module.named_children():
        if name == "attnpool":  # of a ResNet: reads the weights of its layers without calling them
            continue
        if isinstance(child, nn.MultiheadAttention):
            if name == "attn" and hasattr(module, "mlp"):  # of a block; a pool's attends from elsewhere, once an image
                setattr(module, name, Int8Attention(child))
        elif type(child) is nn.Linear:
            setattr(module, name, Int8Linear(child.weight, child.bias))
        else:
            quantize(child)


def share(module: nn.Module) -> float:
    """How much of a module's numbers are int8 weights, in [0, 1]."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(x.numel() for x in tensors if x.dtype == torch.int8) / max(1, sum(x.numel() for x in tensors))
