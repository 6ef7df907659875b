// The two fused passes of the implicit functions in half precision, for GPUs with tensor cores: m16n8k8 of Turing,
// m16n8k16 of later ones. stif_rt/ops/implicit/cuda_backend.py launches them; reference.py says what they compute.
//
// Pass 1 (implicit_float16): F = SIF(nearest(P_sif), relative position, t) and flow = TIF(F, bilinear(P_tif), t) + that
// of the velocity. Pass 2 (decode_float16): rgb = decoder(F(p0), F(p1), P_0(p0), P_1(p1), t) + blend of the frames at
// p0 and p1, the positions to which the flow points.
//
// A warp makes 32 output pixels of one time from end to end: as rows of a matrix product, its activations stay in
// registers, because the instruction leaves sums where it wants the next product's operand. A block is four warps, 8 x
// 16 pixels, which share the weights: these pass through shared memory in slices of 4 KiB, in the order in which they
// are used, one ahead of the products. A layer whose sines are read by the output alone is never whole: each slice's
// sines go into the output's sums at once. Products take half precision and accumulate in float32; positions, flow,
// biases and sines are float32; bilinear samples of maps are made in half precision.
//
// Per output pixel with the paper's widths: 158 k multiply-adds, 1,408 sines, 2.7 kB gathered from maps that the cache
// holds; 128 B of F and 16 B of flow are written and read again. On a T4 4.5 ms of matrix instructions for 1280 x 720.
//
// Compiled once for each network, with its widths defined: of SIF, TIF and decoder, how many layers of 64 sines follow
// the first (.._PLAIN), and the widths of one wider layer and of one more (.._WIDE, .._LAST; 0 for none). No headers
// and no standard library, as in deform_conv.cu.

#ifndef DEPTH  // of the matrix instructions; with the deeper ones the compiler runs out of registers for sm_100
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ != 1000
#define DEPTH 16
#else
#define DEPTH 8
#endif
#endif

constexpr int C = 64;     // channels of every map, sines of a first layer
constexpr int WARPS = 4;  // of a block
// Blocks of a multiprocessor at least, which bounds the registers of a thread by 65536 / 128 / BLOCKS. More of them
// hide the gathers' latency, though some registers are spilled then. On an H200, ms for 720p by `stif-s`, 2 and 3
// blocks in pass 1: 0.173 and 0.155 (F given); 2, 3 and 4 in pass 2: 0.386, 0.345, 0.311. A decoder whose last layers
// have 256 sines keeps them in registers: 0.805, 0.825, 1.445.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // what is spilled takes twice as long on Turing
constexpr int IMPLICIT_BLOCKS = 2, DECODE_BLOCKS = 2;
#else
constexpr int IMPLICIT_BLOCKS = 3, DECODE_BLOCKS = DECODER_LAST > 128 ? 2 : 4;
#endif
constexpr int TILES = 2;               // of 16 pixels in a warp
constexpr int OWN = 4;                 // pixels of which a lane holds sums; the four lanes of a quad hold the same ones
constexpr int FEW = 8;                 // outputs of a last layer with few of them, padded
constexpr int ROWS = 8, COLUMNS = 16;  // output pixels of a block
constexpr int SLICE = 256;             // of 16 bytes
constexpr float LIMIT = 1 - 1e-6;      // of normalised coordinates
constexpr float STEPS = 4096;          // 2^12: adding and subtracting it rounds to multiples of 2^-11

struct Half {
    unsigned short bits;
};
struct alignas(16) Quad {  // eight half-precision numbers, or four floats
    unsigned at[4];
};
struct alignas(8) Float2 {
    float x, y;
};
struct alignas(16) Float4 {
    float at[4];
};

#ifndef STIF_RT_EMULATION

// d += a b for a 16x8 (rows by depth), b 8x8 (depth by columns). Of a, b and d, lane l holds, with r = l / 4 and
// q = 2 (l % 4):  a: (r, q), (r + 8, q), each with the next depth in the upper half;  b: depth q of column r, likewise;
// d: (r, q), (r, q + 1), (r + 8, q), (r + 8, q + 1).
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[2], unsigned b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

