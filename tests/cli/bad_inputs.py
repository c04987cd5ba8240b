"""A folder of small good inputs with one damaged neighbour per fault, and ways to make the machine itself fail.

Everything is named as the command lines of the error table name it. Built in seconds; nothing is downloaded.
"""

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import CONFIG, arc, see
from PIL import Image

from da3gs import Cameras, Gaussians, save_gaussians
from da3gs.data.cameras_json import write_cameras_json
from da3gs.data.transforms_json import write_transforms_json
from da3gs.export.video import write_video
from da3gs.images import uint8_from_tensor
from da3gs.model.checkpoints import save_checkpoint
from da3gs.model.network import build_model
from da3gs.rendering import render

VIEWS = 3
Faults = Callable[[pytest.MonkeyPatch], object]


def build_inputs(folder: Path) -> None:
    """Fill an empty folder."""
    cameras = arc(VIEWS)
    images, depth = see(cameras)
    pictures = [uint8_from_tensor(image) for image in images]
    _photographs(folder, pictures)
    _clips(folder, pictures)
    _gaussians(folder)
    _camera_files(folder, cameras)
    _measured_depth(folder, cameras, pictures, depth)
    _weights(folder)
    _configurations(folder)
    # Compiled once here, so that no fault below hits the renderer's compiler.
    render(Gaussians(*_splats(4)), cameras[:1])


