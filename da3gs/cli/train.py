"""`da3gs train`: run a training configuration."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional, arg

from da3gs.cli.console import print_json, print_result

logger = logging.getLogger(__name__)


@dataclass
class TrainCommand:
    """Train from a configuration file or the name of a shipped configuration; every key of it is a flag.

    Settings are the defaults of the code, then the file, then flags: --optim.lr 1e-4, --task.data.cache=~/scenes.
    Values are read as YAML. --show prints all keys with their resolved values. The run folder receives config.yaml,
    metrics.jsonl, TensorBoard events, picture panels, checkpoints and model.safetensors (averaged weights).

    One command for everything: on several GPUs or nodes start it with accelerate, as in
    `accelerate launch --multi_gpu --num_processes 8 -m da3gs.cli.main train gs_head_dl3dv_base`.

    Shipped: smoke_cpu (seconds, proves that training works here), student_synthetic_tiny, student_synthetic_tiny_fine
    and gs_head_synthetic_tiny (da3-tiny and its head, in this order), gs_head_dl3dv_base (8 GPUs), student_rgbd_base
    (da3-base on RGB-D scenes of your own), teacher_synthetic_tiny (a single-view model on exact depth).

    Examples:
      da3gs train smoke_cpu --output runs/smoke
      da3gs train student_synthetic_tiny --optim.lr 5e-4 --task.data.cache ~/scenes
      da3gs train runs/smoke/config.yaml --resume
      da3gs train gs_head_synthetic_tiny --show
    """

    config: Annotated[Positional[str], arg(metavar="CONFIG")]
    """YAML file, or name of a shipped configuration."""

    resume: bool = False
    """Go on from the last complete checkpoint of the output folder (from the start if there is none)."""

    show: bool = False
    """Print the resolved configuration as YAML and stop."""

    json: bool = False
    """Print the last evaluation as one JSON object."""

    settings: Annotated[tuple[str, ...], arg(name="set", metavar="KEY=VALUE")] = ()
    """The same settings in one list: --set optim.lr=1e-4 seed=3."""

    flags: tuple[str, ...] = field(default=(), init=False)

    @classmethod
    def parse(cls, arguments: Sequence[str], **tyro_options) -> "TrainCommand":
        """As tyro, but flags it does not know become settings."""
        import tyro

        command, unknown = tyro.cli(cls, args=list(arguments), return_unknown_args=True, **tyro_options)
        command.flags = tuple(unknown)
        return command

    def run(self) -> int:
        from da3gs.config import config_to_tree, load_config
        from da3gs.train.loop import TrainConfig, train

        flags = [*self.flags, *(f"--{setting}" for setting in self.settings)]
        config = load_config(TrainConfig, self.config, flags)
        if self.show:
            import yaml

            print_result(yaml.safe_dump(config_to_tree(config), sort_keys=False).rstrip())
            return 0
        try:
            metrics = train(config, resume=self.resume)
        except KeyboardInterrupt:
            logger.warning("stopped; --resume goes on from the last checkpoint in %s", config.output)
            raise
        if self.json:
            print_json({"output": str(config.output), "metrics": metrics})
        else:
            rows = "\n".join(f"  {name:<24}{value:.4g}" for name, value in metrics.items())
            print_result(f"{config.output}: {config.optim.steps} steps\n{rows}".rstrip())
        return 0
