"""The viewer: what it sends is the scene, what it controls works, and a browser shows it."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from viewer_browser import Browser, find_browser, wait_until

from da3gs.data.cameras_json import write_cameras_json
from da3gs.errors import InputError, MissingDependencyError
from da3gs.export.gaussian_files import save_gaussians
from da3gs.gaussians import Gaussians
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.geometry.spherical_harmonics import dc_from_rgb
from da3gs.rendering.trajectories import orbit_around_gaussians
from da3gs.viewer import SplatViewer, ViewerScene, load_viewer_scene, splat_arrays, viewer_frame, visibility_order

pytest.importorskip("viser", reason="viser is not installed")


def ball(count=400, radius=1.0, color=(0.95, 0.05, 0.05), center=(3.0, -2.0, 7.0), seed=0, degree=1):
    """Splats in a ball; coloured by degree 0 alone."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 3, generator=generator)
    points = radius * points / points.norm(dim=1, keepdim=True) * torch.rand(count, 1, generator=generator) ** (1 / 3)
    sh = torch.zeros(count, (degree + 1) ** 2, 3)
    sh[:, 0] = dc_from_rgb(torch.tensor(color).expand(count, 3))
    return Gaussians(
        points + torch.tensor(center),
        torch.randn(count, 4, generator=generator),
        radius * (0.03 + 0.05 * torch.rand(count, 3, generator=generator)),
        0.7 + 0.3 * torch.rand(count, generator=generator),
        sh,
    )


def scene_with_cameras(views=3, **options):
    gaussians = ball(**options)
    cameras = orbit_around_gaussians(gaussians, views, width=64, height=48)
    images = tuple(np.full((48, 64, 3), 80 * view, np.uint8) for view in range(views))
    return ViewerScene(gaussians, cameras, tuple(f"{view}.png" for view in range(views)), images)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def viewer():
    started = []

    def start(scene):
        started.append(SplatViewer(scene, host="127.0.0.1", port=free_port()))
        return started[-1]

    yield start
    for one in started:
        one.stop()


# ---------------------------------------------------------------- what is sent


