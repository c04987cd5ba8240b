"""Transformer parts: attention with rotary positions, feed-forward networks, the residual block.

Letters: B sequences, N tokens, C width, h heads, d = C / h head dimension.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from da3gs.model.linear import Linear

ROPE_BASE = 100.0
BLOCK_EPS = 1e-6  # LayerNorms of the backbone blocks; every other LayerNorm of the network has torch's 1e-5


@dataclass(frozen=True)
class Rotation:
    """Rotary positions of a sequence.

    Attributes:
        cos, sin: [n, 2, d/4]: per token, for the y half and the x half of the head dimension.
        step: Rotate only tokens 0, step, 2 step, ... (1: all of them); n is their number, or 1 for one shared angle.
    """

    cos: Tensor
    sin: Tensor
    step: int = 1

    @staticmethod
    def from_positions(positions: Tensor, head_dim: int, step: int = 1) -> "Rotation":
        """Angles of (y, x) positions [n, 2]: position * 100^(-2k/D), k < D/2, with D = d/2 channels per axis."""
        quarter = head_dim // 4
        exponents = torch.arange(quarter, dtype=torch.float32, device=positions.device) / quarter
        angles = positions.float()[..., None] * ROPE_BASE**-exponents
        return Rotation(angles.cos(), angles.sin(), step)

    @staticmethod
    def within_view(rows: int, columns: int, head_dim: int, device) -> "Rotation":
        """One view: the class token at (0, 0), patch (r, c) at (r + 1, c + 1)."""
        y = torch.arange(1, rows + 1, device=device)[:, None].expand(rows, columns)
        x = torch.arange(1, columns + 1, device=device)[None].expand(rows, columns)
        patches = torch.stack([y, x], -1).reshape(-1, 2)
        return Rotation.from_positions(torch.cat([patches.new_zeros(1, 2), patches]), head_dim)

    @staticmethod
    def across_views(tokens_per_view: int, head_dim: int, device) -> "Rotation":
        """All views: class tokens at (0, 0) and every patch at (1, 1).

        Attention sees position differences only, so this equals patches at 0 and class tokens at -1: no patch has to
        be rotated at all.
        """
        return Rotation.from_positions(torch.full((1, 2), -1, device=device), head_dim, step=tokens_per_view)

    def apply(self, values: Float[Tensor, "B h N d"]) -> Float[Tensor, "B h N d"]:
        """Rotate queries or keys; channel k of an axis' half is paired with channel k + D/2."""
        if self.step == 1:
            return self._rotated(values)
        # Written in place: `values` is the fresh output of the projection (or its LayerNorm), used nowhere else.
        # Autograd forbids it for the projection, whose output three slices share.
        if values.requires_grad and values._is_view():
            values = values.clone()
        values[:, :, :: self.step] = self._rotated(values[:, :, :: self.step])
        return values

    def _rotated(self, values: Tensor) -> Tensor:
        pairs = values.reshape(*values.shape[:-1], 2, 2, values.shape[-1] // 4)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        cos, sin = self.cos.to(values.dtype), self.sin.to(values.dtype)
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -2).reshape(values.shape)


class Attention(nn.Module):
    """Multi-head self-attention through torch's fused kernels; optional LayerNorm of queries and keys per head."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.query_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.key_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.out = Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B N C"], rotation: Rotation | None = None) -> Float[Tensor, "B N C"]:
        batch, count, width = tokens.shape
        joint = self.qkv(tokens).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = self.query_norm(joint[0]), self.key_norm(joint[1]), joint[2]
        if rotation is not None:
            query, key = rotation.apply(query), rotation.apply(key)
        # Under autocast the norms and angles are float32; the kernel wants one dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if value.requires_grad and value.device.type == "cpu" and value.dtype == torch.bfloat16:
            # Backward through torch's fused kernel takes two to five times as long here (260 .. 65 tokens).
            weights = torch.softmax(query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2), -1)
            mixed = weights @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


class GeluMlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, hidden: int, out: int | None = None):
        super().__init__()
        self.expand = Linear(width, hidden)
        self.reduce = Linear(hidden, out or width)

    def forward(self, tokens: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch D"]:
        return self.reduce(self.expand(tokens, gelu=True))


class SwiGlu(nn.Module):
    """silu(a) * b with [a, b] one projection; the hidden width is 8C/3 rounded up to a multiple of 8."""

    def __init__(self, width: int):
        super().__init__()
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.gate_and_value = Linear(width, 2 * hidden)
        self.project = Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        gate, value = self.gate_and_value(tokens).chunk(2, dim=-1)
        return self.project(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale: x += s1 Attention(LN x); x += s2 FeedForward(LN x)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        feed_forward: str = "mlp",
        qk_norm: bool = False,
        eps: float = BLOCK_EPS,
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads, qk_norm=qk_norm)
        self.attention_scale = nn.Parameter(torch.ones(width))
        self.feed_forward_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = SwiGlu(width) if feed_forward == "swiglu" else GeluMlp(width, 4 * width)
        self.feed_forward_scale = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Float[Tensor, "B N C"], rotation: Rotation | None = None) -> Float[Tensor, "B N C"]:
        # Under autocast the residual stream stays in float32.
        mixed = self.attention(self.attention_norm(tokens), rotation).to(tokens.dtype)
        tokens = torch.addcmul(tokens, self.attention_scale, mixed)
        mapped = self.feed_forward(self.feed_forward_norm(tokens)).to(tokens.dtype)
        return torch.addcmul(tokens, self.feed_forward_scale, mapped)
