"""The CPU rasterizer as one differentiable torch operation."""

import threading
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from torch import Tensor

from da3gs.rendering.cpu.layout import FRUSTUM_MARGIN, MAX_CHANNELS, SUM_CHANNEL
from da3gs.rendering.cpu.scratch import Buffers
from da3gs.rendering.cpu.stages import Drawing, Gradients, Splats, Style, Window, draw, draw_backward

BYTES_PER_INTERSECTION = 4 * (3 + SUM_CHANNEL + MAX_CHANNELS)  # list entry, sorted member, gradient sums

# Kernels run one call at a time: they share the scratch, and numba's simplest thread pool is not reentrant.
_LOCK = threading.RLock()
_TEMPORARY = Buffers()
_IDLE: list[Buffers] = []  # scratch of drawings that are done with
_IDLE_KEPT = 2


@dataclass(frozen=True)
class Plan:
    """Everything of a call that is not differentiated. near, far: z-depths per view; memory_bytes bounds the
    scratch.
    """

    width: int
    height: int
    near: tuple[float, ...]
    far: tuple[float, ...]
    style: Style
    sh: bool
    memory_bytes: int


def rasterize(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor,
    cam_from_world: Tensor, K: Tensor, plan: Plan,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Blend Gaussians into V pictures of one size: image [V, H, W, C (+ 1)] and alpha [V, H, W, 1], on black.

    Args:
        means, quats, scales, opacities: [N, 3], [N, 4] wxyz, [N, 3], [N].
        colors: SH [N, k, 3] if ``plan.sh``, else channels [N, C], any C.
        cam_from_world, K: [V, 4, 4], [V, 3, 3].
        plan: Sizes, clipping, style.

    Gradients flow to everything but K.
    """
    tensors = [value.float() for value in (means, quats, scales, opacities, colors, cam_from_world)]
    means, quats, scales, opacities, colors, cam_from_world = tensors
    eyes = torch.linalg.inv(cam_from_world)[:, :3, 3]
    intrinsics = K.detach().float()

    def blend(part: Tensor, part_plan: Plan):
        inputs = (means, quats, scales, opacities, part, cam_from_world, eyes)
        keep = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
        return _Rasterize.apply(*inputs, intrinsics, part_plan, keep)

    if plan.sh or colors.shape[1] + plan.style.with_depth <= MAX_CHANNELS:
        image, alpha = blend(colors, plan)
        return image, alpha[..., None]
    # More channels than a kernel holds: blend them in groups, the last one with depth.
    step = MAX_CHANNELS - plan.style.with_depth
    groups = colors.split(step, 1)
    no_depth = replace(plan, style=replace(plan.style, with_depth=False))
    parts = [blend(group, no_depth) for group in groups[:-1]] + [blend(groups[-1], plan)]
    return torch.cat([image for image, _ in parts], -1), parts[-1][1][..., None]


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, cam_from_world, eyes, intrinsics, plan: Plan, keep):
        views, channels = len(cam_from_world), (3 if plan.sh else colors.shape[1]) + plan.style.with_depth
        image = means.new_zeros(views, plan.height, plan.width, channels)
        alpha = means.new_zeros(views, plan.height, plan.width)
        ctx.plan = plan
        ctx.save_for_backward(means, quats, scales, opacities, colors, cam_from_world, eyes, intrinsics, image)
        ctx.drawings = {}
        if len(means) == 0:
            ctx.windows = []
            return image, alpha
        splats = _splats(means, quats, scales, opacities, colors, plan)
        with _LOCK:
            workers = _set_workers()
            ctx.windows = []
            for view in range(views):
                pending = [_whole(cam_from_world[view], eyes[view], intrinsics[view], plan, view)]
                while pending:
                    window = pending.pop()
                    buffers = _take_idle()
                    drawing = _draw(splats, window, plan, workers, buffers, image[view], alpha[view])
                    if drawing is None:
                        pending.extend(reversed(window.halves()))
                        _give_back(buffers)
                        continue
                    ctx.windows.append((view, window))
                    # What does not fit into the memory is drawn again in the backward pass.
                    held = sum(held.buffers.nbytes for held in ctx.drawings.values())
                    if keep and held + buffers.nbytes <= plan.memory_bytes:
                        ctx.drawings[len(ctx.windows) - 1] = drawing
                    else:
                        _give_back(buffers)
        return image, alpha

    @staticmethod
    def backward(ctx, image_gradient, alpha_gradient):
        *inputs, image = ctx.saved_tensors
        means, quats, scales, opacities, colors, cam_from_world, eyes, _ = inputs
        plan: Plan = ctx.plan
        gradients = [torch.zeros_like(value, memory_format=torch.contiguous_format) for value in inputs[:5]]
        pose_gradient, eye_gradient = torch.zeros_like(cam_from_world), torch.zeros_like(eyes)
        if ctx.windows:
            splats = _splats(means, quats, scales, opacities, colors, plan)
            flat = Gradients(*(value.view(-1).numpy() for value in gradients))
            image_gradient, alpha_gradient = image_gradient.contiguous(), alpha_gradient.contiguous()
            with _LOCK:
                workers = _set_workers()
                for number, (view, window) in enumerate(ctx.windows):
                    drawing = ctx.drawings.pop(number, None)
                    if drawing is None:
                        scrap = image[view].clone(), torch.empty_like(alpha_gradient[view])
                        drawing = _draw(splats, window, plan, workers, _take_idle(), *scrap, limit=2**31 - 1)
                    rows = slice(window.top, window.top + window.height)
                    pose = draw_backward(
                        splats, window, plan.style, workers, drawing, _TEMPORARY,
                        _flat(image[view, rows]), _flat(image_gradient[view, rows]), _flat(alpha_gradient[view, rows]),
                        flat,
                    )  # fmt: skip
                    _give_back(drawing.buffers)
                    pose = torch.from_numpy(pose)
                    pose_gradient[view, :3] += pose[:12].view(3, 4)
                    eye_gradient[view] += pose[12:]
        return (*gradients, pose_gradient, eye_gradient, None, None, None)


def _draw(splats, window: Window, plan: Plan, workers, buffers, image, alpha, limit=None) -> Drawing | None:
    rows = slice(window.top, window.top + window.height)
    if limit is None:
        limit = min(plan.memory_bytes // BYTES_PER_INTERSECTION, 2**31 - 1)
    return draw(splats, window, plan.style, workers, limit, buffers, _TEMPORARY, _flat(image[rows]), _flat(alpha[rows]))


def _splats(means, quats, scales, opacities, colors, plan: Plan) -> Splats:
    arrays = (_flat(value) for value in (means, quats, scales, opacities, colors))
    return Splats(*arrays, colors.shape[1] if plan.sh else 0)


def _flat(value: Tensor) -> np.ndarray:
    return value.detach().contiguous().view(-1).numpy()


def _whole(cam_from_world: Tensor, eye: Tensor, K: Tensor, plan: Plan, view: int) -> Window:
    """The window of a whole picture, with its camera vector (see layout.py)."""
    (fx, _, cx), (_, fy, cy) = K[:2].tolist()
    margin_x, margin_y = FRUSTUM_MARGIN * plan.width / fx, FRUSTUM_MARGIN * plan.height / fy
    camera = [
        *cam_from_world[:3].reshape(-1).tolist(),
        *(fx, fy, cx, cy),
        *(-cx / fx - margin_x, (plan.width - cx) / fx + margin_x),
        *(-cy / fy - margin_y, (plan.height - cy) / fy + margin_y),
        *(plan.near[view], plan.far[view]),
        *eye.tolist(),
    ]
    return Window(tuple(np.float32(value) for value in camera), plan.width, 0, plan.height)


def _set_workers() -> int:
    """As many numba threads as torch uses."""
    threads = torch.get_num_threads()
    workers = max(1, min(threads, numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(workers)
    if torch.get_num_threads() != threads:  # numba's first start resets OpenMP, which both may share
        torch.set_num_threads(threads)
    return workers


def _take_idle() -> Buffers:
    return _IDLE.pop() if _IDLE else Buffers()


def _give_back(buffers: Buffers) -> None:
    if len(_IDLE) < _IDLE_KEPT:
        _IDLE.append(buffers)
