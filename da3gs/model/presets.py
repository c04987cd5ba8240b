"""Every architecture da3gs knows, as frozen dataclasses, and the table of presets.

Architecture is never a flag: name a preset, or bring a configuration in the released format
(`ModelConfig.from_official`).
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from da3gs.errors import InputError

PATCH = 14  # pixels; the released weights know no other patch size
POSITION_GRID = 37  # the stored position table covers 518 x 518 pixels


@dataclass(frozen=True)
class BackboneConfig:
    """A DINOv2-style vision transformer whose later blocks alternate between one view and all views.

    Attributes:
        width: Token dimension C.
        depth: Number of blocks.
        heads: Attention heads; width / heads is the head dimension.
        feed_forward: GELU MLP of hidden width 4C, or SwiGLU of about 8C/3.
        tap_layers: The four blocks whose tokens the heads read.
        cross_view_start: First block after the camera token is written; from here every odd block attends across
        views.
            None: every block sees one view only.
        qk_norm_start: First block that normalises queries and keys; None: none does.
        rope_start: First block with rotary positions; None: none has.
        concat_local: Taps are [last single-view tokens, tokens] (2C) instead of tokens (C).
    """

    width: int
    depth: int
    heads: int
    tap_layers: tuple[int, int, int, int]
    feed_forward: Literal["mlp", "swiglu"] = "mlp"
    cross_view_start: int | None = None
    qk_norm_start: int | None = None
    rope_start: int | None = None
    concat_local: bool = False

    @property
    def tap_width(self) -> int:
        """Channels of one tap, the input of every head."""
        return 2 * self.width if self.concat_local else self.width


@dataclass(frozen=True)
class HeadConfig:
    """A dense-prediction head. `rays`: depth, confidence and a ray map; otherwise depth and a sky score."""

    features: int
    channels: tuple[int, int, int, int]
    rays: bool = True


@dataclass(frozen=True)
class CameraConfig:
    """Camera token encoder (known poses in) and decoder (predicted cameras out). `heads` must divide the width."""

    heads: int = 16
    encoder_depth: int = 4


@dataclass(frozen=True)
class GSHeadConfig:
    """Head of raw Gaussian parameters (38 channels for spherical harmonics of degree 2).

    `residual`: the raw values are corrections of the geometric prior (our heads), instead of the released meaning.
    """

    features: int
    channels: tuple[int, int, int, int]
    sh_degree: int = 2
    residual: bool = False

    @property
    def raw_channels(self) -> int:
        """xy offset 2, scale 3, quaternion 4, colour 3 (d+1)^2, depth offset 1, opacity 1."""
        return 11 + 3 * (self.sh_degree + 1) ** 2


@dataclass(frozen=True)
class ModelConfig:
    """One network.

    Attributes:
        name: Preset name, or the name of a configuration read from a file.
        cameras: None for the single-view depth models.
        metric: Nested models only: the metric-depth network that sets the scale.
        match_layer: Cross-view block whose first attention head was trained to look at the same surface in other views
            (`model.matching`); None: none was.
        size_px: Longest side of the images the weights do best at; the default of `predict`.
        repository: Hub repository of the released weights; None when there is none.
        licence: Licence of the released weights.
    """

    name: str
    backbone: BackboneConfig
    head: HeadConfig
    cameras: CameraConfig | None = None
    gs_head: GSHeadConfig | None = None
    metric: "ModelConfig | None" = None
    match_layer: int | None = None
    size_px: int = 504
    repository: str | None = None
    licence: str = "unknown"

    def __post_init__(self):
        _check(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file header; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Inverse of `to_dict` (lists are taken as tuples)."""
        try:
            fields = dict(values)
            fields["backbone"] = _build(BackboneConfig, fields["backbone"])
            fields["head"] = _build(HeadConfig, fields["head"])
            for key, kind in (("cameras", CameraConfig), ("gs_head", GSHeadConfig)):
                fields[key] = None if fields.get(key) is None else _build(kind, fields[key])
            fields["metric"] = None if fields.get("metric") is None else cls.from_dict(fields["metric"])
            if "match_layer" not in fields and fields.get("name") in PRESETS:  # written before that was recorded
                fields["match_layer"] = PRESETS[fields["name"]].match_layer
            return cls(**fields)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not a model configuration written by da3gs: {error}") from error

    @classmethod
    def from_official(cls, mapping: Mapping[str, Any]) -> "ModelConfig":
        """Read a configuration in the released format, reduced sizes included.

        Args:
            mapping: A hub ``config.json`` (``model_name`` and / or ``config``), the ``config`` block alone (``net``,
                ``head``, ``cam_enc`` ..., or ``anyview`` and ``metric``; ``__object__`` entries are ignored), or
                ``{"preset": name}``.

        Raises:
            InputError: Unknown preset, or a block that is missing or has an unknown form.
        """
        if not isinstance(mapping, Mapping):
            raise InputError(f"a model configuration must be a mapping; got {type(mapping).__name__}")
        has_config = isinstance(mapping.get("config"), Mapping)
        for key in ("preset", "model_name"):
            # The released loader reads `model_name` alone; `config` next to it repeats the same preset.
            if isinstance(mapping.get(key), str):
                try:
                    return preset(mapping[key])
                except InputError:
                    if not has_config:
                        raise
        if has_config:
            return cls.from_official(mapping["config"])
        if "anyview" in mapping:
            return replace(
                cls.from_official(mapping["anyview"]), name="custom-nested", metric=cls.from_official(mapping["metric"])
            )
        if "net" not in mapping or "head" not in mapping:
            raise InputError(
                "a model configuration needs `net` and `head` (or `anyview` and `metric`, or `model_name`); "
                f"got {sorted(mapping)}"
            )
        net, head = mapping["net"], mapping["head"]
        gs_head = mapping.get("gs_head")
        return cls(
            name="custom",
            backbone=_official_backbone(net),
            head=HeadConfig(head["features"], tuple(head["out_channels"]), rays=head.get("output_dim", 2) == 2),
            cameras=CameraConfig() if mapping.get("cam_dec") else None,
            gs_head=GSHeadConfig(gs_head["features"], tuple(gs_head["out_channels"])) if gs_head else None,
        )