// d += a b, 16 deep: a and b as two of the above, of which the second has the eight depths that follow.
__device__ __forceinline__ void multiply_add_16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned result;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
#else
    asm("{.reg .f16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b};}"
        : "=r"(result)
        : "f"(low), "f"(high));
#endif
    return result;
}

__device__ __forceinline__ unsigned multiply_pair(unsigned a, unsigned b) {
    unsigned result;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

__device__ __forceinline__ unsigned multiply_add_pair(unsigned a, unsigned b, unsigned c) {
    unsigned result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

__device__ __forceinline__ Float2 unpack(unsigned pair) {
    Float2 result;
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(result.x), "=f"(result.y)
        : "r"(pair));
    return result;
}

// The instruction reduces its argument by itself, with an error of at most 2^-14.7 up to 100 pi: less than the rounding
// to half precision that follows.
__device__ __forceinline__ float sine(float radians) {
    float result;
    asm("sin.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(radians));
    return result;
}

#endif

// Channels. Of a tile of 8 columns, lane l holds those at q = 2 (l % 4) and q + 1. Which channels these are is free as
// long as all weights agree: of each block of 32 channels a lane holds eight neighbours, 8 (l % 4) + 0..7, two of each
// of four tiles, so that it moves them with one instruction.
__device__ __forceinline__ int first_channel(int tile) {
    return tile / 4 * 32 + threadIdx.x % 4 * 8 + tile % 4 * 2;
}

__device__ __forceinline__ Float2 pair_of(const float *vector, int tile) {
    return *(const Float2 *)(vector + first_channel(tile));
}

// Activations or sums of a warp: K channels in tiles of 8, in lanes as the matrix instruction has them.
template <int K>
using Operand = unsigned[K / 8][TILES][2];
template <int K>
using Sums = float[K / 8][TILES][4];

// Pixels. A lane of quad r computes what is to be known of one pixel alone for pixel r of row l % 4 of its warp's 4 x
// 8, and holds channels of pixel r in all four rows, number 0 to 3: sums (.., 2 (p % 2) + e) of tile p / 2.
template <typename T>
__device__ __forceinline__ T from_owner(T value, int p) {
    return __shfl_sync(0xffffffffu, value, (threadIdx.x % 32 & ~3) | p);
}

struct Pixel {
    int row, column;  // in the box
    bool exists;      // the others repeat the last
};

__device__ __forceinline__ Pixel own_pixel(int height, int width) {
    const int tiles = (width + COLUMNS - 1) / COLUMNS, tile = blockIdx.x, lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int row = tile / tiles * ROWS + warp / 2 * 4 + lane % 4;
    const int column = tile % tiles * COLUMNS + warp % 2 * 8 + lane / 4;
    return {min(row, height - 1), min(column, width - 1), row < height && column < width};
}

// The weights of one launch, slice after slice.
struct Stream {
    const Quad *source;  // this thread's part of the slice after the one that is staged
    Quad *shared;        // two slices
    Quad staged[2];
    int turn;

    __device__ __forceinline__ void stage() {
        staged[0] = source[0];
        staged[1] = source[SLICE / 2];
        source += SLICE;
    }

    __device__ __forceinline__ Stream(const Quad *weights, Quad *buffers)
        : source(weights + threadIdx.x), shared(buffers), turn(0) {
        stage();
    }

    // This lane's part of the next slice. All threads have left the slice before the last one when they meet here.
    __device__ __forceinline__ const Quad *next() {
        Quad *const slice = shared + turn * SLICE;
        slice[threadIdx.x] = staged[0];
        slice[threadIdx.x + SLICE / 2] = staged[1];
        __syncthreads();
        stage();
        turn ^= 1;
        return slice + threadIdx.x % 32;
    }
};

// Tiles of outputs in a slice of a layer's weights, of which each has K inputs.
template <int K>
constexpr int SLICE_TILES = 2048 / K / 8;

template <int N>
__device__ __forceinline__ void start(Sums<N> &sums, const float *biases, int first_tile) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
        const Float2 bias = pair_of(biases, first_tile + n);
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[n][m][i] = i % 2 ? bias.y : bias.x;
    }
}

