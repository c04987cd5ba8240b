"""`load_model(...)` and `DA3Model.predict`: the network made right for use.

    images, cameras ─► patch grid ─► given poses normalised ─► network (released numbers)
                                                                  │ depth, rays, predicted cameras, raw Gaussians
    user's cameras ◄─ one similarity for everything ◄─ Gaussians placed by the cameras in force

`network()` gives the released numbers; whatever the released pipeline gets wrong around them is put right here.

Letters: V views, H W pixels of the processed images, h w cells of the ray map.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from da3gs.errors import InputError
from da3gs.gaussians import Gaussians
from da3gs.geometry.alignment import SCALE, Alignment, align_cameras
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rays import ray_map, transform_rays
from da3gs.geometry.similarity import Similarity
from da3gs.images import ImageLike, ResizeMethod, Views, prepare_views
from da3gs.model.checkpoints import Network, attach_gs_head, load_network
from da3gs.model.depth_heads import FEWEST_PIXELS, SKY_QUANTILE, SKY_THRESHOLD
from da3gs.model.gaussian_adapter import AdapterConfig, gaussians_from_raw
from da3gs.model.match_pose import FOCAL_SIGMA, MatchedCameras, cameras_from_matches
from da3gs.model.matching import PlacedKeypoints, keypoints_of
from da3gs.model.nested import METRIC_FOCAL_PX
from da3gs.model.network import Prediction
from da3gs.model.photometric_scale import photometric_scale
from da3gs.model.ray_pose import cameras_from_rays
from da3gs.model.scene_prediction import ScenePrediction, Unit

logger = logging.getLogger(__name__)

# Predicted centres this far from the given ones, relative to the given trajectory's extent, deserve a word.
_POOR_FIT = 0.3
_METRIC_PRESETS = ("da3metric-large",)


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    gs_head: str | Path | None = None,
    compile: bool = False,
) -> "DA3Model":
    """A frozen model ready to predict.

    Args:
        name_or_path: A preset (``da3-base``), a hub repository (``depth-anything/DA3-BASE``), a folder with
            ``config.json`` and ``model.safetensors``, or a ``.safetensors`` file written by da3gs.
        device: "auto" takes CUDA when there is a GPU.
        gs_head: Name or file of a Gaussian head trained on this backbone. Without one the geometric prior places
            splats.
        compile: Run the network through `torch.compile`; pays from the second call at the same size on.

    Raises:
        WeightsError: Unknown name, damaged or unfitting weights, hub not reachable.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_network(name_or_path, device=device)
    if gs_head is not None:
        attach_gs_head(network, gs_head)
    return DA3Model(network, compile=compile)


