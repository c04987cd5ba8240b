"""What a small any-view model does on scenes and photographs it was never trained on, as markdown tables.

    python scripts/benchmarks/tiny_model.py [MODEL] [--scenes 48] [--size 140] [--data FOLDER] > results/da3_tiny.md

Synthetic: unseen seeds of the training styles, and the held-out styles; two and four views, with the true poses, with
those of the camera head, and with those that explain matches between the views. Real, if the folder of test data is
there: depth of a table top (RGB-D) and of a motorcycle (stereo, structured light), and poses of three posed sets.
Beside every number stands what costs nothing: cameras that never move, constant depth, and the best depth that is a
function of the image row alone.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

import da3gs
from da3gs.data.rgbd import read_rgbd
from da3gs.data.transforms_json import read_transforms_json
from da3gs.data.view_sampling import ViewSamplingConfig
from da3gs.geometry.cameras import Cameras
from da3gs.metrics.poses import pose_metrics, standing_still
from da3gs.metrics.shape import depth_metrics
from da3gs.pipeline import ReconstructConfig, reconstruct
from da3gs.train.gs_head import GSHeadLosses, GSHeadTask
from da3gs.train.samples import SyntheticData, TrainingSample

SEEDS = 7_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="da3-tiny")
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--size", type=int, default=None, help="longest side in px; by default what suits the model")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    options = parser.parse_args()
    model = da3gs.load_model(options.model)
    size = options.size or model.config.size_px
    print(f"# {model.config.name} at {size} px\n")
    synthetic(model, size, options.scenes)
    if options.data.is_dir():
        real_depth(model, size, options.data)
        real_poses(model, size, options.data)
    if model.network.gs_head is not None:
        gaussian_head(options.model, size)


# ------------------------------------------------------------------------------------------------ synthetic


def synthetic(model, size: int, scenes: int) -> None:
    print("## Procedural scenes\n")
    print(
        "Medians over pairs of views in degrees; `still`: cameras that never move. Depth after one scale per scene, "
        "`unit`: without any; `refined`: by the pictures, as `reconstruct` leaves it.\n"
    )
    print("| styles | views | poses | rotation | still | direction | AUC@30 | AUC@5 | delta1 | AbsRel | delta1, unit |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for held_out in (False, True):
        height = round(size * 0.7 / 14) * 14
        data = SyntheticData(scenes=scenes, first_seed=SEEDS, views=4, sizes=((size, height),), held_out=held_out)
        samples = [data.open().load(index) for index in range(scenes)]
        for views in (1, 2, 4):
            for poses in (*_ways(model), "given, refined") if views > 1 else ("-",):
                row = _synthetic_row(model, [sample[list(range(views))] for sample in samples], poses)
                style = "held out" if held_out else "of training"
                print(f"| {style} | {views} | {poses} | {row} |", flush=True)
    print()


def _ways(model, *, given: bool = True) -> tuple[str, ...]:
    """Who finds the cameras of several views."""
    own = ("head", "matches") if model.config.match_layer is not None else ("head",)
    return (*own, "given") if given else own


def _synthetic_row(model, samples: list[TrainingSample], poses: str) -> str:
    posed, refined = poses.startswith("given"), poses.endswith(", refined")
    rotation, still, direction, auc30, auc5, delta1, absrel, unit = ([] for _ in range(8))
    for sample in samples:
        size = max(sample.images.shape[-2:])
        result = model.predict(
            sample.images,
            sample.cameras if posed else None,
            size_px=size,
            gaussians=False,
            refine_scale=posed,
            camera_source="matches" if poses.startswith("matches") else "head",
        )
        maps = result.depth
        if refined:
            maps = _refined_depth(model, sample.images, sample.cameras)
        # With given poses the result's cameras are the given ones: nothing to measure.
        if len(sample) > 1 and not posed:
            found = pose_metrics(result.cameras, sample.cameras)
            rotation.append(found.rotation_median_deg)
            direction.append(found.translation_median_deg)
            auc30.append(found.auc["vggt"]["auc@30"])
            auc5.append(found.auc["vggt"]["auc@5"])
            still.append(pose_metrics(standing_still(sample.cameras), sample.cameras).rotation_median_deg)
        depth = depth_metrics(maps, sample.depth, mask=sample.depth > 0, per_view=False)
        delta1.append(depth.delta1)
        absrel.append(depth.abs_rel)
        if posed:
            known = sample.depth > 0
            ratio = maps[known] / sample.depth[known]
            unit.append(float((torch.maximum(ratio, 1 / ratio) < 1.25).float().mean()))
    columns = [
        *(_number(values, 1, statistics.median) for values in (rotation, still, direction)),
        *(_number(values, 2) for values in (auc30, auc5)),
        *(_number(values, 3) for values in (delta1, absrel, unit)),
    ]
    return " | ".join(columns)


# ------------------------------------------------------------------------------------------------ photographs


def real_depth(model, size: int, data: Path) -> None:
    print("## Depth of photographs\n")
    print(
        "Scaled by the ratio of medians, except where said. `constant`: a constant depth; `row`: a plane fitted to the"
    )
    print("truth, by rows alone.\n")
    print("| set | views | poses | delta1 | AbsRel | delta1 constant | delta1 row |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    frames = read_rgbd(data / "rgbd_tabletop_d435i" / "transforms.json", width=480)
    images, depth, cameras = frames.images, frames.depth, frames.cameras
    picked = list(range(0, len(images), 4))
    for name, groups, posed in (
        ("tabletop", [[view] for view in picked], False),
        ("tabletop", [picked], False),
        ("tabletop", [picked], True),
    ):
        maps = torch.cat([_depth(model, images[g], cameras[g] if posed else None, size) for g in groups])
        _depth_row(name, len(groups[0]), posed, maps, depth[picked])
    refined = _refined_depth(model, images[picked], cameras[picked])
    _depth_row("tabletop", len(picked), True, refined, depth[picked], "given, refined by the pictures; not scaled")
    folder = data / "stereo_motorcycle"
    calibration = json.loads((folder / "calib.json").read_text())
    disparity = torch.from_numpy(np.load(folder / "disparity_left.npz")["disparity"].astype(np.float32))
    left = calibration["fl_x"] * calibration["baseline_m"] / (disparity + calibration["doffs"])
    truth = torch.where(torch.isfinite(left), left, 0.0)[None]
    K = torch.tensor(
        [[calibration["fl_x"], 0, calibration["cx"]], [0, calibration["fl_y"], calibration["cy"]], [0, 0, 1]]
    )
    right = K.clone()
    right[0, 2] += calibration["doffs"]
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = -calibration["baseline_m"]
    pair = Cameras(poses, torch.stack([K, right]), calibration["w"], calibration["h"])
    pictures = torch.cat([_picture(folder / f"{side}.png") for side in ("left", "right")])
    _depth_row("motorcycle", 1, False, _depth(model, pictures[:1], None, size), truth)
    _depth_row("motorcycle", 2, True, _depth(model, pictures, pair, size)[:1], truth)
    refined = _refined_depth(model, pictures, pair)[:1]
    _depth_row("motorcycle", 2, True, refined, truth, "given, refined by the pictures; not scaled")
    print()


def _depth_row(
    name: str, views: int, posed: bool, depth: torch.Tensor, truth: torch.Tensor, poses: str | None = None
) -> None:
    mask = truth > 0
    # Refined depth is in the unit of the cameras. The median of the table top lies between its near and far halves.
    found = depth_metrics(depth, truth, mask=mask, per_view=True, alignment="none" if poses else "median")
    constant = depth_metrics(torch.ones_like(truth), truth, mask=mask, per_view=True)
    rows = torch.stack([_row_depth(t) for t in truth])
    row = depth_metrics(rows, truth, mask=mask, per_view=True)
    poses = poses or ("given" if posed else "predicted")
    print(
        f"| {name} | {views} | {poses} | {found.delta1:.3f} | {found.abs_rel:.3f} | {constant.delta1:.3f} | "
        f"{row.delta1:.3f} |",
        flush=True,
    )


def _row_depth(truth: torch.Tensor) -> torch.Tensor:
    """Inverse depth linear in the row, fitted to the truth by least squares."""
    v = torch.arange(truth.shape[0], dtype=torch.float64)[:, None].expand(truth.shape)
    known = truth > 0
    A = torch.stack([v[known], torch.ones_like(v[known])], 1)
    slope, offset = torch.linalg.lstsq(A, 1 / truth[known].double()[:, None]).solution[:, 0]
    return (1 / (slope * v + offset).clamp(min=1e-3)).float()


def real_poses(model, size: int, data: Path) -> None:
    print("## Poses of photographs\n")
    print("| set | views | poses | rotation | still | direction | AUC@30 | AUC@5 | AUC@30 still |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, folder, step in (
        ("fountain", "posed_fountain_p11", 2),
        ("fox", "posed_fox", 7),
        ("tabletop", "rgbd_tabletop_d435i", 4),
    ):
        posed = read_transforms_json(data / folder / "transforms.json")
        posed = posed[list(range(0, len(posed), step))]
        truth = posed.cameras
        still = pose_metrics(standing_still(truth), truth)
        for poses in _ways(model, given=False):
            result = model.predict(posed.load_images(), size_px=size, gaussians=False, camera_source=poses)
            found = pose_metrics(result.cameras, truth)
            auc, trivial = found.auc["vggt"], still.auc["vggt"]
            print(
                f"| {name} | {len(posed)} | {poses} | {found.rotation_median_deg:.1f} | "
                f"{still.rotation_median_deg:.1f} | {found.translation_median_deg:.1f} | {auc['auc@30']:.2f} | "
                f"{auc['auc@5']:.2f} | {trivial['auc@30']:.2f} |",
                flush=True,
            )
    print()


# ------------------------------------------------------------------------------------------------ splats


def gaussian_head(model: str, size: int, scenes: int = 64) -> None:
    print("## Gaussian head\n")
    print(
        f"Visible pixels of held-out views, {scenes} unseen scenes, 2-4 context views, own depth; `used`: "
        "scenes whose predicted cameras are near enough to compare.\n"
    )
    print("| styles | poses | used | prior dB | head dB | gain |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for held_out in (False, True):
        data = SyntheticData(
            scenes=scenes, first_seed=SEEDS, sizes=((size, round(size * 0.7 / 14) * 14),), held_out=held_out
        )
        views = ViewSamplingConfig(context=(2, 4), targets=1)
        losses = GSHeadLosses(lpips=0)
        task = GSHeadTask(
            model=model, pretrained=True, evaluation_data=data, evaluation_scenes=scenes, views=views, losses=losses
        ).open(0)
        found = task.evaluate(task.module).metrics
        for poses, way in (("given", "posed"), ("predicted", "free")):
            print(
                f"| {'held out' if held_out else 'of training'} | {poses} | {found[f'used_{way}']:.2f} | "
                f"{found[f'psnr_prior_{way}']:.2f} | {found[f'psnr_head_{way}']:.2f} | {found[f'gain_db_{way}']:.2f} |",
                flush=True,
            )
    print()


def _depth(model, images: torch.Tensor, cameras: Cameras | None, size: int) -> torch.Tensor:
    result = model.predict(images, cameras, size_px=size, gaussians=False, refine_scale=cameras is not None)
    return torch.nn.functional.interpolate(result.depth[:, None], images.shape[-2:], mode="bilinear")[:, 0]


def _refined_depth(model, images: torch.Tensor, cameras: Cameras) -> torch.Tensor:
    """As `reconstruct` leaves it: bent through keypoints and refined by the pictures."""
    scene = reconstruct(list(images), cameras, model, ReconstructConfig(check_poses=False))
    return torch.nn.functional.interpolate(scene.depth[:, None], images.shape[-2:], mode="bilinear")[:, 0]


def _picture(path: Path) -> torch.Tensor:
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def _number(values: list[float], digits: int, average=statistics.fmean) -> str:
    return f"{average(values):.{digits}f}" if values else "-"


if __name__ == "__main__":
    main()
