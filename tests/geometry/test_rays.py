import torch
from hypothesis import given
from strategies_geometry import cameras, generator, seeds, similarity

from da3gs.geometry.rays import points_on_rays, ray_map, transform_rays


@given(seeds)
def test_rays_at_full_size_are_those_of_the_pixels(seed):
    views = cameras(seed)
    depth = 0.5 + torch.rand(3, 14, 20, dtype=torch.float64, generator=generator(seed))
    points = points_on_rays(ray_map(views, 20, 14), depth)
    assert torch.allclose(points, views.unproject(depth), atol=1e-10)


@given(seeds)
def test_cell_centres_lie_where_the_cells_are(seed):
    views = cameras(seed)
    uv, z = views.project(points_on_rays(ray_map(views, 10, 7), torch.ones(3, 7, 10).double())[0].reshape(-1, 3))
    v, u = torch.meshgrid(torch.arange(7) + 0.5, torch.arange(10) + 0.5, indexing="ij")
    expected = torch.stack([u * 2, v * 2], -1).reshape(-1, 2).double()
    assert torch.allclose(uv[0], expected, atol=1e-8) and torch.allclose(z[0], torch.ones(70).double())


@given(seeds)
def test_rays_move_with_the_scene(seed):
    views, move = cameras(seed), similarity(seed)
    rays = ray_map(views, 5, 4)
    depth = torch.rand(3, 4, 5, dtype=torch.float64, generator=generator(seed))
    moved = transform_rays(rays, move)
    assert torch.allclose(moved, ray_map(views.transform(move), 5, 4), atol=1e-8)
    assert torch.allclose(points_on_rays(moved, depth * move.scale), move.apply(points_on_rays(rays, depth)), atol=1e-8)
