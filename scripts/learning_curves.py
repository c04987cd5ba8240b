"""Draw the learning curves of training runs that continued each other.

    python scripts/learning_curves.py OUT.png RUN [RUN ...]          (needs matplotlib)

A run is a folder with metrics.jsonl. The x axis counts pictures, over all runs.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = (
    ("depth within 25 %", ("delta1_single", "delta1_free", "delta1_posed")),
    ("rotation error (degrees)", ("rotation_deg_free", "rotation_deg_posed", "identity_deg_free")),
    ("AUC@30 of poses", ("auc30_free", "auc30_posed")),
    ("training: matching accuracy, ray and depth loss", ("matching_accuracy", "rays", "depth")),
)


def main() -> None:
    target, runs = sys.argv[1], [Path(name) for name in sys.argv[2:]]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(18, 4))
    start, borders = 0.0, []
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        last = 0.0
        for line in (run / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            last = values["step"] * 16 / 1000
            for name, value in values.items():
                points.setdefault(name.removeprefix("eval/"), []).append((start + last, value))
        start += last
        borders.append(start)
    for axis, (title, names) in zip(axes, PANELS, strict=True):
        for name in names:
            x, y = zip(*points[name], strict=True)
            if name in ("matching_accuracy", "rays", "depth"):
                x, y = _smoothed(x), _smoothed(y)
            axis.plot(x, y, label=name.replace("_", " "))
        for border in borders[:-1]:
            axis.axvline(border, color="0.8", lw=1)
        axis.set(title=title, xlabel="thousand pictures", ylim=(0, None))
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=80)


def _smoothed(values, width: int = 25) -> list[float]:
    return [sum(values[i : i + width]) / width for i in range(0, len(values) - width, 5)]


if __name__ == "__main__":
    main()
