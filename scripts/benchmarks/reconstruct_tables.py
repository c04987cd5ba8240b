"""What `da3gs reconstruct` does around the network, in numbers that need no network weights.

    python scripts/benchmarks/reconstruct_tables.py --data ../shared/data --out scripts/benchmarks/results

Writes reconstruct.md: mistakes of camera convention and what the program says, structure from motion, the scale of
depth from sparse points, filters, budgets, and one run of the command from end to end. DATA holds posed_fountain_p11,
posed_fox, unposed_lund, video_golfcart (photographs) and rgbd_tabletop_d435i (RGB-D with a train/test split).

PSNR is over covered pixels of held-out views: colour divided by alpha where alpha > 0.5. Since a variant may cover less
and so be judged on easier pixels, "common" repeats it over the pixels that all variants of a table cover, and "whole"
takes the picture as rendered, on black, over all pixels.
"""

import argparse
import json
import logging
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import da3gs
from da3gs import Cameras, Gaussians, RenderConfig, Scene, reconstruct, render
from da3gs.data.inputs import load_input
from da3gs.data.rgbd import RGBDFrames, read_rgbd
from da3gs.data.sfm import SfmResult, run_sfm
from da3gs.data.transforms_json import read_transforms_json
from da3gs.fusion import FilterConfig, keep_budget
from da3gs.geometry.alignment import align_cameras
from da3gs.geometry.conventions import OPENCV_FROM_OPENGL, rigid_inverse
from da3gs.geometry.rotations import matrix_from_quat
from da3gs.pipeline import ReconstructConfig, check_poses
from da3gs.pipeline.depth_scale import scale_from_points
from da3gs.pipeline.sources import Source, source_from_input

log = logging.getLogger(__name__)

NOISE_DEG = 5.0
WIDTH, HEIGHT, VIEWS = 480, 270, 6
TABLETOP = "rgbd_tabletop_d435i"
OFF = FilterConfig(confidence=0, sky=False, border=0, edges=False, consistency=0)


# ------------------------------------------------------------------------------------------------ parts


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines) + "\n"


@dataclass(frozen=True)
class Picture:
    """Renders of the held-out views: colour over alpha, as rendered on black [V, H, W, 3], covered pixels [V, H, W]."""

    colour: Tensor
    on_black: Tensor
    covered: Tensor


def pictures(gaussians: Gaussians, cameras: Cameras) -> Picture:
    out = render(gaussians, cameras, RenderConfig(antialiased=True))
    return Picture((out.rgb / out.alpha.clamp(min=1e-3)).clamp(0, 1), out.rgb.clamp(0, 1), out.alpha[..., 0] > 0.5)


def mean_psnr(colour: Tensor, targets: RGBDFrames, mask: Tensor) -> float:
    errors = (colour - targets.images.movedim(1, -1)).square().mean(-1)
    scores = [-10 * error[chosen].mean().log10() for error, chosen in zip(errors, mask, strict=True)]
    return float(torch.stack(scores).mean())


def compared(names: Sequence[str], variants: Sequence[Gaussians], targets: RGBDFrames) -> str:
    """A table of variants of one scene."""
    renders = [pictures(gaussians, targets.cameras) for gaussians in variants]
    common = torch.stack([picture.covered for picture in renders]).all(0)
    whole = torch.ones_like(common)
    rows = []
    for name, gaussians, picture in zip(names, variants, renders, strict=True):
        scores = [mean_psnr(picture.colour, targets, mask) for mask in (picture.covered, common)]
        scores.append(mean_psnr(picture.on_black, targets, whole))
        covered, shared, black = (f"{score:.2f}" for score in scores)
        rows.append([name, len(gaussians), covered, f"{float(picture.covered.float().mean()):.1%}", shared, black])
    head = ["", "Gaussians", "PSNR, dB", "coverage", f"common ({float(common.float().mean()):.1%}), dB", "whole, dB"]
    return table(head, rows)


