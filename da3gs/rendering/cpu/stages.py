"""The stages of one picture, in order. Everything this file calls is numba, everything that calls it is torch.

    project ─► list per tile ─► sort each list by depth ─► composite            draw
    composite backward ─► sum per Gaussian and projection backward              draw_backward

A window is one camera and a range of its pixel rows; a picture is one window unless its lists would outgrow the memory.
"""

from dataclasses import dataclass

import numpy as np

from da3gs.rendering.cpu import listing
from da3gs.rendering.cpu.compositing import compositor
from da3gs.rendering.cpu.compositing_backward import backward_compositor
from da3gs.rendering.cpu.layout import CENTER_Y, RECORD, SUM_CHANNEL, TILE
from da3gs.rendering.cpu.projection import project
from da3gs.rendering.cpu.projection_backward import POSE_AND_EYE, project_backward
from da3gs.rendering.cpu.scratch import Buffers


@dataclass(frozen=True)
class Splats:
    """Inputs as flat float32 arrays. `colors` is SH [N, sh_count, 3], or with sh_count 0 channels [N, C]."""

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    colors: np.ndarray
    sh_count: int

    @property
    def color_channels(self) -> int:
        return 3 if self.sh_count else self.colors.size // self.opacities.size

    def arguments(self) -> tuple:
        return self.means, self.quats, self.scales, self.opacities, self.colors, self.sh_count


@dataclass(frozen=True)
class Style:
    """What is drawn: `max_alpha` caps a splat's alpha, `with_depth` appends z-depth as the last channel."""

    with_depth: bool
    antialiased: bool
    max_alpha: np.float32


@dataclass(frozen=True)
class Window:
    """Pixel rows `top` to `top + height` of one camera; `camera` is the vector of layout.py, cy counted from top."""

    camera: tuple
    width: int
    top: int
    height: int

    def halves(self) -> tuple["Window", "Window"]:
        """The upper and the lower part, cut between two rows of tiles; needs more than one row of tiles."""
        upper = (self.height // TILE + 1) // 2 * TILE
        return self._rows(0, upper), self._rows(upper, self.height - upper)

    def _rows(self, start: int, height: int) -> "Window":
        camera = list(self.camera)
        camera[CENTER_Y] = np.float32(camera[CENTER_Y] - start)
        return Window(tuple(camera), self.width, self.top + start, height)

    @property
    def tiles_x(self) -> int:
        return -(-self.width // TILE)

    @property
    def tiles(self) -> int:
        return self.tiles_x * -(-self.height // TILE)


@dataclass(frozen=True)
class Drawing:
    """What the backward stages need of a drawn window. The arrays live in `buffers`.

    records [N, RECORD], tile_boxes [N, 4]; members [I] lists the Gaussians of each tile, front to back, from
    offsets [tiles + 1] to stops [tiles]; transmittances [H, W].
    """

    buffers: Buffers
    records: np.ndarray
    tile_boxes: np.ndarray
    members: np.ndarray
    offsets: np.ndarray
    stops: np.ndarray
    transmittances: np.ndarray


def draw(
    splats: Splats, window: Window, style: Style, workers: int, limit: int,
    buffers: Buffers, temporary: Buffers, image: np.ndarray, alphas: np.ndarray,
) -> Drawing | None:  # fmt: skip
    """Draw one window into image [H, W, K] and alphas [H, W]; None if it has more than `limit` intersections."""
    count = splats.opacities.size

    # 1. project
    records = buffers.take("records", count * RECORD, np.float32)
    tile_boxes = buffers.take("tile_boxes", count * 4, np.int16)
    depths = temporary.take("depths", count, np.float32)
    tile_counts = temporary.take("tile_counts", workers * window.tiles, np.int32)
    tile_counts.fill(0)
    project(
        *splats.arguments(), style.with_depth, style.antialiased, window.camera, window.width, window.height, workers,
        records, depths, tile_boxes, tile_counts,
    )  # fmt: skip
    intersections = int(tile_counts.sum(dtype=np.int64))
    if intersections > limit and window.height > TILE:
        return None

    # 2. list per tile
    offsets = buffers.take("offsets", window.tiles + 1, np.int32)
    entries = temporary.take("entries", intersections, np.int64)
    listing.counts_to_starts(tile_counts, window.tiles, workers, offsets)
    listing.fill_tiles(
        tile_boxes, depths.view(np.int32), count, window.tiles_x, window.tiles, workers, tile_counts, entries
    )

    # 3. sort each list by depth
    members = buffers.take("members", intersections, np.int32)
    listing.sort_tiles(entries, offsets, window.tiles, workers, members)

    # 4. composite
    stops = buffers.take("stops", window.tiles, np.int32)
    transmittances = buffers.take("transmittances", window.width * window.height, np.float32)
    channels = splats.color_channels + style.with_depth
    compositor(channels)(
        records, members, offsets, window.width, window.height, style.max_alpha, workers,
        image, alphas, transmittances, stops,
    )  # fmt: skip
    return Drawing(buffers, records, tile_boxes, members, offsets, stops, transmittances)


@dataclass(frozen=True)
class Gradients:
    """Flat sums over all windows; pose [15] float64 per view is [R | t] by rows, then the camera centre."""

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    colors: np.ndarray

    def arrays(self) -> tuple:
        return self.means, self.quats, self.scales, self.opacities, self.colors


def draw_backward(
    splats: Splats, window: Window, style: Style, workers: int, drawing: Drawing, temporary: Buffers,
    image: np.ndarray, image_gradient: np.ndarray, alpha_gradient: np.ndarray, gradients: Gradients,
) -> np.ndarray:  # fmt: skip
    """Add one window's share to `gradients`; return that of the pose and camera centre [15]."""
    # 4. composite: one row of sums per intersection, numbered by Gaussian
    first_row = temporary.take("first_row", splats.opacities.size + 1, np.int32)
    listing.number_rows(drawing.tile_boxes, splats.opacities.size, first_row)
    channels = splats.color_channels + style.with_depth
    gradient_sums = temporary.take("gradient_sums", drawing.members.size * (SUM_CHANNEL + channels), np.float32)
    backward_compositor(channels)(
        drawing.records, drawing.members, first_row, drawing.offsets, drawing.stops,
        window.width, window.height, style.max_alpha, workers,
        image, drawing.transmittances, image_gradient, alpha_gradient, gradient_sums,
    )  # fmt: skip
    # 1. project
    pose = np.zeros(workers * POSE_AND_EYE)
    project_backward(
        *splats.arguments(), style.with_depth, style.antialiased, window.camera, workers,
        drawing.records, first_row, gradient_sums, *gradients.arrays(), pose,
    )  # fmt: skip
    return pose.reshape(workers, POSE_AND_EYE).sum(0)
