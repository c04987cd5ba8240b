"""Undistortion: the formulas against OpenCV, and a picture that lands where the record says."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from da3gs.data.lens import Lens
from da3gs.errors import FormatError, InputError

WIDTH, HEIGHT = 320, 240
K = np.array([[260.0, 0, 166.3], [0, 255.0, 117.9], [0, 0, 1]])
OPENCV = np.array([0.0578, -0.0805, -0.00098, 0.00016, 0.01, 0.0, 0.0, 0.0])
BARREL = np.array([-0.25, 0.06, 0.001, -0.0005, 0.0, 0.0, 0.0, 0.0])
RATIONAL = np.array([0.3, -0.05, 0.0004, 0.0003, 0.01, 0.2, 0.02, -0.004])
FISHEYE = np.array([0.03, -0.02, 0.006, -0.001, 0.0, 0.0, 0.0, 0.0])


def lens(coefficients, model="perspective"):
    return Lens(model, coefficients, K, WIDTH, HEIGHT)


def rays(seed=0, count=200, reach=0.6):
    return np.random.default_rng(seed).uniform(-reach, reach, (count, 2))


@pytest.mark.parametrize("coefficients", [OPENCV, BARREL, RATIONAL])
def test_perspective_model_equals_opencv(coefficients):
    points = rays()
    expected, _ = cv2.projectPoints(
        np.concatenate([points, np.ones((200, 1))], 1), np.zeros(3), np.zeros(3), np.eye(3), coefficients
    )
    np.testing.assert_allclose(lens(coefficients).distort(points), expected[:, 0], atol=1e-12)


def test_fisheye_model_equals_opencv():
    points = np.concatenate([rays(reach=1.5), [[0.0, 0.0]]])
    expected = cv2.fisheye.distortPoints(points[None], np.eye(3), FISHEYE[:4])[0]
    np.testing.assert_allclose(lens(FISHEYE, "fisheye").distort(points), expected, atol=1e-9)


def photograph_dots(camera, directions, sigma_px=4.0):
    """A float photograph of soft dots in the given directions, each at its exact distorted pixel (our convention)."""
    pixels = camera.distort(directions) @ camera.K[:2, :2].T + camera.K[:2, 2]
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return [np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma_px**2)).astype(np.float32) for x, y in pixels]


def peak(picture):
    """Sub-pixel maximum: the logarithm of a Gaussian is a paraboloid, fitted to 7x7 pixels. Our pixel convention."""
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    dy, dx = (grid.ravel() for grid in np.mgrid[-3:4, -3:4].astype(float))
    values = np.log(picture[row - 3 : row + 4, column - 3 : column + 4]).ravel()
    terms = np.stack([dx * dx, dx * dy, dy * dy, dx, dy, np.ones(49), dx**3, dx**2 * dy, dx * dy**2, dy**3], 1)
    a, b, c, d, e = np.linalg.lstsq(terms, values, rcond=None)[0][:5]
    return np.array([column, row]) + 0.5 + np.linalg.solve([[2 * a, b], [b, 2 * c]], [-d, -e])


@pytest.mark.parametrize(
    ("coefficients", "model"), [(OPENCV, "perspective"), (BARREL, "perspective"), (FISHEYE, "fisheye")]
)
def test_a_dot_lands_where_the_pinhole_record_projects_it(coefficients, model):
    camera = lens(coefficients, model)
    pinhole = camera.pinhole_K()
    directions = rays(1, 12, 0.35)
    for direction, photo in zip(directions, photograph_dots(camera, directions), strict=True):
        position = peak(camera.undistort(photo, pinhole).astype(np.float64))
        expected = pinhole[:2, :2] @ direction + pinhole[:2, 2]
        # Linear interpolation blurs by up to a quarter px^2, depending on the phase: that moves a peak by 0.02 px.
        assert np.abs(position - expected).max() < 0.03
        # Exact position through the map itself.
        source = camera.pixels_from_pinhole(expected[None], pinhole)[0]
        photo_pixel = camera.distort(direction[None])[0] @ K[:2, :2].T + K[:2, 2]
        assert np.abs(source - photo_pixel).max() < 1e-9


def test_pixel_centres_lie_at_half():
    """A photograph whose values are its own pixel positions shows, after undistortion, where every pixel came from."""
    camera = lens(OPENCV)
    pinhole = camera.pinhole_K()
    v, u = (np.mgrid[:HEIGHT, :WIDTH] + 0.5).astype(np.float32)
    picture = camera.undistort(np.stack([u, v], -1), pinhole)
    inner = np.stack([u, v], -1)[20:-20, 20:-20].reshape(-1, 2).astype(np.float64)
    expected = camera.pixels_from_pinhole(inner, pinhole)
    error = picture[20:-20, 20:-20].reshape(-1, 2) - expected
    assert np.abs(error).max() < 2e-3


@pytest.mark.parametrize(
    ("coefficients", "model"),
    [(OPENCV, "perspective"), (BARREL, "perspective"), (RATIONAL, "perspective"), (FISHEYE, "fisheye")],
)
def test_no_margin_shows_and_none_is_wasted(coefficients, model):
    camera = lens(coefficients, model)
    pinhole = camera.pinhole_K()
    assert pinhole[0, 0] / pinhole[1, 1] == pytest.approx(K[0, 0] / K[1, 1], rel=1e-12)
    np.testing.assert_array_equal(pinhole[:2, 2], K[:2, 2])
    v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    source = camera.pixels_from_pinhole(np.stack([u.ravel(), v.ravel()], 1), pinhole)
    assert source.min() >= 0 and (source <= [WIDTH, HEIGHT]).all()
    margins = [source[:, 0].min(), source[:, 1].min(), WIDTH - source[:, 0].max(), HEIGHT - source[:, 1].max()]
    assert min(margins) < 1e-6  # one border point touches the photograph's border


@settings(max_examples=25, deadline=None)
@given(k1=st.floats(-0.3, 0.3), k2=st.floats(-0.05, 0.05), p1=st.floats(-0.003, 0.003))
def test_undistorted_points_agree_with_opencv(k1, k2, p1):
    camera = lens(np.array([k1, k2, p1, 0, 0, 0, 0, 0.0]))
    pinhole = camera.pinhole_K()
    pixels = np.random.default_rng(2).uniform([10, 10], [WIDTH - 10, HEIGHT - 10], (50, 2))
    distorted = camera.pixels_from_pinhole(pixels, pinhole)
    shift = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-12)
    back = cv2.undistortPoints(
        (distorted - 0.5)[:, None], K - shift, camera.coefficients, P=pinhole - shift, criteria=criteria
    )
    assert np.abs(back[:, 0] + 0.5 - pixels).max() < 0.01


def test_impossible_lenses_and_wrong_sizes_are_refused():
    with pytest.raises(FormatError, match="fold"):
        lens(np.array([-40.0, 0, 0, 0, 0, 0, 0, 0])).pinhole_K()
    with pytest.raises(InputError, match="320x240"):
        lens(OPENCV).undistort(np.zeros((10, 10), np.float32), K)


def test_depth_is_undistorted_without_mixing_values():
    depth = np.where(np.arange(WIDTH) < 150, 1000, 3000).astype(np.uint16)[None].repeat(HEIGHT, 0)
    assert set(np.unique(lens(BARREL).undistort(depth, K, nearest=True))) == {1000, 3000}
