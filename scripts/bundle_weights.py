"""Join a trained student and its Gaussian head into one float16 file, as it is shipped under da3gs/assets.

python scripts/bundle_weights.py STUDENT HEAD OUT.safetensors
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from da3gs.model.checkpoints import attach_gs_head, load_network, read_header, save_checkpoint
from da3gs.model.presets import preset


def main() -> None:
    student, head, target = sys.argv[1:]
    network = load_network(student)
    attach_gs_head(network, head)
    network.config = replace(network.config, size_px=preset(network.config.name).size_px)
    parts = {"network": student, "head": head}
    provenance = {name: _plain(read_header(path)["provenance"]) for name, path in parts.items()}
    save_checkpoint(network, target, provenance, torch.float16)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{target}: {count / 1e6:.2f} M parameters, {Path(target).stat().st_size / 2**20:.1f} MiB")


def _plain(value: Any) -> Any:
    """Settings without the folders of the machine they were trained on."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


if __name__ == "__main__":
    main()
