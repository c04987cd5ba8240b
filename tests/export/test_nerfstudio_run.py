"""Run folders of the nerfstudio methods, read without nerfstudio."""

import json

import numpy as np
import pytest
import torch

from da3gs.cli.main import main
from da3gs.errors import FormatError, InputError
from da3gs.export.gaussian_files import file_comments, load_gaussians
from da3gs.export.nerfstudio_run import (
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    FORMAT,
    TRANSFORM_FILE,
    activated,
    deactivated,
    latest_checkpoint,
    load_run,
    read_transform,
)
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.geometry.similarity import Similarity
from da3gs.rendering import render

RUN_FROM_DATA = Similarity(
    0.31, matrix_from_quat(torch.tensor([0.8, 0.2, -0.4, 0.4], dtype=torch.float64)), [0.3, -0.2, 0.1]
)


def _gaussians(count: int = 60) -> Gaussians:
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    return Gaussians(
        random(count, 3) * 2 - 1 + torch.tensor([0.0, 0.0, 4.0]),
        random(count, 4) - 0.5,
        random(count, 3) * 0.3 + 0.02,
        random(count) * 0.9 + 0.05,
        random(count, 9, 3) * 0.6 - 0.3,
    )


def _write_run(folder, gaussians_in_run: Gaussians, step: int = 9, scene_scale: float = 2.5):
    """A run as ns-train leaves it."""
    (folder / CHECKPOINT_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text("!!python/object:nothing\n")
    # nerfstudio keeps rotation and translation together and the scale apart: x_run = s (R x + t).
    transform = torch.cat(
        [RUN_FROM_DATA.rotation, (RUN_FROM_DATA.translation / RUN_FROM_DATA.scale)[:, None]], 1
    ).float()
    content = {"transform": transform.tolist(), "scale": float(RUN_FROM_DATA.scale)}
    (folder / TRANSFORM_FILE).write_text(json.dumps(content))
    unit = torch.tensor(scene_scale)
    state = {f"_model.gauss_params.{name}": value for name, value in deactivated(gaussians_in_run, unit).items()}
    state |= {"_model.scene_scale": unit, "_model._extra_state": {"format": FORMAT}}
    torch.save({"pipeline": state, "step": step}, folder / CHECKPOINT_FOLDER / f"step-{step:09d}.ckpt")


@pytest.fixture
def run(tmp_path):
    """The folder of a run and the Gaussians it was made of, in the data set's frame."""
    data = _gaussians()
    folder = tmp_path / "outputs" / "fox" / "da3gs" / "now"
    _write_run(folder, data.transform(RUN_FROM_DATA))
    return folder, data


def _picture(gaussians: Gaussians) -> torch.Tensor:
    K = torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]])
    return render(gaussians, Cameras(torch.eye(4)[None], K, 64, 48)).rgb[0]


def test_a_run_comes_back_to_the_frame_of_the_data(run):
    folder, data = run
    found = load_run(folder)
    assert torch.allclose(found.means, data.means, atol=2e-5)
    assert torch.allclose(found.scales, data.scales, rtol=1e-4)
    assert torch.allclose(found.opacities, data.opacities, atol=1e-6)
    assert (_picture(found) - _picture(data)).abs().max() < 1e-3


def test_parameters_and_values_are_inverse():
    data, unit = _gaussians(), torch.tensor(3.7)
    back = activated(deactivated(data, unit), unit)
    for name, a, b in zip(("means", "scales", "opacities", "sh"), *(
        (g.means, g.scales, g.opacities, g.sh) for g in (data, back)
    ), strict=True):  # fmt: skip
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name
    extreme = Gaussians(*data.tensors()[:3], torch.linspace(0, 1, len(data)), data.sh)
    raw = deactivated(extreme, unit)
    assert all(torch.isfinite(value).all() for value in raw.values())


def test_the_latest_checkpoint_counts(run):
    folder, data = run
    _write_run(folder, data[:5].transform(RUN_FROM_DATA), step=100)
    assert latest_checkpoint(folder).name == "step-000000100.ckpt"
    assert len(load_run(folder)) == 5


def test_transform_is_the_exact_inverse_of_nerfstudios(run):
    folder, _ = run
    points = torch.from_numpy(np.random.default_rng(1).normal(size=(20, 3)))
    content = json.loads((folder / TRANSFORM_FILE).read_text())
    transform = torch.tensor(content["transform"], dtype=torch.float64)
    in_run = content["scale"] * (points @ transform[:, :3].T + transform[:, 3])
    back = read_transform(folder / TRANSFORM_FILE).inverse().apply(in_run)
    assert torch.allclose(back, points, atol=1e-6)


def test_convert_takes_a_run(run, tmp_path, capsys):
    folder, data = run
    assert main(["convert", str(folder), str(tmp_path / "fox.ply")]) == 0
    assert (_picture(load_gaussians(tmp_path / "fox.ply")) - _picture(data)).abs().max() < 1e-3
    assert any("data set's files" in line for line in file_comments(tmp_path / "fox.ply"))
    assert main(["convert", str(folder.parents[1]), str(tmp_path / "other.ply")]) == 2
    assert f"did you mean {folder}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "other.ply").exists()


def _damage_transform(folder, **changes):
    content = json.loads((folder / TRANSFORM_FILE).read_text()) | changes
    (folder / TRANSFORM_FILE).write_text(json.dumps(content))


def _damage_checkpoint(folder, change):
    path = latest_checkpoint(folder)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


FAULTS = {
    "no checkpoint": (lambda f: latest_checkpoint(f).unlink(), InputError, "holds no checkpoint yet"),
    "no transform": (lambda f: (f / TRANSFORM_FILE).unlink(), InputError, "holds no dataparser_transforms.json"),
    "no scale": (lambda f: (f / TRANSFORM_FILE).write_text("{}"), FormatError, "does not hold a transform"),
    "sheared": (
        lambda f: _damage_transform(f, transform=[[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),
        FormatError,
        "no rotation",
    ),
    "mirrored": (
        lambda f: _damage_transform(f, transform=[[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),
        FormatError,
        "mirrors",
    ),
    "zero scale": (lambda f: _damage_transform(f, scale=0), InputError, "scale of a similarity must be > 0"),
    "truncated": (
        lambda f: latest_checkpoint(f).write_bytes(latest_checkpoint(f).read_bytes()[:300]),
        FormatError,
        "cannot be read as a checkpoint",
    ),
    "text": (lambda f: latest_checkpoint(f).write_text("hello"), FormatError, "cannot be read as a checkpoint"),
    "other method": (
        lambda f: _damage_checkpoint(f, lambda c: c["pipeline"].pop("_model._extra_state")),
        FormatError,
        "not written by the methods",
    ),
    "no means": (
        lambda f: _damage_checkpoint(f, lambda c: c["pipeline"].pop("_model.gauss_params.means")),
        FormatError,
        "lacks means",
    ),
    "nan": (
        lambda f: _damage_checkpoint(f, lambda c: c["pipeline"]["_model.gauss_params.means"].fill_(torch.nan)),
        FormatError,
        "no usable Gaussians",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line(run, fault):
    folder, _ = run
    damage, kind, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(kind, match=message) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


def test_pickled_code_is_never_run(run, tmp_path):
    """A checkpoint is a pickle; anything but tensors and plain values is refused."""
    folder, _ = run

    class Attack:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"pipeline": Attack()}, latest_checkpoint(folder))
    with pytest.raises(FormatError, match="cannot be read"):
        load_run(folder)
    assert not (tmp_path / "ran").exists()