# Released transformer sizes by the name used in the released configurations.
_SIZES: dict[str, dict[str, Any]] = {
    "vits": {"width": 384, "depth": 12, "heads": 6},
    "vitb": {"width": 768, "depth": 12, "heads": 12},
    "vitl": {"width": 1024, "depth": 24, "heads": 16},
    "vitg": {"width": 1536, "depth": 40, "heads": 24, "feed_forward": "swiglu"},
}


def _official_backbone(net: Mapping[str, Any]) -> BackboneConfig:
    if net.get("name") in _SIZES and "embed_dim" not in net:
        size = _SIZES[net["name"]]
    elif "embed_dim" in net:
        feed_forward = {"mlp": "mlp", "swiglu": "swiglu", "swiglufused": "swiglu"}.get(net.get("ffn_layer", "mlp"))
        if feed_forward is None:
            raise InputError(f"unknown ffn_layer {net['ffn_layer']!r}; expected mlp, swiglu or swiglufused")
        size = {
            "width": net["embed_dim"],
            "depth": net["depth"],
            "heads": net["num_heads"],
            "feed_forward": feed_forward,
        }
    else:
        raise InputError(f"`net` needs a name of {sorted(_SIZES)} or embed_dim, depth, num_heads; got {sorted(net)}")

    def start(key):  # the released files write -1 for "never"
        value = net.get(key, -1)
        return None if value is None or value < 0 else value

    return BackboneConfig(
        **size,
        tap_layers=tuple(net["out_layers"]),
        cross_view_start=start("alt_start"),
        qk_norm_start=start("qknorm_start"),
        rope_start=start("rope_start"),
        concat_local=bool(net.get("cat_token", True)),
    )