// sums += x W for 8 columns and K of depth, of which the lane's weights are given.
template <int K>
__device__ __forceinline__ void multiply_column(float (&sums)[TILES][4], const Operand<K> &x,
                                                const unsigned (&weights)[K / 8]) {
    constexpr int STEP = K % DEPTH == 0 ? DEPTH / 8 : 1;
#pragma unroll
    for (int k = 0; k < K / 8; k += STEP)
#pragma unroll
        for (int m = 0; m < TILES; ++m)
            if constexpr (STEP == 1) {
                multiply_add(sums[m], x[k][m], weights[k]);
            } else {
                multiply_add_16(sums[m], {x[k][m][0], x[k][m][1], x[k + 1][m][0], x[k + 1][m][1]},
                                {weights[k], weights[k + 1]});
            }
}

// sums += x W for N columns, whose weights lie in a slice as [N / 8][K / 32][lane][4 tiles of K].
template <int K, int N>
__device__ __forceinline__ void multiply(Sums<N> &sums, const Operand<K> &x, const Quad *slice) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int k = 0; k < K / 8; k += 4) {
            const Quad weights = slice[(n * K / 32 + k / 4) * 32];
            multiply_column<32>(sums[n], *(const Operand<32> *)x[k], weights.at);
        }
}

// sums += x W with all 64 columns, two slices.
__device__ __forceinline__ void multiply_all(Sums<C> &sums, const Operand<C> &x, Stream &stream) {
#pragma unroll
    for (int n = 0; n < C / 8; n += SLICE_TILES<C>) multiply<C, 32>(*(Sums<32> *)sums[n], x, stream.next());
}

template <int N>
__device__ __forceinline__ void to_operand(Operand<N> &x, const Sums<N> &sums) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
            for (int i = 0; i < 2; ++i) x[n][m][i] = pack(sums[n][m][2 * i], sums[n][m][2 * i + 1]);
}

template <int N>
__device__ __forceinline__ void sines(Operand<N> &x, const Sums<N> &sums) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
            for (int i = 0; i < 2; ++i) x[n][m][i] = pack(sine(sums[n][m][2 * i]), sine(sums[n][m][2 * i + 1]));
}

// A layer of N sines, whole. 64 of them at a time, after which the earlier ones move on: a loop, because the compiler
// would spread straight code until its registers do not suffice.
template <int K, int N>
__device__ __forceinline__ void sine_layer(Operand<N> &y, const Operand<K> &x, Stream &stream, const float *biases) {
    constexpr int STEP = SLICE_TILES<K>;
#pragma unroll 1
    for (int n = 0; n < N / 8; n += C / 8) {
        Operand<C> part;
#pragma unroll
        for (int i = 0; i < C / 8; i += STEP) {
            Sums<STEP * 8> sums;
            start<STEP * 8>(sums, biases, n + i);
            multiply<K, STEP * 8>(sums, x, stream.next());
            sines<STEP * 8>(*(Operand<STEP * 8> *)part[i], sums);
        }
#pragma unroll
        for (int k = 0; k < N / 8; ++k)
#pragma unroll
            for (int i = 0; i < TILES * 2; ++i)
                y[k][i / 2][i % 2] =
                    k < N / 8 - C / 8 ? y[(k + C / 8) % (N / 8)][i / 2][i % 2] : part[k % (C / 8)][i / 2][i % 2];
    }
}

// A layer of N sines and the linear one after it, a slice at a time. few: the weights of few outputs, as [N /
// 32][lane]; those of 64 outputs follow each slice of the layer's in the stream.
template <int K, int N, int OUTPUTS>
__device__ __forceinline__ void last_layers(Sums<OUTPUTS> &out, const Operand<K> &x, Stream &stream,
                                            const float *biases, const Quad *few) {
    constexpr int STEP = SLICE_TILES<K>;
    static_assert(OUTPUTS == FEW || STEP == 4, "64 outputs follow a layer with 64 inputs");
#pragma unroll 1
    for (int n = 0; n < N / 8; n += STEP) {
        Sums<STEP * 8> sums;
        Operand<STEP * 8> y;
        start<STEP * 8>(sums, biases, n);
        unsigned weights[STEP];
        if constexpr (OUTPUTS == FEW) {
            const unsigned *const at = (const unsigned *)(few + n / 4 * 32 + threadIdx.x % 32) + n % 4;
#pragma unroll
            for (int i = 0; i < STEP; ++i) weights[i] = at[i];
        }
        multiply<K, STEP * 8>(sums, x, stream.next());
        sines<STEP * 8>(y, sums);
        if constexpr (OUTPUTS == FEW) {
            multiply_column<STEP * 8>(out[0], y, weights);
        } else {
            multiply<STEP * 8, OUTPUTS>(out, y, stream.next());
        }
    }
}

