// Modulated deformable 3x3 convolution (Deformable ConvNets v2); stride, padding and dilation are 1.
//
//   out[b, o](p) = bias[o] + sum over c, k of weight[o, c, k] * mask[b, g, k](p) * x[b, c](p + tap(k) + d[b, g, k](p))
//
// with offsets d, taps k = 3r + s at (r - 1, s - 1), deformable group g = c / (C / groups), bilinear reading, and zero
// for each neighbour outside the map. A position that is not a number reads zero.
//
// Reads x, offset (2 per group and tap), mask and the weights, writes out; the samples, 9 times as large as x, never
// reach global memory. Per output pixel: 9 C O multiply-adds and 36 C gathered values; 64 to 64 channels, 8 groups,
// half precision: at least 128 B of x, 432 B of offsets and masks and 128 B of output.
//
// A block makes 64 output channels of 64 pixels. A step takes 32 channels at one tap: threads sample them into shared
// memory, 8 channels of one pixel at a time, then the block multiplies them with that slice of the weights: by tensor
// cores for 16-bit types on compute capability 8.0 and later, by FMA otherwise. Positions and sums are float32.
//
// No headers and no standard library: NVRTC compiles it as it stands, and so does a host compiler under
// tests/emulation. The parameters are the inputs, then 32-bit integers, then the output, as TensorRT's ahead-of-time
// plugins demand.

constexpr int PIXELS = 64;    // per block
constexpr int OUTPUTS = 64;   // output channels per block
constexpr int DEPTH = 32;     // input channels per step
constexpr int OCTET = 8;      // channels that a thread samples together
constexpr int THREADS = 128;  // 4 warps, each 32 output channels by 32 pixels
constexpr int TAPS = 9;

struct Float16 {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};

#ifndef STIF_RT_EMULATION

__device__ __forceinline__ float to_float(Float16 value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}

__device__ __forceinline__ void from_float(float value, Float16 &result) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
}

// d += a b for a 16x16 (rows by depth), b 16x8 (depth by columns). Of a, b and d, lane l holds, with r = l / 4 and
// q = 2 (l % 4):  a: (r, q), (r + 8, q), (r, q + 8), (r + 8, q + 8), each with the next depth in the upper half;
// b: depths q and q + 8 of column r, likewise;  d: (r, q), (r, q + 1), (r + 8, q), (r + 8, q + 1).
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Float16) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], BFloat16) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#endif

__device__ __forceinline__ float to_float(float value) {
    return value;
}

__device__ __forceinline__ float to_float(BFloat16 value) {
    return __uint_as_float((unsigned)value.bits << 16);
}

__device__ __forceinline__ void from_float(float value, float &result) {
    result = value;
}

__device__ __forceinline__ void from_float(float value, BFloat16 &result) {
    const unsigned bits = __float_as_uint(value);
    const unsigned rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
    result.bits = (unsigned short)(value == value ? rounded : 0x7fff);
}

// COUNT neighbours in memory, moved by one or two instructions.
template <typename T, int COUNT>
struct alignas(COUNT * sizeof(T) < 16 ? COUNT * sizeof(T) : 16) Run {
    T at[COUNT];
};

template <typename T>
constexpr int STRIDE = DEPTH + 16 / sizeof(T);  // of a row in shared memory: 16-byte aligned, without bank conflicts

// Strides of a map [batch, channel, pixel], in elements.
struct Strides {
    int batch, channel, pixel;
};

// One call. Rows of a map follow each other, so that a pixel is told by one number.
template <typename T>
struct Call {
    const T *x, *offset, *mask, *weight, *bias;
    int channels, outputs, group_channels, height, width;
    Strides of_x, of_offset, of_mask;
    int weight_channel, weight_tap;
    Strides of_out;
    T *out;
};

// What a block makes: 64 pixels from first_pixel on, 64 output channels from first_output on.
struct Tile {
    int first_pixel, first_output;
};

// The four neighbours of a position: pixel numbers inside the map, and weights that are zero for those outside.
struct Corners {
    int pixel[4];
    float weight[4];
};

__device__ __forceinline__ Corners find_corners(float y, float x, float mask, int height, int width) {
    Corners corners = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    if (y > -1 && y < height && x > -1 && x < width) {  // false for NaN
        const int top = (int)floorf(y), left = (int)floorf(x);
        const float down = y - top, right = x - left;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = top + i / 2, column = left + i % 2;
            if (row >= 0 && row < height && column >= 0 && column < width) {
                corners.pixel[i] = row * width + column;
                corners.weight[i] = mask * (i / 2 ? down : 1 - down) * (i % 2 ? right : 1 - right);
            }
        }
    }
    return corners;
}