class DA3Model:
    """A network in eval mode with frozen weights, and everything a prediction needs around it."""

    def __init__(self, network: Network, *, compile: bool = False):
        self.network = network.eval().requires_grad_(False)
        self.config = network.config
        self._forward = torch.compile(network) if compile else network

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> "DA3Model":
        self.network.to(device)
        return self

    def estimate_memory(self, views: int, height: int, width: int) -> int:
        """Peak bytes of predicting that many views of that processed size, weights included."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return self.network.estimate_memory(views, height, width, dtype=dtype)

    @torch.no_grad()
    def predict(
        self,
        images: Float[Tensor, "V 3 H W"] | Sequence[ImageLike],
        cameras: Cameras | None = None,
        *,
        size_px: int | None = None,
        method: ResizeMethod = "upper_bound_resize",
        camera_source: str = "auto",
        reference_view: str = "saddle_balanced",
        gaussians: bool = True,
        refine_scale: bool = False,
        seed: int = 0,
    ) -> ScenePrediction:
        """Depth, rays, cameras and Gaussians of one scene, in one frame and one scale. Deterministic.

        Given cameras with poses: poses and intrinsics condition the network, and everything comes back in their frame
        and unit with exactly these cameras; one view, two views, collinear and purely rotating cameras included. Given
        intrinsics alone are obeyed when depth becomes points, but do not condition the network.

        Args:
            images: RGB [V, 3, H, W] in [0, 1], or a sequence of tensors, arrays, Pillow images or paths of any sizes.
            cameras: Of the original images (their sizes), poses optional.
            size_px: Longest (or shortest, by `method`) side of the processed images; by default what suits the model.
            method: How images come to multiples of 14 px; see `prepare_views`.
            camera_source: Predicted cameras from the "head", fitted to the ray map ("rays"), or to what views have in
                common ("matches": for networks trained to match patches, seconds slower and far more exact). "auto":
                matches if the network can and there are two views or more, else the head.
            reference_view: How the network picks its reference view among three or more without poses.
            gaussians: Also place Gaussians (needs cameras: predicted, or given for single-view models).
            refine_scale: With given poses, choose the scale of depth by how well the pictures agree (see
                `photometric_scale`) instead of by predicted camera distances alone.
            seed: Of the ray fit and of the released pipeline's random subsets.

        Raises:
            InputError: Unusable images or cameras.
        """
        # 1. Images, and cameras with them, on the patch grid.
        views = prepare_views(images, cameras, size_px=size_px or self.config.size_px, method=method).to(self.device)
        given = views.cameras
        camera_source = self.camera_source(len(views)) if camera_source == "auto" else camera_source
        matching = camera_source == "matches" and (given is None or given.cam_from_world is None)
        # 2. The network, conditioned on given poses in the frame and scale it was trained with.
        out = self._run(views, given, camera_source, reference_view, gaussians, seed)
        matched = None
        if matching:
            out, matched = self._matched(out, views, given, keypoints_of(images, views, upright=cameras is None), seed)
        # 3. Cameras in force, in the network's own frame, and the way from there to the user's.
        own, user_from_network, unit, alignment, notes = self._cameras(out, given, camera_source, seed)
        if matching and matched is None:
            notes = (*notes, "no two views have enough in common to match; the cameras are the network's own guess")
        # 4. Gaussians on the rays of these cameras.
        depth = _sky_filled(out.depth[0], None if out.sky is None else out.sky[0])
        if self.config.name in _METRIC_PRESETS and given is not None:
            depth = depth * _metres_per_unit(given.K)
        user_from_depth, photometric = user_from_network, None
        if refine_scale and alignment is not None:
            photometric = photometric_scale(views.images, depth, own)
            # Depth grows by the factor, or, which is the same, the network's unit shrinks and depth stays.
            larger = Similarity(photometric.factor, torch.eye(3), torch.zeros(3))
            own = own.transform(larger.inverse())
            user_from_depth = user_from_network @ larger
        splats = self._gaussians(out, depth, own, views) if gaussians and own is not None else None
        # 5. One similarity moves everything.
        scale = float(user_from_depth.scale)
        if alignment is not None:
            own = given
        return ScenePrediction(
            depth=depth * scale,
            confidence=None if out.confidence is None else out.confidence[0],
            cameras=own,
            rays=None if out.rays is None else transform_rays(out.rays[0], user_from_network),
            ray_confidence=None if out.ray_confidence is None else out.ray_confidence[0],
            sky=None if out.sky is None else out.sky[0],
            gaussians=None if splats is None else splats.transform(user_from_depth),
            unit=unit,
            views=views,
            alignment=alignment,
            photometric=photometric,
            matched=matched,
            raw_gaussians=out.raw_gaussians[0] if splats is not None and self._has_residual_head else None,
            notes=notes,
        )

    def camera_source(self, views: int) -> str:
        """The part of the network that finds the cameras of so many views best."""
        return "matches" if self.config.match_layer is not None and views > 1 else "head"

    # ------------------------------------------------------------------------------------------------ parts

    def _run(
        self, views: Views, given: Cameras | None, camera_source: str, reference_view: str, gaussians: bool, seed: int
    ) -> Prediction:
        any_view = self.config.cameras is not None
        posed = given is not None and given.cam_from_world is not None and any_view
        options = {}
        if any_view:
            options = {
                "rays": True,
                "reference_view": reference_view,
                "raw_gaussians": gaussians and self.network.gs_head is not None,
            }
            if camera_source == "matches":
                options |= {"matches": True}
        elif camera_source == "rays":
            raise InputError(f"{self.config.name} predicts no rays; use an any-view model for camera_source='rays'")
        low_precision = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = torch.autocast("cuda", torch.bfloat16) if low_precision else nullcontext()
        devices = [self.device] if self.device.type == "cuda" else []
        # The released network draws subsets for quantiles from the global generator; here from a seed of its own.
        with torch.random.fork_rng(devices=devices), precision:
            torch.manual_seed(seed)
            return self._forward(views.normalised[None], [normalized_poses(given)] if posed else None, **options)

    def _matched(
        self, out: Prediction, views: Views, given: Cameras | None, keypoints: list[PlacedKeypoints], seed: int
    ) -> tuple[Prediction, MatchedCameras | None]:
        """The prediction with cameras that explain what views have in common, and depth and rays to fit."""
        predicted = out.cameras[0]
        start = with_square_pixels(predicted, views) if given is None else predicted.with_intrinsics(given)
        found = cameras_from_matches(
            out.depth[0],
            start,
            out.match_queries[0],
            out.match_keys[0],
            keypoints,
            focal_sigma=FOCAL_SIGMA if given is None else 0.0,
            seed=seed,
        )
        if found is None:
            return out, None
        rows, columns = out.rays.shape[2:4]
        moved = replace(
            out,
            cameras=[found.cameras],
            depth=out.depth * found.scale[None, :, None, None],
            rays=ray_map(found.cameras, columns, rows)[None],
        )
        return moved, found

    def _cameras(
        self, out: Prediction, given: Cameras | None, camera_source: str, seed: int
    ) -> tuple[Cameras | None, Similarity, Unit, Alignment | None, tuple[str, ...]]:
        """Cameras in the network's frame, user_from_network, the unit of the result, its alignment, and notes."""
        identity, notes = Similarity.identity(), []
        if self.config.cameras is None:
            return (*self._single_view_cameras(given), ())
        predicted = out.cameras[0]
        if camera_source == "rays":
            width, height = predicted.size
            scale = out.scale_factor or 1.0
            fitted = cameras_from_rays(out.rays[0], out.ray_confidence[0], width=width, height=height, seed=seed)
            predicted = fitted.transform(Similarity(scale, torch.eye(3), torch.zeros(3))).to(predicted.K)
        unit: Unit = "metres" if out.scale_factor is not None else "arbitrary"
        if given is None:
            return predicted, identity, unit, None, ()
        given = given.to(predicted.K)
        if given.cam_from_world is None:
            note = "given intrinsics were used to place points; they did not condition the network (it takes poses)"
            return predicted.with_intrinsics(given), identity, unit, None, (note,)
        alignment = align_cameras(predicted, given)
        if SCALE in alignment.unobservable:
            source = "metres from the metric model" if unit == "metres" else "1 (arbitrary)"
            notes.append(f"the given cameras do not determine the scale (one centre); it is {source}")
        else:
            unit = "given"
            extent = (given.centers - given.centers.mean(0)).norm(dim=1).max()
            if float(alignment.residuals.median()) > _POOR_FIT * float(extent):
                notes.append(
                    "predicted and given camera positions disagree by more than 30 % of the trajectory's extent; "
                    "check the convention of the given poses, or the scale of depth may be off"
                )
        for note in notes:
            logger.warning(note)
        own = given.transform(alignment.target_from_source.inverse())
        return own, alignment.target_from_source, unit, alignment, tuple(notes)

    def _single_view_cameras(self, given: Cameras | None) -> tuple[Cameras | None, Similarity, Unit, Alignment | None]:
        """Single-view models predict no cameras: given ones are taken as they are."""
        metric = self.config.name in _METRIC_PRESETS
        if given is None:
            if metric:
                logger.warning("%s gives metres only with given intrinsics; depth has no unit here", self.config.name)
            return None, Similarity.identity(), "arbitrary", None
        if given.cam_from_world is None:
            if len(given) > 1:
                logger.warning("%s relates views by given poses only; no Gaussians without", self.config.name)
                return None, Similarity.identity(), "metres" if metric else "arbitrary", None
            given = given.with_poses(torch.eye(4, device=given.K.device)[None])
        return given, Similarity.identity(), "metres" if metric else "arbitrary", None

    @property
    def _has_residual_head(self) -> bool:
        return self.network.gs_head is not None and self.network.gs_head.config.residual

    def _gaussians(self, out: Prediction, depth: Tensor, own: Cameras, views: Views) -> Gaussians:
        released = self.network.gs_head is not None and not self._has_residual_head
        # A released head adds depth in the any-view network's units, before the metric network scales them.
        scale = out.scale_factor or 1.0
        metric_from_head = Similarity(scale, torch.eye(3), torch.zeros(3))
        splats = gaussians_from_raw(
            None if out.raw_gaussians is None else out.raw_gaussians[0],
            depth / scale,
            own.transform(metric_from_head.inverse()),
            config=AdapterConfig.official() if released else AdapterConfig(),
            images=views.images,
            confidence=None if out.confidence is None else out.confidence[0],
        )
        return splats.transform(metric_from_head)


