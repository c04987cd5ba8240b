"""The error table: what a user did, the command line, and what the one line must say.

Command lines name files of `bad_inputs.build_inputs`.
"""

# ruff: noqa: E501  (a mistake is a line)

import shlex
from dataclasses import dataclass
from typing import Any

from bad_inputs import ctrl_c_in, full_disk, no_room_at_all, unreachable_hub, without_module


@dataclass(frozen=True)
class Row:
    """One mistake.

    Attributes:
        what: In a user's words.
        line: The command line after "da3gs".
        says: Pattern the line must match.
        fault: What the machine does wrong meanwhile, or None.
        status: Exit status.
        leaves: Folders that stay, empty: a run folder is filled over hours and cannot appear at once.
    """

    what: str
    line: str
    says: str
    fault: Any = None
    status: int = 2
    leaves: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.line)


GIVEN = "--depth given --no-video --size 70"  # reconstruction without a network
OURS = "--model model.safetensors --size 70 --no-video"
NETWORK = "--model model.safetensors --size 70"
SMALL = "--model model.safetensors --size 70 --resolution 70"

ROWS = (
    # ------------------------------------------------------------ the command line itself
    Row("unknown command", "reconstrcut photos --output out", r"unknown command 'reconstrcut'; did you mean 'reconstruct'"),
    Row("a file in place of a command", "scene.ply", r"unknown command 'scene.ply'; known commands: demo, "),
    Row("unknown flag", "reconstruct photos --output out --max-gausians 9", r"--max-gausians.*mean '--max-gaussians'"),
    Row("misspelt value", "render scene.ply --output o.mp4 --trajectory orbti", r"--trajectory must be one.*'orbit'\?"),
    Row("a word for a number", "reconstruct photos --output out --size large", r"--size must be a whole number.*'large'"),
    Row("no output", "reconstruct photos", r"missing --output FOLDER"),
    Row("a flag without its value", "convert scene.ply out.ply --sh-degree", r"--sh-degree needs a value"),
    Row("one argument too many", "info scene.ply cut.ply", r"'cut.ply' is one argument too many"),
    Row("unknown flag of doctor", "doctor --offline", r"unknown option '--offline'.*da3gs doctor --help"),
    Row("unknown shell", "completion fish", r"SHELL must be one of bash, zsh, tcsh; got 'fish'"),
    # ------------------------------------------------------------ photographs
    Row("missing folder", f"reconstruct fotos --output out {OURS}", r"fotos does not exist; give a folder"),
    Row("empty folder", f"reconstruct empty --output out {OURS}", r"no images in folder empty \(looked for .jpg"),
    Row("pattern without a match", f"reconstruct 'photos/*.tif' --output out {OURS}", r"photos/\*.tif matches no image"),
    Row("text named .jpg", f"reconstruct photos_text --output out {OURS}", r"0.jpg: not an image.*Dear diary"),
    Row("truncated .jpg", f"reconstruct photos_cut --output out {OURS}", r"0.jpg: truncated or damaged.*copy or export it"),
    Row("icons only", f"reconstruct tiny --output out {OURS}", r"icon.png: 16x16 px is too small.*>= 32"),
    Row("files of a phone", f"reconstruct heic --output out {OURS}", r".heic files, convert them to JPEG"),
    Row("the same name twice", f"reconstruct one.png one.png --output out {OURS}", r"names one.png more than once"),
    Row("splats for photographs", f"reconstruct scene.ply --output out {OURS}", r"holds Gaussians already.*da3gs view"),
    # ------------------------------------------------------------ videos
    Row("truncated .mp4", f"reconstruct cut.mp4 --output out {OURS}", r"cut.mp4: .*(damaged|breaks off)"),
    Row("text named .mp4", f"reconstruct text.mp4 --output out {OURS}", r"text.mp4: .*not a video"),
    Row("--fps for photographs", f"reconstruct photos --output out {OURS} --fps 2", r"fps and frames are for videos"),
    Row("no frames wanted", f"reconstruct clip.mp4 --output out {OURS} --frames 0", r"--frames must be >= 1; got 0"),
    # ------------------------------------------------------------ cameras and depth
    Row("a matrix of 2 rows", f"reconstruct shape --output out {GIVEN}", r"frame 1 \(1.png\): .*4x4.*got shape \(2, 4\)"),
    Row("a scaled pose", f"reconstruct scaled --output out {GIVEN}", r"frame 1 .*is no rotation.*remove scale"),
    Row("a pose with NaN", f"reconstruct nan_pose --output out {GIVEN}", r"frame 1 .*NaN or infinity"),
    Row("no focal length", f"reconstruct no_focal --output out {GIVEN}", r"no focal length; expected fl_x or camera_angle_x"),
    Row("singular intrinsics", f"reconstruct zero_focal --output out {GIVEN}", r"focal length fl_x must be > 0 px; got 0"),
    Row("transforms.json cut off", f"reconstruct not_json --output out {GIVEN}", r"transforms.json is not valid JSON"),
    Row("images moved away", f"reconstruct gone --output out {GIVEN}", r"3 of 3 images do not exist: lost/0.png"),
    Row("depth of NaN", f"reconstruct rgbd_nan --output out {GIVEN}", r"hold no measurement.*check their unit"),
    Row("a picture for depth", f"reconstruct rgbd_8bit_named --output out {GIVEN}", r"1.png: 8-bit images cannot hold depth"),
    Row("depth on its side", f"reconstruct rgbd_turned --output out {GIVEN}", r"depth/1.npy is 98x126 px.*aligned"),
    Row("depth that is not there", f"reconstruct rgbd_no_depth --output out {GIVEN}", r"depth"),
    Row("depth of photographs", f"reconstruct photos --output out {GIVEN}", r"'depth' needs a transforms.json"),
    Row("unknown split", f"reconstruct rgbd --output out {GIVEN} --split tset", r"tset.*train"),
    Row("no camera file", f"reconstruct photos --output out {OURS} --cameras c.json", r"camera file c.json does not exist"),
    Row("cameras of other images", f"reconstruct photos --output out {OURS} --cameras other_cameras.json", r"none of the 3 cameras of other_cameras.json is for any of the 3 images: it names a.png"),
    Row("cameras.json of 2 for 3", f"reconstruct photos --output out {OURS} --cameras fewer_cameras.json", r"none of the 2 cameras.*3 images"),
    Row("one name for two cameras", f"reconstruct photos --output out {OURS} --cameras same_cameras.json", r"0.png.*more than once"),
    Row("singular K", f"reconstruct photos --output out {OURS} --cameras singular_cameras.json", r"view 1 \(1.png\).*(focal|singular|K)"),
    Row("cameras of another shape", f"reconstruct photos --output out {OURS} --cameras tall_cameras.json", r"98x126 px but the image has 126x98"),
    Row("cameras in OpenGL axes", f"reconstruct photos --output out {OURS} --cameras opengl_cameras.json", r"got 'opengl'; convert the poses"),
    Row("--poses-are without poses", f"reconstruct photos --output out {OURS} --poses-are c2w", r"--poses-are needs an input with poses"),
    Row("sfm without pycolmap", f"reconstruct photos --output out {OURS} --find-cameras sfm", r"pip install", without_module("pycolmap")),
    # ------------------------------------------------------------ models
    Row("unknown model", "reconstruct photos --output out --model da3-giantt", r"unknown model 'da3-giantt'; did you mean da3-giant"),
    Row("weights that are not there", "reconstruct photos --output out --model ./my.safetensors", r"my.safetensors do not exist"),
    Row("truncated .safetensors", "reconstruct photos --output out --model cut.safetensors", r"truncated.*download it again"),
    Row("a git-lfs pointer", "reconstruct photos --output out --model lfs.safetensors", r"git-lfs pointer.*git lfs pull"),
    Row("a pickle", "reconstruct photos --output out --model model.pth", r"must be a .safetensors file"),
    Row("released weights without config", "reconstruct photos --output out --model released.safetensors", r"no da3gs header; name a preset"),
    Row("weights of another preset", "reconstruct photos --output out --model other_preset", r"do not fit da3-base: missing"),
    Row("a network for a head", f"reconstruct photos --output out {OURS} --gs-head model.safetensors", r"holds no Gaussian head"),
    Row("hub unreachable", "reconstruct photos --output out --model da3-base", r"hub cannot be reached.*HF_ENDPOINT", unreachable_hub),
    Row("no such device", f"reconstruct photos --output out {OURS} --device tpu", r"--device must be auto, cpu, cuda.*got 'tpu'"),
    # ------------------------------------------------------------ numbers
    Row("no Gaussians wanted", f"reconstruct rgbd --output out {GIVEN} --max-gaussians 0", r"--max-gaussians must be >= 1; got 0"),
    Row("fewer than none", f"reconstruct rgbd --output out {GIVEN} --max-gaussians -5", r"--max-gaussians must be >= 1; got -5"),
    Row("a tiny size", f"reconstruct rgbd --output out {GIVEN} --size 5", r"--size must be >= 14; got 5"),
    Row("no views", f"reconstruct photos --output out {OURS} --max-views 0", r"--max-views must be >= 1; got 0"),
    Row("a border beyond the image", f"reconstruct rgbd --output out {GIVEN} --border 2", r"border.*must lie in"),
    Row("one view for the demo", "demo --output out --views 1", r"--views must be >= 2; got 1"),
    Row("no frames a second", "render scene.ply --output o.mp4 --fps 0", r"--fps must be > 0; got 0"),
    Row("opacity in percent", "convert scene.ply out.ply --min-opacity 50", r"--min-opacity must lie in \[0, 1\]; got 50"),
    Row("a port that cannot be", "view scene.ply --port 70000", r"--port must lie in 1..65535; got 70000"),
    # ------------------------------------------------------------ outputs
    Row("a folder with other things", f"reconstruct rgbd --output foreign {GIVEN}", r"holds other files \(thesis.tex\).*empty folder"),
    Row("that folder, demo", "demo --output foreign --views 2 --no-video", r"foreign.*other files \(thesis.tex\)"),
    Row("that folder, render", "render scene.ply --output foreign --seconds 1", r"foreign holds other files \(thesis.tex\)"),
    Row("a file for a folder", f"reconstruct rgbd --output notes.txt {GIVEN}", r"notes.txt: it is a file, a folder was expected"),
    Row("a folder for a file", "convert scene.ply folder.ply", r"folder.ply: it is a folder"),
    Row("a folder that is not there", f"reconstruct rgbd --output no/out {GIVEN}", r"folder .*no does not exist; create it"),
    Row("a read-only folder", f"reconstruct rgbd --output /sys/kernel/out {GIVEN}", r"cannot write /sys/kernel/out: .*; choose"),
    Row("the same, convert", "convert scene.ply /sys/kernel/out.ply", r"cannot write /sys/kernel/out.ply: .*; choose"),
    Row("the same, render", "render scene.ply --output /sys/kernel/o.png --width 32", r"cannot write /sys/kernel/o.png: .*; choose"),
    Row("the same, demo", "demo --output /sys/kernel/out --views 2", r"cannot write /sys/kernel/out: .*; choose"),
    Row("the same, train", "train smoke_cpu --output /sys/kernel/out", r"/sys/kernel/out: .*choose another folder"),
    Row("a full disk", f"reconstruct rgbd --output out {GIVEN}", r"cannot write .*out/scene.ply: .*; free space", full_disk),
    Row("a full disk, convert", "convert scene.ply out.ply", r"cannot write out.ply: .*; free space", full_disk),
    Row("a full disk, convert onto itself", "convert scene.ply scene.ply --sh-degree 0", r"cannot write scene.ply: .*; free space", full_disk),
    Row("a full disk, picture", "render scene.ply --output o.png --width 320", r"cannot write o.png: .*; free space", full_disk),
    Row("a full disk, clip", "render scene.ply --output o.mp4 --width 320 --seconds 0.3", r"cannot write o.mp4: .*; free space", full_disk),
    Row("a full disk, stills", "render scene.ply --output stills --width 320 --seconds 0.1", r"cannot write stills: .*; free space", full_disk),
    Row("a full disk, demo", "demo --output out --views 2 --no-video", r"cannot write out.*: .*; free space", full_disk),
    Row("a full disk, train", "train smoke_cpu --output run", r"cannot write run.*: .*; free space", no_room_at_all, leaves=("run",)),
    # ------------------------------------------------------------ Gaussian files
    Row("no such file", "info sceen.ply", r"sceen.ply: cannot read the file: No such file"),
    Row("truncated .ply", "info cut.ply", r"cut.ply.*truncated, the header promises 500 vertex rows"),
    Row("truncated .ply, convert", "convert cut.ply out.ply", r"truncated, the header promises 500"),
    Row("truncated .ply, render", "render cut.ply --output o.mp4", r"truncated, the header promises 500"),
    Row("truncated .ply, view", "view cut.ply", r"truncated, the header promises 500"),
    Row("NaN in a .ply", "render nan.ply --output o.mp4", r"nan.ply.*y of vertex 7 is nan"),
    Row("a mesh", "info mesh.ply", r"lacks opacity"),
    Row("an empty scene", "render none.ply --output o.mp4", r"none.ply holds no Gaussians"),
    Row("an empty scene, view", "view none.ply", r"no Gaussians"),
    Row("unknown format", "convert scene.ply out.obj", r"'.obj' is no known format of Gaussians; known suffixes: .ply, .compressed.ply, .spz, .splat"),
    Row("a picture named .spz", "info one.spz", r"one.spz: not a .spz, or damaged"),
    Row("half a .splat", "convert cut.splat out.ply", r"cut.splat: 50 bytes are no whole number of splats of 32"),
    Row("a plain .ply named compressed", "info plain.compressed.ply", r"plain.compressed.ply: not a .compressed.ply, or damaged"),
    Row("SH in a .splat", "convert scene.ply out.splat --sh-degree 2", r"a .splat holds colours of SH degree 0 alone; got degree 2"),
    Row("nothing in a .spz", "convert none.ply out.spz", r"a .spz needs at least one Gaussian"),
    Row("no package for a .spz", "convert scene.ply out.spz", r"pip install 'gsply", without_module("gsply")),
    Row("a folder without a scene", "view photos", r"folder photos has no scene.ply"),
    Row("transform of seven numbers", "convert scene.ply out.ply --transform 1,1,0,0,0,0,0", r"--transform needs scale,qw"),
    # ------------------------------------------------------------ rendering
    Row("unknown kind of clip", "render scene.ply --output o.avi", r".avi is not supported; use .mp4, .gif"),
    Row("an unknown colour", "render scene.ply --output o.mp4 --background pink", r"--background must be black, white"),
    Row("cameras without poses", "render scene.ply --output o.mp4 --cameras unposed.json", r"unposed.json holds intrinsics only"),
    Row("no cameras to follow", "render scene.ply --output o.mp4 --trajectory interpolate", r"interpolate needs --cameras"),
    Row("a photograph for cameras", "render scene.ply --output o.mp4 --cameras one.png", r"one.png is not JSON"),
    # ------------------------------------------------------------ training
    Row("unknown configuration", "train smoke_cup", r"'smoke_cup' is neither a file nor.*did you mean smoke_cpu"),
    Row("unknown key in a file", "train unknown_key.yaml --output run", r"unknown key 'optim.learning_rate'"),
    Row("unknown key as a flag", "train smoke_cpu --optim.lrr 1 --output run", r"unknown key 'optim.lrr'; did you mean 'lr'"),
    Row("a list for a configuration", "train not_a_mapping.yaml", r"not_a_mapping.yaml must hold `key: value` lines"),
    Row("not YAML", "train not_yaml.yaml", r"cannot read not_yaml.yaml as YAML"),
    Row("a word for a rate", "train smoke_cpu --optim.lr fast --output run", r"optim.lr must be a finite number; got 'fast'"),
    Row("no training data", "train gs_head_dl3dv_base --output run --task.model model.safetensors --task.data.folder empty", r"no training scene with a transforms.json under empty"),
    Row("a run without --resume", "train smoke_cpu --output held", r"held holds a run.*add --resume"),
    # ------------------------------------------------------------ refinement
    Row("refining a file", "refine scene.ply --output out", r"scene.ply does not exist|scene.ply .*expected a folder"),
    Row("refining photographs", "refine photos --output out", r"photos has no scene.ply, .*expected a folder written by da3gs"),
    Row("no steps", "refine photos --output out --steps 0", r"--steps must be >= 1; got 0"),
    Row("refining into other things", "refine photos --output foreign", r"foreign holds other files \(thesis.tex\)"),
    # ------------------------------------------------------------ depth
    Row("depth of nothing", f"depth empty --output out {NETWORK}", r"no images in folder empty"),
    Row("depth into other things", f"depth photos --output foreign {NETWORK}", r"foreign holds other files \(thesis.tex\)"),
    Row("depth over a scene", f"depth photos --output held {NETWORK}", r"held holds other files"),
    Row("points of single views", f"depth photos --output out --points --single {NETWORK}", r"--points needs cameras in one frame"),
    Row("an impossible lens", f"depth photos --output out --fov 200 {NETWORK}", r"--fov must lie in 1..170 degrees; got 200"),
    Row("a lens for known cameras", f"depth rgbd --output out --fov 60 {NETWORK}", r"--fov is for pictures without cameras"),
    Row("a full disk, depth", f"depth photos --output out {NETWORK}", r"cannot write .*out.*: .*; free space", full_disk),
    # ------------------------------------------------------------ evaluation
    Row("evaluate without a task", "evaluate rgbd", r"'da3gs evaluate' needs one of nvs, pose, recon, depth; got 'rgbd'"),
    Row("a missing scene", "evaluate nvs fotos", r"fotos does not exist; give a data set with cameras, .* or procedural:4"),
    Row("photographs for a scene", "evaluate pose photos", r"photos holds no scene with cameras"),
    Row("no procedural scenes", "evaluate pose procedural:0", r"at least one procedural scene is needed"),
    Row("a scene without depth", f"evaluate depth rgbd_no_depth {SMALL}", r"none of the 1 scenes.*rgbd_no_depth has no true depth"),
    Row("geometry without depth", f"evaluate recon rgbd_no_depth {SMALL}", r"rgbd_no_depth has no true depth"),
    Row("a scan that is not there", f"evaluate recon rgbd {SMALL} --scan scan.ply", r"points .*rgbd/scan.ply does not exist"),
    Row("a threshold of nothing", f"evaluate recon rgbd {SMALL} --threshold 0", r"threshold must be > 0; got 0"),
    Row("a size in words", "evaluate nvs rgbd --resolution 256*256", r"--resolution must be a longest side .* got '256\*256'"),
    Row("an index that is not there", f"evaluate nvs rgbd {SMALL} --index i.json", r"index file i.json does not exist"),
    Row("cameras for an index", f"evaluate nvs rgbd {SMALL} --index cameras.json", r"cameras.json: scene format needs a list 'context'"),
    Row("too few frames to hold out", f"evaluate nvs rgbd {SMALL} --hold-out 1", r"--hold-out must be >= 2; got 1"),
    Row("an index and a number", f"evaluate nvs rgbd {SMALL} --index index.json --context 2", r"an index file says which frames"),
    Row("LPIPS without its package", f"evaluate nvs rgbd {SMALL} --lpips vgg", r"pip install", without_module("lpips")),
    Row("one view's poses", f"evaluate pose rgbd {SMALL} --max-views 1", r"scene rgbd has 1 view; relative poses need two"),
    Row("depth of no views", f"evaluate depth rgbd {SMALL} --max-views 0", r"--max-views must be >= 1; got 0"),
    Row("that folder, evaluate", f"evaluate depth rgbd {SMALL} --output foreign", r"foreign holds other files \(thesis.tex\)"),
    # ------------------------------------------------------------ Ctrl-C
    Row("Ctrl-C", f"reconstruct rgbd --output out {GIVEN}", r"interrupted", ctrl_c_in("da3gs.export.scene_folder._write_preview"), 130),
    Row("Ctrl-C, render", "render scene.ply --output o.mp4 --width 32", r"interrupted", ctrl_c_in("da3gs.export.video._Encoder.finish"), 130),
    Row("Ctrl-C, demo", "demo --output out --views 2 --no-video", r"interrupted", ctrl_c_in("da3gs.evaluate.demo._write_photos"), 130),
    Row("Ctrl-C, info", "info scene.ply", r"interrupted", ctrl_c_in("da3gs.cli.info.gather_facts"), 130),
)  # fmt: skip
