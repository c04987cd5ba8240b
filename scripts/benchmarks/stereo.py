"""Depth between known cameras: as it comes, bent through keypoints, refined by the plane sweep; procedural scenes.

    python scripts/benchmarks/stereo.py [--scenes 24] [--views 4] [--size 196] [--write FILE.md]

Starts: the bundled network's depth, and the true depth spoilt smoothly (view by view) as much as a better network's
might be. Errors are absolute log ratios to the true depth, in the unit of the cameras (nothing is aligned).
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from da3gs.data.synthetic import HELD_OUT_STYLES, TRAIN_STYLES, make_sample
from da3gs.errors import InputError
from da3gs.images import prepare_views
from da3gs.model.da3_model import load_model
from da3gs.pipeline.depth_scale import through_keypoints
from da3gs.pipeline.keypoint_points import keypoint_points
from da3gs.stereo import StereoConfig, refine_depth

FIRST_SEED = 9_000_000
CONFIGS = {"weak": StereoConfig(), "good": StereoConfig.for_good_depth()}


def scenes(count: int, views: int, size: int):
    seed, styles = FIRST_SEED, TRAIN_STYLES + HELD_OUT_STYLES
    found = 0
    while found < count:
        seed += 1
        try:
            sample = make_sample(
                seed, views, size, size * 5 // 7 // 14 * 14, style=styles[seed % len(styles)], difficulty=0.4
            )
        except InputError:
            continue
        found += 1
        yield sample


def spoilt(depth, strength: float, seed: int):
    """True depth times a smooth field of this standard deviation in the logarithm, another one in every view."""
    noise = torch.randn(len(depth), 1, 4, 5, generator=torch.Generator().manual_seed(seed))
    return depth * (strength * F.interpolate(noise, depth.shape[-2:], mode="bicubic")[:, 0]).exp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, default=196)
    parser.add_argument("--set", nargs="*", default=[], help="fields of StereoConfig, as name=value")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    changes = {
        name: float(value) if "." in value else int(value) for name, value in (s.split("=") for s in options.set)
    }
    configs = {name: replace(config, **changes) for name, config in CONFIGS.items()}
    model = load_model("da3-tiny", device="cpu")
    rows: dict[str, list[tuple[float, ...]]] = {}
    for number, sample in enumerate(scenes(options.scenes, options.views, options.size)):
        known = sample.depth > 0
        truth = torch.where(known, sample.depth, 2 * sample.depth.max())
        predicted = model.predict(
            sample.images, sample.cameras, size_px=options.size, gaussians=False, refine_scale=True
        ).depth
        starts = {"da3-tiny": predicted} | {
            f"truth, spoilt by {strength:.0%}": spoilt(truth, strength, number) for strength in (0.1, 0.03)
        }
        views = prepare_views(sample.images, sample.cameras, size_px=options.size)
        for name, start in starts.items():
            began = time.perf_counter()
            points = keypoint_points(list(sample.images), views, sample.cameras, start)
            bent = through_keypoints(start, sample.cameras, points)
            for kind, config in configs.items():
                result = refine_depth(sample.images, bent, sample.cameras, config=config)
                stages = [(depth / truth).log().abs()[known] for depth in (start, bent, result.depth)]
                sure = result.confirmed[known]
                rows.setdefault(f"{name} | {kind}", []).append(
                    (
                        *(float(error.median()) for error in stages),
                        *(float((error < 0.05).float().mean()) for error in stages),
                        *(float((error < math.log(1.25)).float().mean()) for error in stages),
                        float(sure.float().mean()),
                        float((stages[2][sure] < 0.05).float().mean()) if sure.any() else 0.0,
                        (time.perf_counter() - began) / len(sample),
                    )
                )
                began = time.perf_counter()
        print(f"\r{number + 1} of {options.scenes} scenes", end="", flush=True)
    lines = [
        "| start | trusted as | median error | within 5 % | within 25 % | confirmed | of these within 5 % | s / view |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for name, values in rows.items():
        m = torch.tensor(values).mean(0).tolist()
        steps = [" -> ".join(f"{value:.{digits}f}" for value in m[k : k + 3]) for k, digits in ((0, 3), (3, 2), (6, 2))]
        lines.append(f"| {name} | {' | '.join(steps)} | {m[9]:.2f} | {m[10]:.2f} | {m[11]:.2f} |")
    text = "\n".join(lines)
    print("\n" + text)
    if options.write:
        options.write.write_text(text + "\n")


if __name__ == "__main__":
    main()