// From the first layer's pre-activation: PLAIN layers of 64 sines, of WIDE and of LAST ones, then the linear layer.
// biases: from the second layer on, the output's included.
template <int PLAIN, int WIDE, int LAST, int OUTPUTS>
__device__ __forceinline__ void network(Sums<OUTPUTS> &out, const Sums<C> &first, Stream &stream, const float *biases,
                                        const Quad *few) {
    Operand<C> x;
    sines<C>(x, first);
    const float *const output_bias = biases + PLAIN * C + WIDE + LAST;
    if constexpr (OUTPUTS == FEW) {
        const Float2 bias = *(const Float2 *)(output_bias + threadIdx.x % 4 * 2);
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) out[0][m][i] = i % 2 ? bias.y : bias.x;
    } else {
        start<OUTPUTS>(out, output_bias, 0);
    }
#pragma unroll
    for (int n = 0; n < PLAIN; ++n) {
        Operand<C> y;
        sine_layer<C, C>(y, x, stream, biases + n * C);
#pragma unroll
        for (int k = 0; k < C / 8; ++k)
#pragma unroll
            for (int i = 0; i < TILES * 2; ++i) x[k][i / 2][i % 2] = y[k][i / 2][i % 2];
    }
    biases += PLAIN * C;
    if constexpr (LAST > 0) {
        Operand<WIDE> y = {};
        sine_layer<C, WIDE>(y, x, stream, biases);
        last_layers<WIDE, LAST, OUTPUTS>(out, y, stream, biases + WIDE, few);
    } else if constexpr (WIDE > 0) {
        last_layers<C, WIDE, OUTPUTS>(out, x, stream, biases, few);
    } else if constexpr (OUTPUTS == FEW) {
#pragma unroll
        for (int k = 0; k < C / 8; k += 4)
            multiply_column<32>(out[0], *(const Operand<32> *)x[k], few[k / 4 * 32 + threadIdx.x % 32].at);
    } else {
        multiply_all(out, x, stream);
    }
}

// What the first layer adds at every pixel: columns for the time and for the size of a pixel, and the bias.
__device__ __forceinline__ void start_first(Sums<C> &first, const float *vectors, float t, float pixel_size) {
#pragma unroll
    for (int n = 0; n < C / 8; ++n) {
        const Float2 time = pair_of(vectors, n), scale = pair_of(vectors + C, n), bias = pair_of(vectors + 2 * C, n);
        const float x = time.x * t + scale.x * pixel_size + bias.x, y = time.y * t + scale.y * pixel_size + bias.y;
#pragma unroll
        for (int m = 0; m < TILES; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) first[n][m][i] = i % 2 ? y : x;
    }
}

__device__ __forceinline__ void add_eight(Sums<C> &sums, int p, int block, const Quad &values) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const Float2 pair = unpack(values.at[i]);
        sums[block * 4 + i][p / 2][p % 2 * 2] += pair.x;
        sums[block * 4 + i][p / 2][p % 2 * 2 + 1] += pair.y;
    }
}

// One half of a pair, twice.
__device__ __forceinline__ unsigned both(unsigned pair, bool upper) {
    return upper ? pair >> 16 | (pair & 0xffff0000) : pair << 16 | (pair & 0xffff);
}

// The four cells around a position. top, bottom: number of the left one, times two, plus whether there is one to its
// right. across, down: weights of left and right, of top and bottom; 0 of what lies outside the map.
struct Corners {
    int top, bottom;
    unsigned across, down;
};

// Weights of what lies before and after a position in a row of cells; they are exact in half precision, and so is their
// sum, because the position is rounded to 2^-11 of a cell.
__device__ __forceinline__ unsigned linear_weights(int cell, float position, int cells) {
    const float after = ((position - cell) + STEPS) - STEPS;
    return pack(cell >= 0 && cell < cells ? 1 - after : 0, cell >= -1 && cell < cells - 1 ? after : 0);
}

