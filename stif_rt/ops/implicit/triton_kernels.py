"""The two fused passes, as Triton kernels; ``stif_rt.ops.implicit.triton_backend`` launches them.

A program makes one tile of ROWS x COLUMNS output pixels (M together) at one time of one pair. The 256-wide layers are
consumed SLICE columns at a time, so that their activations never are whole in registers. Products take their operands
in the maps' dtype and accumulate in float32 (never tf32); positions, flow, biases and sines are float32.

Layout of a network's parameters, which ``triton_backend.pack`` writes: ``weights`` holds its matrices
[inputs, outputs] one after another in the maps' dtype, ``vectors`` in float32 the first layer's column for the time,
its bias, its two columns for the relative position where it has them, the hidden biases, and the output's bias. The
last layer of few outputs is padded to PADDED; the decoder's is in ``vectors``, row by row, after its bias.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
"""Triton's interpreter knows no inline assembly."""
C = tl.constexpr(64)  # channels
WIDE = tl.constexpr(256)  # width of the last hidden layers
PADDED = tl.constexpr(16)  # outputs of a last layer with few of them: the smallest matrix product
LIMIT = tl.constexpr(1 - 1e-6)  # of normalised coordinates
TWO_PI = tl.constexpr(6.283185307179586)
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to the nearest whole number
ROUND_BITS = tl.constexpr(0x4B400000)  # the same as an integer: whole numbers appear in the lowest bits


@triton.jit
def sine(turns):
    """sin(2 pi turns) by range reduction in turns, then the hardware sine.

    Rounding by two additions, because conversions take the same scarce unit as the sine itself.
    """
    radians = (turns - ((turns + ROUND) - ROUND)) * TWO_PI
    if INTERPRETED:
        result = tl.sin(radians)
    else:
        result = tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [radians], dtype=tl.float32, is_pure=True, pack=1
        )
    return result


@triton.jit
def vector(pointer, SIZE: tl.constexpr):
    return tl.load(pointer + tl.arange(0, SIZE))[None, :]


