"""PSNR, SSIM and LPIPS against closed forms, skimage, and the published LPIPS numbers."""

import dataclasses
import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from assets import asset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from da3gs.errors import InputError, MissingDependencyError, WeightsError
from da3gs.metrics.images import PSNR_CEILING_DB, image_metrics, load_lpips, psnr, ssim


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _photo_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth picture and a degraded copy, so that SSIM is neither 0 nor 1."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 40), torch.linspace(0, 9, 57), indexing="ij")
    image = torch.stack([x.sin() * y.cos(), (x + y).sin(), (x * y).cos()]) * 0.4 + 0.5
    return image[None], (image + 0.2 * (_noise(1, 3, 40, 57) - 0.5))[None].clip(0, 1)


# ------------------------------------------------------------------------------------------------ PSNR


@given(st.floats(1e-3, 1.0))
def test_psnr_of_a_constant_difference_is_its_closed_form(difference):
    target = torch.zeros(1, 3, 4, 5)
    assert float(psnr(target + difference, target)) == pytest.approx(-20 * math.log10(difference), abs=1e-4)


def test_psnr_averages_decibels_over_images_not_errors():
    target = torch.zeros(2, 3, 4, 4)
    predicted = target.clone()
    predicted[0] += 0.1  # 20 dB
    predicted[1] += 0.01  # 40 dB
    metrics = image_metrics(predicted.repeat(1, 1, 3, 3), target.repeat(1, 1, 3, 3))
    assert metrics.psnr_per_view == pytest.approx((20.0, 40.0), abs=1e-4)
    assert metrics.psnr == pytest.approx(30.0, abs=1e-4)  # the pooled MSE would give 22.97


def test_psnr_clips_both_images_to_the_visible_range():
    target = torch.full((1, 3, 4, 4), 1.3)
    assert float(psnr(torch.full_like(target, 2.0), target)) == PSNR_CEILING_DB
    assert float(psnr(torch.full_like(target, -5.0), target)) == pytest.approx(0.0, abs=1e-6)


def test_identical_images_reach_the_ceiling_and_stay_json():
    images = _noise(0, 2, 3, 20, 20)
    metrics = image_metrics(images, images.clone())
    assert metrics.psnr == PSNR_CEILING_DB and metrics.ssim == pytest.approx(1.0, abs=1e-6)
    decoded = json.loads(json.dumps(dataclasses.asdict(metrics), allow_nan=False))
    assert decoded["psnr_per_view"] == [100.0, 100.0] and decoded["lpips"] is None


def test_masked_psnr_sees_only_covered_pixels():
    target = torch.zeros(1, 3, 12, 12)
    predicted = target.clone()
    predicted[..., :6] = 0.1
    predicted[..., 6:] = 0.9
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[..., :6] = True
    metrics = image_metrics(predicted, target, mask=mask)
    assert metrics.psnr_covered == pytest.approx(20.0, abs=1e-4) and metrics.coverage == 0.5
    assert metrics.psnr == pytest.approx(-10 * math.log10((0.01 + 0.81) / 2), abs=1e-4)
    assert float(psnr(predicted, target, torch.ones_like(mask))) == pytest.approx(metrics.psnr, abs=1e-5)


def test_psnr_gradient_points_toward_the_target():
    target, predicted = torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.7, requires_grad=True)
    psnr(predicted, target).sum().backward()
    # d/dx of -10 log10(mean (x - t)^2) = -20 (x - t) / (ln 10 * N * MSE)
    assert torch.allclose(predicted.grad, torch.full_like(target, -20 * 0.2 / (math.log(10) * 48 * 0.04)), rtol=1e-4)


# ------------------------------------------------------------------------------------------------ SSIM


