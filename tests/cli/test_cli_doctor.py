"""da3gs doctor: every finding, good and bad, with its remedy, and nothing touched on the way."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from da3gs import doctor
from da3gs.cli.main import main


class Answers404(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Answers404)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def fake_torch(gpu, cuda):
    properties = SimpleNamespace(total_memory=24 * 2**30)
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: gpu,
            device_count=lambda: 1,
            get_device_name=lambda index: "GPU of a kind",
            get_device_properties=lambda index: properties,
        ),
        version=SimpleNamespace(cuda=cuda),
    )


def test_this_machine_works(capsys, hub):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "da3gs works here." and lines[0].startswith("ok       python")
    assert any("answers" in line for line in lines)


def test_json_holds_every_check(capsys, hub):
    assert main(["doctor", "--json", "--no-network"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["works"] is True
    names = [check["name"] for check in result["checks"]]
    assert names[:5] == ["python", "packages", "torch", "gpu", "gsplat"] and "model hub" not in names
    assert {"kernel cache", "memory", "disk", "ffmpeg", "viewer", "colmap", "nerfstudio", "libusb"} <= set(names)
    for check in result["checks"]:
        assert set(check) == {"name", "status", "found", "fix"} and check["found"] and "\n" not in check["found"]
        assert check["status"] in ("ok", "note", "problem")


def test_a_broken_core_gives_status_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_torch", lambda: None)
    assert main(["doctor", "--no-network"]) == 1
    out = capsys.readouterr().out
    assert "PROBLEM  torch" in out and "-> install PyTorch" in out and "does not work here yet" in out


def test_nothing_heavy_is_touched():
    """gsplat is never imported (nor nerfstudio, viser, pycolmap): a look at it may compile for minutes."""
    code = (
        "import sys\nfrom da3gs.doctor import run_checks\nrun_checks(network=False)\n"
        "print(*({'gsplat', 'nerfstudio', 'viser', 'pycolmap', 'open3d', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_works_without_torch_installed():
    code = """
import sys
class WithoutTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'")
sys.meta_path.insert(0, WithoutTorch())
from da3gs.cli.main import main
sys.exit(main(["doctor", "--no-network"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "PROBLEM  torch" in done.stdout and done.stderr == ""


def test_missing_package(monkeypatch):
    monkeypatch.setitem(doctor._CORE, "never-heard-of", "never_heard_of")
    check = doctor.check_core_packages()
    assert check.status == "problem" and check.fix == "pip install never-heard-of"


def test_python_version(monkeypatch):
    assert doctor.check_python().status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert doctor.check_python().status == "problem"


@pytest.mark.parametrize(
    ("gpu", "cuda", "nvidia", "status", "words"),
    [
        (True, "12.4", True, "ok", "GPU of a kind (24 GiB), CUDA 12.4"),
        (False, None, True, "note", "built without CUDA"),
        (False, "12.4", True, "note", "sees no GPU"),
        (False, None, False, "note", "none: everything runs on the CPU"),
    ],
)
def test_gpu(monkeypatch, gpu, cuda, nvidia, status, words):
    monkeypatch.setattr(doctor, "_torch", lambda: fake_torch(gpu, cuda))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if nvidia else None)
    check = doctor.check_gpu()
    assert check.status == status and words in check.found
    assert bool(check.fix) == (nvidia and not gpu)


def test_gsplat_on_a_gpu_is_judged_by_its_files(monkeypatch, tmp_path):
    package = tmp_path / "gsplat"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('must not be imported')")
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(doctor, "_version", lambda name: "1.5.3")
    monkeypatch.setattr(doctor, "_torch", lambda: fake_torch(True, "12.4"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    check = doctor.check_gsplat()
    assert check.status == "note" and "no nvcc" in check.found and "prebuilt wheel" in check.fix
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/local/cuda/bin/nvcc")
    assert "not built yet" in doctor.check_gsplat().found
    built = tmp_path / "extensions" / "py311_cu124" / "gsplat_cuda" / "gsplat_cuda.so"
    built.parent.mkdir(parents=True)
    built.write_bytes(b"")
    assert doctor.check_gsplat().status == "ok" and "kernels built (gsplat_cuda.so)" in doctor.check_gsplat().found
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.check_gsplat().fix == "pip install gsplat"


def test_kernel_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new" / "deeper"))
    assert doctor.check_kernel_cache().status == "ok" and not (tmp_path / "new").exists()  # looked, not touched
    (tmp_path / "kernel.nbc").write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert "kernels compiled" in doctor.check_kernel_cache().found
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "below"))
    check = doctor.check_kernel_cache()
    assert check.status == "note" and "NUMBA_CACHE_DIR" in check.fix


def test_memory_and_disk(monkeypatch, tmp_path):
    available = doctor.available_memory()
    assert available is not None and 2**20 < available < 2**45
    monkeypatch.setattr(doctor, "available_memory", lambda: 2**30)
    check = doctor.check_memory()
    assert check.status == "note" and "1.0 GiB available" in check.found and "--max-views" in check.fix
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert doctor.hub_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    check = doctor.check_disk()
    assert check.status == "note" and "1.0 GiB free" in check.found and "HF_HOME" in check.fix


def test_hub(monkeypatch, hub):
    assert doctor.check_hub().status == "ok"
    monkeypatch.setenv("HF_ENDPOINT", "ftp://nowhere")
    assert "no http(s) address" in doctor.check_hub().found
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    check = doctor.check_hub()
    assert check.status == "note" and "does not answer" in check.found and "--model PATH" in check.fix
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in doctor.check_hub().found


def test_optional_parts(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert 'pip install "da3gs[colmap]"' in doctor.check_pycolmap().fix
    assert doctor.check_viewer().fix == "pip install viser"
    assert 'pip install "da3gs[nerfstudio]"' in doctor.check_nerfstudio().fix
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: None)
    assert doctor.check_libusb().status == "ok"  # nobody needs it then
    monkeypatch.setattr(doctor, "_version", lambda name: "1.1.5")
    assert "libusb-1.0-0" in doctor.check_libusb().fix
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: [SimpleNamespace(name="da3gs")])
    check = doctor.check_nerfstudio()
    assert check.status == "note" and "does not know da3gs-splat" in check.found
    methods = [SimpleNamespace(name=name) for name in ("da3gs", "da3gs-splat")]
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: methods)
    assert doctor.check_nerfstudio().status == "ok"


def test_ffmpeg(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    check = doctor.check_ffmpeg()
    assert check.status == "ok" and "ns-render wants one on PATH" in check.found  # imageio's own
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.check_ffmpeg().status == "note" and "imageio-ffmpeg" in doctor.check_ffmpeg().fix


def test_notes_do_not_break():
    assert doctor.core_works((doctor.Check("a", "ok", "x"), doctor.Check("b", "note", "y", "z")))
    assert not doctor.core_works((doctor.Check("a", "problem", "x"),))