def with_square_pixels(cameras: Cameras, views: Views) -> Cameras:
    """One focal length for all views and both axes, in pixels of the originals: the geometric mean."""
    stretch = (views.resized_size / views.original_size).to(cameras.K)
    K = cameras.K.clone()
    K[:, [0, 1], [0, 1]] = stretch * (K[:, [0, 1], [0, 1]] / stretch).log().mean().exp()
    return Cameras(cameras.cam_from_world, K, cameras.width, cameras.height)


def normalized_poses(cameras: Cameras) -> Cameras:
    """Given cameras as the network expects them: the first view at the origin, camera distances of about 1.

    Poses are made relative to the first view and divided by the lower median of the camera distances from it. Where
    that median is 0 (two views, or most views in one place) the released pipeline divides by 0.1 and so depends on the
    user's unit; here the median of the non-zero distances is taken, and 1 if there are none, so that the prediction
    does not depend on the frame or unit of the given poses.
    """
    precise = cameras.to(torch.float64)
    relative = precise.with_poses(precise.cam_from_world @ precise.world_from_cam[:1])
    distances = relative.centers.norm(dim=1)
    rounding = 1e-6 * float(precise.centers.abs().max())
    extent = distances.median()
    if extent <= rounding:
        apart = distances[distances > max(rounding, 1e-12)]
        extent = apart.median() if len(apart) else torch.ones_like(extent)
    moved = relative.cam_from_world.clone()
    moved[:, :3, 3] = moved[:, :3, 3] / extent
    return relative.with_poses(moved).to(cameras.K.dtype)


def _metres_per_unit(K: Tensor) -> Tensor:
    """[V, 1, 1] factor of the metric model: focal length in processed pixels / 300."""
    return ((K[:, 0, 0] + K[:, 1, 1]) / 2 / METRIC_FOCAL_PX)[:, None, None]


def _sky_filled(depth: Tensor, sky: Tensor | None) -> Tensor:
    """Sky pixels at the exact 0.99 quantile of the others, instead of that of a random subset."""
    if sky is None:
        return depth
    is_sky = sky >= SKY_THRESHOLD
    ground = depth[~is_sky]
    if len(ground) <= FEWEST_PIXELS or int(is_sky.sum()) <= FEWEST_PIXELS:
        return depth
    rank = max(1, round(SKY_QUANTILE * len(ground)))
    return torch.where(is_sky, ground.kthvalue(rank).values, depth)
