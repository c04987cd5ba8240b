"""The README's commands and Python for one's own photographs really run, in its order, on small pictures.

The bundled weights stand in for those that would be downloaded. The demo and the nerfstudio commands run elsewhere (in
CI and in tests/nerfstudio_plugin), training in tests/train.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import da3gs
from da3gs.cli import main as cli
from da3gs.data.synthetic import make_sample
from da3gs.data.transforms_json import write_transforms_json
from da3gs.export.video import write_video
from da3gs.images import uint8_from_tensor

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
VIEWS = 5


def _section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _commands() -> list[list[str]]:
    """In order of appearance: indented lines and the ones inside of sentences."""
    found = re.findall(r"^    (da3gs .+)$|`(da3gs [a-z]+[^`]*)`", _section("Your own photographs"), flags=re.M)
    lines = [(line or inline).split("  #")[0].strip() for line, inline in found]
    return [shlex.split(line)[1:] for line in lines if "$(" not in line and "completion" not in line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """photos/, clip.mp4 and rgbd/ of one procedural scene that structure from motion can place."""
    folder = tmp_path_factory.mktemp("readme")
    sample = make_sample(2, VIEWS, 336, 252, style="gallery", motion="orbit", difficulty=0.3, min_covisibility=0.65)
    pictures = [uint8_from_tensor(image) for image in sample.images]
    for name in ("photos", "rgbd", "rgbd/depth"):
        (folder / name).mkdir()
    for view, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"photos/{view}.jpg", quality=95)
        Image.fromarray(picture).save(folder / f"rgbd/{view}.png")
        np.save(folder / f"rgbd/depth/{view}.npy", sample.depth[view].numpy())
    names = [f"{view}.png" for view in range(VIEWS)]
    depth = [f"depth/{view}.npy" for view in range(VIEWS)]
    write_transforms_json(folder / "rgbd/transforms.json", sample.cameras, names, depth_paths=depth)
    write_video(folder / "clip.mp4", [picture for picture in pictures for _ in range(6)], fps=12)
    return folder


def test_the_commands_run_in_their_order(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    ran = []
    for words in _commands():
        command, arguments = words[0], ["da3-tiny" if word == "da3-base" else word for word in words[1:]]
        if command == "view":
            continue  # a server; tests/test_viewer.py
        if command == "reconstruct":
            arguments += ["--video-frames", "3", "--splat-size", "196", "--max-views", str(VIEWS)]
        if command == "refine":
            arguments += ["--steps", "5", "--no-video"]
        if command == "render":
            arguments += ["--seconds", "0.2", "--width", "96"]
        assert cli.main([command, *arguments]) == 0, (command, arguments, capsys.readouterr().err)
        if command == "reconstruct":
            written = {path.name for path in Path("out").iterdir()}
            assert written == {
                "scene.ply", "cameras.json", "transforms.json", "images", "depth", "preview.png", "flythrough.mp4",
                "report.json",
            }  # fmt: skip
        ran.append(command)
    assert ran.count("reconstruct") == 5 and {"refine", "depth", "render", "info", "convert", "doctor"} <= set(ran)
    assert Path("fly.mp4").stat().st_size > 1000 and da3gs.load_gaussians("viewer.ply").sh_degree == 3


def test_the_python_runs(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    blocks = re.findall(r"```python\n(.*?)```", _section("Python"), flags=re.S)
    assert len(blocks) == 2
    images = torch.stack([torch.from_numpy(np.array(Image.open(f"photos/{view}.jpg"))) for view in range(2)])
    names = {"da3gs": da3gs, "images": images.permute(0, 3, 1, 2).float() / 255}
    for block in blocks:
        exec(block.replace("da3-base", "da3-tiny"), names)
    assert names["out"].rgb.shape[0] == 2 and Path("scene.ply").is_file() and len(names["scene"].cameras) == VIEWS
