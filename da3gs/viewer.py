"""A scene in the browser: splats, the cameras they came from, a slider for their number, a fly-through. Uses viser.

The browser draws colours of degree 0 only (no view dependence) and its own approximation of splatting; pictures that
count come from `da3gs.render`. Works with viser 0.2.7 (which nerfstudio pins) and 1.x.

Letters: N Gaussians, V cameras.
"""

import logging
import os
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8

from da3gs.data.cameras_json import read_cameras_json
from da3gs.errors import BackendError, InputError, MissingDependencyError
from da3gs.export.gaussian_files import load_gaussians
from da3gs.export.scene_folder import CAMERAS, GAUSSIANS, IMAGES, file_stems, flythrough_path
from da3gs.gaussians import Gaussians
from da3gs.geometry.cameras import Cameras
from da3gs.geometry.rotations import matrix_from_quat, quat_from_matrix
from da3gs.geometry.similarity import Similarity
from da3gs.geometry.spherical_harmonics import rgb_from_dc
from da3gs.images import load_image
from da3gs.rendering.trajectories import orbit_around_gaussians, scene_center_and_extent, up_direction

if TYPE_CHECKING:
    import viser

log = logging.getLogger(__name__)

# The scene is shown with this radius. viser 1 sends covariances as half floats, whose smallest step is 6e-8: in a scene
# of radius 10 standard deviations down to 1e-3 (a ten-thousandth of the scene) survive. Version 0.2.7 takes Cholesky
# factors, which need covariances clear of zero.
_SHOWN_RADIUS = 10.0
_SMALLEST_SIGMA, _LARGEST_SIGMA = 1e-3, 100.0
# Browsers sort all splats for every frame; more than this many make that jerky.
_FLUENT_COUNT = 1_500_000
_THUMBNAIL_PX = 256
_FLIGHT_SECONDS, _FLIGHT_FPS = 8.0, 30
_NOTE = "Colours of degree 0 only: shading that changes with the viewpoint is not shown here."


@dataclass(frozen=True, eq=False)
class ViewerScene:
    """What the viewer shows.

    Attributes:
        gaussians: World frame of the cameras.
        cameras: Posed context cameras, or None.
        names: One label per camera.
        images: One picture per camera, or None.
    """

    gaussians: Gaussians
    cameras: Cameras | None = None
    names: tuple[str, ...] = ()
    images: tuple[UInt8[np.ndarray, "_h _w 3"], ...] | None = None

    def __post_init__(self):
        if len(self.gaussians) == 0:
            raise InputError("there are no Gaussians to look at")
        if self.cameras is not None and len(self.names) != len(self.cameras):
            raise InputError(f"expected one name per camera ({len(self.cameras)}); got {len(self.names)}")
        if self.images is not None and len(self.images) != len(self.names):
            raise InputError(f"expected one image per camera ({len(self.names)}); got {len(self.images)}")


