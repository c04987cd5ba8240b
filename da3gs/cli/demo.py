"""`da3gs demo`: see it work with no data of your own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from da3gs.cli.console import print_json, print_result

if TYPE_CHECKING:
    from da3gs.evaluate.demo import DemoNumbers


@dataclass(frozen=True)
class DemoCommand:
    """Photograph a procedural scene, make splats of it, and compare them with the truth.

    Needs no data and no download. Writes photographs, splats, a fly-through, pictures and numbers to a folder.
    Nothing but the photographs is handed over: the bundled network finds depth and cameras.

    Examples:
      da3gs demo
      da3gs demo --output demo --views 8 --seed 7 --view
      da3gs demo --poses sfm --model da3-base
    """

    output: Path = Path("da3gs-demo")
    """Folder for everything; replaced if it holds an earlier demo."""
    model: str = "da3-tiny"
    """Model name or file, as for `da3gs reconstruct`."""
    views: int = 6
    """Photographs to reconstruct from."""
    seed: int = 2
    """Of the scene: another number, another scene."""
    poses: Literal["predicted", "sfm", "given"] = "predicted"
    """Cameras: predicted by the network, by structure from motion, or the true ones."""
    depth: Literal["network", "given"] = "network"
    """Depth: from the network, or the true one, as from a depth camera; with --poses given no network is needed."""
    video: bool = True
    """Render the fly-through."""
    view: bool = False
    """Open the viewer on the result."""
    json: bool = False
    """Print the numbers as one JSON object."""

    def run(self) -> int:
        from dataclasses import asdict

        from rich.console import Console

        from da3gs.errors import InputError
        from da3gs.evaluate.demo import COMPARISON, SCENE, run_demo
        from da3gs.pipeline.stages import Stages

        if self.views < 2:
            raise InputError(f"--views must be >= 2; got {self.views}")
        with Console(stderr=True).status("starting") as status:
            stages = Stages(lambda name: status.update(f"{name} ..."))
            numbers = run_demo(
                self.output,
                model=self.model,
                views=self.views,
                seed=self.seed,
                poses=self.poses,
                given_depth=self.depth == "given",
                video=self.video,
                stages=stages,
            )
        if self.json:
            print_json({"output": str(self.output), **asdict(numbers)})
        else:
            print_result(_summary(self, numbers, stages.seconds))
        if self.view:
            from da3gs.cli.view import ViewCommand

            return ViewCommand(self.output / SCENE).run()
        if not self.json:
            print_result(
                f"\nLook at {self.output / COMPARISON} and {self.output / SCENE}. Next:\n"
                f"  da3gs view {self.output / SCENE}\n"
                "  da3gs reconstruct FOLDER_OF_PHOTOS --output out"
            )
        return 0


def _summary(command: DemoCommand, n: "DemoNumbers", seconds: float) -> str:
    return "\n".join(
        [
            f"{n.gaussians} splats in {n.seconds:.1f} s ({seconds:.1f} s with pictures and video) -> {command.output}",
            f"  poses {command.poses:<12} rotation error {n.rotation_median_deg:.1f} deg "
            f"(standing still: {n.identity_rotation_median_deg:.1f}), translation direction "
            f"{n.translation_median_deg:.1f} deg, AUC@30 {n.auc30:.2f}",
            f"  depth {command.depth:<12} within 25 %: {n.depth_delta1:.0%} of the pixels, mean relative error "
            f"{n.depth_abs_rel:.2f}",
            "  held-out views     "
            + (
                "nothing covered" if n.psnr_db is None else f"PSNR {n.psnr_db:.1f} dB over the covered {n.coverage:.0%}"
            ),
        ]
    )
