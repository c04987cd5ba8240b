"""`da3gs info`: what a Gaussian file holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from da3gs.cli.console import human_bytes, print_json, print_result

if TYPE_CHECKING:
    import torch

QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)


@dataclass
class InfoCommand:
    """Print what a Gaussian file holds: count, SH degree, bounds, opacities, sizes, header comments.

    Bounds and scales (standard deviations along the three local axes) are in the units of the file.

    Examples:
      da3gs info scene.ply
      da3gs info scene.ply --json
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """File of Gaussians (.ply, .compressed.ply, .spz, .splat)."""

    json: bool = False
    """Print one JSON object; quantile keys are fractions."""

    def run(self) -> int:
        facts = gather_facts(self.file)
        if self.json:
            print_json(facts)
        else:
            print_result(_as_text(facts))
        return 0


def gather_facts(path: Path) -> dict[str, Any]:
    """Plain JSON values that describe the Gaussians in a file; bounds and quantiles are None when it holds none."""
    from da3gs.export.gaussian_files import file_comments, load_gaussians

    gaussians = load_gaussians(path)
    count = len(gaussians)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "count": count,
        "sh_degree": gaussians.sh_degree,
        "bounds": {
            "min": gaussians.means.amin(0).tolist() if count else None,
            "max": gaussians.means.amax(0).tolist() if count else None,
        },
        "opacity": _quantiles(gaussians.opacities),
        "scale": _quantiles(gaussians.scales),
        "comments": list(file_comments(path)),
    }


def _quantiles(values: "torch.Tensor") -> dict[str, float] | None:
    import numpy as np  # torch.quantile refuses more than 16 million values

    if values.numel() == 0:
        return None
    return dict(zip(map(str, QUANTILES), np.quantile(values.numpy(), QUANTILES).tolist(), strict=True))


def _as_text(facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['file']}: {facts['count']} Gaussians, SH degree {facts['sh_degree']}, {human_bytes(facts['bytes'])}"
    ]
    if facts["count"]:
        low, high = facts["bounds"]["min"], facts["bounds"]["max"]
        lines += [f"  {axis}        {low[i]:.5g} .. {high[i]:.5g}" for i, axis in enumerate("xyz")]
        heading = "".join(f"{f'{q:.0%}':>11}" for q in QUANTILES)
        lines.append(f"  quantile {heading}")
        for name in ("opacity", "scale"):
            lines.append(f"  {name:<9}" + "".join(f"{value:>11.4g}" for value in facts[name].values()))
    lines += [f"  comment  {comment}" for comment in facts["comments"]]
    return "\n".join(lines)