def _build(kind, values):
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _check(config: ModelConfig) -> None:
    backbone = config.backbone
    if backbone.width % backbone.heads or (backbone.width // backbone.heads) % 4:
        raise InputError(
            f"{config.name}: width {backbone.width} over {backbone.heads} heads must give a head dimension that is a "
            "multiple of 4"
        )
    if len(backbone.tap_layers) != 4 or max(backbone.tap_layers) >= backbone.depth:
        raise InputError(f"{config.name}: four tap layers below {backbone.depth} expected; got {backbone.tap_layers}")
    for head in (config.head, config.gs_head):
        if head is not None and (len(head.channels) != 4 or head.features % 8):
            raise InputError(f"{config.name}: a head needs 4 channel widths and features that are a multiple of 8")
    if config.cameras is not None and backbone.width % config.cameras.heads:
        raise InputError(f"{config.name}: {config.cameras.heads} camera heads do not divide the width {backbone.width}")


# ------------------------------------------------------------------------------------------------- the table

_APACHE, _NON_COMMERCIAL = "Apache-2.0", "CC BY-NC 4.0"
_ANY_VIEW_12: dict[str, Any] = {"cross_view_start": 4, "qk_norm_start": 4, "rope_start": 4, "concat_local": True}
_WIDE = (256, 512, 1024, 1024)

_GIANT = ModelConfig(
    name="da3-giant",
    backbone=BackboneConfig(
        **_SIZES["vitg"],
        tap_layers=(19, 27, 33, 39),
        cross_view_start=13,
        qk_norm_start=13,
        rope_start=13,
        concat_local=True,
    ),
    head=HeadConfig(256, _WIDE),
    cameras=CameraConfig(),
    gs_head=GSHeadConfig(256, _WIDE),
    repository="depth-anything/DA3-GIANT",
    licence=_NON_COMMERCIAL,
)
_METRIC = ModelConfig(
    name="da3metric-large",
    backbone=BackboneConfig(**_SIZES["vitl"], tap_layers=(4, 11, 17, 23)),
    head=HeadConfig(256, _WIDE, rays=False),
    repository="depth-anything/DA3METRIC-LARGE",
    licence=_APACHE,
)

PRESETS: dict[str, ModelConfig] = {
    # Our own size, trained from scratch on small pictures; the camera encoder's 6 heads of 32 divide its width.
    "da3-tiny": ModelConfig(
        name="da3-tiny",
        backbone=BackboneConfig(192, 12, 3, (5, 7, 9, 11), **_ANY_VIEW_12),
        head=HeadConfig(32, (24, 48, 96, 192)),
        cameras=CameraConfig(heads=6),
        match_layer=11,
        size_px=196,
        licence=_APACHE,
    ),
    # Its single-view sister, to train teachers with; no weights come with the package.
    "da3mono-tiny": ModelConfig(
        name="da3mono-tiny",
        backbone=BackboneConfig(192, 12, 3, (5, 7, 9, 11)),
        head=HeadConfig(32, (24, 48, 96, 192), rays=False),
        size_px=196,
        licence=_APACHE,
    ),
    "da3-small": ModelConfig(
        name="da3-small",
        backbone=BackboneConfig(**_SIZES["vits"], tap_layers=(5, 7, 9, 11), **_ANY_VIEW_12),
        head=HeadConfig(64, (48, 96, 192, 384)),
        cameras=CameraConfig(),
        repository="depth-anything/DA3-SMALL",
        licence=_APACHE,
    ),
    "da3-base": ModelConfig(
        name="da3-base",
        backbone=BackboneConfig(**_SIZES["vitb"], tap_layers=(5, 7, 9, 11), **_ANY_VIEW_12),
        head=HeadConfig(128, (96, 192, 384, 768)),
        cameras=CameraConfig(),
        repository="depth-anything/DA3-BASE",
        licence=_APACHE,
    ),
    "da3-large": ModelConfig(
        name="da3-large",
        backbone=BackboneConfig(
            **_SIZES["vitl"],
            tap_layers=(11, 15, 19, 23),
            cross_view_start=8,
            qk_norm_start=8,
            rope_start=8,
            concat_local=True,
        ),
        head=HeadConfig(256, _WIDE),
        cameras=CameraConfig(),
        repository="depth-anything/DA3-LARGE",
        licence=_NON_COMMERCIAL,
    ),
    "da3-giant": _GIANT,
    "da3mono-large": replace(_METRIC, name="da3mono-large", repository="depth-anything/DA3MONO-LARGE"),
    "da3metric-large": _METRIC,
    "da3nested-giant-large": replace(
        _GIANT, name="da3nested-giant-large", metric=_METRIC, repository="depth-anything/DA3NESTED-GIANT-LARGE"
    ),
}

# Retrained weights of the same architectures (they supersede the ones above): repository and preset.
HUB_ALIASES: dict[str, tuple[str, str]] = {
    "da3-large-1.1": ("depth-anything/DA3-LARGE-1.1", "da3-large"),
    "da3-giant-1.1": ("depth-anything/DA3-GIANT-1.1", "da3-giant"),
    "da3nested-giant-large-1.1": ("depth-anything/DA3NESTED-GIANT-LARGE-1.1", "da3nested-giant-large"),
}


def known_names() -> list[str]:
    """Every name `preset` accepts, repositories excluded."""
    return [*PRESETS, *HUB_ALIASES]


def preset(name: str) -> ModelConfig:
    """Configuration of a preset, an alias (``da3-large-1.1``) or a hub repository, with its repository filled in.

    Names are compared without regard to case.

    Raises:
        InputError: Unknown name; the message lists the nearest ones.
    """
    wanted = name.strip().lower()
    for alias, (repository, base) in HUB_ALIASES.items():
        if wanted in (alias, repository.lower()):
            return replace(PRESETS[base], repository=repository)
    for key, config in PRESETS.items():
        if wanted == key or (config.repository and wanted == config.repository.lower()):
            return config
    near = difflib.get_close_matches(wanted.rsplit("/", 1)[-1], known_names(), n=3, cutoff=0.5) or known_names()
    raise InputError(f"unknown model {name!r}; did you mean {' or '.join(near)}?")
