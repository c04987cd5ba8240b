"""What works on this machine, what does not, and what to do about it.

Every check looks without touching: nothing is compiled, downloaded or rendered. gsplat in particular is never called to
see whether it works, because a call may compile for minutes or fail in ways that depend on the machine.
"""

import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from da3gs import __version__

_PYTHON_FROM, _PYTHON_BELOW = (3, 10), (3, 13)
# Distribution -> module, for everything da3gs cannot do without.
_CORE = {
    "numpy": "numpy",
    "numba": "numba",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "plyfile": "plyfile",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "kornia": "kornia",
    "imageio": "imageio",
    "jaxtyping": "jaxtyping",
    "pyyaml": "yaml",
    "rich": "rich",
    "tyro": "tyro",
}
_HUB, _HUB_TIMEOUT_S = "https://huggingface.co", 3.0
_ENOUGH_MEMORY, _ENOUGH_DISK = 8 * 2**30, 5 * 2**30
_METHODS = ("da3gs", "da3gs-splat")
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: "ok"; "note": something optional or slow, da3gs works without; "problem": the core does not work.
        found: What was found, one line.
        fix: What to do, or "".
    """

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    fix: str = ""


def run_checks(*, network: bool = True) -> tuple[Check, ...]:
    """All findings, in the order of importance. Takes seconds: torch is imported, the hub is asked once.

    Args:
        network: Ask the model hub; False leaves that check out.
    """
    checks: list[Callable[[], Check]] = [
        check_python,
        check_core_packages,
        check_torch,
        check_gpu,
        check_gsplat,
        check_kernel_cache,
        check_memory,
        check_disk,
        *([check_hub] if network else []),
        check_ffmpeg,
        check_viewer,
        check_pycolmap,
        check_nerfstudio,
        check_libusb,
    ]
    return tuple(check() for check in checks)


def core_works(checks: tuple[Check, ...]) -> bool:
    """Whether nothing is broken that every command needs."""
    return all(check.status != "problem" for check in checks)


def as_json(checks: tuple[Check, ...]) -> dict[str, Any]:
    """Plain JSON values."""
    return {"works": core_works(checks), "checks": [asdict(check) for check in checks]}


# ---------------------------------------------------------------- core


def check_python() -> Check:
    system = f"{platform.system()} {platform.machine()}"
    found = f"da3gs {__version__}, Python {platform.python_version()} on {system}, {sys.executable}"
    if _PYTHON_FROM <= sys.version_info[:2] < _PYTHON_BELOW:
        return Check("python", "ok", found)
    return Check("python", "problem", found, "use Python 3.10, 3.11 or 3.12")


def check_core_packages() -> Check:
    missing = [name for name, module in _CORE.items() if importlib.util.find_spec(module) is None]
    if missing:
        return Check("packages", "problem", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", "ok", f"all {len(_CORE)} required packages, numpy {_version('numpy')}")


def check_torch() -> Check:
    torch = _torch()
    if torch is None:
        return Check("torch", "problem", "not installed or damaged", "install PyTorch: https://pytorch.org/get-started")
    total = float(torch.ones(4).sum())
    if total != 4.0:
        return Check("torch", "problem", f"{torch.__version__} adds four ones to {total}", "reinstall PyTorch")
    return Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def check_gpu() -> Check:
    torch = _torch()
    if torch is None:
        return Check("gpu", "note", "unknown without torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / _GIB
        return Check("gpu", "ok", f"{', '.join(names)} ({memory:.0f} GiB), CUDA {torch.version.cuda}")
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return Check(
            "gpu", "note", "this PyTorch is built without CUDA", "install a CUDA build: https://pytorch.org/get-started"
        )
    if torch.version.cuda is not None and shutil.which("nvidia-smi"):
        return Check(
            "gpu", "note", f"PyTorch for CUDA {torch.version.cuda} sees no GPU", "run nvidia-smi; update the driver"
        )
    return Check("gpu", "note", "none: everything runs on the CPU, small models in tens of seconds")


def check_gsplat() -> Check:
    """Looks for gsplat's compiled kernels on disk; importing or calling it is left to the renderer."""
    spec = importlib.util.find_spec("gsplat")
    torch = _torch()
    gpu = torch is not None and torch.cuda.is_available()
    if spec is None or spec.origin is None:
        return Check(
            "gsplat", "note", "not installed; splats are drawn by the CPU renderer", "pip install gsplat" if gpu else ""
        )
    version = _version("gsplat")
    if not gpu:
        return Check("gsplat", "ok", f"{version}; not used without a GPU: the CPU renderer draws")
    built = [*Path(spec.origin).parent.glob("*csrc*.so"), *Path(spec.origin).parent.glob("*.pyd")]
    built += list(_torch_extensions().glob("**/gsplat_cuda/gsplat_cuda.*"))
    if built:
        return Check("gsplat", "ok", f"{version}, kernels built ({built[0].name})")
    if shutil.which("nvcc") is None:
        return Check(
            "gsplat",
            "note",
            f"{version}, kernels not built and no nvcc to build them",
            "install a prebuilt wheel (https://docs.gsplat.studio/whl) or the CUDA toolkit; until then backend=cpu",
        )
    return Check(
        "gsplat",
        "note",
        f"{version}, kernels not built yet",
        "the first render on the GPU compiles them: minutes, once",
    )


