"""The 3DGS .ply: what stands in the file, seen through plyfile and numpy; and what comes back."""

import struct
import tracemalloc

import numpy as np
import pytest
import torch
from assets import asset
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement

import da3gs
from da3gs import Gaussians, load_gaussians, save_gaussians
from da3gs.errors import InputError
from da3gs.export.ply import property_names, read_comments, read_ply, write_ply


def random_gaussians(count: int, sh_degree: int, seed: int = 0) -> Gaussians:
    """Wide ranges: scales over nine decades, opacities to both ends, quaternions of any norm and sign."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    return Gaussians(
        means=normal(count, 3) * 10,
        quats=normal(count, 4) * torch.exp(normal(count, 1)),
        scales=torch.exp(3 * normal(count, 3) - 4),
        opacities=torch.sigmoid(4 * normal(count)),
        sh=normal(count, (sh_degree + 1) ** 2, 3),
    )


def assert_same(actual: Gaussians, expected: Gaussians) -> None:
    """Equal to float32 rounding: of the value itself, of the log and logit, and of normalising the quaternion."""
    assert torch.equal(actual.means, expected.means)
    assert torch.equal(actual.sh, expected.sh)
    torch.testing.assert_close(actual.scales, expected.scales, rtol=2e-6, atol=0)
    torch.testing.assert_close(actual.opacities, expected.opacities.clamp(1e-6, 1 - 1e-6), rtol=2e-6, atol=1e-7)
    quats = expected.quats.double()
    quats = (quats / quats.norm(dim=-1, keepdim=True)).float()
    torch.testing.assert_close(actual.quats, quats, rtol=0, atol=1.2e-7)


def rewrite(source, target, *, text=False, byte_order="<", dtype="f4", order=None, extra=()):
    """The same vertices by plyfile, in another encoding, number type, property order, or with further properties."""
    vertex = PlyData.read(source)["vertex"].data
    names = list(vertex.dtype.names) if order is None else order(list(vertex.dtype.names))
    table = np.zeros(len(vertex), dtype=[(name, dtype) for name in names] + list(extra))
    for name in names:
        table[name] = vertex[name]
    for i, (name, _) in enumerate(extra):
        table[name] = np.arange(len(vertex)) % 100 + i
    PlyData([PlyElement.describe(table, "vertex")], text=text, byte_order=byte_order).write(target)


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_file_holds_logit_log_and_unit_quaternion_in_the_reference_columns(tmp_path, sh_degree):
    gaussians = random_gaussians(500, sh_degree)
    save_gaussians(gaussians, tmp_path / "a.ply")
    ply = PlyData.read(tmp_path / "a.ply")
    vertex = ply["vertex"]
    coefficients = (sh_degree + 1) ** 2
    rest = [f"f_rest_{i}" for i in range(3 * (coefficients - 1))]
    expected = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest]
    expected += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert [p.name for p in vertex.properties] == expected
    assert {p.val_dtype for p in vertex.properties} == {"f4"}
    assert not ply.text and ply.byte_order == "<" and vertex.count == 500

    def column(*names):
        return np.stack([vertex[n] for n in names], -1).astype(np.float64)

    np.testing.assert_array_equal(column("x", "y", "z"), gaussians.means.numpy())
    np.testing.assert_array_equal(column("nx", "ny", "nz"), 0)
    opacity = 1 / (1 + np.exp(-column("opacity")[:, 0]))
    np.testing.assert_allclose(opacity, np.clip(gaussians.opacities.numpy(), 1e-6, 1 - 1e-6), rtol=1e-6)
    np.testing.assert_allclose(np.exp(column("scale_0", "scale_1", "scale_2")), gaussians.scales.numpy(), rtol=1e-6)
    rotation = column("rot_0", "rot_1", "rot_2", "rot_3")
    np.testing.assert_allclose(np.linalg.norm(rotation, axis=1), 1, atol=2e-7)
    norms = np.linalg.norm(gaussians.quats.double().numpy(), axis=1, keepdims=True)
    np.testing.assert_allclose(rotation, gaussians.quats.numpy() / norms, atol=1e-7)
    np.testing.assert_array_equal(column("f_dc_0", "f_dc_1", "f_dc_2"), gaussians.sh[:, 0].numpy())
    for k in range(1, coefficients):
        for channel in range(3):
            name = f"f_rest_{channel * (coefficients - 1) + k - 1}"
            np.testing.assert_array_equal(vertex[name], gaussians.sh[:, k, channel].numpy())


def test_bytes_of_one_gaussian_by_struct(tmp_path):
    """No PLY library at all: the body is 17 little-endian floats."""
    one = Gaussians(
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.tensor([[0.0, 0.0, 0.0, -2.0]]),
        torch.tensor([[1.0, np.e, np.e**2]]),
        torch.tensor([0.75]),
        torch.tensor([[[0.1, 0.2, 0.3]]]),
    )
    save_gaussians(one, tmp_path / "one.ply")
    data = (tmp_path / "one.ply").read_bytes()
    body = data[data.index(b"end_header\n") + len(b"end_header\n") :]
    assert len(body) == 17 * 4
    expected = [1, 2, 3, 0, 0, 0, 0.1, 0.2, 0.3, np.log(3), 0, 1, 2, 0, 0, 0, -1]
    np.testing.assert_allclose(struct.unpack("<17f", body), expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 40),
    sh_degree=st.integers(0, 3),
    file_degree=st.one_of(st.none(), st.integers(0, 3)),
    seed=st.integers(0, 2**32 - 1),
    normals=st.booleans(),
)
def test_round_trip(tmp_path_factory, count, sh_degree, file_degree, seed, normals):
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    gaussians = random_gaussians(count, sh_degree, seed)
    write_ply(gaussians, path, sh_degree=file_degree, normals=normals)
    back = load_gaussians(path)
    assert_same(back, gaussians if file_degree is None else gaussians.with_sh_degree(file_degree))
    # Once a file exists, copies of it are exact except for the rounding of log and logit.
    write_ply(back, path, normals=normals)
    again = load_gaussians(path)
    assert torch.equal(again.quats, back.quats) and torch.equal(again.means, back.means)
    assert_same(again, back)


@settings(max_examples=25, deadline=None)
@given(
    sh_degree=st.integers(0, 3),
    text=st.booleans(),
    byte_order=st.sampled_from("<>"),
    dtype=st.sampled_from(["f4", "f8"]),
    shuffle=st.integers(0, 1000),
    extra=st.booleans(),
    normals=st.booleans(),
)
def test_reads_the_same_from_every_encoding(
    tmp_path_factory, sh_degree, text, byte_order, dtype, shuffle, extra, normals
):
    folder = tmp_path_factory.mktemp("ply")
    gaussians = random_gaussians(30, sh_degree)
    write_ply(gaussians, folder / "plain.ply", normals=normals)
    more = [("red", "u1"), ("segment", "i4"), ("f_extra", "f8")] if extra else []
    rewrite(
        folder / "plain.ply",
        folder / "other.ply",
        text=text,
        byte_order=byte_order,
        dtype=dtype,
        order=lambda names: list(np.random.default_rng(shuffle).permutation(names)),
        extra=more,
    )
    for a, b in zip(read_ply(folder / "other.ply").tensors(), read_ply(folder / "plain.ply").tensors(), strict=True):
        # Some ascii writers print float32 with fewer digits than it takes; plyfile prints it exactly enough.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_blocks_join_seamlessly(tmp_path):
    """More Gaussians than one block of the reader and writer, and not a multiple of it."""
    gaussians = random_gaussians(20_001, 1)
    save_gaussians(gaussians, tmp_path / "a.ply")
    assert_same(load_gaussians(tmp_path / "a.ply"), gaussians)
    rewrite(tmp_path / "a.ply", tmp_path / "b.ply", text=True)
    assert_same(load_gaussians(tmp_path / "b.ply"), gaussians)


def test_memory_stays_near_the_size_of_the_file(tmp_path):
    gaussians = random_gaussians(100_000, 2)
    path = tmp_path / "a.ply"
    tracemalloc.start()
    try:
        save_gaussians(gaussians, path)
        writing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        back = load_gaussians(path)
        reading = tracemalloc.get_traced_memory()[1] - held
    finally:
        tracemalloc.stop()
    assert len(back) == 100_000
    size = path.stat().st_size
    assert writing < 1.5 * size  # the rows of the file and a few blocks
    assert size * 0.9 < reading < 1.5 * size  # the result itself (38 of 41 columns) and a few blocks


def test_padding_adds_zeros_and_the_reference_row_size(tmp_path):
    gaussians = random_gaussians(7, 2)
    save_gaussians(gaussians, tmp_path / "a.ply", sh_degree=3)
    assert PlyData.read(tmp_path / "a.ply")["vertex"].data.dtype.itemsize == 248
    back = load_gaussians(tmp_path / "a.ply")
    assert back.sh_degree == 3
    assert torch.equal(back.sh[:, :9], gaussians.sh)
    assert torch.equal(back.sh[:, 9:], torch.zeros(7, 7, 3))


def test_extremes_survive(tmp_path):
    gaussians = Gaussians(
        torch.tensor([[1e30, -1e-30, 0.0]] * 3),
        torch.tensor([[1e-20, 0, 0, 0], [0, 3e19, 4e19, 0], [-1.0, 0, 0, 0]]),
        torch.tensor([[1e-30, 1.0, 1e30]] * 3),
        torch.tensor([0.0, 1.0, 0.5]),
        torch.full((3, 1, 3), -1e20),
    )
    save_gaussians(gaussians, tmp_path / "a.ply")
    back = load_gaussians(tmp_path / "a.ply").validate()
    torch.testing.assert_close(back.opacities, torch.tensor([1e-6, 1 - 1e-6, 0.5]), rtol=1e-6, atol=0)
    torch.testing.assert_close(back.scales, gaussians.scales, rtol=1e-5, atol=0)
    torch.testing.assert_close(back.quats, torch.tensor([[1.0, 0, 0, 0], [0, 0.6, 0.8, 0], [-1, 0, 0, 0]]))


@pytest.mark.parametrize("text", [False, True])
def test_infinite_logits_are_the_opacities_zero_and_one(tmp_path, text):
    """The official exporter of Depth Anything 3 writes the logit of opacities that are exactly 0 or 1."""
    gaussians = random_gaussians(3, 1)
    save_gaussians(gaussians, tmp_path / "a.ply")
    data = PlyData.read(tmp_path / "a.ply")
    data["vertex"]["opacity"][:] = [-np.inf, 0, np.inf]
    PlyData(data.elements, text=text).write(tmp_path / "b.ply")
    back = load_gaussians(tmp_path / "b.ply").validate()
    torch.testing.assert_close(back.opacities, torch.tensor([1e-6, 0.5, 1 - 1e-6]), rtol=1e-7, atol=0)
    torch.testing.assert_close(back.means, gaussians.means, rtol=1e-6, atol=0)


def test_tiny_scales_of_other_tools_are_raised_to_a_positive_number(tmp_path):
    save_gaussians(random_gaussians(1, 0), tmp_path / "a.ply")
    data = PlyData.read(tmp_path / "a.ply")
    data["vertex"]["scale_1"][:] = -200
    data.write(tmp_path / "b.ply")  # not "a.ply": plyfile maps it into memory
    back = load_gaussians(tmp_path / "b.ply").validate()
    assert back.scales[0, 1] == torch.finfo(torch.float32).tiny


def test_header_comments(tmp_path):
    gaussians = random_gaussians(2, 1)
    save_gaussians(gaussians, tmp_path / "a.ply", antialiased=True, frame="z up", comments=["from 12 photos", "é"])
    expected = [f"Generated by da3gs {da3gs.__version__}", "Frame: z up", "SH degree: 1", "SplatRenderMode: mip"]
    # plyfile, like the format, knows ASCII only.
    assert PlyData.read(tmp_path / "a.ply").comments == [*expected, "from 12 photos", r"\xe9"]
    assert read_comments(tmp_path / "a.ply") == (*expected, "from 12 photos", r"\xe9")
    save_gaussians(gaussians, tmp_path / "b.ply")
    assert "SplatRenderMode: mip" not in read_comments(tmp_path / "b.ply")
    assert "Frame: x right, y down, z forward (OpenCV, COLMAP)" in read_comments(tmp_path / "b.ply")
    with pytest.raises(InputError, match="one line"):
        save_gaussians(gaussians, tmp_path / "c.ply", comments=["two\nend_header"])
    assert not (tmp_path / "c.ply").exists()


def test_terminal_escapes_in_comments_are_defused(tmp_path):
    save_gaussians(random_gaussians(1, 0), tmp_path / "a.ply")
    data = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(data.replace(b"comment Frame", b"obj_info a\x1b[2Jb\x07\ncomment Frame", 1))
    assert "a [2Jb" in read_comments(tmp_path / "a.ply")
    assert len(load_gaussians(tmp_path / "a.ply")) == 1


def test_other_elements_and_windows_line_ends(tmp_path):
    """Elements before and after the vertices, with lists, CRLF in the header."""
    gaussians = random_gaussians(5, 0)
    save_gaussians(gaussians, tmp_path / "a.ply")
    vertex = PlyData.read(tmp_path / "a.ply")["vertex"].data
    camera = np.array([(1.0, 2), (3.0, 4)], dtype=[("fx", "f8"), ("id", "i2")])
    edges = np.array([([0.5],), ([1, 2, 3],)], dtype=[("knots", "O")])
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "O")])
    elements = [
        PlyElement.describe(camera, "camera"),
        PlyElement.describe(edges, "edge", val_types={"knots": "f4"}),
        PlyElement.describe(vertex, "vertex"),
        PlyElement.describe(faces, "face", val_types={"vertex_indices": "i4"}),
    ]
    for text in (False, True):
        PlyData(elements, text=text).write(tmp_path / "b.ply")
        assert_same(load_gaussians(tmp_path / "b.ply"), gaussians)
        data = (tmp_path / "b.ply").read_bytes()
        head, body = data.split(b"end_header\n", 1)
        body = body.replace(b"\n", b"\r\n") if text else body
        (tmp_path / "c.ply").write_bytes((head + b"end_header\n").replace(b"\n", b"\r\n") + body)
        assert_same(load_gaussians(tmp_path / "c.ply"), gaussians)


def test_degree_four_is_cut_to_three_with_a_warning(tmp_path, caplog):
    gaussians = random_gaussians(4, 3)
    save_gaussians(gaussians, tmp_path / "a.ply")
    vertex = PlyData.read(tmp_path / "a.ply")["vertex"].data
    names = property_names(4)
    table = np.full(4, 7, dtype=[(n, "f4") for n in names])
    for name in property_names(0):
        table[name] = vertex[name]
    for channel in range(3):
        for k in range(15):
            table[f"f_rest_{channel * 24 + k}"] = vertex[f"f_rest_{channel * 15 + k}"]
    PlyData([PlyElement.describe(table, "vertex")]).write(tmp_path / "b.ply")
    assert_same(load_gaussians(tmp_path / "b.ply"), gaussians)
    assert "degree 4" in caplog.text


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("means", float("nan"), "its x would be nan"),
        ("sh", float("inf"), "its f_dc_0 would be inf"),
        ("scales", 0.0, "its scale_0 would be -inf"),
        ("scales", -1.0, "its scale_0 would be nan"),
        ("quats", 0.0, "its rot_0 would be nan"),
        ("opacities", float("nan"), "its opacity would be nan"),
    ],
)
def test_values_the_format_cannot_hold_leave_the_old_file_alone(tmp_path, field, value, message):
    path = tmp_path / "a.ply"
    path.write_text("precious")
    parts = dict(zip(("means", "quats", "scales", "opacities", "sh"), random_gaussians(9000, 1).tensors(), strict=True))
    parts[field][8500] = value
    with pytest.raises(InputError, match=f"Gaussian 8500 cannot be written: {message}"):
        save_gaussians(Gaussians.unchecked(**parts), path)
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


@pytest.mark.parametrize("degree", [-1, 4])
def test_degree_out_of_range(tmp_path, degree):
    with pytest.raises(InputError, match="0, 1, 2 or 3"):
        write_ply(random_gaussians(1, 0), tmp_path / "a.ply", sh_degree=degree)


def test_gradients_and_double_precision_do_not_disturb_writing(tmp_path):
    gaussians = random_gaussians(3, 1)
    double = gaussians.to(torch.float64)
    double.means.requires_grad_(True)
    save_gaussians(double, tmp_path / "a.ply")
    assert_same(load_gaussians(tmp_path / "a.ply"), gaussians)


@pytest.fixture(scope="module")
def official_inputs():
    """The inputs of the parity fixture, drawn as its README says."""
    import hashlib

    seed = int.from_bytes(hashlib.sha256(b"da3-parity-v1/unit/ply").digest()[:8], "big")
    rng = np.random.Generator(np.random.PCG64(seed))
    views, height, width = 2, 40, 48
    count = views * height * width
    draws = {
        "means": rng.standard_normal((1, count, 3)),
        "scales": 0.01 + rng.random((1, count, 3)),
        "quats": rng.standard_normal((1, count, 4)),
        "sh": rng.standard_normal((1, count, 3, 9)),
        "opacities": 0.01 + 0.98 * rng.random((1, count)),
        "depth": rng.random((views, height, width, 1)),
    }
    arrays = {name: torch.from_numpy(value.astype(np.float32)) for name, value in draws.items()}
    depth = arrays.pop("depth")[..., 0]
    gaussians = Gaussians(
        arrays["means"][0], arrays["quats"][0], arrays["scales"][0], arrays["opacities"][0], arrays["sh"][0].mT
    )
    border = torch.zeros_like(depth, dtype=torch.bool)
    rows, columns = int(8 / 256 * height), int(8 / 256 * width)
    border[:, rows:-rows, columns:-columns] = True
    near = depth <= depth.flatten(1).quantile(0.9, dim=1)[:, None, None]
    return gaussians, {"default": border, "api": border & near, "full_sh": torch.ones_like(border)}


@pytest.mark.parametrize("case", ["default", "api", "full_sh"])
def test_rows_of_the_official_exporter(tmp_path, official_inputs, case):
    """Same columns, same rows; the official file keeps quaternions as they come, ours are normalised."""
    stored = np.load(asset("parity/unit_gs_ply.npz"))
    gaussians, masks = official_inputs
    kept = gaussians[masks[case].flatten()]
    assert len(kept) == int(stored[f"{case}.count"])
    save_gaussians(kept, tmp_path / "a.ply", sh_degree=None if case == "full_sh" else 0)
    vertex = PlyData.read(tmp_path / "a.ply")["vertex"].data
    assert list(vertex.dtype.names) == stored[f"{case}.names"].tolist()
    ours = np.stack([vertex[name] for name in vertex.dtype.names], -1)[::17]
    official = stored[f"{case}.rows_every_17"].copy()
    official[:, -4:] /= np.linalg.norm(official[:, -4:], axis=1, keepdims=True)
    np.testing.assert_array_equal(ours[:, :-8], official[:, :-8])
    np.testing.assert_allclose(ours[:, -8:], official[:, -8:], rtol=2e-6, atol=5e-7)


def test_gsply_reads_the_same_numbers(tmp_path):
    """A reader of another project. It hands out the file's own values: logit, logarithm, wxyz."""
    gsply = pytest.importorskip("gsply")
    gaussians = random_gaussians(50, 2)
    save_gaussians(gaussians, tmp_path / "a.ply")
    data = gsply.plyread(str(tmp_path / "a.ply"))
    np.testing.assert_array_equal(data.means, gaussians.means.numpy())
    np.testing.assert_allclose(np.exp(data.scales), gaussians.scales.numpy(), rtol=2e-6)
    opacities = 1 / (1 + np.exp(-np.ravel(data.opacities).astype(np.float64)))
    np.testing.assert_allclose(opacities, np.clip(gaussians.opacities.numpy(), 1e-6, 1 - 1e-6), rtol=2e-6)
    unit = torch.nn.functional.normalize(gaussians.quats.double(), dim=-1).numpy()
    np.testing.assert_allclose(data.quats, unit, atol=2e-7)
    np.testing.assert_array_equal(data.sh0, gaussians.sh[:, 0].numpy())
    np.testing.assert_array_equal(np.reshape(data.shN, (50, 8, 3)), gaussians.sh[:, 1:].numpy())