@triton.jit
def matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr):
    return tl.load(pointer + tl.arange(0, ROWS)[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def multiply_add(x, weight, total):
    return tl.dot(x, weight, total, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def sine_layer(x, weight, bias):
    """sin of a linear layer, in the dtype of x. bias: float32 [1, outputs]."""
    total = tl.broadcast_to(bias, [x.shape[0], weight.shape[1]])
    return sine(multiply_add(x, weight, total)).to(x.dtype)


@triton.jit
def hidden_layers(
    first, weights, vectors, bias, width, OUTPUTS: tl.constexpr, SLICE: tl.constexpr, dtype: tl.constexpr
):
    """From the first layer's sum (in turns): sine layers 64-64-256, then a linear layer to OUTPUTS without a sine.

    first: float32 [M, 64]. weights: its matrices from the second on. vectors: its hidden biases from the second on.
    bias: float32 [1, OUTPUTS], of the last layer. width: always WIDE, passed at run time so that the loop stays rolled
    and fits the instruction cache. Returns float32 [M, OUTPUTS].
    """
    x = sine(first).to(dtype)
    x = sine_layer(x, matrix(weights, C, C, C), vector(vectors, C))
    wide = weights + C * C
    last = wide + C * WIDE
    total = tl.broadcast_to(bias, [first.shape[0], OUTPUTS])
    # Software pipelining: the next slice's sines are computed while the current product runs, on other units. The
    # last round's slice is not used; leaving it out would take a second copy of the code and registers for its weights.
    part = sine_layer(x, matrix(wide, C, SLICE, WIDE), vector(vectors + C, SLICE))
    for start in tl.range(0, width, SLICE):
        ahead = tl.minimum(start + SLICE, WIDE - SLICE)
        following = sine_layer(x, matrix(wide + ahead, C, SLICE, WIDE), vector(vectors + C + ahead, SLICE))
        total = multiply_add(part, matrix(last + start * OUTPUTS, SLICE, OUTPUTS, OUTPUTS), total)
        part = following
    return total


@triton.jit
def bilinear_corner(maps, first_pixel, row, column, share, height, width, CHANNELS: tl.constexpr):
    """One neighbour's part of a bilinear sample: zero outside the map, which is never read there. [M, CHANNELS]."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row = tl.minimum(tl.maximum(row, 0), height - 1)
    column = tl.minimum(tl.maximum(column, 0), width - 1)
    pixel = first_pixel + (row * width + column)
    value = tl.load(maps + pixel[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :])
    return tl.where(inside, share, 0.0)[:, None] * value.to(tl.float32)


@triton.jit
def split_position(position):
    """The whole number below a position (or, for a whole one, possibly the one before), as integer, and the rest."""
    rounded = (position - 0.5) + ROUND
    return rounded.to(tl.int32, bitcast=True) - ROUND_BITS, position - (rounded - ROUND)


@triton.jit
def bilinear(maps, first_pixel, y, x, height, width, CHANNELS: tl.constexpr):
    """Bilinear samples of a map with channels last at positions in pixels, zero outside. float32 [M, CHANNELS].

    first_pixel: int64, where the map begins, in pixels. y, x: float32 [M], finite, less than 2^22.
    """
    row, down = split_position(y)
    column, right = split_position(x)
    sample = bilinear_corner(maps, first_pixel, row, column, (1 - down) * (1 - right), height, width, CHANNELS)
    sample += bilinear_corner(maps, first_pixel, row, column + 1, (1 - down) * right, height, width, CHANNELS)
    sample += bilinear_corner(maps, first_pixel, row + 1, column, down * (1 - right), height, width, CHANNELS)
    sample += bilinear_corner(maps, first_pixel, row + 1, column + 1, down * right, height, width, CHANNELS)
    return sample


@triton.jit
def tile_pixels(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns in the box of this program's pixels, int32 [M], and which exist; the others repeat the last."""
    tiles = tl.cdiv(width, COLUMNS)
    tile = tl.program_id(0)
    pixel = tl.arange(0, ROWS * COLUMNS)
    row = tile // tiles * ROWS + pixel // COLUMNS
    column = tile % tiles * COLUMNS + pixel % COLUMNS
    exists = (row < height) & (column < width)
    return tl.minimum(row, height - 1), tl.minimum(column, width - 1), exists


@triton.jit(do_not_specialize=["times_per_pair", "h", "w", "top", "left", "height", "width", "wide"])
def implicit_kernel(
    located_map,
    tif_map,
    located_weights,
    located_vectors,
    tif_weights,
    tif_vectors,
    times,
    cells_y,
    relative_y,
    positions_y,
    cells_x,
    relative_x,
    positions_x,
    feature,
    flow,
    times_per_pair,
    h,
    w,
    top,
    left,
    height,
    width,
    wide,
    SIF: tl.constexpr,
    TIF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Pass 1: F = SIF(nearest(P), relative position, t), flow = TIF(F, bilinear(P_tif), t).

    located: the network that sees the relative position: SIF, or without SIF ("-s") the one that makes the flow.
    Reads per pixel 128 B of the SIF projection and 512 B of the TIF projection in half precision, nearly all of it from
    the cache; writes 128 B of F and 16 B of flow. Floor: 63 k multiply-adds and 768 sines.
    """
    dtype: tl.constexpr = located_weights.dtype.element_ty
    row, column, exists = tile_pixels(height, width, ROWS, COLUMNS)
    frame = tl.program_id(1).to(tl.int64)
    pair = frame // times_per_pair
    t = tl.load(times + frame)
    y, x = row + top, column + left
    channels = tl.arange(0, C)[None, :]
    out = (frame * height + row) * width + column  # int64

    cell = (pair * h + tl.load(cells_y + y)) * w + tl.load(cells_x + x)
    first = tl.load(located_map + cell[:, None] * C + channels).to(tl.float32)
    first += vector(located_vectors, C) * t + vector(located_vectors + C, C)
    first += tl.load(relative_y + y)[:, None] * vector(located_vectors + 2 * C, C)
    first += tl.load(relative_x + x)[:, None] * vector(located_vectors + 3 * C, C)
    biases = located_vectors + 4 * C
    if SIF:
        sif = hidden_layers(first, located_weights, biases, vector(biases + C + WIDE, C), wide, C, SLICE, dtype).to(
            dtype
        )
        tl.store(feature + out[:, None] * C + channels, sif, mask=exists[:, None])
        if TIF:
            first = bilinear(tif_map, pair * h * w, tl.load(positions_y + y), tl.load(positions_x + x), h, w, C)
            first += vector(tif_vectors, C) * t + vector(tif_vectors + C, C)
            first = multiply_add(sif, matrix(tif_weights, C, C, C), first)
            biases = tif_vectors + 2 * C
            weights = tif_weights + C * C
    else:
        weights = located_weights
    if TIF:
        found = hidden_layers(first, weights, biases, vector(biases + C + WIDE, PADDED), wide, PADDED, SLICE, dtype)
        component = tl.arange(0, PADDED)[None, :]
        tl.store(flow + out[:, None] * 4 + component, found, mask=exists[:, None] & (component < 4))


@triton.jit
def warp(pixel, flow, origin, step):
    """Normalised coordinate that an output pixel reads; NaN becomes -LIMIT."""
    coordinate = origin + step * (pixel.to(tl.float32) + flow)
    coordinate = tl.where(coordinate > -LIMIT, coordinate, -LIMIT)
    return tl.where(coordinate < LIMIT, coordinate, LIMIT)


@triton.jit
def read_position(
    flow, place, row, column, origin_y, step_y, origin_x, step_x, FLOW: tl.constexpr, AGAIN: tl.constexpr
):
    """Normalised coordinates (y, x) to which the flow, or without one the grid, points.

    place: of the flow's x, where y follows. AGAIN: load it once more, so that it does not stay in registers.
    """
    u, v = 0.0, 0.0
    if FLOW:
        u, v = tl.load(flow + place, volatile=AGAIN), tl.load(flow + place + 1, volatile=AGAIN)
    return warp(row, v, origin_y, step_y), warp(column, u, origin_x, step_x)


@triton.jit
def to_pixels(coordinate, size):
    return ((coordinate + 1) * size - 1) / 2


@triton.jit
def bilinear_colour(image, y, x, h, w):
    """One channel of a frame [h, w, 3], bilinear with the border repeated. float32 [M]."""
    row, down = split_position(tl.minimum(tl.maximum(y, 0.0), h - 1.0))
    column, right = split_position(tl.minimum(tl.maximum(x, 0.0), w - 1.0))
    top, bottom = tl.maximum(row, 0) * w, tl.minimum(row + 1, h - 1) * w
    left, beyond = tl.maximum(column, 0), tl.minimum(column + 1, w - 1)
    upper = tl.load(image + (top + left) * 3) * (1 - right) + tl.load(image + (top + beyond) * 3) * right
    lower = tl.load(image + (bottom + left) * 3) * (1 - right) + tl.load(image + (bottom + beyond) * 3) * right
    return upper * (1 - down) + lower * down


@triton.jit(
    do_not_specialize=[
        *("times_per_pair", "h", "w", "H", "W", "top", "left", "height", "width"),
        *("box_top", "box_left", "box_height", "box_width", "wide"),
    ]
)
def decode_kernel(
    feature,
    decoder_map0,
    decoder_map1,
    frames,
    flow,
    weights,
    vectors,
    times,
    out,
    times_per_pair,
    h,
    w,
    H,
    W,
    top,
    left,
    height,
    width,
    box_top,
    box_left,
    box_height,
    box_width,
    origin_y,
    step_y,
    origin_x,
    step_x,
    wide,
    FEATURE: tl.constexpr,
    FLOW: tl.constexpr,
    AGGREGATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLICE: tl.constexpr,
):
    """Pass 2: rgb = decoder(F(p0), F(p1), P_0(p0), P_1(p1), t) at the positions p0, p1 to which the flow points.

    Reads per pixel 16 B of flow and, nearly all of it from the cache, 2 kB of F and the projections in half precision;
    writes 12 B, planar float32, or 3 B, interleaved uint8, by the dtype of ``out``. Floor: 95 k multiply-adds and 640
    sines.
    """
    dtype: tl.constexpr = weights.dtype.element_ty
    row, column, exists = tile_pixels(height, width, ROWS, COLUMNS)
    frame = tl.program_id(1).to(tl.int64)
    pair = frame // times_per_pair
    t = tl.load(times + frame)
    pixel = (frame * height + row) * width + column  # int64

    first = tl.broadcast_to(vector(vectors, C) * t + vector(vectors + C, C), [ROWS * COLUMNS, C])
    for k in tl.static_range(2):
        place = pixel * 4 + 2 * k
        y, x = read_position(flow, place, row + top, column + left, origin_y, step_y, origin_x, step_x, FLOW, False)
        if FEATURE:
            rows, columns = to_pixels(y, H) - box_top, to_pixels(x, W) - box_left
            sample = bilinear(feature, frame * box_height * box_width, rows, columns, box_height, box_width, C)
            first = multiply_add(sample.to(dtype), matrix(weights + k * C * C, C, C, C), first)
        if AGGREGATION:
            maps = decoder_map1 if k else decoder_map0
            first += bilinear(maps, pair * h * w, to_pixels(y, h), to_pixels(x, w), h, w, C)

    matrices = weights + (2 * C * C if FEATURE else 0)
    biases = vectors + 2 * C
    bias = vector(biases + C + WIDE, WIDE)
    last = sine(hidden_layers(first, matrices, biases, bias, wide, WIDE, SLICE, dtype))

    channel = tl.arange(0, PADDED)[None, :]
    rgb = tl.broadcast_to(vector(biases + C + 2 * WIDE, PADDED), [ROWS * COLUMNS, PADDED])
    output = biases + C + 2 * WIDE + PADDED  # three outputs are too few for a matrix product
    for k in tl.static_range(3):
        colour = tl.sum(last * vector(output + k * WIDE, WIDE), 1)
        rgb += tl.where(channel == k, colour[:, None], 0.0)

    if RESIDUAL:
        # Last, and from a flow read again, so that nothing of it takes registers from the network.
        for k in tl.static_range(2):
            place = pixel * 4 + 2 * k
            y, x = read_position(flow, place, row + top, column + left, origin_y, step_y, origin_x, step_x, FLOW, True)
            rows, columns = to_pixels(y, h), to_pixels(x, w)
            image = frames + (pair * 2 + k) * h * w * 3
            share = t if k else 1 - t
            for n in tl.static_range(3):
                colour = share * bilinear_colour(image + n, rows, columns, h, w)
                rgb += tl.where(channel == n, colour[:, None], 0.0)

    wanted = exists[:, None] & (channel < 3)
    if out.dtype.element_ty == tl.uint8:
        level = tl.where(rgb > 0, tl.minimum(rgb, 1.0), 0.0) * 255 + ROUND
        level = (level.to(tl.int32, bitcast=True) - ROUND_BITS).to(tl.uint8)
        tl.store(out + pixel[:, None] * 3 + channel, level, mask=wanted)
    else:
        plane = height * width
        tl.store(out + (pixel + 2 * frame * plane)[:, None] + channel * plane, rgb, mask=wanted)
