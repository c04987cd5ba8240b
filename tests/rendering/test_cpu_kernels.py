"""The pieces of the CPU backend: vector type, sorting, compiled code, kernel cache."""

import logging
import os
import re
import subprocess
import sys
from itertools import pairwise

import numba
import numpy as np
import pytest
import torch
from reference.scenes import random_scene

from da3gs.geometry import spherical_harmonics
from da3gs.rendering import RenderConfig, render
from da3gs.rendering.cpu import compiling, exponentials, harmonics, lanes, listing
from da3gs.rendering.cpu.compositing import compositor
from da3gs.rendering.cpu.compositing_backward import backward_compositor
from da3gs.rendering.cpu.lanes import WIDTH

f32 = np.float32


@compiling.serial_kernel
def apply_exp2(values, results):
    for i in range(0, values.size, WIDTH):
        lanes.store(results, i, exponentials.exp2(lanes.load(values, i)))


@compiling.serial_kernel
def apply_log2(values, results):
    for i in range(0, values.size, WIDTH):
        lanes.store(results, i, exponentials.log2(lanes.load(values, i)))


@compiling.serial_kernel
def reverse_every_third(values, results, count):
    """results[i] = 2 values[3 i] - 1 for positive ones, else 0; returns the sum."""
    total = f32(0.0)
    for i in range(0, count, WIDTH):
        there = min(count - i, WIDTH)
        taken = lanes.gather(values, 3 * i, 3, there)
        taken = lanes.select(taken > f32(0.0), f32(2.0) * taken - f32(1.0), f32(0.0))
        lanes.scatter(results, i, 1, taken, lanes.first_lanes(there))
        total += lanes.total(lanes.select(lanes.first_lanes(there), taken, f32(0.0)))
    return total