def test_ssim_is_the_number_of_skimage():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    pairs = [_photo_pair(), (_noise(2, 1, 3, 11, 11), _noise(3, 1, 3, 11, 11))]
    pairs.append((torch.ones(1, 3, 16, 30), torch.zeros(1, 3, 16, 30)))
    for predicted, target in pairs:
        expected = structural_similarity(
            target[0].numpy(), predicted[0].numpy(), win_size=11, gaussian_weights=True, channel_axis=0, data_range=1.0
        )
        assert float(ssim(predicted, target)) == pytest.approx(float(expected), abs=1e-5)


def test_ssim_of_constant_images_is_the_luminance_term():
    x, y = torch.full((1, 3, 12, 12), 0.2), torch.full((1, 3, 12, 12), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(x, y)) == pytest.approx(expected, abs=1e-4)


def test_ssim_is_symmetric_bounded_differentiable_and_per_view():
    predicted, target = _photo_pair()
    stack = torch.cat([predicted, target])
    values = ssim(stack, target.expand_as(stack))
    assert values[0] < 0.95 and values[1] == pytest.approx(1.0, abs=1e-6)
    assert float(ssim(target, predicted)) == pytest.approx(float(values[0]), abs=1e-6)
    leaf = predicted.double().requires_grad_()
    ssim(leaf, target).sum().backward()
    better = leaf.detach() + 1e-2 * leaf.grad / leaf.grad.abs().max()
    assert float(ssim(better, target)) > float(values[0])


# ------------------------------------------------------------------------------------------------ LPIPS


@pytest.fixture(scope="module")
def squeeze():
    return load_lpips(lpips_weights=asset("weights/lpips_squeeze"))


def _example(name: str) -> torch.Tensor:
    with Image.open(asset(f"weights/lpips_squeeze/{name}.png")) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255


def test_lpips_reproduces_the_reference_values(squeeze):
    reference = json.loads(asset("weights/lpips_squeeze/reference_values.json").read_text())
    ref, p0, p1 = (_example(name) for name in ("ex_ref", "ex_p0", "ex_p1"))
    assert float(squeeze(p0, ref)) == pytest.approx(reference["ref_p0"], abs=1e-5)
    assert float(squeeze(p1, ref)) == pytest.approx(reference["ref_p1"], abs=1e-5)
    both = squeeze(torch.cat([p0, p1]), torch.cat([ref, ref]))
    assert both.tolist() == pytest.approx([reference["ref_p0"], reference["ref_p1"]], abs=1e-5)
    metrics = image_metrics(torch.cat([p0, p1]), torch.cat([ref, ref]), lpips=squeeze)
    assert metrics.lpips_net == "squeeze"
    assert metrics.lpips == pytest.approx((reference["ref_p0"] + reference["ref_p1"]) / 2, abs=1e-5)


def test_lpips_takes_images_of_zero_to_one(squeeze):
    """The reference values above come from images in [-1, 1]; fed with those directly the number must be another."""
    reference = json.loads(asset("weights/lpips_squeeze/reference_values.json").read_text())
    ref, p0 = _example("ex_ref"), _example("ex_p0")
    assert abs(float(squeeze(2 * p0 - 1, 2 * ref - 1)) - reference["ref_p0"]) > 0.05


def test_lpips_is_a_frozen_differentiable_distance(squeeze):
    ref, p0 = _example("ex_ref"), _example("ex_p0")
    assert float(squeeze(ref, ref)) == 0.0
    assert float(squeeze(ref, p0)) == pytest.approx(float(squeeze(p0, ref)), abs=1e-6)
    value = squeeze(p0.requires_grad_(), ref).sum()
    value.backward()
    assert torch.isfinite(p0.grad).all() and p0.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in squeeze.parameters()) and not squeeze.training
    better = (p0 - 1e-2 * p0.grad / p0.grad.abs().max()).detach()
    assert float(squeeze(better, ref)) < value.item()


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_lpips_gradient_is_finite_where_whole_images_are_flat(squeeze, fill):
    image = torch.full((1, 3, 17, 23), fill, requires_grad=True)
    squeeze(image, torch.full((1, 3, 17, 23), 0.5)).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_lpips_refuses_images_too_small_for_its_stages(squeeze):
    small = torch.zeros(1, 3, 16, 40)
    with pytest.raises(InputError, match=r"at least 17 px on each side; got 40 x 16 px"):
        squeeze(small, small)


