import pytest
import torch
from hypothesis import given
from strategies_geometry import generator, seeds, similarity

from da3gs import Similarity
from da3gs.errors import InputError


@given(seeds)
def test_group_laws(seed):
    a, b, c = similarity(seed), similarity(seed + 10), similarity(seed + 20)
    points = torch.randn(8, 3, generator=generator(seed), dtype=torch.float64)
    assert torch.allclose((a @ b).apply(points), a.apply(b.apply(points)), atol=1e-9)
    assert ((a @ b) @ c).is_close(a @ (b @ c), 1e-9)
    assert (a @ a.inverse()).is_close(Similarity.identity(), 1e-9)
    assert torch.allclose(a.matrix @ b.matrix, (a @ b).matrix, atol=1e-9)
    assert Similarity.from_matrix(a.matrix).is_close(a, 1e-9)


@given(seeds)
def test_lengths_grow_by_the_scale(seed):
    a = similarity(seed)
    p, q = torch.randn(2, 5, 3, generator=generator(seed), dtype=torch.float64)
    ratio = (a.apply(p) - a.apply(q)).norm(dim=1) / (p - q).norm(dim=1)
    assert torch.allclose(ratio, a.scale.expand(5), rtol=1e-9)


@pytest.mark.parametrize(
    ("matrix", "word"),
    [
        (torch.diag(torch.tensor([1.0, 1, -1, 1])), "mirror"),
        (torch.diag(torch.tensor([1.0, 1, 2, 1])), "rotation"),
        (torch.eye(3), "4x4"),
        (torch.full((4, 4), float("nan")), "NaN"),
        (torch.eye(4)[[0, 1, 3, 2]], "last row"),
        (torch.zeros(4, 4).index_put((torch.tensor(3), torch.tensor(3)), torch.tensor(1.0)), "flatten"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_what_is_no_similarity_is_refused_by_name(matrix, word):
    with pytest.raises(InputError, match=word):
        Similarity.from_matrix(matrix)


def test_scale_must_be_positive():
    with pytest.raises(InputError, match="> 0"):
        Similarity(0.0, torch.eye(3), torch.zeros(3))
