"""The commands a user types, as processes: ns-train (and resuming), ns-eval, ns-export, ns-render, ns-viewer."""

import ctypes.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .scene import write_camera_path

pytestmark = pytest.mark.nerfstudio
pytest.importorskip("nerfstudio")

METHODS = ("da3gs", "da3gs-splat")
STEPS = 25
ENOUGH = 100  # steps for a network with random weights to get better at what it was not shown, and not by chance


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """No GPU, no network for weights, and ffmpeg on PATH (every ns-render asks for it)."""
    tools = tmp_path_factory.mktemp("tools")
    if shutil.which("ffmpeg") is None:
        import imageio_ffmpeg

        (tools / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    path = os.pathsep.join([str(Path(sys.executable).parent), str(tools), os.environ["PATH"]])
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PATH": path, "COLUMNS": "300"}


@pytest.fixture(scope="module")
def call(environment):
    def run(*words) -> str:
        words = [str(word) for word in words]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=900)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def train(call, scene, weights, tmp_path_factory):
    """Trains a method and returns its run folder and what was printed."""
    output = tmp_path_factory.mktemp("outputs")

    def run(method: str, name: str, *words) -> tuple[Path, str]:
        printed = call(
            "ns-train", method, "--data", scene, "--output-dir", output, "--timestamp", name,
            "--machine.device-type", "cpu", "--vis", "tensorboard", "--max-num-iterations", STEPS,
            "--pipeline.model.network", weights, "--pipeline.model.image-size", 56,
            "--pipeline.model.context-views", 4, *words,
        )  # fmt: skip
        return output / scene.name / method / name, printed

    return run


@pytest.fixture(scope="module")
def runs(train):
    return {method: train(method, "first") for method in METHODS}


@pytest.fixture(scope="module")
def evaluated(runs, call):
    """Results of ns-eval and the pictures it wrote."""
    found = {}
    for method, (folder, _) in runs.items():
        call(
            "ns-eval", "--load-config", folder / "config.yml", "--output-path", folder / "eval.json",
            "--render-output-path", folder / "eval",
        )  # fmt: skip
        picture = np.asarray(Image.open(folder / "eval" / "eval_img_0000.png").convert("RGB"))
        found[method] = json.loads((folder / "eval.json").read_text())["results"], picture
    return found


def _eval_cameras(folder: Path, scene: Path, *, frame: str):
    """The held-out camera (as nerfstudio reads the split), in the frame of the run or of the data set."""
    from da3gs.export.nerfstudio_run import TRANSFORM_FILE, read_transform
    from da3gs.geometry.cameras import Cameras

    content = json.loads((scene / "transforms.json").read_text())
    frames = content["frames"]
    trained = np.ceil(len(frames) * 0.9).astype(int)
    left_out = sorted(set(range(len(frames))) - set(np.linspace(0, len(frames) - 1, trained, dtype=int)))
    pose = torch.tensor([frames[index]["transform_matrix"] for index in left_out])
    K = torch.tensor([[content["fl_x"], 0, content["cx"]], [0, content["fl_y"], content["cy"]], [0, 0, 1.0]])
    cameras = Cameras.from_opengl(pose, K.expand(len(pose), 3, 3), content["w"], content["h"])
    return cameras if frame == "data" else cameras.transform(read_transform(folder / TRANSFORM_FILE))


def _levels(gaussians, cameras) -> np.ndarray:
    from da3gs.rendering import render

    return np.round(render(gaussians, cameras).rgb[0].clamp(0, 1).numpy() * 255).astype(int)


def _same_picture(a: np.ndarray, b: np.ndarray) -> None:
    """Equal to one level of eight bits, but for the odd splat at a threshold."""
    difference = np.abs(a.astype(int) - b.astype(int))
    assert difference.max() <= 3 and (difference <= 1).mean() > 0.999, (difference.max(), (difference <= 1).mean())


@pytest.mark.parametrize("method", METHODS)
def test_training_starts_from_the_feed_forward_result_and_improves(method, train, call):
    folder, printed = train(method, "longer", "--max-num-iterations", ENOUGH)
    found = re.search(r"step 0, feed-forward: PSNR ([\d.]+) dB, SSIM ([\d.-]+) on 1 held-out images", printed)
    assert found, printed[-2000:]
    call("ns-eval", "--load-config", folder / "config.yml", "--output-path", folder / "eval.json")
    results = json.loads((folder / "eval.json").read_text())["results"]
    assert results["psnr"] > float(found.group(1)) + 0.3
    assert (folder / "dataparser_transforms.json").is_file()
    saved = torch.load(next((folder / "nerfstudio_models").glob("*.ckpt")), weights_only=True)
    assert saved["step"] == ENOUGH - 1


@pytest.mark.parametrize("method", METHODS)
def test_eval_writes_what_it_measures(method, evaluated):
    results, picture = evaluated[method]
    truth, predicted = np.split(picture.astype(float) / 255, 2, axis=1)
    psnr = -10 * np.log10(((truth - predicted) ** 2).mean())
    assert psnr == pytest.approx(results["psnr"], abs=0.02)
    assert 0 < results["ssim"] < 1