__device__ __forceinline__ Corners corners_of(float y, float x, int height, int width) {
    const int row = (int)floorf(y), column = (int)floorf(x);
    const int left = min(max(column, 0), width - 1), right = min(max(column + 1, 0), width - 1);
    const int top = min(max(row, 0), height - 1), bottom = min(max(row + 1, 0), height - 1);
    return {(top * width + left) * 2 + right - left, (bottom * width + left) * 2 + right - left,
            linear_weights(column, x, width), linear_weights(row, y, height)};
}

// This lane's channels of a cell, of whose number twice is given.
__device__ __forceinline__ const Quad *cell_of(const Half *map, unsigned twice) {
    return (const Quad *)map + (threadIdx.x % 4 + (unsigned long long)(twice >> 1) * (C / 8));
}

// Bilinear samples of a map with 64 channels, zero outside, at positions that lanes own, in half precision. use: called
// with the number of the pixel, the block of 32 channels, and this lane's eight of them.
template <class Use>
__device__ __forceinline__ void bilinear(const Half *map, const Corners &own, Use use) {
#pragma unroll
    for (int p = 0; p < OWN; ++p) {
        const Corners corners = {from_owner(own.top, p), from_owner(own.bottom, p), from_owner(own.across, p),
                                 from_owner(own.down, p)};
        const unsigned left = both(corners.across, false), right = both(corners.across, true);
        const unsigned upper = both(corners.down, false), lower = both(corners.down, true);
        const Quad *const cells[4] = {cell_of(map, corners.top), cell_of(map, corners.top + 1),
                                      cell_of(map, corners.bottom), cell_of(map, corners.bottom + 1)};
#pragma unroll
        for (int block = 0; block < 2; ++block) {
            const Quad a = cells[0][block * 4], b = cells[1][block * 4], c = cells[2][block * 4],
                       d = cells[3][block * 4];
            Quad values;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const unsigned above = multiply_add_pair(b.at[i], right, multiply_pair(a.at[i], left));
                const unsigned below = multiply_add_pair(d.at[i], right, multiply_pair(c.at[i], left));
                values.at[i] = multiply_add_pair(below, lower, multiply_pair(above, upper));
            }
            use(p, block, values);
        }
    }
}

// The outputs of the lane's own pixel, of the eight the first four.
__device__ __forceinline__ void own_outputs(float (&own)[4], const Sums<FEW> &out) {
#pragma unroll
    for (int p = 0; p < OWN; ++p)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float value = from_owner(out[0][p / 2][p % 2 * 2 + i % 2], i / 2);
            if (threadIdx.x % 4 == p) own[i] = value;
        }
}

__device__ __forceinline__ float clamp(float x, float low, float high) {
    return fminf(fmaxf(x, low), high);
}

// One channel of an image [h, w, channels], bilinear with the border repeated.
__device__ __forceinline__ float bilinear_border(const float *image, int channels, float y, float x, int h, int w) {
    y = clamp(y, 0, h - 1);
    x = clamp(x, 0, w - 1);
    const int row = (int)y, column = (int)x;
    const float down = y - row, right = x - column;
    const int below = min(row + 1, h - 1), beyond = min(column + 1, w - 1);
    const float upper =
        image[(row * w + column) * channels] * (1 - right) + image[(row * w + beyond) * channels] * right;
    const float lower =
        image[(below * w + column) * channels] * (1 - right) + image[(below * w + beyond) * channels] * right;
    return upper * (1 - down) + lower * down;
}

// Keys' cubic convolution kernel with a = -3/4, for distances in [0, 2].
__device__ __forceinline__ float cubic_weight(float distance) {
    const float near = (1.25f * distance - 2.25f) * distance * distance + 1;
    const float far = ((-0.75f * distance + 3.75f) * distance - 6) * distance + 3;
    return distance <= 1 ? near : far;
}

