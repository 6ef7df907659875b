"""The two fused passes, as Triton kernels; ``stif_rt.ops.implicit.triton_backend`` launches them.

A program makes one tile of ROWS x COLUMNS output pixels (M together) at one time of one pair. A SIREN's first layer has
64 sines; PLAIN layers of 64 follow, then one of WIDE sines and one of LAST, either of which may be missing (0). The
wide one is consumed BLOCK_K columns at a time, so that its activations never are whole in registers. Products take
their operands in the maps' dtype and accumulate in float32 (never tf32); positions, flow, biases and sines are float32.

Layout of a network's parameters, which ``triton_backend.pack`` writes: ``weights`` holds its matrices
[inputs, outputs] one after another in the maps' dtype, ``vectors`` in float32 the first layer's columns for the time
and for the size of a pixel, its bias, its two columns for the relative position where it has them, the hidden biases,
and the output's bias. A layer of 192 is padded to 256, an output of few channels to OUT_PADDED; of a decoder with a
LAST layer the output's matrix is in ``vectors``, row by row, after its bias.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
"""Triton's interpreter knows no inline assembly."""
C = tl.constexpr(64)  # channels
OUT_PADDED = tl.constexpr(16)  # outputs of a last layer with few of them: the smallest matrix product
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
    """SIZE numbers from memory, [1, SIZE]."""
    return tl.load(pointer + tl.arange(0, SIZE))[None, :]


