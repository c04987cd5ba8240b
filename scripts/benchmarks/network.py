"""Cost of the network beside the official package: CPU seconds, extra peak memory, agreement.

The official package (PyPI ``depth-anything-3``) lives in an environment of its own, named by its python:

    python scripts/benchmarks/network.py --official-python /path/to/venv/bin/python --out scripts/benchmarks/results

Both sides get the same synthetic weights and images and run in worker processes, one at a time, in interleaved rounds.
CPU seconds are those of all threads; extra memory is the peak resident size during a forward minus that before it
(Linux). The official network always computes its ray branch; ours is timed with and without.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

IMAGE = (252, 336)
VIEWS = 4
SWEEP = (1, 2, 4, 8, 16, 32)


# ------------------------------------------------------------------------------------------------- worker


def synthetic(key: str, shape):
    """Values from the key alone, of a size that keeps activations finite."""
    import numpy as np

    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape), dtype=np.float32)
    if key.endswith("gamma"):
        return 0.2 + 0.05 * values
    if key.endswith("fc_fov.0.bias"):
        return 1 + 0.05 * values
    if key.endswith("fc_qvec.bias"):
        return np.float32([0, 0, 0, 1]) + 0.05 * values
    if len(shape) == 1:
        return (1 + 0.1 * values) if key.endswith("weight") else 0.02 * values
    return values / max(1.0, float(np.prod(shape[1:]))) ** 0.5


def build(side: str, preset: str):
    """A callable images, rays -> depth."""
    import torch

    if side == "official":
        from depth_anything_3.cfg import create_object, load_config
        from depth_anything_3.registry import MODEL_REGISTRY

        network = create_object(load_config(MODEL_REGISTRY[preset])).eval()
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                parameter.copy_(torch.from_numpy(synthetic(f"model.{key}", parameter.shape)))

        def forward(images, rays):
            return network(images)["depth"]

        return forward
    from da3gs.model.checkpoints import load_official_state_dict, official_shapes
    from da3gs.model.network import build_model
    from da3gs.model.presets import PRESETS

    network = build_model(PRESETS[preset], device="meta")
    load_official_state_dict(
        network, {key: torch.from_numpy(synthetic(key, shape)) for key, shape in official_shapes(network).items()}
    )
    network.eval()

    def forward(images, rays):
        return network(images, rays=rays).depth

    return forward


def resident(field: str) -> int:
    """VmRSS or VmHWM in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def work(side: str, threads: int) -> None:
    """Answer JSON lines {preset, views, rays} with {cpu_s, wall_s, extra_bytes, checksum}."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a package prints goes to stderr
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    forwards = {}
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["preset"] not in forwards:
            forwards.clear()
            forwards[ask["preset"]] = build(side, ask["preset"])
        shape = (1, ask["views"], 3, *IMAGE)
        images = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        with contextlib.suppress(OSError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = resident("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            depth = forwards[ask["preset"]](images, ask["rays"])
        answer = {
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "extra_bytes": resident("VmHWM") - before,
            "depth": depth.flatten()[:: max(1, depth.numel() // 500)].tolist(),
            "torch": torch.__version__,
        }
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """One side in its own process."""

    def __init__(self, python: str, side: str, threads: int):
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",  # a thread that spins while others work would be counted as working
            "PYTHONWARNINGS": "ignore",
        }
        if side == "ours":
            environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        command = [python, __file__, "--worker", side, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **question) -> dict:
        print(json.dumps(question), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended (status {self.process.wait()}); run it with --worker to see why")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------------------- comparison


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def compare(preset: str, rounds: int, official: Worker, ours: Worker) -> list[dict]:
    """Interleaved rounds after one warm-up each; medians."""
    sides = {
        "official": (official, True),
        "da3gs, with rays": (ours, True),
        "da3gs, without rays": (ours, False),
    }
    results: dict[str, list[dict]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name, (worker, rays) in sides.items():
            answer = worker.ask(preset=preset, views=VIEWS, rays=rays)
            if index:
                results[name].append(answer)
    reference = results["official"][0]["depth"]
    rows = []
    for name, answers in results.items():
        rows.append(
            {
                "preset": preset,
                "side": name,
                "cpu_s": median([answer["cpu_s"] for answer in answers]),
                "cpu_s_min": min(answer["cpu_s"] for answer in answers),
                "wall_s": median([answer["wall_s"] for answer in answers]),
                "extra_bytes": median([answer["extra_bytes"] for answer in answers]),
                "depth_difference": max(abs(a / b - 1) for a, b in zip(answers[0]["depth"], reference, strict=True)),
            }
        )
    for row in rows:
        row["speedup"] = rows[0]["cpu_s"] / row["cpu_s"]
        row["memory_ratio"] = row["extra_bytes"] / rows[0]["extra_bytes"]
    return rows


def sweep(preset: str, views: tuple[int, ...], ours: Worker):
    """Rows of our cost over the number of views, rays included, warmed up."""
    for count in views:
        if count < 16:  # long runs need no warm-up
            ours.ask(preset=preset, views=count, rays=True)
        answer = ours.ask(preset=preset, views=count, rays=True)
        yield {"preset": preset, "views": count} | {k: answer[k] for k in ("cpu_s", "wall_s", "extra_bytes")}


def markdown(report: dict) -> str:
    lines = [
        "# Network: cost beside the official package",
        "",
        f"{report['date']}, {report['machine']}, {report['threads']} threads, torch {report['torch']}, float32, "
        f"{VIEWS} views of {IMAGE[0]} x {IMAGE[1]}, same synthetic weights, {report['rounds']} interleaved rounds "
        "(medians). Official: PyPI depth-anything-3 "
        f"{report['official_version']}, which always computes its ray branch. Threads wait passively, so CPU "
        "seconds hold on a busy machine; wall seconds do not.",
        "",
        "| preset | network | CPU s (min) | wall s | extra peak MiB | speedup | memory ratio | depth difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["comparison"]:
        lines.append(
            f"| {row['preset']} | {row['side']} | {row['cpu_s']:.2f} ({row['cpu_s_min']:.2f}) | {row['wall_s']:.2f} | "
            f"{row['extra_bytes'] / 2**20:.0f} | {row['speedup']:.2f} | {row['memory_ratio']:.2f} | "
            f"{row['depth_difference']:.1e} |"
        )
    lines += ["", "Ours over the number of views, rays included:", ""]
    lines += ["| preset | views | CPU s | CPU s per view | extra peak MiB |", "| --- | --- | --- | --- | --- |"]
    for row in report["sweep"]:
        lines.append(
            f"| {row['preset']} | {row['views']} | {row['cpu_s']:.2f} | {row['cpu_s'] / row['views']:.2f} | "
            f"{row['extra_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official-python", help="python of an environment with the official package")
    parser.add_argument("--presets", nargs="+", default=["da3-small", "da3-base"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--views", type=int, nargs="*", default=list(SWEEP), help="view counts of the sweep (ours only)"
    )
    parser.add_argument("--out", type=Path, help="folder for network.md and network.json")
    parser.add_argument("--worker", choices=("official", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.threads)
        return
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "threads": options.threads,
        "rounds": options.rounds,
        "official_version": "not measured",
        "comparison": [],
        "sweep": [],
    }

    def save() -> None:  # after every stage: long runs on shared machines get interrupted
        if options.out:
            (options.out / "network.md").write_text(markdown(report))
            (options.out / "network.json").write_text(json.dumps(report, indent=1) + "\n")

    ours = Worker(sys.executable, "ours", options.threads)
    report["torch"] = ours.ask(preset=options.presets[0], views=1, rays=False)["torch"]
    if options.official_python:
        ask = "import importlib.metadata as m; print(m.version('depth-anything-3'))"
        asked = subprocess.run([options.official_python, "-c", ask], capture_output=True, text=True, check=True)
        report["official_version"] = asked.stdout.strip()
        official = Worker(options.official_python, "official", options.threads)
        for preset in options.presets:
            report["comparison"] += compare(preset, options.rounds, official, ours)
            save()
        official.close()
    for preset in options.presets:
        for row in sweep(preset, tuple(options.views), ours):
            report["sweep"].append(row)
            save()
    ours.close()
    sys.stdout.write(markdown(report))


if __name__ == "__main__":
    main()
