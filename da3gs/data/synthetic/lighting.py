"""Light at surface points: lamps and sun with soft shadows, windows, sky and bounce, contact shade, highlights, haze.

Points come in the tracer's groups, [G, R]; colours are linear radiance, 1 being white paper under unit light.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from da3gs.data.synthetic.backdrops import Ground
from da3gs.data.synthetic.builder import SyntheticScene

# Surfaces closer than this darken each other (contact shade), in metres.
_CONTACT_M = 0.3
_OFFSET_M = 2e-3

# Nine places on a light's face, one for each pixel of a 3 x 3 block: the block's mean is a soft shadow.
_SPOTS = (
    (0.0, 0.0), (0.9, 0.1), (-0.5, 0.75), (-0.6, -0.65), (0.35, -0.9),
    (0.45, 0.35), (-0.35, 0.2), (0.1, -0.45), (-0.95, 0.05),
)  # fmt: skip


def visibility(
    scene: SyntheticScene, points: Float[Tensor, "G 3 R"], normals: Float[Tensor, "G 3 R"], spot: Int64[Tensor, "G R"]
) -> Float[Tensor, "G C R"]:
    """How open each point lies: one channel per light (0 or 1), and last the contact shade in [0, 1].

    Args:
        spot: Which of the nine places on each light's face the shadow ray goes to.
    """
    raised = points + _OFFSET_M * normals
    places = points.new_tensor(_SPOTS)[spot]
    channels = []
    for light in scene.lights:
        center = points.new_tensor(light.position)
        across = torch.nn.functional.normalize(torch.linalg.cross(center, center.new_tensor([0.31, 0.95, 0.05])), dim=0)
        upward = torch.nn.functional.normalize(torch.linalg.cross(across, center), dim=0)
        offset = light.radius * (places[..., :1] * across + places[..., 1:] * upward)
        target = center[:, None] + offset.transpose(1, 2)
        open_way = ~scene.solids.blocked(raised, target, light.radius)
        if light.sun and scene.indoors:
            rays = (target - raised).transpose(1, 2).reshape(-1, 3)
            through = scene.backdrop.lets_through(raised.transpose(1, 2).reshape(-1, 3), rays)
            open_way &= through.view(open_way.shape)
        channels.append(open_way.to(points))
    channels.append(_contact_shade(scene, points, normals))
    return torch.stack(channels, 1)


def _contact_shade(scene: SyntheticScene, points: Tensor, normals: Tensor) -> Tensor:
    """Clearance of the point raised along its normal, relative to the height: 1 in the open, less in corners."""
    raised = points + _CONTACT_M * normals
    free = scene.solids.clearance(raised, _CONTACT_M)
    around = scene.backdrop.clearance(raised.transpose(1, 2).reshape(-1, 3)).view(free.shape)
    nearest = torch.minimum(free, around.clamp(max=_CONTACT_M))
    return (nearest / _CONTACT_M).clamp(0.0, 1.0)


def shade(
    scene: SyntheticScene,
    points: Float[Tensor, "N 3"],
    normals: Float[Tensor, "N 3"],
    toward_eye: Float[Tensor, "N 3"],
    albedo: Float[Tensor, "N 3"],
    material: Int64[Tensor, " N"],
    openness: Float[Tensor, "N C"],
) -> Float[Tensor, "N 3"]:
    """Outgoing radiance: Lambert plus a Blinn-Phong highlight for each light, ambient light, and emission.

    Args:
        normals: Unit, with the relief of the texture.
        openness: As from `visibility`.
    """
    shine, gloss = scene.materials.shine[material], scene.materials.gloss[material]
    contact = 0.35 + 0.65 * openness[:, -1:]
    up_share = 0.5 + 0.5 * normals[:, 2:]
    above, below = points.new_tensor(scene.ambient_up), points.new_tensor(scene.ambient_down)
    light = (below + (above - below) * up_share) * contact
    for glow in scene.glows:
        light = light + _glow(glow, points, normals) * contact
    highlight = torch.zeros_like(albedo)
    for index, lamp in enumerate(scene.lights):
        to_light = points.new_tensor(lamp.position) - points
        squared = to_light.square().sum(-1, keepdim=True)
        to_light = to_light * squared.rsqrt()
        fall_off = 1.0 if lamp.sun else 1.0 / (squared + 0.3)
        facing = (normals * to_light).sum(-1, keepdim=True).clamp_min(0)
        arriving = points.new_tensor(lamp.color) * (fall_off * openness[:, index : index + 1])
        light = light + arriving * facing
        half_way = torch.nn.functional.normalize(to_light + toward_eye, dim=-1)
        aligned = (half_way * normals).sum(-1).clamp(0, 1)
        lobe = shine * (aligned.clamp_min(1e-4).log() * gloss).exp() * (facing[:, 0] > 0)
        highlight = highlight + arriving * lobe[:, None]
    # Schlick's rise of reflection at grazing angles, of an even surrounding.
    grazing = (1 - (normals * toward_eye).sum(-1).clamp(0, 1)) ** 5
    mirror = (0.25 * shine + shine * grazing)[:, None] * above * contact
    return albedo * light + highlight + mirror + albedo * scene.materials.emission[material][:, None]


def _glow(glow, points: Tensor, normals: Tensor) -> Tensor:
    """Irradiance from a rectangle as from a Lambertian patch at its centre, softened by its own size."""
    to_center = points.new_tensor(glow.center) - points
    squared = to_center.square().sum(-1, keepdim=True)
    direction = to_center * (squared + 1e-4).rsqrt()
    leaving = -(direction @ points.new_tensor(glow.normal))[:, None]
    arriving = 0.75 * (normals * direction).sum(-1, keepdim=True) + 0.25
    strength = glow.area / (squared + glow.area) * leaving.clamp_min(0) * arriving.clamp_min(0)
    return strength * points.new_tensor(glow.color)


def sky_radiance(scene: SyntheticScene, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """The sky: a gradient, clouds from a noise texture on a plane overhead, a glow around the sun."""
    sky = scene.sky
    unit = torch.nn.functional.normalize(directions, dim=-1)
    up = unit[:, 2].clamp_min(0)
    zenith, horizon = unit.new_tensor(sky.zenith), unit.new_tensor(sky.horizon)
    color = horizon + (zenith - horizon) * (1 - (1 - up) ** 3)[:, None]
    if sky.clouds > 0.1:
        across = unit[:, :2] / (up + 0.12)[:, None]
        density = sum(
            weight * torch.sin(across @ across.new_tensor(wave) + phase)
            for weight, wave, phase in _cloud_waves(sky.cloud_shift)
        )
        cover = torch.sigmoid(3.0 * density + 5.0 * (sky.clouds - 0.7)) * (up * 6).clamp(max=1)
        color = color + cover[:, None] * (1.15 * horizon - color)
    toward_sun = (unit @ unit.new_tensor(sky.sun_direction)).clamp(0, 1)
    brightness = max(sky.zenith)
    glow = brightness * (0.35 * toward_sun**8 + 6.0 * toward_sun**900)
    return color + glow[:, None] * unit.new_tensor(sky.sun_color)


def _cloud_waves(shift: tuple[float, float]):
    """Six sine waves with a falling spectrum; their phases come from the shift."""
    for octave in range(6):
        frequency = 1.1 * 1.75**octave
        turn = 2.4 * octave + 6.3 * shift[0]
        yield 0.75**octave, (frequency * math.cos(turn), frequency * math.sin(turn)), 40.0 * shift[1] * (octave + 1)


def haze(scene: SyntheticScene, color: Float[Tensor, "N 3"], distance: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """Air light in the open: distant surfaces fade into the horizon; complete at the edge of the ground."""
    if not isinstance(scene.backdrop, Ground):
        return color
    edge = (distance / scene.backdrop.radius).clamp(max=1.0) ** 6
    veil = 1 - (1 - edge) * torch.exp(-scene.sky.haze * distance)
    return color + veil[:, None] * (color.new_tensor(scene.sky.horizon) - color)
