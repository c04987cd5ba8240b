"""RGB-D frames → splats by the geometric prior alone → pictures from held-out cameras.

    python scripts/examples/rgbd_prior.py DATA --output out/ --views 6 --width 480 --height 270

DATA is a folder with a transforms.json that has depth files and a train/test split. Writes scene.ply, a contact sheet
(held-out photographs above renders) and a fly-through, and prints the PSNR over covered pixels: colour divided by alpha
where alpha > 0.5, so that holes count as missing coverage and not as black.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from da3gs import Gaussians, RenderConfig, render, save_gaussians
from da3gs.data.rgbd import RGBDFrames, read_rgbd
from da3gs.model.gaussian_adapter import gaussians_from_depth


@dataclass(frozen=True)
class Score:
    """Held-out views of one rendering: mean PSNR over covered pixels in dB, and the share of covered pixels."""

    size: tuple[int, int]
    antialiased: bool
    psnr_db: float
    coverage: float
    cpu_ms_per_view: float


def splats_of(frames: RGBDFrames, views: int) -> Gaussians:
    """One splat per valid pixel of `views` frames spread evenly over the sequence."""
    chosen = torch.linspace(0, len(frames.images) - 1, views).round().long()
    return gaussians_from_depth(frames.images[chosen], frames.depth[chosen], frames.cameras[chosen])


def score(gaussians: Gaussians, targets: RGBDFrames, antialiased: bool) -> tuple[Score, torch.Tensor]:
    """Compare renders with the held-out photographs; also returns the renders [V, H, W, 3]."""
    start = time.process_time()
    out = render(gaussians, targets.cameras, RenderConfig(antialiased=antialiased))
    cpu_ms = (time.process_time() - start) * 1e3 / len(targets.images)
    colour = (out.rgb / out.alpha.clamp(min=1e-3)).clamp(0, 1)
    covered = out.alpha[..., 0] > 0.5
    errors = (colour - targets.images.movedim(1, -1)).square().mean(-1)
    psnr = torch.stack([-10 * error[mask].mean().log10() for error, mask in zip(errors, covered, strict=True)])
    result = Score(targets.cameras.size, antialiased, float(psnr.mean()), float(covered.float().mean()), cpu_ms)
    return result, out.rgb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--height", type=int, default=270)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    train = read_rgbd(arguments.data, split="train", width=arguments.width, height=arguments.height)
    gaussians = splats_of(train, arguments.views)
    save_gaussians(gaussians, arguments.output / "scene.ply")
    scores = []
    for factor in (1.0, 2.0, 0.5):
        size = {"width": round(arguments.width * factor), "height": round(arguments.height * factor)}
        targets = read_rgbd(arguments.data, split="test", **size)
        for antialiased in (True, False):
            result, renders = score(gaussians, targets, antialiased)
            scores.append(asdict(result))
            if factor == 1.0 and antialiased:
                _write_pictures(arguments.output, targets, gaussians, renders)
    print(json.dumps({"gaussians": len(gaussians), "views": arguments.views, "scores": scores}, indent=1))


def _write_pictures(output: Path, targets: RGBDFrames, gaussians: Gaussians, renders: torch.Tensor) -> None:
    from da3gs.export.video import render_frames, uint8_picture, write_contact_sheet, write_video
    from da3gs.rendering.trajectories import typical_depth, wobble

    photographs = [uint8_picture(image.movedim(0, -1)) for image in targets.images]
    rows = [("held-out photograph", photographs), ("render", [uint8_picture(picture) for picture in renders])]
    write_contact_sheet(output / "preview.png", rows, columns=targets.names)
    path = wobble(targets.cameras, frames=60, depth_hint=typical_depth(gaussians, targets.cameras))
    frames = render_frames(gaussians, path, config=RenderConfig(antialiased=True, depth=False))
    write_video(output / "flythrough.mp4", frames, total=len(path), progress=True)


if __name__ == "__main__":
    main()
