"""`da3gs convert`: a Gaussian file in another format, frame, SH degree, or with fewer Gaussians; a scene for COLMAP."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from da3gs.cli.console import human_bytes, print_json, print_result
from da3gs.errors import InputError

if TYPE_CHECKING:
    import da3gs.geometry.similarity

TRANSFORM_SYNTAX = "scale,qw,qx,qy,qz,tx,ty,tz or a JSON file with a 4x4 matrix"


@dataclass
class ConvertCommand:
    """Write the Gaussians of one file to another: format, frame, SH degree, or with fewer Gaussians.

    The suffixes choose the formats. The output appears complete or not at all, so naming the input again is safe.

    The folder of a nerfstudio run (methods da3gs and da3gs-splat) can stand for the input; its Gaussians come back to
    the data set's own frame and scale, which ns-export does not do.

    The folder of a scene that da3gs reconstruct wrote can stand for the input too. If the output has no suffix, it
    becomes a COLMAP project: pictures, cameras, and splats as sparse points, for trainers that start from one.

    --transform moves the whole scene by a similarity, x_new = scale * R x + t: eight numbers without spaces
    (scale, unit quaternion wxyz, translation in new units), or a JSON file with the 4x4 matrix [[scale R, t], [0, 1]].
    Shear and mirroring have no exact form in Gaussians with SH and are refused.

    Examples:
      da3gs convert scene.ply small.ply --sh-degree 0 --min-opacity 0.05
      da3gs convert scene.ply scene.spz
      da3gs convert scene.ply viewer.ply --sh-degree 3
      da3gs convert scene.ply y_up.ply --transform 1,0,1,0,0,0,0,0
      da3gs convert scene.ply metric.ply --transform world_from_scene.json
      da3gs convert outputs/fox/da3gs/2025-01-31_120000 fox.ply
      da3gs convert out/ colmap_project/
    """

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    """File to read (.ply, .compressed.ply, .spz, .splat), folder of a scene, or of a nerfstudio run
    (outputs/<experiment>/da3gs/<time>)."""

    output: Annotated[Positional[Path], arg(metavar="OUTPUT")]
    """File to write (.ply, .compressed.ply, .spz, .splat), replaced if it exists; or folder of a COLMAP project."""

    transform: Annotated[str | None, arg(metavar="SIMILARITY")] = None
    """Similarity to move the Gaussians by: scale,qw,qx,qy,qz,tx,ty,tz or a JSON file with a 4x4 matrix."""

    sh_degree: Annotated[Literal[0, 1, 2, 3] | None, arg(metavar="0..3")] = None
    """SH degree of the output: lower drops view-dependent colour, higher pads with zeros. Default: as in the input."""

    min_opacity: Annotated[float, arg(metavar="0..1")] = 0.0
    """Drop Gaussians less opaque than this."""

    json: bool = False
    """Print one JSON object about the result."""

    def run(self) -> int:
        from da3gs.export.colmap_project import holds_scene
        from da3gs.export.gaussian_files import (
            file_comments,
            gaussian_format,
            load_gaussians,
            save_gaussians,
            suffix_of,
        )
        from da3gs.export.nerfstudio_run import RUN_COMMENTS, holds_run, load_run
        from da3gs.export.scene_folder import GAUSSIANS

        # Everything that can be refused is refused before the input, perhaps large, is read.
        is_scene = holds_scene(self.input)
        if is_scene and not self.output.suffix:
            return self._colmap_project()
        source = self.input / GAUSSIANS if is_scene else self.input
        is_run = holds_run(source)
        if not is_run:
            gaussian_format(source)
        gaussian_format(self.output)
        if not 0 <= self.min_opacity <= 1:
            raise InputError(f"--min-opacity must lie in [0, 1]; got {self.min_opacity:g}")
        similarity = None if self.transform is None else parse_similarity(self.transform)
        gaussians = load_run(source) if is_run else load_gaussians(source)
        total = len(gaussians)
        if self.min_opacity > 0 and total:
            highest = float(gaussians.opacities.max())
            gaussians = gaussians[gaussians.opacities >= self.min_opacity]
            if len(gaussians) == 0:
                raise InputError(
                    f"--min-opacity {self.min_opacity:g} would drop all {total} Gaussians; "
                    f"the highest opacity in {source} is {highest:.3g}"
                )
        if similarity is not None:
            gaussians = gaussians.transform(similarity)
        comments = RUN_COMMENTS if is_run else file_comments(source)
        kept = header_to_keep(comments, moved=similarity is not None)
        save_gaussians(gaussians, self.output, sh_degree=self.sh_degree, **kept)
        degree = gaussians.sh_degree if self.sh_degree is None else self.sh_degree
        degree = 0 if suffix_of(self.output) == ".splat" else degree
        size = self.output.stat().st_size
        if self.json:
            print_json(
                {
                    "file": str(self.output),
                    "bytes": size,
                    "count": len(gaussians),
                    "dropped": total - len(gaussians),
                    "sh_degree": degree,
                }
            )
        else:
            dropped = f" ({total - len(gaussians)} dropped)" if len(gaussians) < total else ""
            print_result(f"{self.output}: {len(gaussians)} Gaussians{dropped}, SH degree {degree}, {human_bytes(size)}")
        return 0

    def _colmap_project(self) -> int:
        from da3gs.export.colmap_project import save_colmap_project

        if self.sh_degree is not None or self.min_opacity:
            raise InputError("--sh-degree and --min-opacity are for files of Gaussians; a COLMAP project holds points")
        similarity = None if self.transform is None else parse_similarity(self.transform)
        cameras, points = save_colmap_project(self.input, self.output, similarity=similarity)
        if self.json:
            print_json({"folder": str(self.output), "cameras": cameras, "points": points})
        else:
            print_result(f"{self.output}: {cameras} cameras and {points} points, a COLMAP project")
        return 0


def header_to_keep(comments: tuple[str, ...], *, moved: bool) -> dict:
    """Keyword arguments of `save_gaussians` that carry what the input's comments say over to the output.

    Lines that the writer makes anew are left out. After a transform nothing said about axes can be trusted, so the
    input's own lines stay behind and the frame is named as moved.
    """
    from da3gs.export.ply import ANTIALIASED_COMMENT, DEGREE_COMMENT, FRAME_COMMENT, GENERATOR_COMMENT

    frames = [c.removeprefix(FRAME_COMMENT).strip() for c in comments if c.startswith(FRAME_COMMENT)]
    frame = frames[0] if frames else "as in the source file"
    made_anew = (ANTIALIASED_COMMENT, DEGREE_COMMENT, FRAME_COMMENT, GENERATOR_COMMENT)
    others = tuple(c for c in comments if not c.startswith(made_anew))
    return {
        "antialiased": ANTIALIASED_COMMENT in comments,
        "frame": f"moved by a similarity from: {frame}" if moved else frame,
        "comments": () if moved else others,
    }


def parse_similarity(text: str) -> "da3gs.geometry.similarity.Similarity":
    """The similarity that --transform names; InputError if the text, the file or the matrix is no similarity."""
    from da3gs.geometry.rotations import matrix_from_quat
    from da3gs.geometry.similarity import Similarity

    if "," not in text:
        return _similarity_from_file(Path(text))
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 8:
        raise InputError(f"--transform needs {TRANSFORM_SYNTAX}; got '{text}'")
    import torch

    quat = torch.tensor(numbers[1:5], dtype=torch.float64)
    if not torch.isfinite(quat).all() or not 1e-6 < float(quat.norm()) < 1e6:
        raise InputError(f"--transform: {numbers[1:5]} is not a quaternion (wxyz)")
    return Similarity(numbers[0], matrix_from_quat(quat), numbers[5:8])


def _similarity_from_file(path: Path) -> "da3gs.geometry.similarity.Similarity":
    import torch

    from da3gs.geometry.similarity import Similarity

    try:
        matrix = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--transform: cannot read {path}: {error.strerror or error}; expected {TRANSFORM_SYNTAX}"
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or brackets without end
        raise InputError(f"--transform: {path} is not JSON ({error}); expected {TRANSFORM_SYNTAX}") from error
    is_4x4 = (
        isinstance(matrix, list)
        and len(matrix) == 4
        and all(isinstance(row, list) and len(row) == 4 for row in matrix)
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for row in matrix for value in row)
    )
    if not is_4x4:
        raise InputError(f"--transform: {path} must hold a 4x4 matrix as four lists of four numbers")
    try:
        return Similarity.from_matrix(torch.tensor(matrix, dtype=torch.float64))
    except (InputError, OverflowError, RuntimeError) as error:  # an integer too large for a float64
        raise InputError(f"--transform: {path}: {error}") from error
