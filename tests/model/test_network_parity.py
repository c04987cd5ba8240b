"""The whole network against the released code, with identical synthetic weights.

`PYTHONPATH=tests python tests/model/test_network_parity.py` prints the worst relative error of every output.
"""

from unittest import mock

import pytest
import torch
from da3_parity import NETWORK_CASES, Comparison, Fixture, fixture

from da3gs.model.network import Da3Network
from da3gs.model.reference_view import STRATEGIES


def any_view(network) -> Da3Network:
    return getattr(network, "any_view", network)


def run(case: Fixture) -> dict[str, torch.Tensor]:
    """Everything a fixture may hold, by the fixture's names."""
    meta, found, hooks = case.meta, {}, []
    options, net = meta["forward_kwargs"], case.network
    base, metric = any_view(net), getattr(net, "metric", net)

    def keep(module, store):
        if module is not None:
            hooks.append(module.register_forward_hook(lambda _m, _a, output: store(output)))

    batch, views = meta["batch"], meta["views"]

    def keep_tokens(output):
        for level in range(4):
            found[f"probe.backbone.feat{level}"] = output.level(level).unflatten(0, (batch, views))
            found[f"probe.backbone.camtok{level}"] = output.class_token(level)
        if output.reference is not None:
            found["probe.ref_view"] = output.reference
        found["order"] = output.inverse.argsort(1)

    def keep_maps(prefix):
        def store(maps):
            names = {
                "depth": maps.depth,
                "depth_conf": maps.confidence,
                "ray": maps.rays,
                "ray_conf": maps.ray_confidence,
                "sky": maps.sky,
            }
            for name, value in names.items():
                if value is not None:
                    found[f"probe.{prefix}.{name}"] = value.unflatten(0, (batch, views))

        return store

    keep(base.backbone, keep_tokens)
    keep(base.head, keep_maps("head"))
    if metric is not net:
        keep(metric.head, keep_maps("metric_head"))
    keep(base.camera_encoder, lambda output: found.__setitem__("probe.cam_enc", output))
    keep(base.camera_decoder, lambda output: found.__setitem__("probe.pose_enc", output))
    tie = {}
    if meta["ref_view_is_tie"]:
        # Rounding chose the reference view of this fixture; the choice itself is tested in test_network_units.
        chosen = torch.from_numpy(case.arrays["probe.ref_view"]).reshape(-1)
        tie = {options["ref_view_strategy"]: lambda tokens: chosen}
    torch.manual_seed(meta["torch_manual_seed"])
    try:
        with torch.no_grad(), mock.patch.dict(STRATEGIES, tie):
            prediction = net(
                case.images,
                case.cameras,
                camera_source="rays" if options.get("use_ray_pose") else "head",
                reference_view=options.get("ref_view_strategy", "saddle_balanced"),
                feature_layers=options.get("export_feat_layers", ()),
                gaussians=options.get("infer_gs", False),
                raw_gaussians=options.get("infer_gs", False),
            )
    finally:
        for hook in hooks:
            hook.remove()
    found["out.depth"] = prediction.depth
    if prediction.confidence is not None:
        found["out.depth_conf"] = prediction.confidence
        found["out.extrinsics"] = torch.stack([c.cam_from_world[:, :3] for c in prediction.cameras])
        found["out.intrinsics"] = torch.stack([c.K for c in prediction.cameras])
    if prediction.sky is not None:
        found["out.sky"] = prediction.sky
    if prediction.raw_gaussians is not None:
        found["probe.gs_head.raw_gs"] = prediction.raw_gaussians[..., :-1]
        found["probe.gs_head.raw_gs_conf"] = prediction.raw_gaussians[..., -1].sigmoid()
    if prediction.gaussians is not None:
        for ours, theirs in (("means",) * 2, ("scales",) * 2, ("quats", "rotations"), ("opacities",) * 2):
            found[f"out.gaussians.{theirs}"] = torch.stack([getattr(g, ours) for g in prediction.gaussians])
        found["out.gaussians.harmonics"] = torch.stack([g.sh for g in prediction.gaussians]).transpose(-1, -2)
    if prediction.scale_factor is not None:
        found["out.scale_factor"] = torch.tensor(prediction.scale_factor)
        found["out.is_metric"] = torch.tensor(1.0)
    for layer, value in prediction.features.items():
        # The released code returns these in processing order, which changes at cross_view_start - 1; ours are in
        # input order.
        if layer >= base.config.backbone.cross_view_start - 1:
            value = torch.take_along_dim(value, found["order"][:, :, None, None, None], 1)
        found[f"out.aux.feat_layer_{layer}"] = value
    return found


def comparisons(case: Fixture, found: dict[str, torch.Tensor]) -> list[Comparison]:
    keys = sorted(key[: -len("@shape")] for key in case.arrays if key.endswith("@shape") and not key.startswith("in."))
    absent = [key for key in keys if key not in found]
    assert not absent, f"not produced: {absent}"
    result = []
    for key in keys:
        comparison = case.error(key, found[key].reshape(tuple(case.arrays[f"{key}@shape"])))
        if key == "out.gaussians.rotations":
            # q and -q are one rotation; the released sign rule flips by rounding where the last component is ~0.
            if f"{key}@flat" in case.arrays:
                step = case.arrays[f"{key}@flat_step"].item()
                last = found[key].reshape(-1, 4)[..., 3].repeat_interleave(4)[::step]
            else:
                last = found[key].reshape(-1, 4)[..., 3].repeat_interleave(4)
            comparison.ours = torch.where(
                (last.abs() < 1e-4) & (comparison.ours * comparison.reference < 0), -comparison.ours, comparison.ours
            )
        result.append(comparison)
    return result


def tolerance(case: Fixture, key: str) -> dict[str, float]:
    sensitivity = case.meta["sensitivity_to_1e-6_input_noise"]
    entry = sensitivity.get(key.removeprefix("out."))
    if key in ("out.gaussians.rotations", "out.gaussians.harmonics"):
        floor = 2e-5
    elif key.startswith("probe.backbone"):
        return {"atol": 5e-5, "rtol": 1e-4}
    else:
        floor = 1e-5
    # Nothing can agree better than the reference agrees with itself under 1e-6 of input noise.
    return {"atol": max(floor, 2 * entry["max_abs"]) if entry else floor, "rtol": 1e-4}


@pytest.mark.parametrize("name", NETWORK_CASES)
def test_fixture(name):
    case = fixture(name)
    found = run(case)
    for comparison in comparisons(case, found):
        comparison.check(**tolerance(case, comparison.key))


def table() -> str:
    """Worst error of every output of every fixture, relative to |reference| + mean |reference|."""
    lines = []
    for name in NETWORK_CASES:
        case = fixture(name)
        errors = ", ".join(
            f"{c.key} {c.worst_rel:.1e}" for c in comparisons(case, run(case)) if c.key != "probe.ref_view"
        )
        lines.append(f"{name}: {errors}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
