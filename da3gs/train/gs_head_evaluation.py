"""How much a Gaussian head improves the views the geometric prior renders, on held-out scenes.

Letters: T target views, H W pixels.
"""

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from da3gs.metrics.images import psnr
from da3gs.train.panels import depth_picture, grid
from da3gs.train.task import Evaluation

if TYPE_CHECKING:
    from da3gs.train.gs_head import GSHeadTraining


@torch.no_grad()
def evaluate_gs_head(task: "GSHeadTraining", module: nn.Module) -> Evaluation:
    """PSNR on visible pixels of target views, with the head and with the prior alone; the same draws every time.

    Metric names end in ``posed`` (true poses given) or ``free``. Scenes whose predicted cameras are too far off to
    compare are counted in ``used``.
    """
    from da3gs.train.gs_head import head_gaussians

    config, training = task.config, module.training
    device = next(module.parameters()).device
    module.eval()
    source = config.evaluation_data.open()
    scenes = source.indices(config.evaluation_data.sizes[0])[: config.evaluation_scenes]
    totals: dict[str, list[float]] = {}
    panels: dict[str, Tensor] = {}
    for scene in scenes:
        for way, posed in (("posed", True), ("free", False)):
            rng = random.Random(f"evaluation {scene}")
            drawn = task.draw(source, scene, rng.randint(*config.views.context), 1 << 30, rng, posed)
            frozen, target = task.frozen(drawn, device), drawn["target"]
            totals.setdefault(f"used_{way}", []).append(float(frozen.world_from_network is not None))
            if frozen.world_from_network is None:
                continue
            pictures, visible = target.images.to(device), task.visible(frozen, target, device)
            counted = visible.flatten(1).sum(1) > 0
            if not counted.any():
                continue
            for name, raw in (("head", module(frozen.tokens, frozen.normalised).float()), ("prior", None)):
                gaussians, depth = head_gaussians(frozen, raw)
                out = task.render(gaussians.transform(frozen.world_from_network), target.cameras)
                rgb = out.rgb.permute(0, 3, 1, 2)
                values = psnr(rgb[counted], pictures[counted], visible[counted])
                totals.setdefault(f"psnr_{name}_{way}", []).append(float(values.mean()))
                if name == "head" and scene == scenes[0]:
                    panels[way] = grid(
                        [
                            [frozen.images[0], depth_picture(depth[0]), rgb[view], pictures[view]]
                            for view in range(len(pictures))
                        ]
                    )
    module.train(training)
    metrics = {name: sum(values) / len(values) for name, values in totals.items()}
    for way in ("posed", "free"):
        if f"psnr_head_{way}" in metrics:
            metrics[f"gain_db_{way}"] = metrics[f"psnr_head_{way}"] - metrics[f"psnr_prior_{way}"]
    return Evaluation(metrics, panels)
