"""A coloured point cloud as splats, rendered from its cameras: what a sparse reconstruction looks like.

    python scripts/examples/colmap_points.py POINTS.npz --output garden.png

POINTS.npz holds means3d [N, 3], colors [N, 3] uint8, viewmats [C, 4, 4] (world to camera, OpenCV), Ks [C, 3, 3], width
and height (the layout of gsplat's test scene). Each point becomes a sphere as wide as the mean distance to its three
nearest neighbours, the usual start of a splat optimisation. Prints the CPU time per picture. Needs scipy.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial import cKDTree

from da3gs import Cameras, Gaussians, RenderConfig, render
from da3gs.geometry.spherical_harmonics import dc_from_rgb


def splats_of(points: np.ndarray, colours: np.ndarray, opacity: float = 0.8) -> Gaussians:
    """Isotropic Gaussians at the points; sigma is half the mean distance to the three nearest neighbours."""
    distance, _ = cKDTree(points).query(points, k=4, workers=-1)
    sigma = torch.from_numpy(distance[:, 1:].mean(1) / 2).float().clamp(min=1e-6)
    sigma = sigma.clamp(max=float(3 * sigma.median()))  # a lone point is an outlier, not a large surface
    count = len(points)
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1
    rgb = torch.from_numpy(colours).float() / 255
    return Gaussians(
        torch.from_numpy(points).float(),
        quats,
        sigma[:, None].repeat(1, 3),
        torch.full((count,), opacity),
        dc_from_rgb(rgb)[:, None],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path)
    parser.add_argument("--output", type=Path, default=Path("points.png"))
    arguments = parser.parse_args()
    data = np.load(arguments.points)
    gaussians = splats_of(data["means3d"], data["colors"])
    cameras = Cameras(
        torch.from_numpy(data["viewmats"]), torch.from_numpy(data["Ks"]), int(data["width"]), int(data["height"])
    )
    config = RenderConfig(antialiased=True)
    render(gaussians, cameras[0], config)  # compiles or loads the kernels
    start, wall = time.process_time(), time.perf_counter()
    out = render(gaussians, cameras, config)
    cpu_ms, wall_ms = (time.process_time() - start) * 1e3, (time.perf_counter() - wall) * 1e3
    views, (width, height) = len(cameras), cameras.size
    print(
        f"{len(gaussians)} splats, {views} views of {width}x{height}: {cpu_ms / views:.0f} CPU-ms and "
        f"{wall_ms / views:.0f} ms per view, {float((out.alpha > 0.5).float().mean()):.0%} covered"
    )
    sheet = torch.cat(list(out.rgb.clamp(0, 1)), 1)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(arguments.output)


if __name__ == "__main__":
    main()