def check_kernel_cache() -> Check:
    """Where the CPU renderer keeps compiled kernels; same rule as da3gs.rendering.cpu.compiling.cache_folder."""
    root = Path(os.environ.get("NUMBA_CACHE_DIR") or "~/.cache/da3gs/numba").expanduser()
    compiled = any(root.rglob("*.nbc")) if root.is_dir() else False
    if _writable(root):
        state = "kernels compiled" if compiled else "nothing compiled yet: the first render takes half a minute longer"
        return Check("kernel cache", "ok", f"{root}: {state}")
    return Check(
        "kernel cache",
        "note",
        f"{root} cannot be written: every process compiles the CPU renderer anew, half a minute each",
        "set NUMBA_CACHE_DIR to a folder you may write to",
    )


# ---------------------------------------------------------------- machine


def check_memory() -> Check:
    available = available_memory()
    if available is None:
        return Check("memory", "note", "cannot tell on this system")
    found = f"{available / _GIB:.1f} GiB available"
    if available < _ENOUGH_MEMORY:
        return Check(
            "memory", "note", found, "close other programs, or use a small model and few views (--max-views 4)"
        )
    return Check("memory", "ok", found)


def available_memory() -> int | None:
    """Bytes that can be used without swapping; the limit of a container counts."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(max(0, int(text) - int(used.read_text())))
    if found:
        return min(found)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def check_disk() -> Check:
    """Room where downloaded weights are kept."""
    root = hub_cache()
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    found = f"{free / _GIB:.1f} GiB free for weights in {root}"
    if not os.access(existing, os.W_OK):
        return Check("disk", "note", f"{root} cannot be written", "set HF_HOME to a folder you may write to")
    if free < _ENOUGH_DISK:
        return Check(
            "disk", "note", found, "free some space, or set HF_HOME to another disk (da3-base needs 0.5 GB, giant 5 GB)"
        )
    return Check("disk", "ok", found)


def hub_cache() -> Path:
    """Folder of huggingface_hub's downloads, by its environment variables."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub")).expanduser()


def check_hub() -> Check:
    endpoint = os.environ.get("HF_ENDPOINT") or _HUB
    fix = "load weights from a file (--model PATH), or set HF_ENDPOINT to a mirror"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Check(
            "model hub", "note", "HF_HUB_OFFLINE is set: only downloaded weights can be used", "unset it to download"
        )
    if not endpoint.startswith(("http://", "https://")):
        return Check("model hub", "note", f"HF_ENDPOINT is {endpoint!r}, no http(s) address", "correct or unset it")
    request = urllib.request.Request(endpoint, method="HEAD", headers={"User-Agent": "da3gs-doctor"})
    try:
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):
            return Check("model hub", "ok", f"{endpoint} answers")
    except urllib.error.HTTPError:  # any answer is an answer
        return Check("model hub", "ok", f"{endpoint} answers")
    except OSError as error:
        reason = getattr(error, "reason", error)
        return Check("model hub", "note", f"{endpoint} does not answer ({reason})", fix)


# ---------------------------------------------------------------- optional parts


def check_ffmpeg() -> Check:
    on_path = shutil.which("ffmpeg")
    if on_path:
        return Check("ffmpeg", "ok", on_path)
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        try:
            own = imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError:
            own = None
        if own:
            return Check(
                "ffmpeg",
                "ok",
                f"{own}; enough for da3gs, but ns-render wants one on PATH (link this file there as 'ffmpeg')",
            )
    return Check("ffmpeg", "note", "none: no videos can be written", "pip install imageio-ffmpeg, or install ffmpeg")


def check_viewer() -> Check:
    version = _version("viser")
    if version is None:
        return Check("viewer", "note", "viser is not installed: no 'da3gs view'", "pip install viser")
    return Check("viewer", "ok", f"viser {version}")


def check_pycolmap() -> Check:
    version = _version("pycolmap")
    if version is None:
        return Check(
            "colmap",
            "note",
            "pycolmap is not installed: no COLMAP input, no poses from photographs",
            'pip install "da3gs[colmap]"',
        )
    return Check("colmap", "ok", f"pycolmap {version}")


def check_nerfstudio() -> Check:
    version = _version("nerfstudio")
    registered = {point.name for point in importlib.metadata.entry_points(group="nerfstudio.method_configs")}
    missing = [name for name in _METHODS if name not in registered]
    if version is None:
        return Check("nerfstudio", "note", "not installed: no ns-train da3gs", 'pip install "da3gs[nerfstudio]"')
    if missing:
        return Check(
            "nerfstudio",
            "note",
            f"{version}, but it does not know {', '.join(missing)}",
            "install da3gs into the same environment again: pip install --force-reinstall --no-deps da3gs",
        )
    return Check("nerfstudio", "ok", f"{version}, knows {', '.join(_METHODS)}")


def check_libusb() -> Check:
    """ns-export imports open3d, which links libusb-1.0."""
    if ctypes.util.find_library("usb-1.0"):
        return Check("libusb", "ok", "found (ns-export needs it through open3d)")
    if _version("nerfstudio") is None:
        return Check("libusb", "ok", "not there, and not needed without nerfstudio")
    return Check(
        "libusb",
        "note",
        "not found: ns-export cannot start",
        "apt install libusb-1.0-0, or export with 'da3gs convert'",
    )


# ---------------------------------------------------------------- parts


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> Any | None:
    try:
        return importlib.import_module("torch")
    except (ImportError, OSError):  # OSError: a shared library of it cannot be loaded
        return None


def _torch_extensions() -> Path:
    """Where PyTorch builds extensions just in time."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions").expanduser()


def _writable(folder: Path) -> bool:
    """Whether files can be written into a folder, or into the one it would be created in; nothing is left behind."""
    existing = next((item for item in (folder, *folder.parents) if item.exists()), None)
    if existing is None or not existing.is_dir():
        return False
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError:
        return False
    return True
