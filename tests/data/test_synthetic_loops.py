"""The compiled loops and the tensor code of the synthetic scenes compute the same."""

import pytest
import torch

from da3gs.data.synthetic import STYLES, make_scene, sample_cameras
from da3gs.data.synthetic import solids as solids_module
from da3gs.data.synthetic.lighting import visibility
from da3gs.data.synthetic.rendering import pixel_rays, radiance_of, render_radiance, trace


@pytest.fixture
def tensors(monkeypatch):
    """Call to switch the compiled loops off."""
    return lambda: monkeypatch.setattr(solids_module, "LOOPS_ON_CPU", False)


@pytest.mark.parametrize("style", STYLES)
def test_loops_and_tensors_agree(style, tensors):
    scene = make_scene(21, style=style)
    rays = pixel_rays(sample_cameras(scene, 2, 0, 64, 48))

    def everything(hits):
        points, normals = hits.points.transpose(1, 2).contiguous(), hits.frames[..., 2, :].transpose(1, 2).contiguous()
        spots = torch.arange(points.shape[-1]).expand(len(points), -1) % 9
        return trace(scene, rays), visibility(scene, points, normals, spots), scene.solids.clearance(points, 0.4)

    hits = trace(scene, rays)
    loop_hits, loop_open, loop_clear = everything(hits)
    loop_color = radiance_of(scene, rays, hits, loop_open.transpose(1, 2))
    tensors()
    hits_2, open_2, clear_2 = everything(hits)
    color = radiance_of(scene, rays, hits, loop_open.transpose(1, 2))

    # A ray within rounding of an edge may go to either side of it: at most a few in a thousand.
    same = (loop_hits.object_ids == hits_2.object_ids) & ((loop_hits.t - hits_2.t).abs() < 1e-3 * hits_2.t)
    assert same.float().mean() > 0.998
    assert float((loop_hits.t - hits_2.t)[same].abs().max()) < 2e-3
    assert float((loop_hits.frames - hits_2.frames).abs().amax((-1, -2))[same].quantile(0.998)) < 1e-3
    assert float(((loop_open - open_2).abs() < 1e-3).float().mean()) > 0.998
    assert float((loop_clear - clear_2).abs().max()) < 1e-4
    error = (loop_color - color).abs().amax(-1)
    assert float((error < 2e-3).float().mean()) > 0.999


def test_pictures_agree(tensors):
    scene = make_scene(3, style="living_room")
    cameras = sample_cameras(scene, 2, 0, 50, 40)
    loops, _ = render_radiance(scene, cameras)
    tensors()
    plain, _ = render_radiance(scene, cameras)
    assert float(((loops - plain).abs() < 2e-3).float().mean()) > 0.995


def test_one_box_from_all_sides():
    """Both ways agree with a float64 slab test for 2000 rays at random."""
    scene = make_scene(0, style="office")
    solids = scene.solids
    generator = torch.Generator().manual_seed(1)
    origins = torch.randn(500, 3, generator=generator) * 6
    directions = torch.randn(500, 3, 4, generator=generator) - origins[..., None]
    d, o = directions.transpose(1, 2).double(), origins[:, None].double()
    axes, center, half = solids.axes.double(), solids.center.double(), solids.half.double()
    best = torch.full((500, 4), torch.inf, dtype=torch.float64)
    for p in range(solids.boxes):
        local_d, local_o = d @ axes[p].T, (o - center[p]) @ axes[p].T
        first, second = (-half[p] - local_o) / local_d, (half[p] - local_o) / local_d
        near, far = torch.minimum(first, second).amax(-1), torch.maximum(first, second).amin(-1)
        best = torch.where((near <= far) & (near > 0) & (near < best), near, best)
    only_boxes = type(solids)(
        solids.boxes, *(getattr(solids, name)[: solids.boxes] for name in (
            "center", "axes", "half", "quadric", "material", "object_id", "uv_offset", "radius"))
    )  # fmt: skip
    t, _ = only_boxes.nearest(origins[..., None], directions)
    same = (t.double() - best).abs() < 1e-4 * best
    same |= t.isinf() & best.isinf()
    assert same.float().mean() > 0.999
    assert best.isfinite().float().mean() > 0.1