def tabletop(data: Path) -> tuple[Source, RGBDFrames]:
    """The context views with depth, and the held-out ones."""
    views = load_input(data / TABLETOP, split="train", max_views=VIEWS, depth=True)
    return source_from_input(views), read_rgbd(data / TABLETOP, split="test", width=WIDTH, height=HEIGHT)


# ------------------------------------------------------------------------------------------------ tables


def mistakes(truth: Cameras, estimate: Cameras) -> str:
    """What the pose check says about cameras given under usual mistakes."""
    width, height = truth.size
    assert truth.cam_from_world is not None
    world_from_cam, flip = rigid_inverse(truth.cam_from_world), OPENCV_FROM_OPENGL.to(truth.K)
    double = truth.scaled(width=2 * width, height=2 * height)
    half = truth.scaled(width=width // 2, height=height // 2)
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))
    given = {
        "right cameras": truth,
        "OpenGL axes read as OpenCV": truth.with_poses(rigid_inverse(world_from_cam @ flip)),
        "camera-to-world read as world-to-camera": truth.with_poses(world_from_cam),
        "both at once": truth.with_poses(world_from_cam @ flip),
        f"K of {2 * width}x{2 * height} px": Cameras(truth.cam_from_world, double.K, width, height),
        f"K of {width // 2}x{height // 2} px": Cameras(truth.cam_from_world, half.K, width, height),
        "poses in another order than the images": truth[order],
    }
    generator = torch.Generator().manual_seed(0)
    axis = torch.randn(len(truth), 3, generator=generator, dtype=torch.float64)
    half_angle = torch.tensor(NOISE_DEG / 2).deg2rad()
    axis = axis / axis.norm(dim=1, keepdim=True) * half_angle.sin()
    turn = torch.eye(4).repeat(len(truth), 1, 1)
    turn[:, :3, :3] = matrix_from_quat(torch.cat([half_angle.cos().expand(len(truth), 1), axis], 1)).float()
    noisy = truth.with_poses(turn @ truth.cam_from_world)
    rows = []
    for what, cameras in given.items():
        found, rough = check_poses(estimate, cameras), check_poses(noisy, cameras)
        angle = f"{found.rotation_error_deg['as-read']:.1f}"
        same = "same" if rough.likely == found.likely and bool(rough.warnings) == bool(found.warnings) else "differs"
        rows.append([what, angle, "; ".join(found.warnings) or "(nothing)", same])
    return table(["given", "off, deg", "what the program says", f"with {NOISE_DEG:g} deg of noise"], rows)


def motion(data: Path) -> tuple[str, Cameras, Cameras]:
    """Structure from motion; also the fountain's surveyed cameras and those found."""
    cases = [
        ("fountain, 11 photographs", "posed_fountain_p11", {}),
        ("fox, 16 photographs", "posed_fox", {"max_views": 16}),
        ("street walk (lund), 6 photographs", "unposed_lund/images", {}),
        ("drive (golf cart), 8 video frames", "video_golfcart/golfcart.mp4", {"frames": 8}),
    ]
    rows, kept = [], []
    for what, path, options in cases:
        views = load_input(data / path, **options)
        start = time.perf_counter()
        found = run_sfm(views.images, views.names, threads=1)
        seconds = time.perf_counter() - start
        rows.append([what, *_motion_row(found, views.cameras), f"{seconds:.0f}"])
        kept.append((views.cameras, found.cameras))
        log.info("%s: %s", what, rows[-1])
    head = ["images", "placed", "points", "error, px", "focal / width", "second try"]
    head += ["rotations off, deg (median, max)", "centres off, of the extent (max)", "s"]
    return table(head, rows), *kept[0]


