"""CPU rasterizer against a plain-torch tile rasterizer: CPU time, wall time on one and two threads, memory.

    python scripts/benchmarks/rasterizer.py                          # table on the screen
    python scripts/benchmarks/rasterizer.py --write                  # and into scripts/benchmarks/results/
    python scripts/benchmarks/rasterizer.py --prototype DIR          # also check the baseline against DIR/torch_rast.py

One camera, RGB [N, 3], float32; means, quats, scales, opacities, colours and cam_from_world require gradients. The
implementations take turns within each round, so that a busy machine slows all of them; medians over rounds. CPU-ms is
the time all threads of the process spent.
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from rich.progress import track

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "tests")]

from reference import tiled  # noqa: E402
from reference.scenes import room_scene  # noqa: E402

from da3gs.geometry.spherical_harmonics import rgb_from_dc  # noqa: E402
from da3gs.rendering.cpu import backend  # noqa: E402

# name: (context views, height, width), (picture width, height)
SCENES = {
    "65k -> 256x256": ((4, 128, 128), (256, 256)),
    "205k -> 256x256": ((8, 160, 160), (256, 256)),
    "401k -> 504x378": ((8, 196, 256), (504, 378)),
}
# forward and backward, times faster than the plain-torch baseline
MUST = {"65k -> 256x256": 9.0, "205k -> 256x256": 5.5, "401k -> 504x378": 5.5}
MAX_EXTRA_MIB = 100


def inputs_of(scene: str):
    """Leaves that require gradients, intrinsics, picture size."""
    context, (width, height) = SCENES[scene]
    gaussians, cameras = room_scene(*context, width, height)
    leaves = [
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        rgb_from_dc(gaussians.sh[:, 0]),
        cameras.cam_from_world,
    ]
    return [leaf.detach().clone().requires_grad_() for leaf in leaves], cameras.K, width, height


def implementations(prototype: Path | None) -> dict:
    """Name -> function(leaves, K, width, height) -> (image, alpha)."""
    planes = {"near": (0.01,), "far": (1e10,), "depth": False, "antialiased": False}

    def ours(leaves, K, width, height):
        return backend.rasterize(*leaves, K, width=width, height=height, memory_bytes=1 << 30, **planes)

    def plain(leaves, K, width, height):
        return tiled.rasterize(*leaves, K, width=width, height=height, **planes)

    found = {"da3gs": ours, "plain torch": plain}
    if prototype is not None:
        sys.path.insert(0, str(prototype))
        import torch_rast

        found["prototype torch"] = lambda leaves, *rest: torch_rast.rasterization(*leaves, *rest)[:2]
    return found


def measure(rasterize, leaves, K, width, height) -> dict[str, float]:
    """Milliseconds of one forward and backward."""
    for leaf in leaves:
        leaf.grad = None
    weights = torch.ones(1, height, width, 3)
    cpu, wall = [time.process_time()], [time.perf_counter()]
    image, alpha = rasterize(leaves, K, width, height)
    cpu.append(time.process_time())
    wall.append(time.perf_counter())
    torch.autograd.backward([image, alpha], [weights, torch.ones_like(alpha)])
    cpu.append(time.process_time())
    wall.append(time.perf_counter())
    names = ("forward", "forward+backward")
    return {f"{name} cpu": 1e3 * (cpu[k + 1] - cpu[0]) for k, name in enumerate(names)} | {
        f"{name} wall": 1e3 * (wall[k + 1] - wall[0]) for k, name in enumerate(names)
    }


def time_scene(scene: str, rounds: int, prototype: Path | None) -> dict:
    """Medians per implementation on one thread, and of da3gs on two."""
    arguments = inputs_of(scene)
    runs = {name: (1, function) for name, function in implementations(prototype).items()}
    runs["da3gs, 2 threads"] = (2, runs["da3gs"][1])
    samples: dict[str, list] = {name: [] for name in runs}
    for round_number in track(range(rounds + 1), description=scene):
        for name, (threads, function) in runs.items():
            torch.set_num_threads(threads)
            sample = measure(function, *arguments)
            if round_number > 0:  # the first one warms up
                samples[name].append(sample)
    torch.set_num_threads(1)
    return {
        name: {key: statistics.median(sample[key] for sample in taken) for key in taken[0]}
        for name, taken in samples.items()
    }


def extra_memory(scene: str) -> float:
    """MiB that the first forward and backward at this size adds to the process at its peak, gradients included."""
    torch.set_num_threads(1)
    rasterize = implementations(None)["da3gs"]
    gaussians, cameras = room_scene(1, 16, 16, 32, 32)
    small = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh[:, 0]]
    measure(rasterize, [leaf.clone().requires_grad_() for leaf in (*small, cameras.cam_from_world)], cameras.K, 32, 32)
    arguments = inputs_of(scene)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed pages of the scene's making must not hide what the call needs
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_mib("VmRSS")
    measure(rasterize, *arguments)
    return _status_mib("VmHWM") - before


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def machine() -> dict[str, str]:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = f"{len(names)} x {names[0]}" if names else cpu
    from da3gs.rendering.cpu.lanes import WIDTH

    packages = {name: version(name) for name in ("torch", "numba", "llvmlite", "numpy")}
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "?"
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "vector lanes": str(WIDTH),
        "load at start": load,
        "python": platform.python_version(),
    } | packages


def table(report: dict) -> str:
    """The report as Markdown."""
    lines = ["# CPU rasterizer", "", "Written by `python scripts/benchmarks/rasterizer.py --write`.", ""]
    lines += [f"- {key}: {value}" for key, value in report["machine"].items()]
    lines += [
        "",
        "CPU-ms (wall ms), medians of interleaved rounds, one thread unless said. All inputs require gradients.",
        "",
        "| scene | implementation | forward (f) | forward + backward (f+b) | f: times faster | f+b | f+b asked |",
        "|---|---|---|---|---|---|---|",
    ]
    for scene, results in report["scenes"].items():
        base = results["plain torch"]
        for name, times in results.items():
            cells = [
                f"{times[f'{part} cpu']:.1f} ({times[f'{part} wall']:.1f})" for part in ("forward", "forward+backward")
            ]
            ratios = [f"{base[f'{part} cpu'] / times[f'{part} cpu']:.1f}" for part in ("forward", "forward+backward")]
            asked = f"{MUST[scene]:g}" if name == "da3gs" else ""
            lines.append(f"| {scene} | {name} | {' | '.join(cells + ratios)} | {asked} |")
    lines += ["", "Two threads, wall time of forward + backward:", ""]
    for scene, results in report["scenes"].items():
        one, two = (results[name]["forward+backward wall"] for name in ("da3gs", "da3gs, 2 threads"))
        lines.append(f"- {scene}: {one:.1f} -> {two:.1f} ms, {one / two:.2f} times faster")
    lines += [
        "",
        "Extra resident memory at the peak of the first forward + backward (scratch, outputs, gradients):",
        "",
    ]
    lines += [f"- {scene}: {mib:.0f} MiB" for scene, mib in report["extra MiB"].items()]
    if "baseline / prototype" in report:
        lines += [
            "",
            "CPU time of the plain-torch baseline over that of the prototype it was written from (forward + backward):",
        ]
        lines += ["", *(f"- {scene}: {ratio:.2f}" for scene, ratio in report["baseline / prototype"].items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scene", choices=SCENES, action="append", help="only this scene (repeatable)")
    parser.add_argument("--prototype", type=Path, help="folder of torch_rast.py, to check the baseline")
    parser.add_argument("--write", action="store_true", help="write results/rasterizer.md and .json")
    parser.add_argument("--memory-of", choices=SCENES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(extra_memory(options.memory_of))
        return
    scenes = options.scene or list(SCENES)
    report: dict = {"machine": machine(), "rounds": options.rounds}
    report["scenes"] = {scene: time_scene(scene, options.rounds, options.prototype) for scene in scenes}
    # a fresh process each: scratch is kept between calls
    ask = partial(subprocess.run, capture_output=True, text=True, check=True)
    report["extra MiB"] = {
        scene: float(ask([sys.executable, __file__, "--memory-of", scene]).stdout) for scene in scenes
    }
    if options.prototype:
        part = "forward+backward cpu"
        report["baseline / prototype"] = {
            scene: results["plain torch"][part] / results["prototype torch"][part]
            for scene, results in report["scenes"].items()
        }
    text = table(report)
    print(text)
    if options.write:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        (results / "rasterizer.md").write_text(text)
        (results / "rasterizer.json").write_text(json.dumps(report, indent=1) + "\n")
    failed = [
        scene
        for scene in scenes
        if report["scenes"][scene]["plain torch"]["forward+backward cpu"]
        < MUST[scene] * report["scenes"][scene]["da3gs"]["forward+backward cpu"]
        or report["extra MiB"][scene] > MAX_EXTRA_MIB
    ]
    if failed:
        sys.exit(f"slower or larger than asked: {', '.join(failed)}")


if __name__ == "__main__":
    main()
