"""The shape of the package: import layers, lazy imports, module sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "da3gs"

# A module may import modules of lower layers, of its own part, and (layer 3 and 5) of its own layer.
LAYERS = [
    {"errors", "atomic", "compiling", "geometry", "config"},
    {"gaussians", "images", "image_files", "keypoints"},
    {"model", "rendering", "data", "metrics", "stereo"},
    {"losses", "export", "fusion", "pipeline", "refine", "viewer", "doctor"},
    {"evaluate"},
    {"train"},
    {"cli", "nerfstudio"},
]
SIBLINGS_ALLOWED = {0, 1, 3}


def _part(module: str) -> str:
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def _layer(part: str) -> int:
    for level, parts in enumerate(LAYERS):
        if part in parts:
            return level
    raise AssertionError(f"da3gs/{part} stands in no layer; add it to LAYERS")


def _modules():
    return sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "da3gs":
            yield from ([f"da3gs.{name.name}" for name in node.names] if node.module == "da3gs" else [node.module])
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "da3gs")


def test_imports_only_point_down():
    wrong = []
    for path in _modules():
        relative = path.relative_to(PACKAGE)
        own = relative.parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for module in _imports(path):
            other = _part(module)
            if other in {own, "__version__", "__init__"}:
                continue
            mine, theirs = _layer(own), _layer(other)
            if theirs > mine or (theirs == mine and mine not in SIBLINGS_ALLOWED):
                wrong.append(f"{relative}: layer {mine} imports {module} of layer {theirs}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", ["gsplat", "nerfstudio", "torchvision"])
def test_foreign_libraries_have_one_home(library):
    homes = {"gsplat": {"rendering/gsplat_backend.py"}, "nerfstudio": {"nerfstudio"}, "torchvision": set()}[library]
    for path in _modules():
        relative = path.relative_to(PACKAGE).as_posix()
        if any(relative == home or relative.startswith(home + "/") for home in homes):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert all(name.split(".")[0] != library for name in names), f"{relative} imports {library}"


def test_modules_stay_short():
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in _modules()}
    assert {name: count for name, count in lengths.items() if count > 420} == {}


def test_no_swallowed_errors():
    for path in _modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                assert caught not in {"everything", "Exception", "BaseException"}, f"{path.name}:{node.lineno}"


def _loaded_by(code: str) -> set[str]:
    listing = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(listing.stdout.split("\n")[-2].split())


def test_import_loads_neither_torch_nor_numpy():
    loaded = _loaded_by("import da3gs")
    assert "da3gs" in loaded and not loaded & {
        "torch",
        "numpy",
        "gsplat",
        "numba",
        "viser",
        "cv2",
        "nerfstudio",
        "rich",
    }


def test_public_names_resolve():
    import da3gs

    assert {name: getattr(da3gs, name).__name__ for name in da3gs._PUBLIC} == {name: name for name in da3gs._PUBLIC}
    assert set(da3gs.__all__) == {*da3gs._PUBLIC, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = da3gs.nothing