def _motion_row(found: SfmResult, truth: Cameras | None) -> list[str]:
    stats = found.stats
    focal = float(found.cameras.K[0, 0, 0]) / int(found.cameras.width[0])
    row = [f"{stats.registered} of {stats.images}", f"{stats.points}", f"{stats.reprojection_error_px:.2f}"]
    row += [f"{focal:.3f}", "yes" if stats.relaxed else "no"]
    if truth is None:
        return [*row, "unknown", "unknown"]
    aligned = align_cameras(found.cameras, truth[found.registered.nonzero().flatten()])
    assert aligned.rotation_residuals is not None
    angles = aligned.rotation_residuals.rad2deg()
    extent = float((truth.centers - truth.centers.mean(0)).norm(dim=1).max())
    return [*row, f"{angles.median():.2f}, {angles.max():.2f}", f"{float(aligned.residuals.max()) / extent:.4f}"]


def depth_scale(data: Path) -> str:
    """Measured depth times a factor, brought back by the points of structure from motion on the same photographs."""
    views = load_input(data / TABLETOP, split="train", max_views=12, depth=True)
    assert views.depth is not None and views.cameras is not None
    found = run_sfm(views.images, views.names, threads=1)
    pick = found.registered.nonzero().flatten()
    truth = views.cameras[pick]
    move = align_cameras(found.cameras, truth).target_from_source
    points = [(float(move.scale) * seen.double() @ move.rotation.T + move.translation).float() for seen in found.seen]
    depth = torch.stack([views.depth[i] for i in pick.tolist()])
    rows = []
    for factor in (1.0, 1.7, 0.4):
        scale = scale_from_points(depth * factor, truth, points)
        error = abs(scale.factor * factor - 1)
        rows.append([f"{factor:g}", scale.points, f"{scale.factor:.4f}", f"{error:.2%}", f"{scale.spread:.1%}"])
    return table(["depth times", "sightings", "factor found", "error left", "spread"], rows)


def filters(source: Source, targets: RGBDFrames) -> str:
    default = FilterConfig()
    variants = {
        "all off": OFF,
        "border only": FilterConfig(0, False, None, False, 0),
        "edges only": FilterConfig(0, False, 0, True, 0),
        "consistency only": FilterConfig(0, False, 0, False, default.consistency),
        "all but border": FilterConfig(border=0),
        "all but edges": FilterConfig(edges=False),
        "all but consistency": FilterConfig(consistency=0),
        "all on (default)": default,
    }
    return compared(list(variants), [measured(source, config).gaussians for config in variants.values()], targets)


def budgets(source: Source, targets: RGBDFrames) -> str:
    scene = measured(source, FilterConfig())
    variants = {"100 %": scene.gaussians}
    for share in (0.5, 0.25, 0.1):
        count = round(share * len(scene.gaussians))
        variants[f"{share:.0%}, --max-gaussians"] = keep_budget(scene.gaussians, scene.cameras, count)[0]
        chosen = torch.randperm(len(scene.gaussians), generator=torch.Generator().manual_seed(0))[:count].sort().values
        variants[f"{share:.0%}, random"] = scene.gaussians[chosen]
    return compared(list(variants), list(variants.values()), targets)


def measured(source: Source, filters: FilterConfig) -> Scene:
    return reconstruct(source, config=ReconstructConfig(size_px=WIDTH, depth="given", filters=filters))


