import pytest
import torch
from hypothesis import given
from strategies_geometry import cameras, generator, seeds, similarity

from da3gs import Gaussians, Scene
from da3gs.errors import InputError
from da3gs.geometry import spherical_harmonics
from da3gs.geometry.rotations import matrix_from_quat


def _gaussians(seed=0, count=7, degree=2, dtype=torch.float64) -> Gaussians:
    draw = generator(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    opacities = torch.rand(count, generator=draw, dtype=torch.float64).to(dtype)
    return Gaussians(
        normal(count, 3), normal(count, 4), normal(count, 3).exp(), opacities, normal(count, (degree + 1) ** 2, 3)
    )


def _covariance(gaussians):
    axes = matrix_from_quat(gaussians.quats) * gaussians.scales[:, None]
    return axes @ axes.transpose(1, 2)


@given(seeds)
def test_a_similarity_moves_shape_and_colour(seed):
    gaussians, move = _gaussians(seed), similarity(seed)
    moved = gaussians.transform(move)
    assert torch.allclose(moved.means, move.apply(gaussians.means), atol=1e-10)
    linear = move.scale * move.rotation
    assert torch.allclose(_covariance(moved), linear @ _covariance(gaussians) @ linear.T, rtol=1e-7, atol=1e-9)
    eye = torch.randn(3, dtype=torch.float64, generator=generator(seed))
    before = spherical_harmonics.evaluate(gaussians.sh, gaussians.means - eye)
    after = spherical_harmonics.evaluate(moved.sh, moved.means - move.apply(eye))
    assert torch.allclose(before, after, atol=1e-9)


@given(seeds)
def test_transforms_compose_and_invert(seed):
    gaussians, a, b = _gaussians(seed), similarity(seed), similarity(seed + 5)
    once, twice = gaussians.transform(a @ b), gaussians.transform(b).transform(a)
    assert torch.allclose(once.means, twice.means, atol=1e-8)
    assert torch.allclose(_covariance(once), _covariance(twice), rtol=1e-7, atol=1e-8)
    back = gaussians.transform(a).transform(a.inverse())
    assert torch.allclose(back.means, gaussians.means, atol=1e-8) and torch.allclose(back.sh, gaussians.sh, atol=1e-9)


def test_cat_mask_and_degree():
    a, b = _gaussians(0, 3, degree=0), _gaussians(1, 4, degree=2)
    joined = Gaussians.cat([a, b])
    assert len(joined) == 7 and joined.sh_degree == 2
    assert torch.equal(joined.sh[:3, :1], a.sh) and not joined.sh[:3, 1:].any()
    kept = joined[joined.opacities > joined.opacities.median()]
    assert len(kept) == 3 and len(joined[2]) == 1
    assert torch.equal(joined.with_sh_degree(3).with_sh_degree(1).sh, joined.sh[:, :4])
    assert len(Gaussians.empty(1)) == 0 and Gaussians.empty(1).sh_degree == 1
    assert joined.to(torch.float32).means.dtype == torch.float32


def test_frozen():
    with pytest.raises(AttributeError):
        _gaussians().means = torch.zeros(7, 3)


@pytest.mark.parametrize(
    ("name", "row", "value", "words"),
    [
        ("means", 2, float("nan"), r"means must be finite; means\[2\] is \[nan"),
        ("scales", 3, 0.0, r"scales must be finite and > 0; scales\[3\] is \[0, 0, 0\]"),
        ("scales", 1, float("inf"), r"scales\[1\] is \[inf"),
        ("opacities", 4, 1.5, r"opacities must be in \[0, 1\]; opacities\[4\] is 1.5"),
        ("opacities", 0, float("nan"), r"opacities\[0\] is nan"),
        ("quats", 5, 0.0, r"quats must be of norm > 0; quats\[5\]"),
        ("sh", 6, float("inf"), r"sh must be finite; sh\[6\]"),
    ],
)
def test_bad_values_are_named(name, row, value, words):
    fields = {
        field: tensor.clone()
        for field, tensor in zip(Gaussians.__dataclass_fields__, _gaussians().tensors(), strict=True)
    }
    fields[name][row] = value
    with pytest.raises(InputError, match=words):
        Gaussians(**fields)
    assert len(Gaussians.unchecked(**fields)) == 7


@pytest.mark.usefixtures("without_shape_checks")
def test_bad_shapes_are_named():
    means, quats, scales, opacities, sh = _gaussians().tensors()
    with pytest.raises(InputError, match=r"quats must have shape \[7, 4\]; got \[6, 4\]"):
        Gaussians(means, quats[1:], scales, opacities, sh)
    with pytest.raises(InputError, match="1, 4, 9 or 16"):
        Gaussians(means, quats, scales, opacities, sh[:, :5])
    with pytest.raises(InputError, match="one float dtype"):
        Gaussians(means, quats.float(), scales, opacities, sh)


def _scene() -> Scene:
    views = cameras(0, 2)
    ones = torch.ones(2, 14, 20, dtype=torch.float64)
    images = torch.rand(2, 3, 14, 20, dtype=torch.float64)
    return Scene(_gaussians(), views, ones * 2, ones, images, {"note": 1}, near=0.5, far=9.0)


@given(seeds)
def test_scene_transform_moves_everything_together(seed):
    scene, move = _scene(), similarity(seed)
    moved = scene.transform(move)
    scale = float(move.scale)
    assert torch.allclose(
        moved.cameras.unproject(moved.depth), move.apply(scene.cameras.unproject(scene.depth)), atol=1e-8
    )
    assert torch.allclose(moved.gaussians.means, move.apply(scene.gaussians.means), atol=1e-9)
    assert abs(moved.near - 0.5 * scale) < 1e-9 and abs(moved.far - 9 * scale) < 1e-9
    assert torch.equal(moved.images, scene.images) and moved.report == {"note": 1}


@pytest.mark.usefixtures("without_shape_checks")
def test_inconsistent_scenes_are_refused():
    scene = _scene()
    views, maps, images = scene.cameras, scene.depth, scene.images
    with pytest.raises(InputError, match=r"Scene.depth must be \[2, 14, 20\]"):
        Scene(scene.gaussians, views, maps[:, 1:], maps, images)
    with pytest.raises(InputError, match="depth must be >= 0"):
        Scene(scene.gaussians, views, -maps, maps, images)
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\]"):
        Scene(scene.gaussians, views, maps, maps, images * 255)
    with pytest.raises(InputError, match="posed"):
        Scene(scene.gaussians, views.without_poses(), maps, maps, images)
    with pytest.raises(InputError, match="near < far"):
        Scene(scene.gaussians, views, maps, maps, images, near=2.0, far=1.0)
