"""Per-scene optimisation: the Gaussians of a reconstruction, fitted to its own pictures.

    Scene ─► Gaussians as parameters (+ one colour gain per picture, + poses)
                 │  a step: render one view, compare with its picture, Adam
                 ▼
             Scene with the fitted Gaussians; what views left out of the fit say stands in the report

Letters: V views, N Gaussians, H W pixels.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from da3gs.errors import InputError
from da3gs.export.nerfstudio_run import activated, deactivated
from da3gs.fusion import keep_budget
from da3gs.gaussians import Gaussians, Scene
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import rigid_from_twist
from da3gs.metrics.images import psnr, ssim
from da3gs.rendering import RenderConfig, render

logger = logging.getLogger(__name__)

# Learning rates of the parameters; they fall to a tenth, that of the means to a hundredth. Means are in units of the
# scene's size.
_RATES = {
    "means": 3.2e-4,
    "features_dc": 5e-3,
    "features_rest": 2.5e-4,
    "opacities": 5e-2,
    "scales": 1e-2,
    "quats": 2e-3,
}
_GAIN_RATE, _POSE_RATE = 5e-3, 3e-4
_FALL, _FALL_OF_MEANS = 0.1, 0.01
_STEPS_PER_VIEW, _STEPS = 50, (300, 3000)


@dataclass(frozen=True)
class RefineConfig:
    """How to refine.

    Attributes:
        steps: One view each. None: 50 per view, at least 300 and at most 3000.
        sh_degree: Of the result; above 0 colours depend on the direction they are seen from. None: that of the scene,
            at least 1.
        ssim_weight: Weight of the structural term in the loss; the rest is mean squared error.
        exposure: Let every picture have a colour gain of its own, which the scene does not keep.
        poses: Also move the cameras.
        hold_out: Every n-th view is left out of the fit and measured; 0 fits them all.
        max_gaussians: Keep at most this many first, by their contribution to the pictures; None keeps all.
        seed: Of the order of views.
    """

    steps: int | None = None
    sh_degree: int | None = None
    ssim_weight: float = 0.2
    exposure: bool = True
    poses: bool = False
    hold_out: int = 0
    max_gaussians: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps must be >= 1; got {self.steps}")
        if self.sh_degree not in (None, 0, 1, 2, 3):
            raise InputError(f"sh_degree must be 0, 1, 2 or 3; got {self.sh_degree}")
        if not 0 <= self.ssim_weight <= 1:
            raise InputError(f"ssim_weight must lie in [0, 1]; got {self.ssim_weight:g}")
        if self.hold_out < 0 or self.hold_out == 1:
            raise InputError(f"hold_out must be 0 or >= 2; got {self.hold_out}")

    def steps_for(self, views: int) -> int:
        """Steps of a fit to so many views."""
        return min(max(_STEPS_PER_VIEW * views, _STEPS[0]), _STEPS[1]) if self.steps is None else self.steps


def refine(
    scene: Scene,
    config: RefineConfig | None = None,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> Scene:
    """Fit the Gaussians of a scene to its pictures. On the device of the Gaussians; deterministic on a CPU.

    Args:
        scene: As `reconstruct` or `Scene.load` gives it.
        config: Defaults to ``RefineConfig()``.
        on_step: Told the number of every step, from 1, and the PSNR in dB of its view before it.

    Returns:
        The scene with fitted Gaussians (and cameras, with `poses`); ``report["refinement"]`` holds PSNR before and
        after over the views of the fit and, with `hold_out`, over the others.

    Raises:
        InputError: No Gaussians, or too few views to hold some out.
    """
    config = config or RefineConfig()
    degree = max(1, scene.gaussians.sh_degree) if config.sh_degree is None else config.sh_degree
    config = replace(config, steps=config.steps_for(len(scene.cameras)), sh_degree=degree)
    assert config.steps is not None
    views = list(range(len(scene.cameras)))
    held_out = views[config.hold_out // 2 :: config.hold_out] if config.hold_out else []
    fitted = [view for view in views if view not in held_out]
    if not fitted or (config.hold_out and not held_out):
        raise InputError(f"{len(views)} views are too few to hold one in {config.hold_out} out")
    if len(scene.gaussians) == 0:
        raise InputError("the scene holds no Gaussians to refine")
    rendering = RenderConfig(antialiased=bool(scene.report.get("antialiased", True)), depth=False)
    start = scene.gaussians.detach()
    if config.max_gaussians is not None:
        start, _ = keep_budget(start, scene.cameras[fitted], config.max_gaussians, rendering)
    state = _State(start.with_sh_degree(degree), scene, fitted, config)
    parts = (("fit", fitted), ("held_out", held_out))
    before = {name: _measured(state, scene.gaussians.detach(), chosen, rendering) for name, chosen in parts}
    generator = torch.Generator().manual_seed(config.seed)
    order: list[int] = []
    for step in range(config.steps):
        if not order:
            order = [fitted[i] for i in torch.randperm(len(fitted), generator=generator).tolist()]
        value = state.step(order.pop(), step, rendering)
        if on_step is not None:
            on_step(step + 1, value)
    after = {name: _measured(state, state.gaussians(), chosen, rendering) for name, chosen in parts}
    facts: dict[str, Any] = asdict(config) | {
        "psnr_fit": [before["fit"], after["fit"]],
        "psnr_held_out": [before["held_out"], after["held_out"]] if held_out else None,
    }
    report = dict(scene.report) | {"refinement": facts}
    report["gaussians"] = {"count": len(state.gaussians()), "sh_degree": config.sh_degree}
    cameras = state.cameras(views).detach().to(scene.cameras.K.device) if config.poses else scene.cameras
    return replace(scene, gaussians=state.gaussians().detach().validate(), cameras=cameras, report=report)


class _State:
    """Parameters of a fit and their optimizer."""

    def __init__(self, gaussians: Gaussians, scene: Scene, fitted: list[int], config: RefineConfig):
        device = gaussians.means.device
        self.fitted = fitted
        self.config = config
        self.images = scene.images.to(device)
        self.base = scene.cameras.to(device)
        known = scene.depth[scene.depth > 0]
        self.unit = torch.tensor(float(known.median()) if len(known) else 1.0, device=device)
        self.parameters = {
            name: nn.Parameter(value.contiguous().clone()) for name, value in deactivated(gaussians, self.unit).items()
        }
        views = len(scene.cameras)
        self.gains = torch.zeros(views, 3, device=device, requires_grad=config.exposure)  # logarithms
        self.twists = torch.zeros(views, 6, device=device, requires_grad=config.poses)
        groups = [_group(value, _RATES[name], name == "means") for name, value in self.parameters.items()]
        for values, rate, used in ((self.gains, _GAIN_RATE, config.exposure), (self.twists, _POSE_RATE, config.poses)):
            if used:
                groups.append(_group(values, rate))
        self.optimizer = torch.optim.Adam([group for group in groups if group["params"][0].numel()], eps=1e-15)

    def gaussians(self) -> Gaussians:
        return activated(self.parameters, self.unit)

    def cameras(self, views: list[int]) -> Cameras:
        """Cameras of some views, moved by their twists (in their own frames)."""
        cameras = self.base[views]
        if not self.config.poses:
            return cameras
        twists = torch.cat([self.twists[views, :3], self.unit * self.twists[views, 3:]], 1)
        assert cameras.cam_from_world is not None
        return cameras.with_poses(rigid_from_twist(twists) @ cameras.cam_from_world)

    def gain(self, views: list[int]) -> Float[Tensor, "v 3 1 1"]:
        """Colour gains of some views: 1 in the mean over the views of the fit, and 1 for the others."""
        centred = self.gains[views] - self.gains[self.fitted].mean(0)
        fitted = torch.tensor([view in self.fitted for view in views], device=centred.device)
        return torch.where(fitted[:, None], centred, 0.0).exp()[..., None, None]

    def step(self, view: int, step: int, rendering: RenderConfig) -> float:
        """One step on one view; its PSNR before."""
        assert self.config.steps is not None
        for group in self.optimizer.param_groups:
            group["lr"] = group["first"] * math.pow(group["fall"], step / self.config.steps)
        out = render(self.gaussians(), self.cameras([view]), rendering)
        rgb = out.rgb.movedim(-1, 1) * self.gain([view])  # type: ignore[union-attr]  # one camera, one size
        target = self.images[[view]]
        squares = (rgb - target).square().mean()
        loss = (1 - self.config.ssim_weight) * squares
        if self.config.ssim_weight > 0:
            loss = loss + self.config.ssim_weight * (1 - ssim(rgb, target).mean())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(psnr(rgb.detach(), target)[0])


def _group(values: Tensor, rate: float, means: bool = False) -> dict[str, Any]:
    return {"params": [values], "lr": rate, "first": rate, "fall": _FALL_OF_MEANS if means else _FALL}


@torch.no_grad()
def _measured(state: _State, gaussians: Gaussians, views: list[int], rendering: RenderConfig) -> float | None:
    """Mean PSNR in dB over views, each with its colour gain; None without views."""
    if not views:
        return None
    values = []
    for view in views:
        out = render(gaussians, state.cameras([view]), rendering)
        rgb = out.rgb.movedim(-1, 1) * state.gain([view])  # type: ignore[union-attr]
        values.append(float(psnr(rgb, state.images[[view]])[0]))
    return sum(values) / len(values)