// colour += share * the three channels of a frame [h, w, 3], by cubic convolution with the border repeated.
__device__ __forceinline__ void add_bicubic(float (&colour)[4], float share, const float *image, float y, float x,
                                            int h, int w) {
    const int top = (int)floorf(y), left = (int)floorf(x);
    const float down = y - top, right = x - left;
#pragma unroll
    for (int i = -1; i <= 2; ++i) {
        const float *const line = image + min(max(top + i, 0), h - 1) * w * 3;
        const float vertical = share * cubic_weight(fabsf(down - i));
#pragma unroll
        for (int j = -1; j <= 2; ++j) {
            const float *const at = line + min(max(left + j, 0), w - 1) * 3;
            const float weight = vertical * cubic_weight(fabsf(right - j));
#pragma unroll
            for (int n = 0; n < 3; ++n) colour[n] += weight * at[n];
        }
    }
}

// Normalised coordinate that an output pixel reads; NaN becomes -LIMIT.
__device__ __forceinline__ float warp_coordinate(int pixel, float flow, float origin, float step) {
    float coordinate = origin + step * (pixel + flow);
    coordinate = coordinate > -LIMIT ? coordinate : -LIMIT;
    return coordinate < LIMIT ? coordinate : LIMIT;
}

__device__ __forceinline__ float to_pixels(float coordinate, float size) {
    return ((coordinate + 1) * size - 1) / 2;
}

// Arrays are null where the network, or the call, has no such thing. Maps have h x w cells of 64 channels. vectors: the
// first layer's columns for the time and the size of a pixel, its bias, its columns for the relative position (y, x) if
// the network sees it, the hidden layers' biases, and the output's. weights: the slices in the order of their use, and
// one more.
struct Implicit {
    const Half *nearest_map;     // of the network that sees the relative position: SIF, or TIF in "-s"
    const float *entry_vectors;  // its vectors
    const Half *bilinear_map;
    const float *tif_vectors;
    const Quad *tif_output;
    const float *velocity;  // [pairs, h, w, 2], (x, y) in pixels of the frames
    const Quad *weights;
    const float *times;                                  // [pairs, times_per_pair]
    const long long *nearest_index_y, *nearest_index_x;  // the cell nearest to each output pixel, by row and by column
    const float *cell_offset_y, *cell_offset_x;          // distance from its centre
    const float *source_coords_y, *source_coords_x;      // where an output pixel lies, in cells
    Half *feature;                                       // [frames, height, width, 64]; if given, [pairs, ..]
    float *flow;                                         // [frames, height, width, 4]
    int given;                                           // whether F is read, not computed
    int times_per_pair, h, w;
    int top, left, height, width;  // the box of output pixels
    float pixel_size;
    float unit_y, unit_x;    // what TIF counts in, in output pixels
    float stride;            // pixels of the frames in a cell
    float scale_y, scale_x;  // output pixels in a pixel of the frames
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, IMPLICIT_BLOCKS) implicit_float16(const Implicit a) {
    __shared__ Quad buffers[2 * SLICE];
    Stream stream(a.weights, buffers);
    const long long frame = blockIdx.y, pair = blockIdx.y / a.times_per_pair;
    const float t = a.times[frame];
    const Pixel own = own_pixel(a.height, a.width);
    const int y = own.row + a.top, x = own.column + a.left;
    const long long plane = (long long)a.height * a.width, cells = (long long)a.h * a.w;
    const int number = own.row * a.width + own.column;

    Sums<C> first;
    Operand<C> feature;
    if (a.given) {
#pragma unroll
        for (int p = 0; p < OWN; ++p) {
            const Half *const at = a.feature + (pair * plane + from_owner(number, p)) * C + threadIdx.x % 4 * 8;
#pragma unroll
            for (int block = 0; block < 2; ++block) {
                const Quad run = *(const Quad *)(at + block * 32);
#pragma unroll
                for (int i = 0; i < 4; ++i) feature[block * 4 + i][p / 2][p % 2] = run.at[i];
            }
        }
    } else {
        start_first(first, a.entry_vectors, t, a.pixel_size);
        const int cell = (int)a.nearest_index_y[y] * a.w + (int)a.nearest_index_x[x];
        const float vertical = a.cell_offset_y[y], horizontal = a.cell_offset_x[x];
#pragma unroll
        for (int p = 0; p < OWN; ++p) {
            const Half *const at = a.nearest_map + (pair * cells + from_owner(cell, p)) * C + threadIdx.x % 4 * 8;
            const float down = from_owner(vertical, p), right = from_owner(horizontal, p);
#pragma unroll
            for (int block = 0; block < 2; ++block) {
                const Quad run = *(const Quad *)(at + block * 32);
                add_eight(first, p, block, run);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const Float2 by_y = pair_of(a.entry_vectors + 3 * C, block * 4 + i);
                    const Float2 by_x = pair_of(a.entry_vectors + 4 * C, block * 4 + i);
                    float *const sums = first[block * 4 + i][p / 2] + p % 2 * 2;
                    sums[0] += down * by_y.x + right * by_x.x;
                    sums[1] += down * by_y.y + right * by_x.y;
                }
            }
        }
        if (a.feature) {
            Sums<C> out;
            network<SIF_PLAIN, SIF_WIDE, 0, C>(out, first, stream, a.entry_vectors + 5 * C, nullptr);
            to_operand<C>(feature, out);
            const int stored = own.exists ? number : -1;
#pragma unroll
            for (int p = 0; p < OWN; ++p) {
                const int pixel = from_owner(stored, p);
                Half *const at = a.feature + (frame * plane + pixel) * C + threadIdx.x % 4 * 8;
#pragma unroll
                for (int block = 0; block < 2; ++block) {
                    Quad run;
#pragma unroll
                    for (int i = 0; i < 4; ++i) run.at[i] = feature[block * 4 + i][p / 2][p % 2];
                    if (pixel >= 0) *(Quad *)(at + block * 32) = run;
                }
            }
        }
    }
    if (!a.flow) return;

    const float near_y = a.source_coords_y[y], near_x = a.source_coords_x[x];
    const float *biases = a.tif_vectors + 5 * C;
    if (a.feature) {
        start_first(first, a.tif_vectors, t, a.pixel_size);
        multiply_all(first, feature, stream);
        bilinear(a.bilinear_map + pair * cells * C, corners_of(near_y, near_x, a.h, a.w),
                 [&](int p, int block, const Quad &values) { add_eight(first, p, block, values); });
        biases = a.tif_vectors + 3 * C;
    }
    Sums<FEW> out;
    network<TIF_PLAIN, TIF_WIDE, 0, FEW>(out, first, stream, biases, a.tif_output);
    Float4 flow;
    own_outputs(flow.at, out);
