"""The memory formula against the tensors that are really alive during a forward, and against the process."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from da3gs.model import dpt
from da3gs.model.network import build_model
from da3gs.model.presets import PRESETS, BackboneConfig, GSHeadConfig, HeadConfig, ModelConfig

HEIGHT, WIDTH = 98, 126


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes in tensors created while active; what existed before is not counted."""

    def __init__(self, existing):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata: 0 for tensor in existing}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(output)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata)
        return output

    def _freed(self, key):
        self.now -= self.known.pop(key, 0)


def peak_bytes(network, views, **options):
    """Activations and images at the peak of one prediction."""
    images = torch.randn(1, views, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        network(images, **options)
        with LiveBytes([*network.parameters(), images]) as live:
            network(images, **options)
    return live.peak + images.numel() * 4


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("da3-small", "da3-base", "gaussian head")]


@pytest.mark.parametrize("name", ["da3-tiny", "single view", *SLOW])
def test_formula_matches_live_tensors(name):
    config, options = PRESETS.get(name), {}
    if name == "single view":
        backbone = BackboneConfig(192, 6, 3, (1, 3, 4, 5))
        config = ModelConfig(name, backbone, HeadConfig(64, (48, 96, 96, 96), rays=False))
    if name == "gaussian head":
        config = replace(PRESETS["da3-tiny"], gs_head=GSHeadConfig(32, (24, 48, 96, 192)))
        options = {"raw_gaussians": True}
    torch.manual_seed(0)
    network = build_model(config).eval()
    weights = sum(parameter.numel() * 4 for parameter in network.parameters())
    for views in (2, 8):
        estimate = network.estimate_memory(views, HEIGHT, WIDTH) - weights
        assert 0.9 < estimate / peak_bytes(network, views, **options) < 1.3, f"{views} views"


def test_memory_of_the_heads_does_not_grow_with_the_views(monkeypatch):
    """Per view only tokens and results are added: far less than a head needs for one chunk, here of one view."""
    torch.manual_seed(0)
    monkeypatch.setitem(dpt.CHUNK_PIXELS, "cpu", HEIGHT * WIDTH)
    network = build_model(PRESETS["da3-tiny"]).eval()
    one, two, six = (peak_bytes(network, views) for views in (1, 2, 6))
    assert (six - two) / 4 < 0.35 * one


def test_ray_branch_and_more_views_cost_more():
    network = build_model(PRESETS["da3-giant"], device="meta")
    sizes = [network.estimate_memory(views, 504, 504) for views in (1, 8, 64)]
    assert sizes == sorted(sizes) and sizes[0] > 4 * 1.35e9
    assert network.estimate_memory(8, 504, 504, torch.bfloat16) < 0.62 * sizes[1]


@pytest.mark.slow
def test_process_memory_stays_within_the_estimate_and_its_reserve():
    """Resident memory of a process, kernels' scratch included, against estimate plus a third of the activations."""
    import subprocess
    import sys

    program = (
        "import torch\n"
        "from pathlib import Path\n"
        "from da3gs.model.network import build_model\n"
        "from da3gs.model.presets import PRESETS\n"
        "torch.set_num_threads(1)\n"
        "def read(field):\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))\n"
        "network = build_model(PRESETS['da3-small']).eval()\n"
        "with torch.no_grad():\n"
        "    network(torch.randn(1, 1, 3, 28, 28))\n"
        "    images = torch.randn(1, 6, 3, 252, 336)\n"
        "    before = read('VmRSS')\n"
        "    network(images)\n"
        "weights = sum(p.numel() * 4 for p in network.parameters())\n"
        "print(read('VmHWM') - before, network.estimate_memory(6, 252, 336) - weights - images.numel() * 4)\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    measured, estimate = map(int, output.split())
    assert 0.8 * estimate < measured < 1.5 * estimate
