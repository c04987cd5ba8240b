"""Sky and sun of a layout."""

import math

from da3gs.data.synthetic.builder import Light, Real, SceneBuilder, Sky

SUN_DISTANCE_M = 80.0


def daylight(b: SceneBuilder, level: Real, azimuth: Real, elevation: Real) -> Sky:
    low_sun = max(0.0, 0.6 - elevation)
    blue = b.between(0.0, 1.0)
    zenith = (0.55 - 0.37 * blue, 0.62 - 0.22 * blue, 0.72 + 0.13 * blue)
    horizon = (0.85 + 0.3 * low_sun, 0.88 - 0.1 * low_sun, 0.95 - 0.4 * low_sun)
    direction = (
        math.cos(elevation) * math.cos(azimuth),
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
    )
    return Sky(
        zenith=tuple(1.25 * level * c for c in zenith),
        horizon=tuple(1.25 * level * c for c in horizon),
        sun_direction=direction,
        sun_color=(1.0, 0.95 - 0.35 * low_sun, 0.86 - 0.7 * low_sun),
        clouds=b.between(0.0, 1.0),
        cloud_shift=(b.rng.random(), b.rng.random()),
        haze=b.between(0.0, 0.004) if b.chance(0.8) else b.between(0.004, 0.02),
    )


def add_sun(b: SceneBuilder, strength: Real, radius: Real) -> None:
    position = tuple(SUN_DISTANCE_M * c for c in b.sky.sun_direction)
    b.lights.append(Light(position, tuple(strength * c for c in b.sky.sun_color), radius, sun=True))
