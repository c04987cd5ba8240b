"""Muon: directions with singular values near 1, steps as large as AdamW's, and only for the matrices of blocks."""

import pytest
import torch
from torch import nn

from da3gs.model.network import build_model
from da3gs.model.presets import preset
from da3gs.train.loop import OptimConfig
from da3gs.train.optimizers import Muon, open_optimizers, orthogonalized


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 96), (64, 256), (256, 64)])
def test_directions_are_orthogonal(shape, precision):
    torch.manual_seed(0)
    U, S, V = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = U @ torch.diag(torch.logspace(0, -2, len(S))) @ V  # condition 100
    direction = orthogonalized(matrix, precision)
    assert direction.dtype == torch.float32
    values = torch.linalg.svdvals(direction)
    assert values.min() > 0.5 and values.max() < 1.3
    exact = U @ V
    cosine = (direction * exact).sum() / (direction.norm() * exact.norm())
    assert cosine > 0.97
    assert torch.equal(orthogonalized(torch.zeros(shape), precision), torch.zeros(shape))


def test_steps_do_not_depend_on_the_size_of_gradients_and_have_the_size_of_adamw():
    torch.manual_seed(0)
    moved = []
    for size in (1.0, 1e-3):
        matrix = nn.Parameter(torch.zeros(64, 192))
        optimizer = Muon([matrix], lr=1e-2)
        torch.manual_seed(1)
        matrix.grad = size * torch.randn(64, 192)
        optimizer.step()
        moved.append(matrix.detach().clone())
    torch.testing.assert_close(moved[0], moved[1], atol=1e-5, rtol=1e-3)
    assert float(moved[0].square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.2)


def test_it_finds_the_matrix_of_a_linear_map_in_fewer_steps_than_adamw():
    """Mixed inputs of condition 100, as features are: what the orthogonal step is for."""
    torch.manual_seed(0)
    mixed = torch.linalg.qr(torch.randn(64, 64)).Q
    inputs = torch.randn(512, 64) * torch.logspace(0, -2, 64) @ mixed
    wanted = torch.randn(64, 64)
    left = {}
    for name in ("adamw", "muon"):
        matrix = nn.Parameter(torch.zeros(64, 64))
        optimizer = Muon([matrix], lr=0.05) if name == "muon" else torch.optim.AdamW([matrix], lr=0.05, weight_decay=0)
        for step in range(300):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
            optimizer.zero_grad()
            (inputs @ (matrix - wanted)).square().mean().backward()
            optimizer.step()
        left[name] = float((matrix.detach() - wanted).square().mean())
    assert left["muon"] < 0.7 * left["adamw"], left


def test_every_parameter_has_one_optimizer():
    parameters = dict(build_model(preset("da3-tiny")).named_parameters())
    adamw, muon = open_optimizers(parameters, OptimConfig(optimizer="muon"))
    groups = [group for optimizer in (adamw, muon) for group in optimizer.param_groups]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, parameters.values()))
    names = {id(parameter): name for name, parameter in parameters.items()}
    inner = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert "backbone.blocks.3.attention.qkv.weight" in inner and all("blocks" in name for name in inner)
    assert all(parameters[name].ndim == 2 for name in inner)
    assert sum(parameters[name].numel() for name in inner) > 0.7 * sum(p.numel() for p in parameters.values())
    (alone,) = open_optimizers(parameters, OptimConfig())
    assert isinstance(alone, torch.optim.AdamW)
