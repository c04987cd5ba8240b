"""The identity of weights, to tell whether two runs used the same network."""

import hashlib

from torch import nn


def weights_digest(network: nn.Module, *, gaussian_head: bool = False) -> str:
    """SHA-256 over names, shapes and values of all weights, with or without those of a Gaussian head."""
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        if gaussian_head or not name.startswith(("gs_head.", "any_view.gs_head.")):
            digest.update(f"{name} {list(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
