"""Constants that the kernels share: blending rules, tiles, and the layout of flat arrays.

Letters: N Gaussians, K channels (1-4: colours, then z-depth if asked), I intersections (Gaussian, tile), W lanes.
"""

import numpy as np

from da3gs.rendering.cpu.lanes import WIDTH

f32 = np.float32

# ---------------------------------------------------------------- blending rules of gsplat
MIN_ALPHA = f32(1.0 / 255.0)  # a splat is not seen at a pixel below it
MIN_TRANSMITTANCE = f32(1e-4)  # the splat that would reach it is left out and ends the pixel
BLUR_PX2 = 0.3  # added to the 2D covariance: the least splat is about a pixel wide
FRUSTUM_MARGIN = 0.15  # of the image size: beyond it the Jacobian is taken at the margin

# ---------------------------------------------------------------- pixels -> blocks -> tiles
# A block is one vector of pixels, as square as the register allows; a tile is a block raster that stays in the L1
# cache.
BLOCK_WIDTH = {16: 4, 8: 4, 4: 2}[WIDTH]
BLOCK_HEIGHT = WIDTH // BLOCK_WIDTH
TILE = 32
BLOCKS_X = TILE // BLOCK_WIDTH
BLOCKS = BLOCKS_X * (TILE // BLOCK_HEIGHT)

# ---------------------------------------------------------------- record of a projected Gaussian: one cache line
# With d = mean - pixel, the exponent of a splat is  log2 exp(-sigma) = A (dx + S dy)^2 + G dy^2  with A, G <= 0. In
# terms of the 2D covariance [[a, b], [b, c]]:  A = -log2(e)/2 c / det,  S = -b / c,  G = -log2(e)/2 / c. Unlike the
# conic form no term cancels another, which keeps needles exact.
RECORD = 16
MEAN_X, MEAN_Y, QUADRATIC_X, SHEAR, QUADRATIC_Y, OPACITY, EXTENT_X, EXTENT_Y, CHANNEL = range(9)
MAX_CHANNELS = 4
FIRST_TILE_X, FIRST_TILE_Y, TILES_ACROSS = range(CHANNEL + MAX_CHANNELS, CHANNEL + MAX_CHANNELS + 3)  # of the tile box
HALF_LOG2_E = f32(0.5 * np.log2(np.e))

# ---------------------------------------------------------------- gradient sums of one intersection
# Sums over its pixels of v = dL/dsigma times 1, t, dy, t^2, t dy, dy^2 with t = dx + S dy; then dL/dchannel.
SUM, SUM_T, SUM_Y, SUM_TT, SUM_TY, SUM_YY, SUM_CHANNEL = range(7)

# ---------------------------------------------------------------- camera vector
# 0-11 the rows of [R | t] of cam_from_world, then:
FOCAL_X, FOCAL_Y, CENTER_X, CENTER_Y, LIMIT_LEFT, LIMIT_RIGHT, LIMIT_TOP, LIMIT_BOTTOM = range(12, 20)
NEAR, FAR, EYE_X, EYE_Y, EYE_Z = range(20, 25)
CAMERA = 25