def command(data: Path, targets: RGBDFrames) -> str:
    """The command from end to end, in a process of its own."""
    arguments = ["--split", "train", "--max-views", str(VIEWS), "--size", str(WIDTH), "--depth", "given", "--no-video"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        start = time.perf_counter()
        call = [sys.executable, "-m", "da3gs.cli.main", "reconstruct", str(data / TABLETOP), "--output", str(out)]
        subprocess.run([*call, *arguments], check=True, capture_output=True)
        seconds = time.perf_counter() - start
        scene = Scene.load(out)
        report = json.loads((out / "report.json").read_text())
        truth = read_transforms_json(data / TABLETOP)
        cameras = truth.cameras[[truth.names.index(name) for name in report["views"]]]
        again = read_transforms_json(out).cameras
    centres = float((scene.cameras.centers - cameras.centers).norm(dim=1).max())
    nerfstudio = float((again.centers - cameras.centers).norm(dim=1).max())
    picture = pictures(scene.gaussians, targets.cameras)
    psnr, coverage = mean_psnr(picture.colour, targets, picture.covered), float(picture.covered.float().mean())
    peak = max(stage["peak_memory_bytes"] for stage in report["stages"])
    stages = ", ".join(f"{stage['name']} {stage['seconds']:.1f}" for stage in report["stages"])
    rows = [
        ["Gaussians", len(scene.gaussians)],
        ["held-out PSNR of the re-read folder, dB", f"{psnr:.2f} over {coverage:.1%} of the pixels"],
        ["camera centres of cameras.json against the data set, m (max)", f"{centres:.1e}"],
        ["camera centres of transforms.json against the data set, m (max)", f"{nerfstudio:.1e}"],
        ["seconds, start of python included", f"{seconds:.1f} ({stages})"],
        ["peak resident set, MiB", f"{peak / 2**20:.0f}"],
    ]
    text = f"`da3gs reconstruct {TABLETOP} --output out {' '.join(arguments)}`\n\n"
    return text + table(["", "measured"], rows)


# ------------------------------------------------------------------------------------------------ page


def page(data: Path) -> str:
    source, targets = tabletop(data)
    parts = [
        "# Reconstruction without network weights\n",
        "Written by `python scripts/benchmarks/reconstruct_tables.py`.\n",
        f"- date: {time.strftime('%Y-%m-%d')}\n- threads: {torch.get_num_threads()}\n- python: "
        f"{platform.python_version()}\n- torch: {torch.__version__}\n- da3gs: {da3gs.__version__}\n",
    ]

    def section(title: str, text: str, content: str) -> None:
        log.info("%s\n%s", title, content)
        parts.extend([f"## {title}\n", text + "\n", content])

    content, truth, estimate = motion(data)
    section(
        "Structure from motion",
        "`--find-cameras sfm`, unknown focal length. Fountain: surveyed cameras, whose principal point lies 7 px off "
        "the centre that is assumed. Fox: COLMAP's cameras of all 50 photographs. Lund and the golf cart have no "
        "truth; phones have a focal length of 0.7 to 1.0 of the longer side.",
        content,
    )
    section(
        "Mistakes of camera convention",
        "Fountain, 11 views. `reconstruct` compares given cameras with a prediction that does not know them. No "
        "weights were at hand, so the cameras of structure from motion stand in for the prediction; the last column "
        f"says whether true cameras turned by {NOISE_DEG:g} degrees each, about random axes, lead to the same verdict.",
        mistakes(truth, estimate),
    )
    section(
        "Scale of depth from sparse points",
        "Tabletop, 12 views: depth of the sensor times a factor plays a network of wrong scale; structure from motion "
        "on the colour images, moved onto the given cameras, has the points. Sensor, alignment and points err too.",
        depth_scale(data),
    )
    section(
        "Filters",
        f"Tabletop, {VIEWS} views of {WIDTH}x{HEIGHT} px, `--depth given`, 3 held-out views. Measured depth has no "
        "confidence and no sky, so these two filters have nothing to do. The fountain has no measured depth.",
        filters(source, targets),
    )
    section(
        "Budgets",
        "The same scene, default filters. A random subset leaves holes, which the first three columns do not count as "
        "errors, and has fewer layers that disagree where it covers; the last column counts all.",
        budgets(source, targets),
    )
    section("End to end", "Tabletop.", command(data, targets))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="folder for reconstruct.md; printed without")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    text = page(options.data)
    if options.out is None:
        sys.stdout.write(text)
    else:
        (options.out / "reconstruct.md").write_text(text)


if __name__ == "__main__":
    main()