// Where a deformable group reads at one tap, for one pixel of the output.
template <typename T>
__device__ __forceinline__ Corners read_corners(const Call<T> &call, int pixel, int group, int tap) {
    const int k = group * TAPS + tap;
    const T *const vertical = call.offset + 2ll * k * call.of_offset.channel + (long long)pixel * call.of_offset.pixel;
    const float row = pixel / call.width + tap / 3 - 1 + to_float(vertical[0]);
    const float column = pixel % call.width + tap % 3 - 1 + to_float(vertical[call.of_offset.channel]);
    const float factor =
        to_float(call.mask[(long long)k * call.of_mask.channel + (long long)pixel * call.of_mask.pixel]);
    return find_corners(row, column, factor, call.height, call.width);
}

// Whether eight channels that begin at a multiple of eight lie side by side, aligned, and in one deformable group.
template <typename T>
__device__ __forceinline__ bool has_whole_octets(const Call<T> &call) {
    return call.of_x.channel == 1 && call.of_x.pixel % OCTET == 0 && call.of_x.batch % OCTET == 0 &&
           call.group_channels % OCTET == 0 && (unsigned long long)call.x % 16 == 0;
}

// Eight channels, from `channel` on, of one pixel at one tap; zeros beyond the last pixel or channel.
template <typename T>
__device__ __forceinline__ Run<T, OCTET> sample_octet(const Call<T> &call, int pixel, int channel, int tap,
                                                      bool whole_octets) {
    Run<T, OCTET> sampled;
    Corners corners;
    int group_end = 0;  // first channel that the corners do not serve
    float values[OCTET] = {};
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
        if (pixel < call.height * call.width && channel + i < call.channels) {
            if (channel + i >= group_end) {
                const int group = (channel + i) / call.group_channels;
                group_end = (group + 1) * call.group_channels;
                corners = read_corners(call, pixel, group, tap);
            }
            if (!whole_octets) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const long long at =
                        (long long)corners.pixel[n] * call.of_x.pixel + (long long)(channel + i) * call.of_x.channel;
                    values[i] += corners.weight[n] * to_float(call.x[at]);
                }
            }
        }
    }
    if (whole_octets && group_end > 0) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const T *const at = call.x + (long long)corners.pixel[n] * call.of_x.pixel + channel;
            const Run<T, OCTET> run = *(const Run<T, OCTET> *)at;
#pragma unroll
            for (int i = 0; i < OCTET; ++i) values[i] += corners.weight[n] * to_float(run.at[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < OCTET; ++i) from_float(values[i], sampled.at[i]);
    return sampled;
}

// Samples the step's channels of the tile's pixels at one tap into shared memory: [pixel][channel of the step].
template <typename T>
__device__ __forceinline__ void load_samples(const Call<T> &call, Tile tile, int tap, int first_channel,
                                             bool whole_octets, T *samples) {
    const bool channels_last = call.of_x.channel == 1;
    for (int task = threadIdx.x; task < PIXELS * DEPTH / OCTET; task += THREADS) {
        // neighbouring threads take what is neighbouring in memory: pixels, or channels where those come last
        const int pixel = channels_last ? task / (DEPTH / OCTET) : task % PIXELS;
        const int octet = channels_last ? task % (DEPTH / OCTET) : task / PIXELS;
        *(Run<T, OCTET> *)(samples + pixel * STRIDE<T> + octet * OCTET) =
            sample_octet(call, tile.first_pixel + pixel, first_channel + octet * OCTET, tap, whole_octets);
    }
}

// Brings the step's weights at one tap into shared memory: [output channel][channel of the step].
template <typename T>
__device__ __forceinline__ void load_weights(const Call<T> &call, Tile tile, int tap, int first_channel, T *weights) {
    for (int i = threadIdx.x; i < OUTPUTS * DEPTH; i += THREADS) {
        const int output = tile.first_output + i / DEPTH, channel = first_channel + i % DEPTH;
        T value = {};
        if (output < call.outputs && channel < call.channels)
            value = call.weight[(long long)output * call.channels * TAPS + channel * call.weight_channel +
                                tap * call.weight_tap];
        weights[i / DEPTH * STRIDE<T> + i % DEPTH] = value;
    }
}

#if __CUDA_ARCH__ >= 800
template <typename T>
constexpr bool TENSOR_CORES = sizeof(T) == 2;
#else
template <typename T>
constexpr bool TENSOR_CORES = false;
#endif

// Adds the step's products to this thread's 32 sums, by tensor cores.
template <typename T>
__device__ __forceinline__ void add_products_by_tensor_cores(const T *weights, const T *samples, float (&sums)[32]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const T *const a_rows = weights + (warp / 2 * 32 + lane / 4) * STRIDE<T> + lane % 4 * 2;
    const T *const b_rows = samples + (warp % 2 * 32 + lane / 4) * STRIDE<T> + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        unsigned a[2][4], b[4][2];
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                a[m][i] = *(const unsigned *)(a_rows + (m * 16 + i % 2 * 8) * STRIDE<T> + k + i / 2 * 8);
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i) b[n][i] = *(const unsigned *)(b_rows + n * 8 * STRIDE<T> + k + i * 8);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n) multiply_add(*(float (*)[4])(sums + (m * 4 + n) * 4), a[m], b[n], T{});
    }
}

