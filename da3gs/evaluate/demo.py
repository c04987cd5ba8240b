"""The demonstration: a procedural scene is photographed, reconstructed from the files, and compared with the truth.

seed ─► held-out scene ─► photographs (files) ─► reconstruct ─► Scene ─► similarity onto the true cameras ─► numbers
                      └─► held-out photographs ──────────────────────────────────► PSNR of renders
"""

import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.atomic import atomic_path, check_replaceable
from da3gs.data.inputs import load_input
from da3gs.data.sfm import with_sfm_cameras
from da3gs.data.synthetic import HELD_OUT_STYLES, SyntheticViews, make_scene, render_views, sample_cameras
from da3gs.export.scene_folder import save_scene
from da3gs.export.video import colorize_depth, save_image, uint8_picture, write_contact_sheet
from da3gs.gaussians import Scene
from da3gs.geometry.alignment import align_cameras
from da3gs.metrics.poses import pose_metrics, standing_still
from da3gs.metrics.shape import depth_metrics
from da3gs.model.da3_model import DA3Model
from da3gs.pipeline.reconstruction import DEFAULT_MODEL, ReconstructConfig, reconstruct
from da3gs.pipeline.sources import source_from_input
from da3gs.pipeline.stages import Stages
from da3gs.rendering.render import RenderConfig, render

logger = logging.getLogger(__name__)

PHOTOS, SCENE, NUMBERS, COMPARISON = "photos", "scene", "numbers.json", "comparison.png"
Poses = Literal["predicted", "sfm", "given"]
_WIDTH, _HEIGHT = 448, 336
_HELD_OUT = 3


@dataclass(frozen=True)
class DemoNumbers:
    """The reconstruction beside the truth.

    Attributes:
        rotation_median_deg, identity_rotation_median_deg: Relative rotations of all pairs: error of the prediction, and
            of claiming that the camera never turned.
        translation_median_deg: Directions of relative translations.
        auc30: Relative-pose AUC at 30 degrees (VGGT's definition), in [0, 1].
        depth_delta1: Share of pixels whose depth is within 25 % of the truth, after one scale for all views.
        depth_abs_rel: Mean of |error| / truth, likewise.
        psnr_db: Renders at true held-out cameras, over covered pixels (alpha > 0.5, colour divided by alpha); None if
            nothing is covered.
        coverage: Share of covered pixels.
        gaussians: Number of splats.
        seconds: Of reconstruction, without writing files.
    """

    rotation_median_deg: float
    identity_rotation_median_deg: float
    translation_median_deg: float
    auc30: float
    depth_delta1: float
    depth_abs_rel: float
    psnr_db: float | None
    coverage: float
    gaussians: int
    seconds: float


def run_demo(
    output: str | os.PathLike,
    *,
    model: str | Path | DA3Model = DEFAULT_MODEL,
    views: int = 6,
    seed: int = 2,
    poses: Poses = "predicted",
    given_depth: bool = False,
    video: bool = True,
    stages: Stages | None = None,
) -> DemoNumbers:
    """Photograph a scene of a held-out style, reconstruct it from the files, and write everything to `output`.

    Args:
        output: Folder; replaced as a whole if it exists and holds an earlier demo. Gets ``photos/``, ``scene/`` (as
            `da3gs reconstruct` writes it), ``comparison.png`` and ``numbers.json``.
        model: As for `reconstruct`.
        views: Photographs to reconstruct from.
        seed: Of scene and cameras.
        poses: "predicted" leaves the cameras to the network, "sfm" to structure from motion (photographs that cannot be
            placed are left out), "given" hands the true ones to the reconstruction.
        given_depth: Hand it the true depth, as a depth camera would; with the poses no network is needed.
        video: Render the fly-through.
        stages: Receives seconds and memory per stage.
    """
    check_replaceable(output, "a demo", (PHOTOS, SCENE, NUMBERS, COMPARISON), (NUMBERS,))
    stages = stages or Stages()
    with stages("photographing a procedural scene"):
        context, targets = _photograph(views, seed)
    with atomic_path(output, directory=True) as folder:
        (folder / PHOTOS).mkdir()
        paths = _write_photos(folder / PHOTOS, context)
        before = stages.seconds
        config = ReconstructConfig(depth="given" if given_depth else "network")
        depth = context.depth if given_depth else None
        if poses == "sfm":
            with stages("structure from motion"):
                found = with_sfm_cameras(load_input(folder / PHOTOS))
            placed = [int(Path(name).stem) for name in found.names]
            source = replace(source_from_input(found), poses_from="structure from motion")
            source = replace(source, depth=None if depth is None else list(depth[placed]))
            scene = reconstruct(source, None, model, config, stages=stages)
        else:
            cameras = context.cameras if poses == "given" else None
            scene = reconstruct(paths, cameras, model, config, depth=depth, stages=stages)
        context = _subset(context, [int(Path(name).stem) for name in scene.report["views"]])
        seconds = stages.seconds - before
        save_scene(scene, folder / SCENE, video=video, frames=60, stages=stages)
        with stages("comparing with the truth"):
            numbers, renders = compare(scene, context, targets, seconds)
            _write_comparison(folder / COMPARISON, scene, context, targets, renders)
        (folder / NUMBERS).write_text(json.dumps(asdict(numbers), indent=1, allow_nan=False) + "\n")
    return numbers


