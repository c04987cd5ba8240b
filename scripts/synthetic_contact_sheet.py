"""Look at synthetic scenes: a sheet with pictures, depth and normals, and how long they take.

python scripts/synthetic_contact_sheet.py sheet.png --scenes 8 --views 4
python scripts/synthetic_contact_sheet.py sheet.png --style garden --difficulty 0.2 --photos ~/Pictures
python scripts/synthetic_contact_sheet.py --benchmark --width 112 --height 112
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from da3gs.atomic import atomic_path
from da3gs.data.synthetic import STYLES, SyntheticViews, covisibility, make_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, help="PNG or JPEG file to write")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0, help="of the first scene")
    parser.add_argument("--style", choices=STYLES, help="one style only (default: all in turn)")
    parser.add_argument("--difficulty", type=float, default=0.5)
    parser.add_argument("--motion", default="any")
    parser.add_argument("--photos", type=Path, help="folder of photographs to use as textures")
    parser.add_argument("--edge-samples", type=int, default=4)
    parser.add_argument("--geometry", action="store_true", help="add a depth and a normal row under each scene")
    parser.add_argument("--benchmark", action="store_true", help="measure CPU time on one core instead of drawing")
    args = parser.parse_args()
    if args.benchmark:
        benchmark(args)
    elif args.output is None:
        parser.error("name the file to write, or give --benchmark")
    else:
        write_sheet(args)


def write_sheet(args: argparse.Namespace) -> None:
    rows = []
    for index in range(args.scenes):
        sample = draw(args, args.seed + index, args.style or STYLES[index % len(STYLES)])
        rows.append(np.concatenate(list(sample.images.permute(0, 2, 3, 1).cpu().numpy()), 1))
        if args.geometry:
            rows += [depth_row(sample), normal_row(sample)]
        shared = covisibility(sample).fill_diagonal_(1).min() if len(sample) > 1 else 1.0
        print(
            f"{sample.style} {sample.seed}: co-visibility from {float(shared):.2f}, "
            f"{len(sample.object_ids.unique())} objects"
        )
    sheet = (np.concatenate(rows, 0) * 255).round().astype(np.uint8)
    with atomic_path(args.output) as path:
        cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


def draw(args: argparse.Namespace, seed: int, style: str | None) -> SyntheticViews:
    return make_sample(
        seed, args.views, args.width, args.height, style=style, difficulty=args.difficulty, motion=args.motion,
        photos=args.photos, edge_samples=args.edge_samples,
    )  # fmt: skip


def depth_row(sample: SyntheticViews) -> np.ndarray:
    depth = sample.depth.cpu().numpy()
    inverse = np.where(depth > 0, 1 / np.maximum(depth, 1e-6), 0)
    shown = np.clip(inverse / np.quantile(inverse, 0.98), 0, 1)
    colored = [cv2.applyColorMap((255 * one).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1] / 255 for one in shown]
    return np.concatenate(colored, 1)


def normal_row(sample: SyntheticViews) -> np.ndarray:
    shown = 0.5 + 0.5 * sample.normals.cpu().numpy()
    return np.concatenate(list(np.where(sample.sky.cpu().numpy()[..., None], 0, shown)), 1)


def benchmark(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    times = []
    for index in range(2 * args.scenes):
        start = time.process_time()
        draw(args, args.seed + index, args.style)
        times.append(time.process_time() - start)
    per_image = 1e3 * np.array(times[args.scenes // 2 :]) / args.views
    print(
        f"{args.width}x{args.height}, {args.views} views a scene, edge samples {args.edge_samples}: "
        f"{per_image.mean():.2f} ms CPU per image (median {np.median(per_image):.2f}, most {per_image.max():.2f})"
    )


if __name__ == "__main__":
    main()