@compiling.serial_kernel
def basis_at(directions, count, basis, results):
    for i in range(0, directions.size // 3, WIDTH):
        x, y, z = lanes.gather(directions, 3 * i, 3, WIDTH), lanes.gather(directions, 3 * i + 1, 3, WIDTH), lanes.gather(directions, 3 * i + 2, 3, WIDTH)  # fmt: skip  # noqa: E501
        harmonics.write_basis(basis, count, x, y, z)
        for k in range(count):
            lanes.scatter(results, i * count + k, count, lanes.load(basis, k * WIDTH), lanes.first_lanes(WIDTH))


def test_exp2_is_accurate_to_float32():
    values = np.linspace(-60, 0, 16 * 4096, dtype=np.float32)
    results = np.empty_like(values)
    apply_exp2(values, results)
    exact = np.exp2(values.astype(np.float64))
    assert np.abs(results / exact - 1).max() < 3e-7
    far = np.full(WIDTH, -1e30, np.float32)
    apply_exp2(far, far)
    assert (far >= 0).all() and (far < 1e-29).all()


def test_log2_is_accurate_enough_for_extents():
    values = np.exp2(np.linspace(-8, 1, 16 * 4096)).astype(np.float32)
    results = np.empty_like(values)
    apply_log2(values, results)
    assert np.abs(results - np.log2(values.astype(np.float64))).max() < 2e-6


@pytest.mark.parametrize("count", [1, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH + 2])
def test_gather_and_scatter_stay_inside_short_arrays(count):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(3 * count).astype(np.float32)
    results = np.full(count + WIDTH, 7.0, np.float32)
    total = reverse_every_third(values, results, count)
    taken = values[::3]
    expected = np.where(taken > 0, 2 * taken - 1, 0)
    np.testing.assert_allclose(results[:count], expected, rtol=1e-6)
    assert (results[count:] == 7).all()
    assert total == pytest.approx(expected.sum(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_harmonics_are_those_of_the_package(degree):
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    count = (degree + 1) ** 2
    results, scratch = np.empty(64 * count, np.float32), np.empty(16 * WIDTH, np.float32)
    basis_at(directions.reshape(-1).numpy(), count, scratch, results)
    expected = spherical_harmonics.basis(degree, directions)
    torch.testing.assert_close(torch.from_numpy(results).view(64, count), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1.0, 1e6])
def test_tile_lists_are_stable_sorted_by_depth(spread):
    rng = np.random.default_rng(0)
    sizes = [0, 1, 700, 3]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    depths = (1 + spread * rng.random(offsets[-1])).astype(np.float32)
    depths[::5] = depths[0]  # ties
    gaussians = np.arange(len(depths))
    entries = (depths.view(np.int32).astype(np.int64) << 32) | gaussians
    members = np.empty(len(depths), np.int32)
    listing.sort_tiles(entries, offsets, len(sizes), 2, members)
    for first, end in pairwise(offsets):
        expected = gaussians[first:end][np.argsort(depths[first:end], kind="stable")]
        np.testing.assert_array_equal(members[first:end], expected)


def test_lists_do_not_depend_on_the_number_of_workers():
    rng = np.random.default_rng(0)
    count, tiles_x, tiles_y = 1000, 5, 4
    first = np.stack([rng.integers(0, tiles_x, count), rng.integers(0, tiles_y, count)], 1)
    last = np.minimum(first + rng.integers(0, 3, (count, 2)), [tiles_x - 1, tiles_y - 1])
    boxes = np.concatenate([first, last], 1).astype(np.int16)
    boxes[::7] = [0, 0, -1, 0]  # culled
    depths = rng.random(count).astype(np.float32)
    results = []
    for workers in (1, 3):
        counts = np.zeros((workers, tiles_x * tiles_y), np.int32)
        groups = -(-count // WIDTH)
        for worker in range(workers):
            begin, end = groups * worker // workers * WIDTH, min(count, groups * (worker + 1) // workers * WIDTH)
            for x0, y0, x1, y1 in boxes[begin:end]:
                for y in range(y0, y1 + 1):
                    counts[worker, y * tiles_x + x0 : y * tiles_x + x1 + 1] += 1
        total = int(counts.sum())
        offsets, entries = np.empty(tiles_x * tiles_y + 1, np.int32), np.empty(total, np.int64)
        counts = counts.reshape(-1)
        listing.counts_to_starts(counts, tiles_x * tiles_y, workers, offsets)
        bits = depths.view(np.int32)
        listing.fill_tiles(boxes.reshape(-1), bits, count, tiles_x, tiles_x * tiles_y, workers, counts, entries)
        assert offsets[-1] == total
        results.append((offsets, entries))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


# ---------------------------------------------------------------- compiled code


@pytest.mark.parametrize("make", [compositor, backward_compositor])
def test_compositing_is_vector_code(make):
    """Scalar code would be right and several times slower, so nothing else would notice."""
    gaussians, cameras = random_scene(100, views=1)
    leaf = gaussians.means.clone().requires_grad_()
    moved = type(gaussians).unchecked(leaf, *gaussians.tensors()[1:])
    render(moved, cameras, RenderConfig(depth=False)).rgb.sum().backward()
    cached = make(3)
    assert cached.signatures, "the kernel has not run"
    kernel = numba.njit(**compiling.options(parallel=True))(cached.py_func)  # code from the cache cannot be inspected
    kernel.compile(cached.signatures[0])
    code = "\n".join(kernel.inspect_llvm(signature) for signature in kernel.signatures)
    assert not re.search(r"call float @(expf|llvm\.exp|log)", code), "a scalar exponential"
    vectors = len(re.findall(rf"(fmul|fadd|fsub|fma)[a-z ]* <{WIDTH} x float>", code))
    assert vectors > 30, f"only {vectors} vector operations"
    register = {16: "zmm", 8: "ymm", 4: "xmm"}.get(WIDTH)
    assembly = "\n".join(kernel.inspect_asm(signature) for signature in kernel.signatures)
    if "xmm" in assembly:  # x86
        packed = len(re.findall(rf"v?f?n?m?(add|mul|sub)\w*ps\b.*%{register}", assembly))
        assert packed > 20, f"only {packed} packed operations on {register} registers"


def test_the_vector_width_fits_the_processor():
    assert WIDTH in (4, 8, 16)
    assert lanes.width_of({"avx512f": True, "avx": True}) == 16
    assert lanes.width_of({"avx512f": False, "avx": True}) == 8
    assert lanes.width_of({"neon": True}) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("features", "width"), [("+avx,+avx2,+fma", 8), ("+sse4.1", 4)])
def test_narrower_processors_draw_the_same_picture(features, width, tmp_path):
    """Compile for a lesser processor (numba's own switch) in a process of its own."""
    script = (
        "import torch; from reference.scenes import random_scene; from da3gs.rendering import render\n"
        "from da3gs.rendering.cpu.lanes import WIDTH; g, c = random_scene(200, views=2, sh_degree=2)\n"
        "leaves = [v.clone().requires_grad_() for v in g.tensors()]; out = render(type(g).unchecked(*leaves), c)\n"
        "(out.rgb.square().sum() + out.depth.sum()).backward()\n"
        "import sys; torch.save((WIDTH, out.rgb.detach(), [v.grad for v in leaves]), sys.argv[1])"
    )
    environment = os.environ | {
        "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out.pt")], env=environment, check=True)
    used, rgb, gradients = torch.load(tmp_path / "out.pt")
    assert used == width
    gaussians, cameras = random_scene(200, views=2, sh_degree=2)
    leaves = [value.clone().requires_grad_() for value in gaussians.tensors()]
    out = render(type(gaussians).unchecked(*leaves), cameras)
    (out.rgb.square().sum() + out.depth.sum()).backward()
    torch.testing.assert_close(rgb, out.rgb.detach(), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip((leaf.grad for leaf in leaves), gradients, strict=True):
        assert (ours - theirs).norm() < 1e-4 * ours.norm()


# ---------------------------------------------------------------- kernel cache


def test_an_unwritable_cache_folder_is_said_once_and_costs_only_time(tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "a_file"
    blocked.write_text("no folder can be made in here")
    monkeypatch.setattr(compiling.numba_config, "CACHE_DIR", str(blocked))
    compiling.cache_folder.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger=compiling.__name__):

            @compiling.serial_kernel
            def double(x):
                return 2 * x

            assert double(21) == 42
            compiling.cache_folder()
    finally:
        compiling.cache_folder.cache_clear()
    assert len(caplog.records) == 1
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_the_cache_folder_follows_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.numba_config, "CACHE_DIR", str(tmp_path))
    compiling.cache_folder.cache_clear()
    try:
        assert compiling.cache_folder() == tmp_path / compiling.source_digest()
    finally:
        compiling.cache_folder.cache_clear()