def test_lpips_weights_that_are_missing_or_wrong_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(WeightsError, match="not found"):
        load_lpips(lpips_weights=tmp_path)
    backbone = tmp_path / "squeezenet1_1_features.safetensors"
    backbone.write_bytes(b"not a tensor file")
    with pytest.raises(WeightsError, match="no readable safetensors file"):
        load_lpips(lpips_weights=tmp_path)
    tensors = load_file(asset("weights/lpips_squeeze/squeezenet1_1_features.safetensors"))
    tensors["12.squeeze.bias"] = tensors["12.squeeze.bias"][:-1].clone()
    del tensors["0.weight"]
    save_file(tensors, backbone)
    with pytest.raises(WeightsError, match=r"\['0.weight', '12.squeeze.bias'\]"):
        load_lpips(lpips_weights=backbone)
    with pytest.raises(InputError, match="known: squeeze, vgg, alex"):
        load_lpips("resnet")
    with pytest.raises(InputError, match="leave it out"):
        load_lpips("vgg", tmp_path)


def test_lpips_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # import raises ImportError
    with pytest.raises(MissingDependencyError, match=r"pip install 'da3gs\[metrics\]'"):
        load_lpips()


class _RecordingLpips(torch.nn.Module):
    """Stands in for lpips.LPIPS, with its call and its [V, 1, 1, 1] answer."""

    def __init__(self, net, verbose):
        super().__init__()
        self.built_with = (net, verbose)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, in0, in1, retPerLayer=False, normalize=False):
        self.normalize = normalize
        return (self.weight * (in0 - in1).abs()).mean((1, 2, 3), keepdim=True)


def test_the_lpips_package_is_told_the_range_of_the_images(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=_RecordingLpips))
    network = load_lpips()
    values = network(torch.ones(2, 3, 20, 20), torch.zeros(2, 3, 20, 20))
    assert values.tolist() == [1.0, 1.0]
    assert network.net == "vgg" and network.network.built_with == ("vgg", False)
    assert network.network.normalize is True and not network.network.weight.requires_grad
    assert load_lpips("alex").network.built_with == ("alex", False)


def test_an_unreachable_backbone_is_one_clear_error(monkeypatch):
    from urllib.error import URLError

    def offline(**_):
        raise URLError("no route to host")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=offline))
    with pytest.raises(WeightsError, match=r"could not be fetched.*no route"):
        load_lpips("alex")


# ------------------------------------------------------------------------------------------------ bad input


def test_bad_images_are_refused_with_the_view():
    images = torch.zeros(3, 3, 12, 12)
    damaged = images.clone()
    damaged[1, 2, 3, 4] = float("nan")
    for metric in (psnr, ssim, image_metrics):
        with pytest.raises(InputError, match="predicted image of view 1 holds NaN"):
            metric(damaged, images)
        with pytest.raises(InputError, match="target image of view 1 holds NaN"):
            metric(images, damaged)
    mask = torch.ones(3, 12, 12, dtype=torch.bool)
    mask[2] = False
    with pytest.raises(InputError, match="mask of view 2 is empty"):
        image_metrics(images, images, mask=mask)
    with pytest.raises(InputError, match="at least 11 x 11 px; got 12 x 10 px"):
        ssim(images[:, :, :10], images[:, :, :10])


def test_shapes_that_do_not_match_are_refused(without_shape_checks):
    images = torch.zeros(2, 3, 12, 12)
    for other in (images[:1], images[..., :-1], images[0], images[:0]):
        with pytest.raises(InputError, match="two equal stacks"):
            psnr(images if other.numel() else other, other)
    with pytest.raises(InputError, match=r"mask must be \[2, 12, 12\]"):
        psnr(images, images, torch.ones(12, 12, dtype=torch.bool))