#pragma unroll
    for (int i = 0; i < 4; ++i) flow.at[i] *= i % 2 ? a.unit_y : a.unit_x;
    if (a.velocity) {  // at time t (-t V, (1 - t) V) with V = v(x - (t - 1/2) v(x))
        const float *const velocity = a.velocity + pair * cells * 2;
        const float back = (t - 0.5f) / a.stride;
        const float v = bilinear_border(velocity + 1, 2, near_y, near_x, a.h, a.w);
        const float u = bilinear_border(velocity, 2, near_y, near_x, a.h, a.w);
        const float there_y = near_y - back * v, there_x = near_x - back * u;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float moved = bilinear_border(velocity + i % 2, 2, there_y, there_x, a.h, a.w);
            flow.at[i] += (i < 2 ? -t : 1 - t) * moved * (i % 2 ? a.scale_y : a.scale_x);
        }
    }
    if (own.exists) *(Float4 *)(a.flow + (frame * plane + number) * 4) = flow;
}

// As for Implicit. Maps have h x w cells, of which extent lie from edge to edge of the frames.
struct Decode {
    const Half *feature;  // [pairs, features_per_pair, box_height, box_width, 64]
    const Half *map0, *map1;
    const float *frames;  // [pairs, 2, frame_h, frame_w, 3], null without the residual
    const float *flow;    // [frames, height, width, 4]
    const Quad *weights;
    const float *vectors;
    const Quad *output;
    const float *times;
    float *rgb;            // [frames, 3, height, width], or null:
    unsigned char *bytes;  // [frames, height, width, 3]
    int bicubic, blend;    // how the frames are read; whether the fourth output weights them
    int times_per_pair, features_per_pair, h, w;
    int frame_h, frame_w, H, W;
    int top, left, height, width;  // the region of output pixels
    int box_top, box_left, box_height, box_width;
    float extent_y, extent_x;
    float origin_y, step_y, origin_x, step_x;  // base grid of the warp
    float pixel_size;
};