def _photographs(folder: Path, pictures: list[np.ndarray]) -> None:
    for name in ("photos", "photos_text", "photos_cut", "empty", "folder.ply", "foreign", "tiny", "heic"):
        (folder / name).mkdir()
    for view, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / "photos" / f"{view}.png")
    Image.fromarray(pictures[0]).save(folder / "photos_cut/0.jpg", quality=95)
    whole = (folder / "photos_cut/0.jpg").read_bytes()
    (folder / "photos_cut/0.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "photos_text/0.jpg").write_text("Dear diary,\ntoday I took no photographs.\n")
    (folder / "foreign/thesis.tex").write_text("years of work")
    (folder / "notes.txt").write_text("buy milk")
    (folder / "heic/IMG_1.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("RGB", (16, 16)).save(folder / "tiny/icon.png")
    (folder / "one.png").write_bytes((folder / "photos/0.png").read_bytes())


def _clips(folder: Path, pictures: list[np.ndarray]) -> None:
    write_video(folder / "clip.mp4", pictures * 8, fps=24)
    whole = (folder / "clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("not a film")


def _splats(count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    return draw(count, 3), draw(count, 4) + 0.1, 0.1 * draw(count, 3) + 0.01, draw(count) / 2 + 0.2, draw(count, 1, 3)


def _gaussians(folder: Path) -> None:
    save_gaussians(Gaussians(*_splats(500)), folder / "scene.ply")
    whole = (folder / "scene.ply").read_bytes()
    head, body = whole.split(b"end_header\n")
    (folder / "cut.ply").write_bytes(whole[:-1])
    (folder / "mesh.ply").write_bytes(whole.replace(b"float opacity", b"float opaqueness"))
    values = np.frombuffer(body, "<f4").reshape(500, -1).copy()
    values[7, 1] = np.nan
    (folder / "nan.ply").write_bytes(head + b"end_header\n" + values.tobytes())
    none = [tensor[:0] for tensor in _splats(1)]
    save_gaussians(Gaussians(*none), folder / "none.ply")
    Image.new("RGB", (8, 8)).save(folder / "one.spz", "PNG")
    (folder / "cut.splat").write_bytes(bytes(50))
    (folder / "plain.compressed.ply").write_bytes(whole)


def _camera_files(folder: Path, cameras: Cameras) -> None:
    names = [f"{view}.png" for view in range(VIEWS)]
    write_cameras_json(folder / "cameras.json", cameras, names)
    write_cameras_json(folder / "other_cameras.json", cameras, ["a.png", "b.png", "c.png"])
    write_cameras_json(folder / "fewer_cameras.json", cameras[:2])  # view_000, view_001
    write_cameras_json(folder / "unposed.json", Cameras(None, cameras.K, 126, 98), names)
    index = {"rgbd": {"context": [0, 2], "target": [1]}}
    (folder / "index.json").write_text(json.dumps(index))
    content = (folder / "cameras.json").read_text()

    def changed(name: str, change: Callable[[dict], None]) -> None:
        tree = json.loads(content)
        change(tree)
        (folder / name).write_text(json.dumps(tree))

    changed("singular_cameras.json", lambda tree: tree["views"][1]["K"][1].__setitem__(1, 0.0))
    changed("same_cameras.json", lambda tree: tree["views"][1].__setitem__("name", "0.png"))
    changed("tall_cameras.json", lambda tree: [view.update(width=98, height=126) for view in tree["views"]])
    changed("opengl_cameras.json", lambda tree: tree.__setitem__("convention", "opengl"))


def _measured_depth(folder: Path, cameras: Cameras, pictures: list[np.ndarray], depth: torch.Tensor) -> None:
    """rgbd/ (good) and copies with one fault each."""
    good = folder / "rgbd"
    (good / "depth").mkdir(parents=True)
    for view, picture in enumerate(pictures):
        Image.fromarray(picture).save(good / f"{view}.png")
        np.save(good / f"depth/{view}.npy", depth[view].numpy())
    names, maps = [f"{view}.png" for view in range(VIEWS)], [f"depth/{view}.npy" for view in range(VIEWS)]
    write_transforms_json(good / "transforms.json", cameras, names, depth_paths=maps)
    tree = json.loads((good / "transforms.json").read_text())

    def variant(name: str, change: Callable[[dict], None]) -> Path:
        shutil.copytree(good, folder / name)
        content = json.loads(json.dumps(tree))
        change(content)
        (folder / name / "transforms.json").write_text(json.dumps(content))
        return folder / name

    def matrix(content: dict) -> list:
        return content["frames"][1]["transform_matrix"]

    nan = variant("rgbd_nan", lambda content: None)
    for view in range(VIEWS):
        np.save(nan / f"depth/{view}.npy", np.full((98, 126), np.nan, np.float32))
    Image.fromarray(pictures[0]).convert("L").save(variant("rgbd_8bit", lambda c: None) / "depth/1.png")
    variant("rgbd_8bit_named", lambda c: c["frames"][1].update(depth_file_path="../rgbd_8bit/depth/1.png"))
    np.save(variant("rgbd_turned", lambda c: None) / "depth/1.npy", np.ones((126, 98), np.float32))
    variant("rgbd_no_depth", lambda c: [frame.pop("depth_file_path") for frame in c["frames"]])
    variant("shape", lambda c: matrix(c).pop() and matrix(c).pop())
    variant("scaled", lambda c: matrix(c)[0].__setitem__(0, 3.0))
    variant("nan_pose", lambda c: matrix(c)[0].__setitem__(3, float("nan")))
    variant("no_focal", lambda c: [c.pop(name) for name in ("fl_x", "fl_y")])
    variant("zero_focal", lambda c: c.update(fl_x=0.0, fl_y=0.0))
    variant("gone", lambda c: [frame.update(file_path=f"lost/{i}.png") for i, frame in enumerate(c["frames"])])
    (variant("not_json", lambda c: None) / "transforms.json").write_text('{"frames": [')


def _weights(folder: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_checkpoint(build_model(CONFIG), folder / "model.safetensors", {"data": "none"})
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "model.pth").write_bytes(b"PK\x03\x04")
    tensors = {"model.backbone.pretrained.cls_token": torch.zeros(1, 1, 384)}
    save_file(tensors, folder / "released.safetensors")
    (folder / "other_preset").mkdir()
    save_file(tensors, folder / "other_preset/model.safetensors")
    (folder / "other_preset/config.json").write_text(json.dumps({"model_name": "da3-base"}))


def _configurations(folder: Path) -> None:
    (folder / "unknown_key.yaml").write_text("task: {kind: student}\noptim: {learning_rate: 1.0e-3}\n")
    (folder / "not_a_mapping.yaml").write_text("- a\n- b\n")
    (folder / "not_yaml.yaml").write_text("a: [1, 2\nb: }")
    (folder / "held/checkpoints/step_0000006").mkdir(parents=True)
    (folder / "held/checkpoints/step_0000006/state.json").write_text("{}")


# ---------------------------------------------------------------- faults of the machine


@contextmanager
def disk_with_room_for(count: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file can grow beyond `count` bytes: writes fail in the kernel, half way, in this process and its children."""
    resource = pytest.importorskip("resource", reason="file size limits are a matter of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_disk(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files up to 3000 bytes can be written."""
    with disk_with_room_for(3000, patch):
        yield


@contextmanager
def no_room_at_all(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empty files only."""
    with disk_with_room_for(0, patch):
        yield


@contextmanager
def unreachable_hub(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub at a port where nothing listens, and an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        nowhere = "http://127.0.0.1:9"
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
        patch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
        patch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            nowhere + "/{repo_id}/resolve/{revision}/{filename}",
        )
        # The client waits ever longer between its attempts: half a minute in all.
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield


def ctrl_c_in(name: str) -> Faults:
    """The signal of Ctrl-C arrives when the function of that dotted name is called."""

    @contextmanager
    def fault(patch: pytest.MonkeyPatch) -> Iterator[None]:
        # Ignored in background jobs of a shell without job control, which Python inherits.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        patch.setattr(name, lambda *_, **__: signal.raise_signal(signal.SIGINT))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    return fault


def without_module(name: str) -> Faults:
    """As if a package were not installed."""

    @contextmanager
    def fault(patch: pytest.MonkeyPatch) -> Iterator[None]:
        patch.setitem(__import__("sys").modules, name, None)
        yield

    return fault
