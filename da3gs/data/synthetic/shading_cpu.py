"""Texture, relief and light of surface points as one compiled loop for the CPU.

Computes what `rendering.radiance_of` computes with tensors (TextureBank.sample, lighting.shade, lighting.haze) point by
point, which saves some hundred passes over memory. Letters: N points, M materials, L lights, W windows.
"""

import math

import numpy as np

from da3gs.compiling import loop

_f = np.float32


@loop
def radiance(
    t, directions, angle, points, frames, uv, material, sky, openness,
    texels, level_start, relief_range, layer, tile, turned, tint, saturation, shine, gloss, relief, emission, blotch,
    waves, lights, glows, ambient_up, ambient_down, air, result,
):  # fmt: skip
    """Linear colour of surface points; points in the sky are left alone.

    Args:
        t, directions, angle: [N], [N, 3], [N] z-depth, ray with unit z in the camera, radians from pixel to pixel.
        points, frames, uv, material, sky, openness: [N, ...] as in `rendering.Hits` and `lighting.visibility`.
        texels ([*, 4] uint8), level_start: The texture bank. layer ... blotch: [M] columns of `Materials`.
        lights: [L, 7] position, colour, 1 for a sun. glows: [W, 10] centre, normal, area, colour.
        air: [5] haze per metre, radius of the ground (0: indoors), colour of the horizon.
        result: [N, 3], written.
    """
    levels = len(level_start)
    one, zero = _f(1.0), _f(0.0)
    for n in range(len(t)):
        if sky[n]:
            continue
        m = material[n]

        # The ray back to the eye, and a pixel's width on the surface.
        dx, dy, dz = directions[n, 0], directions[n, 1], directions[n, 2]
        length = math.sqrt(dx * dx + dy * dy + dz * dz)
        ex, ey, ez = -dx / length, -dy / length, -dz / length
        tangent, bitangent, normal = frames[n, 0], frames[n, 1], frames[n, 2]
        cosine = min(max(normal[0] * ex + normal[1] * ey + normal[2] * ez, _f(0.05)), one)
        footprint = t[n] * angle[n] / math.sqrt(cosine) / tile[m, 0]

        # Texture: four texels of the nearest level.
        u, v = uv[n, 0], uv[n, 1]
        tone = zero
        for w in range(len(waves)):
            tone += math.sin(u * waves[w, 0] + v * waves[w, 1] + _f(m))
        tone = one + _f(1.5) * blotch[m] * tone / _f(len(waves))
        is_turned = turned[m] > _f(0.5)
        if is_turned:
            u, v = v, u
        u, v = u / tile[m, 0], v / tile[m, 1]
        finest = _f(1 << (levels - 1))
        level = round(math.log2(min(max(footprint, _f(1e-6)), one) * finest))
        level = min(max(level, 0), levels - 1)
        size = (1 << (levels - 1)) >> level
        x, y = (u - math.floor(u)) * _f(size) - _f(0.5), (v - math.floor(v)) * _f(size) - _f(0.5)
        column, row = math.floor(x), math.floor(y)
        fx, fy = x - _f(column), y - _f(row)
        wrap = size - 1
        column0, column1, row0, row1 = column & wrap, (column + 1) & wrap, row & wrap, (row + 1) & wrap
        start = level_start[level] + layer[m] * size * size
        a, b = texels[start + row0 * size + column0], texels[start + row0 * size + column1]
        c, d = texels[start + row1 * size + column0], texels[start + row1 * size + column1]
        red = green = blue = zero
        for i in range(3):
            top = _f(a[i]) + (_f(b[i]) - _f(a[i])) * fx
            low = _f(c[i]) + (_f(d[i]) - _f(c[i])) * fx
            display = (top + (low - top) * fy) * _f(1 / 255)
            linear = display * display
            if i == 0:
                red = linear
            elif i == 1:
                green = linear
            else:
                blue = linear
        gray = (red + green + blue) * _f(1 / 3)
        red = min(max((gray + saturation[m] * (red - gray)) * tint[m, 0] * tone, zero), _f(0.95))
        green = min(max((gray + saturation[m] * (green - gray)) * tint[m, 1] * tone, zero), _f(0.95))
        blue = min(max((gray + saturation[m] * (blue - gray)) * tint[m, 2] * tone, zero), _f(0.95))

        # Relief bends the normal.
        ra, rb, rc, rd = _f(a[3]), _f(b[3]), _f(c[3]), _f(d[3])
        unit = _f(size) * relief_range / _f(255.0) * relief[m]
        su = ((rb - ra) * (one - fy) + (rd - rc) * fy) * unit / tile[m, 0]
        sv = ((rc - ra) * (one - fx) + (rd - rb) * fx) * unit / tile[m, 1]
        if is_turned:
            su, sv = sv, su
        su, sv = min(max(su, -one), one), min(max(sv, -one), one)
        nx = normal[0] - su * tangent[0] - sv * bitangent[0]
        ny = normal[1] - su * tangent[1] - sv * bitangent[1]
        nz = normal[2] - su * tangent[2] - sv * bitangent[2]
        inverse = one / max(math.sqrt(nx * nx + ny * ny + nz * nz), _f(1e-12))
        nx, ny, nz = nx * inverse, ny * inverse, nz * inverse

        # Ambient light and windows.
        px, py, pz = points[n, 0], points[n, 1], points[n, 2]
        channels = openness.shape[1]
        contact = _f(0.35) + _f(0.65) * openness[n, channels - 1]
        up = _f(0.5) + _f(0.5) * nz
        lr = (ambient_down[0] + (ambient_up[0] - ambient_down[0]) * up) * contact
        lg = (ambient_down[1] + (ambient_up[1] - ambient_down[1]) * up) * contact
        lb = (ambient_down[2] + (ambient_up[2] - ambient_down[2]) * up) * contact
        for w in range(len(glows)):
            glow = glows[w]
            x, y, z = glow[0] - px, glow[1] - py, glow[2] - pz
            squared = x * x + y * y + z * z
            inverse = one / math.sqrt(squared + _f(1e-4))
            leaving = -(x * glow[3] + y * glow[4] + z * glow[5]) * inverse
            arriving = _f(0.75) * (x * nx + y * ny + z * nz) * inverse + _f(0.25)
            if leaving > zero and arriving > zero:
                strength = glow[6] / (squared + glow[6]) * leaving * arriving * contact
                lr += strength * glow[7]
                lg += strength * glow[8]
                lb += strength * glow[9]

        # Lamps and sun, with a highlight each.
        hr = hg = hb = zero
        for i in range(len(lights)):
            if openness[n, i] <= zero:
                continue
            light = lights[i]
            x, y, z = light[0] - px, light[1] - py, light[2] - pz
            squared = x * x + y * y + z * z
            inverse = one / math.sqrt(squared)
            x, y, z = x * inverse, y * inverse, z * inverse
            facing = x * nx + y * ny + z * nz
            if facing <= zero:
                continue
            arriving = openness[n, i] * (one if light[6] > zero else one / (squared + _f(0.3)))
            lr += light[3] * arriving * facing
            lg += light[4] * arriving * facing
            lb += light[5] * arriving * facing
            x, y, z = x + ex, y + ey, z + ez
            aligned = (x * nx + y * ny + z * nz) / max(math.sqrt(x * x + y * y + z * z), _f(1e-12))
            lobe = arriving * shine[m] * math.exp(math.log(min(max(aligned, _f(1e-4)), one)) * gloss[m])
            hr += light[3] * lobe
            hg += light[4] * lobe
            hb += light[5] * lobe

        # Schlick's rise of reflection at grazing angles, of an even surrounding; emission; haze.
        grazing = one - min(max(nx * ex + ny * ey + nz * ez, zero), one)
        squared = grazing * grazing
        mirror = shine[m] * (_f(0.25) + squared * squared * grazing) * contact
        r = red * (lr + emission[m]) + hr + mirror * ambient_up[0]
        g = green * (lg + emission[m]) + hg + mirror * ambient_up[1]
        bl = blue * (lb + emission[m]) + hb + mirror * ambient_up[2]
        if air[1] > zero:
            distance = t[n] * length
            edge = min(distance / air[1], one)
            edge = edge * edge * edge
            veil = one - (one - edge * edge) * math.exp(-air[0] * distance)
            r, g, bl = r + veil * (air[2] - r), g + veil * (air[3] - g), bl + veil * (air[4] - bl)
        result[n, 0], result[n, 1], result[n, 2] = r, g, bl