extern "C" __global__ void __launch_bounds__(WARPS * 32, DECODE_BLOCKS) decode_float16(const Decode a) {
    __shared__ Quad buffers[2 * SLICE];
    Stream stream(a.weights, buffers);
    const long long frame = blockIdx.y, pair = blockIdx.y / a.times_per_pair;
    const float t = a.times[frame];
    const Pixel own = own_pixel(a.height, a.width);
    const long long plane = (long long)a.height * a.width, cells = (long long)a.h * a.w;
    const int number = own.row * a.width + own.column;
    const float *const flow = a.flow + (frame * plane + number) * 4;

    Sums<C> first;
    start_first(first, a.vectors, t, a.pixel_size);
    const long long frame_of_feature =
        pair * a.features_per_pair + min((int)(frame - pair * a.times_per_pair), a.features_per_pair - 1);
#pragma unroll 1
    for (int k = 0; k < 2; ++k) {
        const float u = a.flow ? flow[2 * k] : 0, v = a.flow ? flow[2 * k + 1] : 0;
        const float y = warp_coordinate(own.row + a.top, v, a.origin_y, a.step_y);
        const float x = warp_coordinate(own.column + a.left, u, a.origin_x, a.step_x);
        if (a.feature) {
            Operand<C> sample;
            const Corners corners =
                corners_of(to_pixels(y, a.H) - a.box_top, to_pixels(x, a.W) - a.box_left, a.box_height, a.box_width);
            bilinear(a.feature + frame_of_feature * a.box_height * a.box_width * C, corners,
                     [&](int p, int block, const Quad &values) {
#pragma unroll
                         for (int i = 0; i < 4; ++i) sample[block * 4 + i][p / 2][p % 2] = values.at[i];
                     });
            multiply_all(first, sample, stream);
        }
        if (a.map0)
            bilinear((k ? a.map1 : a.map0) + pair * cells * C,
                     corners_of(to_pixels(y, a.extent_y), to_pixels(x, a.extent_x), a.h, a.w),
                     [&](int p, int block, const Quad &values) { add_eight(first, p, block, values); });
    }

    Sums<FEW> out;
    network<DECODER_PLAIN, DECODER_WIDE, DECODER_LAST, FEW>(out, first, stream, a.vectors + 3 * C, a.output);
    float colour[4];
    own_outputs(colour, out);
    if (a.frames) {
        float share = 1 - t;
        if (a.blend) {
            const float m = colour[3] > -8 ? fminf(colour[3], 8) : -8;
            share = (1 - t) / (1 - t + t * expf(-2 * m));
        }
#pragma unroll 1
        for (int k = 0; k < 2; ++k) {
            const float u = a.flow ? flow[2 * k] : 0, v = a.flow ? flow[2 * k + 1] : 0;
            const float y = to_pixels(warp_coordinate(own.row + a.top, v, a.origin_y, a.step_y), a.frame_h);
            const float x = to_pixels(warp_coordinate(own.column + a.left, u, a.origin_x, a.step_x), a.frame_w);
            const float *const image = a.frames + (pair * 2 + k) * a.frame_h * a.frame_w * 3;
            const float weight = k ? 1 - share : share;
            if (a.bicubic) {
                add_bicubic(colour, weight, image, y, x, a.frame_h, a.frame_w);
            } else {
#pragma unroll
                for (int n = 0; n < 3; ++n)
                    colour[n] += weight * bilinear_border(image + n, 3, y, x, a.frame_h, a.frame_w);
            }
        }
    }
    if (!own.exists) return;
#pragma unroll
    for (int n = 0; n < 3; ++n) {
        if (a.bytes) {
            const float level = (colour[n] > 0 ? fminf(colour[n], 1) : 0) * 255;  // NaN becomes 0
            a.bytes[(frame * plane + number) * 3 + n] = (unsigned char)(int)rintf(level);
        } else {
            a.rgb[(frame * 3 + n) * plane + number] = colour[n];
        }
    }
}