def compare(
    scene: Scene, context: SyntheticViews, targets: SyntheticViews, seconds: float
) -> tuple[DemoNumbers, Float[Tensor, "T H W 3"]]:
    """Numbers of a reconstruction of `context`, and its renders at the cameras of `targets`."""
    width, height = scene.cameras.size
    truth = context.cameras.scaled(width=width, height=height)
    poses = pose_metrics(scene.cameras, truth)
    still = pose_metrics(standing_still(truth), truth)
    true_depth = torch.nn.functional.interpolate(context.depth[:, None], (height, width), mode="nearest-exact")[:, 0]
    depth = depth_metrics(scene.depth, true_depth, mask=(true_depth > 0) & (scene.depth > 0), per_view=False)
    moved = scene.gaussians.transform(align_cameras(scene.cameras, truth).target_from_source)
    out = render(moved, targets.cameras, RenderConfig(antialiased=True))
    colour = (out.rgb / out.alpha.clamp(min=1e-3)).clamp(0, 1)
    covered = out.alpha[..., 0] > 0.5
    error = (colour - targets.images.movedim(1, -1)).square().mean(-1)[covered]
    psnr = float(-10 * error.mean().log10()) if len(error) else None
    numbers = DemoNumbers(
        rotation_median_deg=poses.rotation_median_deg,
        identity_rotation_median_deg=still.rotation_median_deg,
        translation_median_deg=poses.translation_median_deg,
        auc30=poses.auc["vggt"]["auc@30"],
        depth_delta1=depth.delta1,
        depth_abs_rel=depth.abs_rel,
        psnr_db=psnr,
        coverage=float(covered.float().mean()),
        gaussians=len(scene.gaussians),
        seconds=seconds,
    )
    return numbers, out.rgb


def _photograph(views: int, seed: int) -> tuple[SyntheticViews, SyntheticViews]:
    """Context and held-out views of one scene; every third camera or so is held out, between the others."""
    scene = make_scene(seed, style=HELD_OUT_STYLES[seed % len(HELD_OUT_STYLES)], difficulty=0.3)
    cameras = sample_cameras(scene, views + _HELD_OUT, seed, _WIDTH, _HEIGHT, motion="orbit", min_covisibility=0.65)
    held_out = torch.linspace(1, views + _HELD_OUT - 2, _HELD_OUT).round().long()
    chosen = torch.ones(len(cameras), dtype=torch.bool)
    chosen[held_out] = False
    pictures = render_views(scene, cameras)
    return _subset(pictures, chosen), _subset(pictures, ~chosen)


def _subset(pictures: SyntheticViews, mask: Tensor | list[int]) -> SyntheticViews:
    fields = {name: getattr(pictures, name)[mask] for name in ("images", "depth", "normals", "sky", "object_ids")}
    return SyntheticViews(**fields, cameras=pictures.cameras[mask], seed=pictures.seed, style=pictures.style)


def _write_photos(folder: Path, pictures: SyntheticViews) -> list[Path]:
    from PIL import Image

    paths = [folder / f"{view:02d}.jpg" for view in range(len(pictures))]
    for path, image in zip(paths, pictures.images, strict=True):
        save_image(Image.fromarray(uint8_picture(image.movedim(0, -1))), path, quality=95)
    return paths


def _write_comparison(
    path: Path, scene: Scene, context: SyntheticViews, targets: SyntheticViews, renders: Tensor
) -> None:
    known = context.depth[context.depth > 0]
    near, far = float(known.quantile(0.02)), float(known.quantile(0.98))
    shown = range(min(3, len(context)))
    # One scale brings the predicted depth to metres for the eye.
    scale = float(known.median() / scene.depth[scene.depth > 0].median())
    rows = [
        ("photograph", [uint8_picture(context.images[view].movedim(0, -1)) for view in shown]),
        ("depth", [colorize_depth(scene.depth[view] * scale, (near, far)) for view in shown]),
        ("true depth", [colorize_depth(context.depth[view], (near, far)) for view in shown]),
        ("held-out photograph", [uint8_picture(image.movedim(0, -1)) for image in targets.images]),
        ("render from there", [uint8_picture(picture) for picture in renders]),
    ]
    write_contact_sheet(path, rows)
