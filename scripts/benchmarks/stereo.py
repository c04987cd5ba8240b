"""Depth before and after the plane sweep between known cameras, on procedural scenes with exact depth.

    python scripts/benchmarks/stereo.py [--scenes 24] [--views 4] [--size 196] [--write FILE.md]

Starts: the bundled network's depth, and the true depth spoilt smoothly (view by view) as much as a better network's
might be. Errors are absolute log ratios to the true depth, in the unit of the cameras (nothing is aligned).
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from da3gs.data.synthetic import HELD_OUT_STYLES, TRAIN_STYLES, make_sample
from da3gs.errors import InputError
from da3gs.model.da3_model import load_model
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
        runs = [(name, start, kind) for name, start in starts.items() for kind in configs]
        for name, start, kind in runs:
            began = time.perf_counter()
            result = refine_depth(sample.images, start, sample.cameras, config=configs[kind])
            seconds = time.perf_counter() - began
            before, after = ((depth / truth).log().abs() for depth in (start, result.depth))
            sure = result.confirmed & known
            rows.setdefault(f"{name} | {kind}", []).append(
                (
                    float(before[known].median()), float(after[known].median()),
                    float((before[known] < 0.05).float().mean()), float((after[known] < 0.05).float().mean()),
                    float((before[known] < 0.223).float().mean()), float((after[known] < 0.223).float().mean()),
                    float(sure.sum() / known.sum()), float((after[sure] < 0.05).float().mean()) if sure.any() else 0.0,
                    seconds / len(sample),
                )
            )  # fmt: skip
        print(f"\r{number + 1} of {options.scenes} scenes", end="", flush=True)
    lines = [
        "| start | trusted as | median error | within 5 % | within 25 % | confirmed | of these within 5 % | s / view |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for name, values in rows.items():
        m = torch.tensor(values).mean(0).tolist()
        lines.append(
            f"| {name} | {m[0]:.3f} -> {m[1]:.3f} | {m[2]:.2f} -> {m[3]:.2f} | {m[4]:.2f} -> {m[5]:.2f} | {m[6]:.2f} | "
            f"{m[7]:.2f} | {m[8]:.2f} |"
        )
    text = "\n".join(lines)
    print("\n" + text)
    if options.write:
        options.write.write_text(text + "\n")


if __name__ == "__main__":
    main()