// The same by FMA: output channels thread / 16 + 8 m, pixels thread % 16 + 16 n.
template <typename T>
__device__ __forceinline__ void add_products_by_fma(const T *weights, const T *samples, float (&sums)[32]) {
    const int thread = threadIdx.x;
#pragma unroll 2
    for (int k = 0; k < DEPTH; k += 4) {
        float a[8][4], b[4][4];
#pragma unroll
        for (int m = 0; m < 8; ++m) {
            const Run<T, 4> run = *(const Run<T, 4> *)(weights + (thread / 16 + 8 * m) * STRIDE<T> + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) a[m][i] = to_float(run.at[i]);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const Run<T, 4> run = *(const Run<T, 4> *)(samples + (thread % 16 + 16 * n) * STRIDE<T> + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) b[n][i] = to_float(run.at[i]);
        }
#pragma unroll
        for (int m = 0; m < 8; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[m * 4 + n] += a[m][i] * b[n][i];
    }
}

// Writes this thread's sums, with the bias, to the pixels and output channels that they belong to.
template <typename T>
__device__ __forceinline__ void store_sums(const Call<T> &call, Tile tile, const float (&sums)[32]) {
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        int output, pixel;
        if constexpr (TENSOR_CORES<T>) {
            output = warp / 2 * 32 + i / 16 * 16 + i / 2 % 2 * 8 + lane / 4;
            pixel = warp % 2 * 32 + i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
        } else {
            output = thread / 16 + i / 4 * 8;
            pixel = thread % 16 + i % 4 * 16;
        }
        output += tile.first_output;
        pixel += tile.first_pixel;
        if (output < call.outputs && pixel < call.height * call.width) {
            const float value = call.bias ? sums[i] + to_float(call.bias[output]) : sums[i];
            from_float(value, call.out[(long long)output * call.of_out.channel + (long long)pixel * call.of_out.pixel]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void deform_conv(Call<T> call) {
    __shared__ Run<T, OCTET> sample_rows[PIXELS * STRIDE<T> / OCTET];
    __shared__ Run<T, OCTET> weight_rows[OUTPUTS * STRIDE<T> / OCTET];
    T *const samples = sample_rows[0].at;
    T *const weights = weight_rows[0].at;

    const long long batch = blockIdx.z;
    call.x += batch * call.of_x.batch;
    call.offset += batch * call.of_offset.batch;
    call.mask += batch * call.of_mask.batch;
    call.out += batch * call.of_out.batch;
    const Tile tile = {int(blockIdx.x * PIXELS), int(blockIdx.y * OUTPUTS)};
    const bool whole_octets = has_whole_octets(call);
    float sums[32] = {};  // this thread's part of the block's 64 x 64

    for (int tap = 0; tap < TAPS; ++tap) {
        for (int first_channel = 0; first_channel < call.channels; first_channel += DEPTH) {
            load_samples(call, tile, tap, first_channel, whole_octets, samples);
            load_weights(call, tile, tap, first_channel, weights);
            __syncthreads();
            if constexpr (TENSOR_CORES<T>)
                add_products_by_tensor_cores(weights, samples, sums);
            else
                add_products_by_fma(weights, samples, sums);
            __syncthreads();
        }
    }
    store_sums(call, tile, sums);
}

#define STIF_RT_ENTRY(NAME, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                           \
        NAME(const T *x, const T *offset, const T *mask, const T *weight, const T *bias, int channels, int outputs, \
             int groups, int height, int width, int x_batch, int x_channel, int x_pixel, int offset_batch,          \
             int offset_channel, int offset_pixel, int mask_batch, int mask_channel, int mask_pixel,                \
             int weight_channel, int weight_tap, int out_batch, int out_channel, int out_pixel, T *out) {           \
        deform_conv(Call<T>{x,                                                                                      \
                            offset,                                                                                 \
                            mask,                                                                                   \
                            weight,                                                                                 \
                            bias,                                                                                   \
                            channels,                                                                               \
                            outputs,                                                                                \
                            channels / groups,                                                                      \
                            height,                                                                                 \
                            width,                                                                                  \
                            {x_batch, x_channel, x_pixel},                                                          \
                            {offset_batch, offset_channel, offset_pixel},                                           \
                            {mask_batch, mask_channel, mask_pixel},                                                 \
                            weight_channel,                                                                         \
                            weight_tap,                                                                             \
                            {out_batch, out_channel, out_pixel},                                                    \
                            out});                                                                                  \
    }

STIF_RT_ENTRY(deform_conv_float32, float)
STIF_RT_ENTRY(deform_conv_float16, Float16)
STIF_RT_ENTRY(deform_conv_bfloat16, BFloat16)