def test_covariances_and_colours():
    scene = ViewerScene(ball(50))
    frame = viewer_frame(scene)
    arrays = splat_arrays(scene.gaussians, frame)
    order = visibility_order(scene.gaussians)
    scale, picked = float(frame.scale), scene.gaussians[order]
    assert np.allclose(arrays.centers, frame.apply(picked.means).numpy(), atol=1e-4)
    rotation = matrix_from_quat(picked.quats)
    expected = scale**2 * rotation @ torch.diag_embed(picked.scales**2) @ rotation.transpose(1, 2)
    assert np.allclose(arrays.covariances, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert np.allclose(arrays.rgbs, [0.95, 0.05, 0.05], atol=1e-5)
    assert np.array_equal(arrays.opacities[:, 0], picked.opacities.numpy())


def test_frame_makes_every_scene_ten_units_large():
    for radius, center in ((1e-4, (0.0, 0.0, 0.0)), (500.0, (1e4, 0.0, 0.0))):
        scene = ViewerScene(ball(radius=radius, center=center))
        arrays = splat_arrays(scene.gaussians, viewer_frame(scene))
        distance = np.linalg.norm(arrays.centers, axis=1)
        assert np.quantile(distance, 0.75) == pytest.approx(10, rel=0.05)
        sent = arrays.covariances.astype(np.float16).astype(np.float64)  # as viser 1 does
        assert np.isfinite(sent).all() and (np.linalg.eigvalsh(sent)[:, 0] > 0).mean() > 0.99


def test_needle_thin_splats_stay_valid():
    """Flat splats are what the network makes; covariances must survive Cholesky (viser 0.2) and half floats (1.x)."""
    gaussians = ball(20)
    flat = Gaussians(
        gaussians.means,
        gaussians.quats,
        gaussians.scales * torch.tensor([1, 1, 1e-6]),
        gaussians.opacities,
        gaussians.sh,
    )
    covariances = splat_arrays(flat, viewer_frame(ViewerScene(flat))).covariances
    np.linalg.cholesky(covariances.astype(np.float64) + np.ones(3) * 1e-7)
    assert np.linalg.eigvalsh(covariances.astype(np.float64))[:, 0].min() > 5e-7


def test_most_visible_first():
    gaussians = ball(4)
    scales = torch.tensor([[1.0, 1, 1], [2, 2, 1e-5], [1, 1, 1], [9, 0.01, 0.01]])
    opacities = torch.tensor([0.5, 0.5, 1.0, 1.0])
    order = visibility_order(Gaussians(gaussians.means, gaussians.quats, scales, opacities, gaussians.sh))
    assert order.tolist() == [1, 2, 0, 3]  # 0.5 * 4, 1, 0.5, 0.09


def test_scene_checks():
    with pytest.raises(InputError, match="no Gaussians to look at"):
        ViewerScene(Gaussians.empty())
    scene = scene_with_cameras()
    with pytest.raises(InputError, match="one name per camera"):
        ViewerScene(scene.gaussians, scene.cameras, ("a",))


# ---------------------------------------------------------------- files


def test_loading(tmp_path):
    scene = scene_with_cameras()
    with pytest.raises(InputError, match=r"has no scene\.ply"):
        load_viewer_scene(tmp_path)
    save_gaussians(scene.gaussians, tmp_path / "scene.ply")
    assert load_viewer_scene(tmp_path).cameras is None
    write_cameras_json(tmp_path / "cameras.json", scene.cameras, scene.names)
    loaded = load_viewer_scene(tmp_path / "scene.ply")
    assert loaded.names == scene.names and loaded.images is None and len(loaded.gaussians) == 400
    (tmp_path / "images").mkdir()
    from PIL import Image

    for name in scene.names:
        Image.new("RGB", (512, 384), (9, 9, 9)).save(tmp_path / "images" / name)
    loaded = load_viewer_scene(tmp_path)
    assert [image.shape for image in loaded.images] == [(192, 256, 3)] * 3  # thumbnails
    assert torch.equal(loaded.cameras.cam_from_world, scene.cameras.cam_from_world)


# ---------------------------------------------------------------- server


def test_controls(viewer):
    running = viewer(scene_with_cameras())
    assert running.count == 400 and running.slider.value == 400
    running.show_count(10)
    assert running.count == 10
    running.show_count(10**9)
    assert running.count == 400
    assert len(running.frusta) == 3 and all(frustum.visible for frustum in running.frusta)
    running.checkbox.value = False
    wait_until(lambda: not any(frustum.visible for frustum in running.frusta), 10)
    running.slider.value = 21
    wait_until(lambda: running.count == 21, 10)


def test_frusta_stand_where_the_cameras_are(viewer):
    scene = scene_with_cameras()
    running = viewer(scene)
    frame = viewer_frame(scene)
    for view, frustum in enumerate(running.frusta):
        assert np.allclose(frustum.position, frame.apply(scene.cameras.centers)[view].numpy(), atol=1e-4)
        rotation = matrix_from_quat(torch.tensor(np.array(frustum.wxyz)))
        assert np.allclose(rotation[:, 2], scene.cameras.look_directions[view].numpy(), atol=1e-5)


def test_path_and_upward(viewer):
    with_cameras, alone = viewer(scene_with_cameras()), viewer(ViewerScene(ball()))
    assert len(with_cameras.path) == len(alone.path) == 240
    for running in (with_cameras, alone):  # the flight looks at the scene from outside
        forward, centers = running.path.look_directions, running.path.centers
        assert float((-centers * forward).sum(1).min()) > 10
        assert float(-running.path.cam_from_world[:, 1, :3].mean(0) @ torch.tensor(running._up).float()) > 0.5
    assert with_cameras.frusta and not alone.frusta


def test_splats_can_be_one(viewer):
    running = viewer(ViewerScene(ball(1)))
    assert running.count == 1


def test_without_viser(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(MissingDependencyError, match="pip install viser"):
        SplatViewer(ViewerScene(ball(3)))


# ---------------------------------------------------------------- a browser looks at it


def red_share(picture):
    """Share of pixels that are clearly the colour of the splats."""
    r, g, b = picture.astype(int).transpose(2, 0, 1)
    return float(((r > 120) & (g < 0.6 * r) & (b < 0.6 * r)).mean())


@pytest.mark.skipif(find_browser() is None, reason="no browser found")
def test_browser_shows_the_splats(viewer, tmp_path):
    scene = scene_with_cameras()
    running = viewer(scene)
    with Browser(tmp_path / "profile", (1000, 700)) as page:
        page.open(running.url)
        client = wait_until(lambda: next(iter(running.server.get_clients().values()), None), 90)
        wait_until(lambda: red_share(page.screenshot()) > 0.02, 90)
        # The browser's camera is the first camera of the scene, just beyond the picture in its frustum.
        expected = viewer_frame(scene).apply(scene.cameras.centers)[0].numpy()
        wait_until(lambda: np.linalg.norm(client.camera.position - expected) < 3, 30)
        assert np.allclose(client.camera.up_direction, -scene.cameras.cam_from_world[0, 1, :3].numpy(), atol=1e-4)
        full = wait_until(lambda: red_share(page.screenshot()), 30)
        running.show_count(3)
        wait_until(lambda: red_share(page.screenshot()) < 0.5 * full, 60)
        running.show_count(400)
        wait_until(lambda: red_share(page.screenshot()) > 0.8 * full, 60)
        # A flight moves it to the end of the path, and the connection is still there.
        running.fly(client, seconds=1.0)
        moved = np.array(client.camera.position)
        assert np.linalg.norm(moved - expected) > 5 and all(frustum.visible for frustum in running.frusta)
        time.sleep(0.5)
        assert client.client_id in running.server.get_clients()
        assert "viser" in (page.evaluate("document.title") or "").lower()


def test_command_serves_until_interrupted(tmp_path):
    """`da3gs view FILE`: one line with the address, the page behind it, and Ctrl-C is a normal end."""
    save_gaussians(ball(), tmp_path / "scene.ply")
    port = free_port()
    code = "import sys; from da3gs.cli.main import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "view", str(tmp_path), "--port", str(port), "--host", "127.0.0.1"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background ignores Ctrl-C and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line for line in lines if "Ctrl-C" in line)
        assert "400 Gaussians, 0 cameras at http://127.0.0.1:" in address
        with urllib.request.urlopen(address.split(" at ")[1].split()[0]) as page:
            assert b"<html" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
