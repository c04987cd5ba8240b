"""The loop: the loss falls, a killed run resumes as if nothing had happened, two processes equal one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from da3gs.config import config_to_tree, load_config, save_config
from da3gs.errors import Da3gsError, InputError, WeightsError
from da3gs.train.checkpointing import checkpoints
from da3gs.train.loop import OptimConfig, TrainConfig, _accelerator, learning_rate, train

RUN = "import sys; from da3gs.config import load_config; from da3gs.train.loop import TrainConfig, train; "
RUN += "train(load_config(TrainConfig, sys.argv[1], sys.argv[3:]), resume=sys.argv[2] == 'resume')"


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[-1] / "state.safetensors")


def start(config: TrainConfig, how: str, *flags: str) -> subprocess.Popen:
    path = config.output.parent / f"{config.output.name}.yaml"
    save_config(config, path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", RUN, str(path), how, *flags], env=environment)


def test_shipped_smoke_run_lowers_its_loss(tmp_path):
    """As a user runs it: da3-tiny on scenes rendered on the fly."""
    config = load_config(TrainConfig, "smoke_cpu", {"output": str(tmp_path / "run")})
    metrics = train(config)
    losses = [line["loss"] for line in lines(config.output) if "loss" in line]
    assert len(losses) == 12 and sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert 0 < metrics["absrel_single"] < 1


def test_a_run_lowers_its_loss_and_leaves_everything_behind(smoke):
    config = smoke()
    metrics = train(config)
    run = config.output
    steps = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    terms = ("depth", "rays", "points", "camera", "depth_gradient", "relative_pose", "matching")
    assert all(name in steps[0] for name in terms)
    start_loss, end_loss = (sum(line["loss"] for line in part) / 3 for part in (steps[:3], steps[-3:]))
    assert end_loss < 0.9 * start_loss
    assert 0 <= metrics["delta1_single"] <= 1 and lines(run)[-1]["eval/absrel_free"] == metrics["absrel_free"]
    assert load_config(TrainConfig, run / "config.yaml") == config
    assert len(list((run / "panels").glob("0000012_*.png"))) == 2 and list((run / "tensorboard").iterdir())
    assert checkpoints(run)[-1].name == "step_0000012"

    from da3gs.model.checkpoints import load_network, read_header

    network = load_network(run / "model.safetensors")
    average = {k.removeprefix("average/network."): v for k, v in state(run).items() if k.startswith("average/network.")}
    assert all(torch.equal(parameter, average[name]) for name, parameter in network.named_parameters())
    assert read_header(run / "model.safetensors")["provenance"]["training"] == config_to_tree(config)


def test_killed_and_resumed_equals_uninterrupted(smoke, tmp_path):
    changes = {"optim.steps": 7, "checkpoint_every": 2, "evaluate_every": 100, "threads": 1, "optim.optimizer": "muon"}
    whole, cut = (smoke(output=str(tmp_path / name), **changes) for name in ("whole", "cut"))
    process = start(cut, "new")
    deadline = time.monotonic() + 120
    while not checkpoints(cut.output) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.1 * random.random())
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    train(cut, resume=True)
    train(whole)
    a, b = state(whole.output), state(cut.output)
    assert a.keys() == b.keys() and {"exp_avg_sq", "momentum"} <= {key.split("/")[0] for key in a}
    assert max(float((a[key].double() - b[key].double()).abs().max()) for key in a) == 0
    both = (whole.output, cut.output)
    losses = [[(line["step"], line["loss"]) for line in lines(run) if "loss" in line] for run in both]
    assert losses[0] == losses[1] and len(losses[0]) == 7


def _process_of_two(rank: int, port: int, config: TrainConfig):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    train(config)


def test_two_processes_equal_one_at_the_same_global_batch(smoke, tmp_path):
    changes = {"optim.steps": 3, "optim.accumulate": 2, "optim.ema": 0, "evaluate_every": 100, "checkpoint_every": 100}
    # Three scenes for two processes, every kind of term, both optimizers.
    changes |= {"task.images_per_batch": 6, "task.matching.geometry": 5.0, "task.matching.attention_layers": [5]}
    changes |= {"optim.optimizer": "muon"}
    one, two = (smoke(output=str(tmp_path / name), **changes) for name in ("one", "two"))
    train(one)
    port = 29500 + os.getpid() % 2000
    torch.multiprocessing.spawn(_process_of_two, args=(port, two), nprocs=2)
    a, b = state(one.output), state(two.output)
    model = [key for key in a if key.startswith("model/")]
    moved = max(float((a[f"exp_avg/{key[6:]}"]).abs().max()) for key in model if f"exp_avg/{key[6:]}" in a)
    assert moved > 1e-3
    # Adam divides by the gradient's size, so rounding of a vanishing gradient can move a parameter by a step: compare
    # the averaged gradients tightly, and the parameters to a fraction of one step.
    for key in model:
        for moment in ("exp_avg", "momentum"):
            if f"{moment}/{key[6:]}" in a:
                torch.testing.assert_close(b[f"{moment}/{key[6:]}"], a[f"{moment}/{key[6:]}"], atol=2e-5, rtol=2e-3)
    assert any(key.startswith("momentum/") for key in a)
    losses = [[line["loss"] for line in lines(run) if "loss" in line] for run in (one.output, two.output)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_non_finite_losses_are_skipped_counted_and_end_the_run(smoke, monkeypatch):
    from da3gs.train.student import Student

    original, bad = Student.loss, {1, 3, 4, 5}
    calls = iter(range(100))

    def loss(self, module, batch):
        terms = original(self, module, batch)
        return terms | {"loss": terms["loss"] * (float("nan") if next(calls) in bad else 1.0)}

    monkeypatch.setattr(Student, "loss", loss)
    config = smoke(**{"optim.patience": 3, "checkpoint_every": 3, "evaluate_every": 100})
    with pytest.raises(Da3gsError, match=r"stopped at step 5: .* 3 times in a row; lower optim\.lr"):
        train(config)
    assert [line["skipped"] for line in lines(config.output)] == [0, 1, 1, 2, 3]
    assert all(torch.isfinite(value).all() for value in state(config.output).values())


def test_an_occupied_folder_is_not_overwritten(smoke):
    config = smoke(**{"optim.steps": 1, "task.evaluation_scenes": 1})
    metrics = train(config)
    with pytest.raises(InputError, match=r"holds a run at step_0000001; add --resume"):
        train(config)
    assert train(config, resume=True) == metrics and metrics  # nothing left to do: its result once more
    log = config.output / "metrics.jsonl"
    written = log.read_text()
    *_, evaluation = written.splitlines(keepends=True)
    assert written.count('"eval/delta1_free"') == 1 and '"eval/delta1_free"' in evaluation
    log.write_text(written.replace(evaluation, evaluation[:40]))  # killed after its checkpoint, in the evaluation
    assert train(config, resume=True) == metrics and log.read_text() == written
    path = checkpoints(config.output)[-1] / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="is damaged"):
        train(config, resume=True)
    shutil.rmtree(config.output / "checkpoints")  # to save space
    with pytest.raises(InputError, match="holds the weights of a run, but none of its checkpoints"):
        train(config)
    assert log.read_text() == written


def test_a_run_is_resumed_with_its_own_optimizer(smoke):
    config = smoke(**{"optim.steps": 2, "stop_after": 1, "task.evaluation_scenes": 1})
    train(config)
    other = replace(config, optim=replace(config.optim, optimizer="muon"))
    with pytest.raises(
        WeightsError, match=r"another optimizer than Muon .*; resume with the optim\.optimizer of the run"
    ):
        train(other, resume=True)


def test_a_run_is_resumed_with_its_own_seed(smoke):
    config = smoke(**{"optim.steps": 2, "stop_after": 1, "task.evaluation_scenes": 1})
    train(config)
    with pytest.raises(InputError, match="has seed 0, this configuration 3; resume with the seed of the run"):
        train(replace(config, seed=3), resume=True)


def test_settings_that_cannot_run_are_refused_before_the_first_step():
    for name in ("checkpoint_every", "evaluate_every", "log_every", "keep"):
        with pytest.raises(InputError, match=f"{name} must be at least 1; got 0"):
            TrainConfig(**{name: 0})
    with pytest.raises(InputError, match="cannot be negative"):
        TrainConfig(stop_after=-1)
    home = load_config(TrainConfig, "smoke_cpu", ["--output=~/runs/x"])
    assert home.output == Path.home() / "runs" / "x"


def test_learning_rate_schedule():
    config = OptimConfig(lr=1.0, final_lr=0.1, warm_up=10, steps=110)
    assert learning_rate(config, 0) == pytest.approx(0.1) and learning_rate(config, 9) == 1.0
    assert learning_rate(config, 60) == pytest.approx(0.55) and learning_rate(config, 110) == pytest.approx(0.1)
    with pytest.raises(InputError, match="precision"):
        OptimConfig(precision="fp16")


def test_bf16_needs_a_cpu_that_has_it(monkeypatch, caplog):
    """Without AVX-512 one step in bfloat16 takes longer than ten in float32: said, and not done."""
    if torch.cuda.is_available():
        pytest.skip("looks at training on a CPU")
    config = TrainConfig(optim=OptimConfig(precision="bf16"), device="cpu")
    monkeypatch.setattr("da3gs.train.loop.platform.machine", lambda: "x86_64")
    for capability, precision in (("AVX2", "no"), ("AVX512", "bf16")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda value=capability: value)
        caplog.clear()
        assert _accelerator(config).mixed_precision == precision
        assert ("no AVX-512" in caplog.text) == (precision == "no")
