"""`da3gs train`: keys of the configuration are flags."""

import json

import pytest

from da3gs.cli.train import TrainCommand
from da3gs.errors import InputError


def test_flags_reach_the_configuration(capsys):
    import yaml

    arguments = ["smoke_cpu", "--optim.lr", "1e-4", "--show", "--task.data.cache=scenes", "--set", "seed=3"]
    assert TrainCommand.parse(arguments).run() == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["optim"]["lr"] == 1e-4 and tree["seed"] == 3 and tree["task"]["data"]["cache"] == "scenes"
    assert tree["optim"]["steps"] == 12 and tree["task"]["kind"] == "student"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke_cpu", "--optim.rate", "1"], "unknown key 'optim.rate'"),
        (["smoke_cp"], "did you mean smoke_cpu"),
        (["smoke_cpu", "--optim.lr"], "--optim.lr needs a value"),
        (["smoke_cpu", "--task.kind", "tutor"], "task.kind must be one of student, gs_head, teacher; got 'tutor'"),
        (["smoke_cpu", "--optim.precision", "fp16"], "optim: precision must be no or bf16; got 'fp16'"),
    ],
)
def test_wrong_calls_are_one_line(arguments, message):
    from da3gs.errors import Da3gsError

    with pytest.raises(Da3gsError, match=message) as caught:
        TrainCommand.parse(arguments).run()
    assert "\n" not in str(caught.value)


def test_a_run_reports_its_evaluation(smoke, tmp_path, capsys):
    from da3gs.config import save_config

    save_config(smoke(), tmp_path / "run.yaml")
    flags = ["--optim.steps", "2", "--output", str(tmp_path / "out"), "--json"]
    assert TrainCommand.parse([str(tmp_path / "run.yaml"), *flags]).run() == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(tmp_path / "out") and 0 <= report["metrics"]["delta1_free"] <= 1
    with pytest.raises(InputError, match="add --resume"):
        TrainCommand.parse([str(tmp_path / "run.yaml"), *flags]).run()
    assert TrainCommand.parse([str(tmp_path / "run.yaml"), *flags, "--resume", "--optim.steps", "3"]).run() == 0
