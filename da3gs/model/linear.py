"""Linear maps at the speed of the processor.

On a CPU torch multiplies float32 matrices with MKL, which leaves half of the vector units of non-Intel processors idle;
oneDNN, which every CPU build of torch also contains, does not (measured on an AMD EPYC: 2.1 to 2.4 times as fast). This
module sends float32 linear maps on the CPU there, forward and backward, and everything else to `torch.nn.functional`.
Results differ by rounding only.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def linear(
    values: Float[Tensor, "*batch C"],
    weight: Float[Tensor, "D C"],
    bias: Float[Tensor, " D"] | None,
    *,
    gelu: bool = False,
) -> Float[Tensor, "*batch D"]:
    """values @ weight.T + bias, then the exact GELU if asked for. Gradients flow to all three (first order)."""
    if not _use_onednn(values, weight):
        mapped = F.linear(values, weight, bias)
        return F.gelu(mapped) if gelu else mapped
    needs_gradient = torch.is_grad_enabled() and (
        values.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if not needs_gradient:
        return _onednn(values, weight, bias, "gelu" if gelu else "none")
    mapped = _Linear.apply(values, weight, bias)
    return F.gelu(mapped) if gelu else mapped


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, values: Float[Tensor, "*batch C"], *, gelu: bool = False) -> Float[Tensor, "*batch D"]:
        return linear(values, self.weight, self.bias, gelu=gelu)


class Pointwise(nn.Conv2d):
    """1x1 convolution: a linear map over the channels of channels-last maps."""

    def __init__(self, channels: int, out: int):
        super().__init__(channels, out, 1)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return linear(maps.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weight, bias):
        ctx.save_for_backward(values, weight)
        ctx.has_bias = bias is not None
        return _onednn(values, weight, bias, "none")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        values, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        wanted = ctx.needs_input_grad
        for_values = _onednn(gradient, weight.t().contiguous(), None, "none") if wanted[0] else None
        for_weight = for_bias = None
        if wanted[1]:
            inputs = values.reshape(-1, values.shape[-1])
            for_weight = _onednn(rows.t().contiguous(), inputs.t().contiguous(), None, "none")
        if ctx.has_bias and wanted[2]:
            for_bias = rows.sum(0)
        return for_values, for_weight, for_bias


def _onednn(values: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(values.contiguous(), weight, bias, activation, [], "none")


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _use_onednn(values: Tensor, weight: Tensor) -> bool:
    return bool(
        _HAS_ONEDNN
        and torch.backends.mkldnn.enabled
        and values.device.type == "cpu"
        and values.dtype == weight.dtype == torch.float32
        and values.numel() > 0
        and not _autocast_on_cpu()
        and not torch.compiler.is_compiling()
    )


def _autocast_on_cpu() -> bool:
    try:
        return torch.is_autocast_enabled("cpu")
    except TypeError:  # torch < 2.4
        return torch.is_autocast_cpu_enabled()