@pytest.mark.skipif(
    ctypes.util.find_library("usb-1.0") is None,
    reason="ns-export imports open3d, which needs libusb (apt-get install libusb-1.0-0)",
)
@pytest.mark.parametrize("method", METHODS)
def test_exported_ply_renders_to_what_eval_wrote(method, runs, evaluated, scene, call):
    from da3gs.export.gaussian_files import load_gaussians

    folder, _ = runs[method]
    call("ns-export", "gaussian-splat", "--load-config", folder / "config.yml", "--output-dir", folder / "export")
    gaussians = load_gaussians(folder / "export" / "splat.ply")
    assert gaussians.sh_degree == 2
    picture = np.split(evaluated[method][1], 2, axis=1)[1]
    _same_picture(_levels(gaussians, _eval_cameras(folder, scene, frame="run")), picture)


@pytest.mark.parametrize("method", METHODS)
def test_convert_brings_a_run_back_to_the_data_sets_frame(method, runs, evaluated, scene, call, tmp_path):
    from da3gs.export.gaussian_files import load_gaussians

    folder, _ = runs[method]
    call("da3gs", "convert", folder, tmp_path / "scene.ply")
    picture = np.split(evaluated[method][1], 2, axis=1)[1]
    gaussians = load_gaussians(tmp_path / "scene.ply")
    _same_picture(_levels(gaussians, _eval_cameras(folder, scene, frame="data")), picture)


@pytest.mark.parametrize("method", METHODS)
def test_resuming_goes_on_where_it_stopped(method, runs, evaluated, train):
    folder, _ = runs[method]
    resumed, printed = train(method, "resumed", "--load-dir", folder / "nerfstudio_models")
    assert "Done loading Nerfstudio checkpoint" in printed and "step 0, feed-forward" not in printed
    saved = torch.load(next((resumed / "nerfstudio_models").glob("*.ckpt")), weights_only=True)
    assert saved["step"] == 2 * STEPS - 1
    before = torch.load(next((folder / "nerfstudio_models").glob("*.ckpt")), weights_only=True)
    name = "_model.gauss_params.features_dc"
    assert not torch.equal(before["pipeline"][name], saved["pipeline"][name])


def test_render_interpolate(runs, call, tmp_path):
    import imageio.v3 as iio

    folder, _ = runs["da3gs"]
    call(
        "ns-render", "interpolate", "--load-config", folder / "config.yml", "--output-path", tmp_path / "clip.mp4",
        "--pose-source", "train", "--interpolation-steps", 2, "--rendered-output-names", "rgb", "depth",
    )  # fmt: skip
    frames = iio.imread(tmp_path / "clip.mp4", plugin="FFMPEG")
    assert frames.shape[0] >= 8 and frames.shape[1:] == (48, 128, 3)
    assert frames[:, :, :64].std() > 10 and frames[:, :, 64:].std() > 10


def test_render_camera_path(runs, call, tmp_path):
    folder, _ = runs["da3gs-splat"]
    path = write_camera_path(tmp_path / "path.json", frames=3)
    call(
        "ns-render", "camera-path", "--load-config", folder / "config.yml", "--camera-path-filename", path,
        "--output-path", tmp_path / "frames", "--output-format", "images", "--image-format", "png",
        "--rendered-output-names", "rgba",
    )  # fmt: skip
    pictures = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "frames").glob("*"))]
    assert len(pictures) == 3 and all(picture.shape[:2] == (48, 64) for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[2])


def test_render_dataset_equals_eval(runs, evaluated, call, tmp_path):
    folder, _ = runs["da3gs"]
    call(
        "ns-render", "dataset", "--load-config", folder / "config.yml", "--output-path", tmp_path,
        "--rendered-output-names", "rgb", "gt-rgb", "depth", "--image-format", "png",
    )  # fmt: skip
    truth, predicted = np.split(evaluated["da3gs"][1], 2, axis=1)
    for name, expected in (("rgb", predicted), ("gt-rgb", truth)):
        file = next(file for file in tmp_path.rglob("*.png") if f"/{name}" in file.as_posix())
        _same_picture(np.asarray(Image.open(file).convert("RGB")), expected)
    assert any("/depth" in file.as_posix() for file in tmp_path.rglob("*.png"))


def test_viewer_shows_the_scene(runs, environment):
    from .viewer_client import visit

    folder, _ = runs["da3gs"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["ns-viewer", "--load-config", str(folder / "config.yml"), "--viewer.websocket-port", str(port)]
    viewer = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        picture = visit(port, seconds=240)
    finally:
        viewer.send_signal(signal.SIGINT)
        try:
            viewer.wait(30)
        except subprocess.TimeoutExpired:
            viewer.kill()
    assert min(picture.shape[:2]) >= 16
    assert picture.reshape(-1, 3).std(0).max() > 1  # splats, and not the background alone