def load_viewer_scene(source: str | os.PathLike) -> ViewerScene:
    """A scene folder, or a file of Gaussians; cameras and images that lie beside ``scene.ply`` come with it.

    Raises:
        InputError: Nothing there to look at.
        FormatError: Damaged files.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / GAUSSIANS).is_file():
            raise InputError(f"folder {path} has no {GAUSSIANS}; give a folder that da3gs reconstruct wrote, or a .ply")
        path = path / GAUSSIANS
    gaussians = load_gaussians(path)
    folder = path.parent
    if path.name != GAUSSIANS or not (folder / CAMERAS).is_file():
        return ViewerScene(gaussians)
    cameras, names = read_cameras_json(folder / CAMERAS)
    if cameras.cam_from_world is None:
        return ViewerScene(gaussians)
    files = [folder / IMAGES / f"{stem}.png" for stem in file_stems(names)]
    if not all(file.is_file() for file in files):
        log.warning("%s: not all of the %d images are there; the cameras are shown empty", folder / IMAGES, len(files))
        return ViewerScene(gaussians, cameras, names)
    return ViewerScene(gaussians, cameras, names, tuple(_thumbnail(load_image(file)) for file in files))


@dataclass(frozen=True, eq=False)
class SplatArrays:
    """Gaussians as viser takes them, the most visible first.

    Attributes:
        centers: [N, 3] in viewer units.
        covariances: [N, 3, 3].
        rgbs: [N, 3] in [0, 1].
        opacities: [N, 1] in [0, 1].
    """

    centers: Float[np.ndarray, "N 3"]
    covariances: Float[np.ndarray, "N 3 3"]
    rgbs: Float[np.ndarray, "N 3"]
    opacities: Float[np.ndarray, "N 1"]

    def first(self, count: int) -> dict[str, np.ndarray]:
        """The `count` most visible ones, as keyword arguments."""
        return {name: getattr(self, name)[:count] for name in ("centers", "covariances", "rgbs", "opacities")}


def splat_arrays(gaussians: Gaussians, viewer_from_world: Similarity) -> SplatArrays:
    """Covariance R diag(sigma^2) R^T and colour 0.5 + C0 sh_0 per Gaussian, ordered by `visibility_order`."""
    moved = gaussians.detach().to("cpu", torch.float32).with_sh_degree(0).transform(viewer_from_world)
    moved = moved[visibility_order(moved)]
    sigmas = moved.scales.clamp(_SMALLEST_SIGMA, _LARGEST_SIGMA)
    factors = matrix_from_quat(moved.quats) * sigmas[:, None]
    return SplatArrays(
        centers=moved.means.numpy(),
        covariances=(factors @ factors.transpose(1, 2)).numpy(),
        rgbs=rgb_from_dc(moved.sh[:, 0]).clamp(0, 1).numpy(),
        opacities=moved.opacities[:, None].numpy(),
    )


def visibility_order(gaussians: Gaussians) -> Int64[torch.Tensor, " N"]:
    """Indices by opacity times the area of the largest cross-section, descending: what matters most in a picture."""
    largest = gaussians.scales.topk(2, dim=1).values
    return (gaussians.opacities * largest.prod(1)).argsort(descending=True, stable=True)


def viewer_frame(scene: ViewerScene) -> Similarity:
    """viewer_from_world: the middle of the scene at the origin, its radius 10; axes are kept."""
    center, extent = scene_center_and_extent(scene.gaussians)
    scale = _SHOWN_RADIUS / extent
    return Similarity(scale, torch.eye(3, dtype=torch.float64), -scale * center)


class SplatViewer:
    """A running server that shows a scene; `stop` ends it.

    Args:
        scene: What to show.
        host: Interface to listen on; "localhost" is reachable from this machine only, "0.0.0.0" from the network.
        port: TCP port; when it is taken the next free one is used (see `url`).

    Raises:
        InputError: The scene has no Gaussians.
        BackendError: The port cannot be opened.
        MissingDependencyError: viser is not installed.
    """

    def __init__(self, scene: ViewerScene, *, host: str = "localhost", port: int = 8080):
        self.scene = scene
        self._viewer_from_world = viewer_frame(scene)
        self._splats = splat_arrays(scene.gaussians, self._viewer_from_world)
        self.cameras = None if scene.cameras is None else scene.cameras.transform(self._viewer_from_world)
        self._up = self._upward()
        self.path = self._flight_path()
        self._flights: dict[int, threading.Event] = {}
        self.frusta: list[Any] = []
        self._frustum_size = 0.0 if self.cameras is None else _frustum_size(self.cameras)
        self._cameras_wanted = True
        self.server = _start_server(host, port)
        self.server.scene.set_up_direction(tuple(self._up))
        self._shown: Any = None
        self._version = 0
        self._sending = threading.Lock()  # the slider calls from threads of its own
        self.show_count(min(len(scene.gaussians), _FLUENT_COUNT))
        self._add_frusta()
        self._add_controls()
        self.server.on_client_connect(self._welcome)

    @property
    def url(self) -> str:
        host = self.server.get_host()
        return f"http://{'localhost' if host in ('0.0.0.0', '::') else host}:{self.server.get_port()}"

    @property
    def count(self) -> int:
        """How many Gaussians are shown."""
        return self._count

    def show_count(self, count: int) -> None:
        """Show the `count` most visible Gaussians."""
        with self._sending:
            self._count = max(1, min(int(count), len(self.scene.gaussians)))
            # Public since viser 1; the same arguments before, under a private name.
            add = getattr(self.server.scene, "add_gaussian_splats", None) or self.server.scene._add_gaussian_splats
            # viser 0.2.7 does not redraw splats that are sent again under their name: the new ones replace the old.
            before, self._version = self._shown, self._version + 1
            self._shown = add(f"/splats/{self._version}", **self._splats.first(self._count))
            if before is not None:
                before.remove()

    def show_cameras(self, visible: bool) -> None:
        """Show or hide the frusta of the context cameras."""
        for frustum in self.frusta:
            frustum.visible = visible

    def _toggle_cameras(self, visible: bool) -> None:
        self._cameras_wanted = visible
        self.show_cameras(visible and not self._flights)

    def stop(self) -> None:
        """End flights and the server."""
        for flight in list(self._flights.values()):
            flight.set()
        self.server.stop()

    # ---------------------------------------------------------------- contents

    def _upward(self) -> np.ndarray:
        """Up in the pictures; without cameras -y, as in every file with OpenCV axes."""
        return np.array([0.0, -1.0, 0.0]) if self.cameras is None else up_direction(self.cameras).numpy()

    def _flight_path(self) -> Cameras:
        frames = int(_FLIGHT_SECONDS * _FLIGHT_FPS)
        if self.cameras is not None:
            return flythrough_path(self.cameras, frames)
        return orbit_around_gaussians(self.scene.gaussians, frames).transform(self._viewer_from_world)

    def _add_frusta(self) -> None:
        if self.cameras is None:
            return
        quats = quat_from_matrix(self.cameras.world_from_cam[:, :3, :3]).numpy()
        centers = self.cameras.centers.numpy()
        for view in range(len(self.cameras)):
            frustum = self.server.scene.add_camera_frustum(
                f"/cameras/{view:04d}",
                fov=float(self.cameras.fov[view, 1]),
                aspect=float(self.cameras.width[view] / self.cameras.height[view]),
                scale=self._frustum_size,
                color=(40, 110, 200),
                image=None if self.scene.images is None else self.scene.images[view],
                wxyz=quats[view],
                position=centers[view],
            )
            frustum.on_click(partial(self._on_frustum, self.cameras[view]))
            self.frusta.append(frustum)

    def _add_controls(self) -> None:
        gui, total = self.server.gui, len(self.scene.gaussians)
        gui.set_panel_label("da3gs")
        gui.add_markdown(f"{total:,} Gaussians. {_NOTE}")
        self.slider = gui.add_slider(
            "Most visible", min=1, max=max(total, 2), step=max(1, total // 200), initial_value=self.count
        )
        self.slider.on_update(lambda _: self.show_count(self.slider.value))
        self.button = gui.add_button("Fly through")
        self.button.on_click(lambda event: self.fly(event.client))
        if self.cameras is not None:
            self.checkbox = gui.add_checkbox("Cameras", initial_value=True)
            self.checkbox.on_update(lambda _: self._toggle_cameras(self.checkbox.value))

    # ---------------------------------------------------------------- clients

    def _welcome(self, client: "viser.ClientHandle") -> None:
        if self.cameras is None:
            self._look_through(client, self.path[0])
        else:
            self._look_past_picture(client, self.cameras[0])

    def _look_past_picture(self, client: "viser.ClientHandle | None", camera: Cameras) -> None:
        """Look from just beyond the picture in the frustum of a camera, which would hide the scene.

        viser keeps the volume of frusta: the picture is at scale * cbrt(3 / (x y)), x and y tangents of half the view.
        """
        x, y = (float(value) for value in torch.tan(camera.fov[0] / 2))
        self._look_through(client, camera, ahead=1.1 * self._frustum_size * (3 / (x * y)) ** (1 / 3))

    def _on_frustum(self, camera: Cameras, event: Any) -> None:
        self._look_past_picture(event.client, camera)

    def fly(self, client: "viser.ClientHandle | None", seconds: float = _FLIGHT_SECONDS) -> None:
        """Move one browser's camera along the path; called again while flying, it stops."""
        if client is None:
            return
        running = self._flights.get(client.client_id)
        if running is not None:
            running.set()
            return
        landed = self._flights[client.client_id] = threading.Event()
        try:
            self.show_cameras(False)  # the path leads through them, and their pictures would fill the screen
            start = time.monotonic()
            while not landed.is_set() and (passed := (time.monotonic() - start) / seconds) < 1:
                self._look_through(client, self.path[int(passed * len(self.path))])
                landed.wait(1 / _FLIGHT_FPS)
        finally:
            del self._flights[client.client_id]
            if not self._flights:
                self.show_cameras(self._cameras_wanted)

    def _look_through(self, client: "viser.ClientHandle | None", camera: Cameras, ahead: float = 0.0) -> None:
        """Put a browser's camera where this one is, or a little ahead of it.

        It will turn about the point of the optical axis nearest to the middle of the scene.
        """
        if client is None:
            return
        forward = camera.look_directions[0].double().numpy()
        position = camera.centers[0].double().numpy() + ahead * forward
        distance = max(float(-position @ forward), 0.1 * _SHOWN_RADIUS)
        with client.atomic():
            # The position shifts the target along, so the target comes after it.
            client.camera.up_direction = -camera.cam_from_world[0, 1, :3].double().numpy()
            client.camera.position = position
            client.camera.look_at = position + distance * forward
            client.camera.fov = float(camera.fov[0, 1])


def _start_server(host: str, port: int) -> "viser.ViserServer":
    try:
        import viser
    except ImportError as error:
        raise MissingDependencyError(f"the viewer needs viser ({error}); install it with: pip install viser") from error
    try:
        return viser.ViserServer(host=host, port=port, verbose=False)
    except OSError as error:
        raise BackendError(f"cannot open {host}:{port} ({error.strerror or error}); choose another --port") from error


def _frustum_size(cameras: Cameras) -> float:
    """Half the usual distance between neighbouring cameras, within 1 and 6 percent of the scene."""
    if len(cameras) < 2:
        return 0.06 * _SHOWN_RADIUS
    distances = torch.cdist(cameras.centers, cameras.centers) + torch.diag(torch.full((len(cameras),), torch.inf))
    return float(np.clip(float(distances.amin(1).median()) / 2, 0.01 * _SHOWN_RADIUS, 0.06 * _SHOWN_RADIUS))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    import cv2

    scale = _THUMBNAIL_PX / max(image.shape[:2])
    if scale >= 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
