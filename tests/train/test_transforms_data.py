"""Posed photographs as training data: a real scene, scaled and cropped with its cameras."""

import pytest
import torch
from assets import asset

from da3gs.data.view_sampling import ViewSamplingConfig
from da3gs.errors import InputError
from da3gs.train.transforms_data import TransformsData


def test_pictures_and_cameras_stay_together():
    folder = asset("data/posed_fox")
    source = TransformsData(folder=folder, sizes=((112, 140),), holdout=0).open()
    assert source.frame_count(0) >= 10
    sample = source.load(0, [5, 2])
    assert sample.images.shape == (2, 3, 140, 112) and sample.cameras.size == (112, 140)
    assert (sample.depth == 0).all() and sample.images.min() >= 0 and sample.images.max() <= 1
    # The crop about the centre keeps the angle a pixel covers: half the size gives half the focal length.
    half = TransformsData(folder=folder, sizes=((56, 70),), holdout=0).open().load(0, [5, 2])
    torch.testing.assert_close(half.cameras.K[:, 0, 0] * 2, sample.cameras.K[:, 0, 0], rtol=5e-3, atol=0)
    torch.testing.assert_close(half.cameras.cam_from_world, sample.cameras.cam_from_world)
    small = torch.nn.functional.avg_pool2d(sample.images, 2)
    assert (small - half.images).abs().mean() < 0.03
    other = source.load(0, [2])
    assert torch.equal(other.images[0], sample.images[1])


def test_no_scenes_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"no training scene with a transforms\.json under .* \(0 found in all\)"):
        TransformsData(folder=tmp_path).open()


def test_a_scene_too_short_for_a_sample_is_named(gs_task, tmp_path):
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "transforms.json").write_text('{"frames": [{}, {}, {}]}')
    data = TransformsData(folder=tmp_path, sizes=((56, 56),), holdout=0)
    task = gs_task(data=data, views=ViewSamplingConfig(context=(4, 4), targets=2)).open(0)
    with pytest.raises(InputError, match=r"short.transforms\.json: .* needs 6 frames; the scene has 3; leave"):
        task.batch(0, 0, 1)
