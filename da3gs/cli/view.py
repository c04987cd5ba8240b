"""`da3gs view`: a scene in the browser."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from da3gs.cli.console import print_result
from da3gs.errors import InputError


@dataclass
class ViewCommand:
    """Show a scene in the browser: splats, the cameras they came from, a slider for their number, a fly-through.

    Colours are of degree 0 only there: shading that changes with the viewpoint is left out. Ctrl-C ends it.

    Examples:
      da3gs view out/
      da3gs view scene.ply --port 9000
      da3gs view out/ --host 0.0.0.0     (reachable from other machines)
    """

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """Folder written by `da3gs reconstruct`, or a file of Gaussians."""

    port: int = 8080
    """TCP port; the next free one when it is taken."""

    host: str = "localhost"
    """Interface to listen on. localhost: this machine only."""

    def run(self) -> int:
        from da3gs.viewer import SplatViewer, load_viewer_scene

        if not 1 <= self.port <= 65535:
            raise InputError(f"--port must lie in 1..65535; got {self.port}")
        scene = load_viewer_scene(self.source)
        viewer = SplatViewer(scene, host=self.host, port=self.port)
        try:
            cameras = 0 if scene.cameras is None else len(scene.cameras)
            print_result(f"{len(scene.gaussians)} Gaussians, {cameras} cameras at {viewer.url} (Ctrl-C ends it)")
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
        finally:
            viewer.stop()
        return 0
