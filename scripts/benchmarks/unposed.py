"""Photographs without cameras: who finds the cameras, and what the splats are worth, as a markdown table.

    python scripts/benchmarks/unposed.py [--model da3-tiny] [--data FOLDER] [--pictures FOLDER] > results/unposed.md

Photographs of three posed sets are reconstructed with the true cameras, with those of structure from motion, with
those that explain matches between the views, and with those of the camera head; and with the true cameras but the
network's own depth, with and without the Gaussian head that was trained on it. What is found is moved onto the true
cameras by one similarity, and held-out photographs are compared with renders from there.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from da3gs.data.inputs import load_input
from da3gs.data.sfm import with_sfm_cameras
from da3gs.data.transforms_json import read_transforms_json
from da3gs.errors import InputError
from da3gs.export.video import colorize_depth, uint8_picture, write_contact_sheet
from da3gs.geometry.alignment import align_cameras
from da3gs.images import load_image, tensor_from_uint8
from da3gs.metrics.poses import pose_metrics
from da3gs.model.da3_model import load_model
from da3gs.pipeline import ReconstructConfig, reconstruct
from da3gs.pipeline.sources import source_from_input
from da3gs.rendering.render import RenderConfig, render

# Name, folder, every how manieth photograph, at most so many.
SETS = (
    ("fountain", "posed_fountain_p11", 2, 9),
    ("fox", "posed_fox", 6, 9),
    ("table top", "rgbd_tabletop_d435i", 3, 9),
)
WAYS = ("given", "sfm", "matches", "head", "given, own depth", "given, own depth, prior alone")
HELD_OUT = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="da3-tiny")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    parser.add_argument("--pictures", type=Path, help="folder for contact sheets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model)
    print(f"# Photographs without cameras, {model.config.name}\n")
    print(
        "Medians in degrees. PSNR of held-out photographs over the covered pixels, their share, and over all pixels, "
        "on black; seconds on one core, without files.\n"
    )
    print("| set | cameras | views placed | rotation | direction | AUC@30 | AUC@5 | PSNR dB | covered | all dB | s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, folder, step, most in SETS:
        posed = read_transforms_json(options.data / folder / "transforms.json")
        context = list(range(0, len(posed), step))[:most]
        between = [view for view in range(context[-1]) if view not in context]
        targets = between[:: max(1, len(between) // HELD_OUT)]
        for way in WAYS:
            row = _row(posed, context, targets, way, model, name, options.pictures)
            print(f"| {name} | {way} | {row} |", flush=True)


def _row(posed, context: list[int], targets: list[int], way: str, model, name: str, pictures: Path | None) -> str:
    given = posed[context]
    begun = time.perf_counter()
    try:
        scene, kept = _scene(given, way, model)
    except InputError as error:
        return f"0 of {len(context)} ({error})"
    seconds = time.perf_counter() - begun
    width, height = scene.cameras.size
    truth = given.cameras[kept].scaled(width=width, height=height)
    found = pose_metrics(scene.cameras, truth)
    moved = scene.gaussians.transform(align_cameras(scene.cameras, truth).target_from_source)
    held_out = posed[targets]
    photographs = torch.stack(
        [
            torch.nn.functional.interpolate(_tensor(image)[None], (height, width), mode="area")[0]
            for image in held_out.load_images()
        ]
    )
    out = render(moved, held_out.cameras.scaled(width=width, height=height), RenderConfig(antialiased=True))
    covered = out.alpha[..., 0] > 0.5
    colour = (out.rgb / out.alpha.clamp(min=1e-3)).clamp(0, 1)
    truth_rgb = photographs.movedim(1, -1)
    error, everywhere = ((rgb - truth_rgb).square().mean(-1) for rgb in (colour, out.rgb.clamp(0, 1)))
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        middle = float(scene.depth.median())
        rows = [
            ("held-out photograph", [uint8_picture(image.movedim(0, -1)) for image in photographs[:4]]),
            ("render from there", [uint8_picture(image) for image in out.rgb[:4]]),
            ("depth", [colorize_depth(depth, (0.4 * middle, 2 * middle)) for depth in scene.depth[:4]]),
        ]
        write_contact_sheet(pictures / f"{name.replace(' ', '_')}_{way}.png", rows)
    auc = found.auc["vggt"]
    columns = (
        f"{len(kept)} of {len(context)}",
        f"{found.rotation_median_deg:.1f}",
        f"{found.translation_median_deg:.1f}",
        f"{auc['auc@30']:.2f}",
        f"{auc['auc@5']:.2f}",
        f"{float(-10 * error[covered].mean().log10()):.1f}",
        f"{float(covered.float().mean()):.0%}",
        f"{float(-10 * everywhere.mean().log10()):.1f}",
        f"{seconds:.0f}",
    )
    return " | ".join(columns)


def _scene(given, way: str, model):
    """The reconstruction, and which of the photographs it is made of."""
    images = given.load_images()
    if way.startswith("given"):
        head = model.network.gs_head
        model.network.gs_head = None if way.endswith("alone") else head
        config = ReconstructConfig(refine_depth="own depth" not in way)
        scene = reconstruct(images, given.cameras, model, config)
        model.network.gs_head = head
        return scene, list(range(len(images)))
    names = [f"{index:03d}.png" for index in range(len(images))]
    if way == "sfm":
        with tempfile.TemporaryDirectory() as folder:
            for name, image in zip(names, images, strict=True):
                Image.fromarray(uint8_picture(_tensor(image).movedim(0, -1))).save(Path(folder) / name)
            found = with_sfm_cameras(load_input(folder), threads=1)
            source = replace(source_from_input(found), poses_from="structure from motion")
            scene = reconstruct(source, model=model)
    else:
        scene = reconstruct(images, model=model, config=ReconstructConfig(camera_source=way), names=names)
    return scene, [names.index(view) for view in scene.report["views"]]


def _tensor(image) -> torch.Tensor:
    """[3, H, W] in [0, 1] of whatever a data set holds."""
    if isinstance(image, torch.Tensor):
        return image
    return tensor_from_uint8(load_image(image) if isinstance(image, str | Path) else image)


if __name__ == "__main__":
    main()