@triton.jit
def matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr):
    """A matrix from memory, [ROWS, COLUMNS], whose rows lie STRIDE numbers apart."""
    return tl.load(pointer + tl.arange(0, ROWS)[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def multiply_add(x, weight, total):
    """x [M, K] times weight [K, N], plus total, float32 [M, N]."""
    return tl.dot(x, weight, total, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def sine_layer(x, weight, bias):
    """sin of a linear layer, in the dtype of x. bias: float32 [1, outputs]."""
    total = tl.broadcast_to(bias, [x.shape[0], weight.shape[1]])
    return sine(multiply_add(x, weight, total)).to(x.dtype)


@triton.jit
def first_bias(vectors, t, pixel_size):
    """The constant that the first layer adds at every pixel. float32 [1, 64]."""
    return vector(vectors, C) * t + vector(vectors + C, C) * pixel_size + vector(vectors + 2 * C, C)


@triton.jit
def wide_layer(x, weights, vectors, bias, width, OUTPUTS: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr):
    """A sine layer from 64 to WIDE, then a linear layer to OUTPUTS without a sine. float32 [M, OUTPUTS].

    x: [M, 64]. weights: both matrices. vectors: the sine layer's bias. bias: float32 [1, OUTPUTS]. width: always WIDE,
    passed at run time, because the compiler would unroll the loop beyond the instruction cache.
    """
    last = weights + C * WIDE
    total = tl.broadcast_to(bias, [x.shape[0], OUTPUTS])
    # Software pipelining: a slice's sines are computed while the product of the slice before runs on another unit. The
    # slice made in the last round is not used; leaving it out would take a second copy of the code, and registers.
    block = sine_layer(x, matrix(weights, C, BLOCK_K, WIDE), vector(vectors, BLOCK_K))
    for start in tl.range(0, width, BLOCK_K):
        ahead = tl.minimum(start + BLOCK_K, WIDE - BLOCK_K)
        following = sine_layer(x, matrix(weights + ahead, C, BLOCK_K, WIDE), vector(vectors + ahead, BLOCK_K))
        total = multiply_add(block, matrix(last + start * OUTPUTS, BLOCK_K, OUTPUTS, OUTPUTS), total)
        block = following
    return total


@triton.jit
def hidden_layers(
    preact,
    weights,
    vectors,
    width,
    OUTPUTS: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    dtype: tl.constexpr,
):
    """From the first layer's pre-activation (in turns): PLAIN and WIDE sine layers, then a linear layer to OUTPUTS.

    preact: float32 [M, 64]. weights: the matrices from the second layer on. vectors: the biases from the second layer
    on, that of OUTPUTS included. width: see ``wide_layer``. Returns float32 [M, OUTPUTS].
    """
    x = sine(preact).to(dtype)
    for n in tl.static_range(PLAIN):
        x = sine_layer(x, matrix(weights + n * C * C, C, C, C), vector(vectors + n * C, C))
    weights += PLAIN * C * C
    vectors += PLAIN * C
    bias = vector(vectors + WIDE, OUTPUTS)
    if WIDE > 0:
        total = wide_layer(x, weights, vectors, bias, width, OUTPUTS, WIDE, BLOCK_K)
    else:
        total = multiply_add(x, matrix(weights, C, OUTPUTS, OUTPUTS), tl.broadcast_to(bias, [preact.shape[0], OUTPUTS]))
    return total


@triton.jit
def bilinear_corner(maps, first_pixel, row, column, weight, height, width, CHANNELS: tl.constexpr):
    """One neighbour's part of a bilinear sample: zero outside the map, which is never read there. [M, CHANNELS]."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row = tl.minimum(tl.maximum(row, 0), height - 1)
    column = tl.minimum(tl.maximum(column, 0), width - 1)
    pixel = first_pixel + (row * width + column)
    value = tl.load(maps + pixel[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :])
    return tl.where(inside, weight, 0.0)[:, None] * value.to(tl.float32)


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


@triton.jit
def velocity_at(velocity, first_pixel, y, x, height, width):
    """Bilinear sample (x, y) of a velocity [height, width, 2] with the border repeated. float32 [M] each."""
    row, down = split_position(tl.minimum(tl.maximum(y, 0.0), height - 1.0))
    column, right = split_position(tl.minimum(tl.maximum(x, 0.0), width - 1.0))
    # the four neighbours' two components side by side: [M, 8]
    lane = tl.arange(0, 8)[None, :]
    lower, beyond, component = lane // 4, lane // 2 % 2, lane % 2
    row = tl.minimum(tl.maximum(row[:, None] + lower, 0), height - 1)
    column = tl.minimum(tl.maximum(column[:, None] + beyond, 0), width - 1)
    weight = tl.where(lower == 1, down[:, None], 1 - down[:, None])
    weight *= tl.where(beyond == 1, right[:, None], 1 - right[:, None])
    value = weight * tl.load(velocity + (first_pixel + (row * width + column)) * 2 + component)
    return tl.sum(tl.where(component == 0, value, 0.0), 1), tl.sum(tl.where(component == 1, value, 0.0), 1)


@triton.jit(do_not_specialize=["times_per_pair", "h", "w", "top", "left", "height", "width", "sif_wide", "tif_wide"])
def implicit_kernel(
    nearest_map_ptr,
    bilinear_map_ptr,
    velocity_ptr,
    entry_weights_ptr,
    entry_vectors_ptr,
    tif_weights_ptr,
    tif_vectors_ptr,
    times_ptr,
    nearest_index_y_ptr,
    cell_offset_y_ptr,
    source_coords_y_ptr,
    nearest_index_x_ptr,
    cell_offset_x_ptr,
    source_coords_x_ptr,
    feature_ptr,
    flow_ptr,
    times_per_pair,
    h,
    w,
    top,
    left,
    height,
    width,
    pixel_size,
    unit_y,
    unit_x,
    stride,
    scale_y,
    scale_x,
    sif_wide,
    tif_wide,
    SIF: tl.constexpr,
    GIVEN: tl.constexpr,
    TIF: tl.constexpr,
    VELOCITY: tl.constexpr,
    SIF_PLAIN: tl.constexpr,
    SIF_WIDE: tl.constexpr,
    TIF_PLAIN: tl.constexpr,
    TIF_WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Pass 1: F = SIF(nearest(P), relative position, t), flow = TIF(F, bilinear(P_tif), t) + the velocity's flow.

    The velocity's flow at time t is (-t V, (1 - t) V) with V = v(x - (t - 1/2) v(x)). SIF: F is computed. GIVEN: F
    [pairs, height, width, 64] is read instead. Neither ("-s"): TIF sees the relative position itself.
    entry: the network that sees the relative position. h, w: cells of the maps and of the velocity. stride: pixels of
    the frames in a cell. unit: what TIF counts in, and scale: an input pixel, both in output pixels.
    Reads per pixel 128 B of the SIF projection and 512 B of the TIF projection in half precision, nearly all of it from
    the cache; writes 128 B of F and 16 B of flow. Floor with the paper's widths: 63 k multiply-adds and 768 sines.
    """
    dtype: tl.constexpr = entry_weights_ptr.dtype.element_ty
    row, column, exists = tile_pixels(height, width, ROWS, COLUMNS)
    frame = tl.program_id(1).to(tl.int64)
    pair = frame // times_per_pair
    t = tl.load(times_ptr + frame)
    y, x = row + top, column + left
    channels = tl.arange(0, C)[None, :]
    out = (frame * height + row) * width + column  # int64

    if GIVEN:
        given = (pair * height + row) * width + column
        sif = tl.load(feature_ptr + given[:, None] * C + channels)
    else:
        cell = (pair * h + tl.load(nearest_index_y_ptr + y)) * w + tl.load(nearest_index_x_ptr + x)
        preact = tl.load(nearest_map_ptr + cell[:, None] * C + channels).to(tl.float32)
        preact += first_bias(entry_vectors_ptr, t, pixel_size)
        preact += tl.load(cell_offset_y_ptr + y)[:, None] * vector(entry_vectors_ptr + 3 * C, C)
        preact += tl.load(cell_offset_x_ptr + x)[:, None] * vector(entry_vectors_ptr + 4 * C, C)
    weights, biases = entry_weights_ptr, entry_vectors_ptr + 5 * C
    if SIF:
        sif = hidden_layers(preact, weights, biases, sif_wide, C, SIF_PLAIN, SIF_WIDE, BLOCK_K, dtype).to(dtype)
        tl.store(feature_ptr + out[:, None] * C + channels, sif, mask=exists[:, None])
    if TIF:
        if SIF or GIVEN:
            preact = bilinear(
                bilinear_map_ptr,
                pair * h * w,
                tl.load(source_coords_y_ptr + y),
                tl.load(source_coords_x_ptr + x),
                h,
                w,
                C,
            )
            preact += first_bias(tif_vectors_ptr, t, pixel_size)
            preact = multiply_add(sif, matrix(tif_weights_ptr, C, C, C), preact)
            weights, biases = tif_weights_ptr + C * C, tif_vectors_ptr + 3 * C
        counted = hidden_layers(preact, weights, biases, tif_wide, OUT_PADDED, TIF_PLAIN, TIF_WIDE, BLOCK_K, dtype)
        component = tl.arange(0, OUT_PADDED)[None, :]
        counted *= tl.where(component % 2 == 0, unit_x, unit_y)
        if VELOCITY:
            back = (t - 0.5) / stride
            near_y, near_x = tl.load(source_coords_y_ptr + y), tl.load(source_coords_x_ptr + x)
            u, v = velocity_at(velocity_ptr, pair * h * w, near_y, near_x, h, w)
            u, v = velocity_at(velocity_ptr, pair * h * w, near_y - back * v, near_x - back * u, h, w)
            moved = tl.where(component % 2 == 0, (u * scale_x)[:, None], (v * scale_y)[:, None])
            counted += tl.where(component < 2, -t, 1 - t) * moved
        tl.store(flow_ptr + out[:, None] * 4 + component, counted, mask=exists[:, None] & (component < 4))


@triton.jit
def warp(pixel, flow, origin, step):
    """Normalised coordinate that an output pixel reads; NaN becomes -LIMIT."""
    coordinate = origin + step * (pixel.to(tl.float32) + flow)
    coordinate = tl.where(coordinate > -LIMIT, coordinate, -LIMIT)
    return tl.where(coordinate < LIMIT, coordinate, LIMIT)


@triton.jit
def read_position(
    flow, flow_offset, row, column, origin_y, step_y, origin_x, step_x, FLOW: tl.constexpr, RELOAD: tl.constexpr
):
    """Normalised coordinates (y, x) to which the flow, or without one the grid, points.

    flow_offset: of the flow's x, where y follows. RELOAD: a volatile load, so that the flow does not stay in registers.
    """
    u, v = 0.0, 0.0
    if FLOW:
        u, v = tl.load(flow + flow_offset, volatile=RELOAD), tl.load(flow + flow_offset + 1, volatile=RELOAD)
    return warp(row, v, origin_y, step_y), warp(column, u, origin_x, step_x)


@triton.jit
def to_pixels(coordinate, size):
    """A normalised coordinate in pixels of a map that has ``size`` of them from edge to edge."""
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


@triton.jit
def cubic_weight(distance):
    """Keys' cubic convolution kernel with a = -3/4, for distances in [0, 2]."""
    near = (1.25 * distance - 2.25) * distance * distance + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    return tl.where(distance <= 1, near, far)


@triton.jit
def cubic_taps(y, x, h, w):
    """The sixteen neighbours of positions in a frame [h, w] with the border repeated: pixels and weights, [M, 16]."""
    row, down = split_position(y)
    column, right = split_position(x)
    tap = tl.arange(0, 16)[None, :]
    i, j = tap // 4 - 1, tap % 4 - 1
    weight = cubic_weight(tl.abs(down[:, None] - i)) * cubic_weight(tl.abs(right[:, None] - j))
    row = tl.minimum(tl.maximum(row[:, None] + i, 0), h - 1)
    column = tl.minimum(tl.maximum(column[:, None] + j, 0), w - 1)
    return row * w + column, weight


@triton.jit(
    do_not_specialize=[
        *("times_per_pair", "features_per_pair", "h", "w", "frame_h", "frame_w", "H", "W", "top", "left", "height"),
        *("width", "box_top", "box_left", "box_height", "box_width", "wide"),
    ]
)
def decode_kernel(
    feature_ptr,
    decoder_map0_ptr,
    decoder_map1_ptr,
    frames_ptr,
    flow_ptr,
    weights_ptr,
    vectors_ptr,
    times_ptr,
    out_ptr,
    times_per_pair,
    features_per_pair,
    h,
    w,
    extent_y,
    extent_x,
    frame_h,
    frame_w,
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
    pixel_size,
    wide,
    FEATURE: tl.constexpr,
    FLOW: tl.constexpr,
    AGGREGATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BICUBIC: tl.constexpr,
    BLEND: tl.constexpr,
    PLAIN: tl.constexpr,
    WIDE: tl.constexpr,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Pass 2: rgb = decoder(F(p0), F(p1), P_0(p0), P_1(p1), t) + s frame0(p0) + (1 - s) frame1(p1), where p0 and p1 are
    the positions to which the flow points, and s = 1 - t, or with BLEND and m the decoder's fourth output
    s = (1 - t) / (1 - t + t exp(-2 m)).

    features_per_pair: times of F, 1 where it does not depend on the time. h, w: cells of the maps, of which extent lie
    from edge to edge of the frames.
    Reads per pixel 16 B of flow and, nearly all of it from the cache, 2 kB of F and the projections in half precision;
    writes 12 B, planar float32, or 3 B, interleaved uint8, by the dtype of ``out``. Floor with the paper's widths: 95 k
    multiply-adds and 640 sines.
    """
    dtype: tl.constexpr = weights_ptr.dtype.element_ty
    row, column, exists = tile_pixels(height, width, ROWS, COLUMNS)
    frame = tl.program_id(1).to(tl.int64)
    pair = frame // times_per_pair
    t = tl.load(times_ptr + frame)
    pixel = (frame * height + row) * width + column  # int64

    preact = tl.broadcast_to(first_bias(vectors_ptr, t, pixel_size), [ROWS * COLUMNS, C])
    feature_frame = pair * features_per_pair + tl.minimum(frame - pair * times_per_pair, features_per_pair - 1)
    for k in tl.static_range(2):
        offset = pixel * 4 + 2 * k
        y, x = read_position(
            flow_ptr, offset, row + top, column + left, origin_y, step_y, origin_x, step_x, FLOW, False
        )
        if FEATURE:
            rows, columns = to_pixels(y, H) - box_top, to_pixels(x, W) - box_left
            first_pixel = feature_frame * box_height * box_width
            sample = bilinear(feature_ptr, first_pixel, rows, columns, box_height, box_width, C)
            preact = multiply_add(sample.to(dtype), matrix(weights_ptr + k * C * C, C, C, C), preact)
        if AGGREGATION:
            maps = decoder_map1_ptr if k else decoder_map0_ptr
            preact += bilinear(maps, pair * h * w, to_pixels(y, extent_y), to_pixels(x, extent_x), h, w, C)

    matrices = weights_ptr + (2 * C * C if FEATURE else 0)
    biases = vectors_ptr + 3 * C
    channel = tl.arange(0, OUT_PADDED)[None, :]
    if LAST > 0:
        last = sine(hidden_layers(preact, matrices, biases, wide, LAST, PLAIN, WIDE, BLOCK_K, dtype))
        biases += PLAIN * C + WIDE + LAST
        rgb = tl.broadcast_to(vector(biases, OUT_PADDED), [ROWS * COLUMNS, OUT_PADDED])
        output = biases + OUT_PADDED  # three or four outputs are too few for a matrix product
        for k in tl.static_range(4 if BLEND else 3):
            colour = tl.sum(last * vector(output + k * LAST, LAST), 1)
            rgb += tl.where(channel == k, colour[:, None], 0.0)
    else:
        rgb = hidden_layers(preact, matrices, biases, wide, OUT_PADDED, PLAIN, WIDE, BLOCK_K, dtype)

    if RESIDUAL:
        # Last, and from a flow read again, so that nothing of it takes registers from the network.
        frame0_weight = tl.full([ROWS * COLUMNS], 1.0, tl.float32) * (1 - t)
        if BLEND:
            m = tl.sum(tl.where(channel == 3, rgb, 0.0), 1)
            m = tl.where(m > -8, tl.minimum(m, 8.0), -8.0)
            frame0_weight = (1 - t) / (1 - t + t * tl.exp(-2 * m))
        for k in tl.static_range(2):
            offset = pixel * 4 + 2 * k
            y, x = read_position(
                flow_ptr, offset, row + top, column + left, origin_y, step_y, origin_x, step_x, FLOW, True
            )
            rows, columns = to_pixels(y, frame_h), to_pixels(x, frame_w)
            image = frames_ptr + (pair * 2 + k) * frame_h * frame_w * 3
            if BICUBIC:
                tap, weight = cubic_taps(rows, columns, frame_h, frame_w)
            for n in tl.static_range(3):
                if BICUBIC:
                    colour = tl.sum(weight * tl.load(image + tap * 3 + n), 1)
                else:
                    colour = bilinear_colour(image + n, rows, columns, frame_h, frame_w)
                colour *= (1 - frame0_weight) if k else frame0_weight
                rgb += tl.where(channel == n, colour[:, None], 0.0)

    wanted = exists[:, None] & (channel < 3)
    if out_ptr.dtype.element_ty == tl.uint8:
        level = tl.where(rgb > 0, tl.minimum(rgb, 1.0), 0.0) * 255 + ROUND
        level = (level.to(tl.int32, bitcast=True) - ROUND_BITS).to(tl.uint8)
        tl.store(out_ptr + pixel[:, None] * 3 + channel, level, mask=wanted)
    else:
        plane = height * width
        tl.store(out_ptr + (pixel + 2 * frame * plane)[:, None] + channel * plane, rgb, mask=wanted)
