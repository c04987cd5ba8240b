"""The ray marching of `Ground` and the shell of `Room` as compiled loops for the CPU.

Letters: N rays, W waves, O openings.
"""

import math

import numpy as np

from da3gs.compiling import loop

_f = np.float32


@loop
def _above(x, y, z, amplitude, wave_vector, phase):
    for w in range(len(amplitude)):
        z -= amplitude[w] * math.sin(x * wave_vector[w, 0] + y * wave_vector[w, 1] + phase[w])
    return z


@loop
def march(
    origins, directions, limit, radius, top, fractions, bisections, newton_steps, amplitude, wave_vector, phase, t
):
    """See `Ground._march`; t is written, infinite where the ground is not met."""
    for n in range(len(t)):
        t[n] = _f(np.inf)
        ox, oy, oz = origins[n, 0], origins[n, 1], origins[n, 2]
        dx, dy, dz = directions[n, 0], directions[n, 1], directions[n, 2]
        down = -dz if abs(dz) >= _f(1e-9) else _f(1e-9)
        first, last = (oz - top) / down, (oz + top) / down
        enter = max(min(first, last), _f(0.0))
        farthest = (radius + math.sqrt(ox * ox + oy * oy)) / max(math.sqrt(dx * dx + dy * dy), _f(1e-6))
        leave = min(max(first, last), limit[n], farthest)
        if not leave > enter:
            continue
        low = high = enter
        found = False
        for i in range(1, len(fractions)):
            high = enter + (leave - enter) * fractions[i]
            if _above(ox + high * dx, oy + high * dy, oz + high * dz, amplitude, wave_vector, phase) <= _f(0.0):
                found = True
                break
            low = high
        if not found:
            continue
        for _ in range(bisections):
            middle = _f(0.5) * (low + high)
            if _above(ox + middle * dx, oy + middle * dy, oz + middle * dz, amplitude, wave_vector, phase) <= _f(0.0):
                high = middle
            else:
                low = middle
        root = _f(0.5) * (low + high)
        for _ in range(newton_steps):
            x, y = ox + root * dx, oy + root * dy
            rate = dz
            for w in range(len(amplitude)):
                angle = x * wave_vector[w, 0] + y * wave_vector[w, 1] + phase[w]
                rate -= amplitude[w] * math.cos(angle) * (wave_vector[w, 0] * dx + wave_vector[w, 1] * dy)
            if abs(rate) < _f(1e-3):
                rate = _f(-1e-3)
            step = _above(x, y, oz + root * dz, amplitude, wave_vector, phase) / rate
            root = min(max(root - step, low), high)
        t[n] = root


@loop
def leave(origins, directions, low, high, openings, t, side, open_air):
    """See `Room._leave`."""
    for n in range(len(t)):
        best, face = _f(np.inf), 0
        for axis in range(3):
            d = directions[n, axis]
            if abs(d) < _f(1e-9):
                d = _f(1e-9)
            wall = high[axis] if d > 0 else low[axis]
            here = (wall - origins[n, axis]) / d
            if here < best:
                best, face = here, 2 * axis + (1 if d > 0 else 0)
        t[n], side[n] = best, face
        x, y = origins[n, 0] + best * directions[n, 0], origins[n, 1] + best * directions[n, 1]
        z = origins[n, 2] + best * directions[n, 2]
        along = y if face < 2 else x
        through = False
        for o in range(len(openings)):
            row = openings[o]
            if face == int(row[0]) and row[1] < along < row[2] and row[3] < z < row[4]:
                through = True
        open_air[n] = through
