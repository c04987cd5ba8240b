"""What every ns-command of every user runs into: discovery of the methods must be light, and must never fail."""

import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest

pytestmark = pytest.mark.nerfstudio
pytest.importorskip("nerfstudio")

OURS = {
    "network",
    "gs-head",
    "context-views",
    "context-strategy",
    "image-size",
    "refine-depth",
    "max-gaussians",
    "ssim-weight",
    "background",
    "lpips",
    "lpips-weights",
    "sh-degree",
    "start-opacity",
}

DISCOVERY = """
import importlib.abc, socket, sys

class Refuse(importlib.abc.MetaPathFinder):
    # nerfstudio itself imports torch, cv2 and gsplat's Python part; these are ours.
    heavy = {"numba", "kornia", "safetensors", "huggingface_hub", "plyfile", "lpips", "accelerate"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.heavy and sys._getframe(1):
            importer = [frame for frame in iter_frames() if "/da3gs/" in frame]
            if importer:
                raise ImportError(f"{name} imported by {importer[0]}")

def iter_frames():
    frame = sys._getframe(1)
    while frame:
        yield frame.f_code.co_filename
        frame = frame.f_back

def no_network(*_, **__):
    raise RuntimeError("the network was used")

socket.socket.connect = socket.getaddrinfo = no_network
sys.meta_path.insert(0, Refuse())
before = set()
import nerfstudio.engine.trainer, nerfstudio.models.splatfacto, nerfstudio.data.datamanagers.full_images_datamanager
before = set(sys.modules)
import time
start = time.perf_counter()
from nerfstudio.plugins.registry import discover_methods
configs, descriptions = discover_methods()
print("seconds", time.perf_counter() - start)
print("methods", *sorted(set(configs) & {"da3gs", "da3gs-splat"}))
print("ours", *sorted(name for name in sys.modules if name.split(".")[0] == "da3gs"))
print("new", *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
print("compiled", "gsplat.cuda._backend" in sys.modules and sys.modules["gsplat.cuda._backend"]._C is not None)
"""


@pytest.fixture(scope="module")
def discovery():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", DISCOVERY], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}


def test_both_methods_are_found(discovery):
    assert discovery["methods"] == ["da3gs", "da3gs-splat"]


def test_discovery_loads_only_configuration(discovery):
    assert set(discovery["ours"]) == {
        "da3gs",
        "da3gs.nerfstudio",
        "da3gs.nerfstudio.config",
        "da3gs.nerfstudio.datamanager",
        "da3gs.nerfstudio.optimizers",
    }
    assert discovery["compiled"] == ["False"]
    assert not {"numba", "kornia", "safetensors", "huggingface_hub", "viser"} & set(discovery["new"])


def test_learning_rates_are_plain_floats():
    """numpy numbers in a checkpoint cannot be read back by torch >= 2.6."""
    import torch

    from da3gs.nerfstudio.config import da3gs_splat_method

    group = da3gs_splat_method.config.optimizers["means"]
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = group["optimizer"].setup([parameter])
    scheduler = group["scheduler"].setup().get_scheduler(optimizer, group["optimizer"].lr)
    rates = []
    for _ in range(group["scheduler"].max_steps + 10):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert {type(rate) for rate in rates} == {float}
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert rates[-1] == pytest.approx(group["scheduler"].lr_final)
    assert {type(rate) for rate in scheduler.state_dict()["_last_lr"]} == {float}


def test_help_shows_our_flags_and_no_others():
    from pathlib import Path

    command = Path(sys.executable).with_name("ns-train")
    done = subprocess.run([command, "da3gs-splat", "--help"], capture_output=True, text=True)
    flags = set(re.findall(r"^\W*(--pipeline\.model\.\S+)", done.stdout, re.MULTILINE))
    assert flags == {f"--pipeline.model.{name}" for name in OURS}
    assert "optimises the Gaussians themselves" in done.stdout
