// The fused loops, once for all instruction sets.
//
// Both passes work on a tile of output pixels at a time. Its activations, [pixels, 256] at the widest, stay in the
// cache from the gather to the picture; only F, 64 channels, goes through memory between the passes.
// An instruction set `I` gives: Vector (float32) with load, store, set, fused multiply-add and round; Element and
// Operand (what products are made of); and the shape of its register block.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "isa.h"

// Loops over a register block must unroll before the compiler decides what lives in registers.
#if defined(__clang__)
#define STIF_RT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define STIF_RT_UNROLL _Pragma("GCC unroll 64")
#endif
#define STIF_RT_NOINLINE __attribute__((noinline))

namespace stif_rt {
namespace {  // every source has its own copy, compiled with its own flags

constexpr int CHANNELS = STIF_RT_CHANNELS;
constexpr int TAPS = 9;
constexpr float LIMIT = 1 - 1e-6f;

// ---------------------------------------------------------------------------------------------------------- sine

// sin(2 pi z) = r P(r^2) with r = z - round(z) in [-1/2, 1/2]; P is minimax. Error below 8e-7 for every finite z
// with |z| < 2^22; beyond, float32 no longer resolves the turn.
template <class I>
inline typename I::Vector sine(typename I::Vector z) {
    const typename I::Vector r = I::subtract(z, I::round(z));
    const typename I::Vector s = I::multiply(r, r);
    typename I::Vector p = I::set(-12.271262613f);
    p = I::fma(p, s, I::set(41.2053950574f));
    p = I::fma(p, s, I::set(-76.5801005781f));
    p = I::fma(p, s, I::set(81.5961838793f));
    p = I::fma(p, s, I::set(-41.341421399f));
    p = I::fma(p, s, I::set(6.28318281856f));
    return I::multiply(p, r);
}

template <class I>
void sine_all(const float *x, float *y, int64_t count) {
    int64_t i = 0;
    for (; i + I::lanes <= count; i += I::lanes) I::store(y + i, sine<I>(I::load(x + i)));
    float rest[I::lanes] = {};
    if (i < count) {
        std::memcpy(rest, x + i, (count - i) * sizeof(float));
        I::store(rest, sine<I>(I::load(rest)));
        std::memcpy(y + i, rest, (count - i) * sizeof(float));
    }
}

// -------------------------------------------------------------------------------------------------------- layers

// Rows of activations lie a little more than a power of two apart, or they would share cache sets.
template <class I>
constexpr int row_stride(int columns) {
    return columns + 64 / int(sizeof(typename I::Element));
}

// One register block: M pixels times N panels of outputs, every input.
template <class I, int M, int N, class Emit>
inline void register_block(const typename I::Element *x, int x_stride, int inputs, const typename I::Element *panels,
                           int64_t panel, const float *start, int start_stride, Emit emit) {
    typename I::Vector sums[M * N];
    STIF_RT_UNROLL for (int i = 0; i < M * N; ++i) sums[i] = I::load(start + i / N * start_stride + i % N * I::lanes);
    for (int k = 0; k < inputs; k += I::unit) {
        typename I::Operand weights[N];
        STIF_RT_UNROLL for (int n = 0; n < N; ++n) weights[n] = I::load_operand(panels + n * panel + k * I::lanes);
        STIF_RT_UNROLL for (int i = 0; i < M * N; ++i) {
            const typename I::Operand activation = I::broadcast_operand(x + i / N * x_stride + k);
            sums[i] = I::multiply_add(activation, weights[i % N], sums[i]);
        }
    }
    STIF_RT_UNROLL for (int i = 0; i < M * N; ++i) emit(i / N, i % N, sums[i]);
}

// y = finish(W x + start) for one tile of pixels, with finish the sine or nothing. x, y: rows of activations.
// start: a row of pre-activations for each pixel (start_stride > 0), or one for all, such as the bias (0).
template <class I, bool SINE, class Y>
void linear(const typename I::Element *x, int x_stride, const stif_rt_linear &layer, const float *start,
            int start_stride, Y *y, int y_stride) {
    const int inputs = int(round_up(layer.inputs, I::depth));
    const int outputs = int(round_up(layer.outputs, I::lanes));
    const int64_t panel = int64_t(inputs) * I::lanes;
    const auto *panels = reinterpret_cast<const typename I::Element *>(static_cast<const float *>(layer.packed) +
                                                                       round_up(layer.outputs, PANEL_BIAS));
    for (int o = 0; o < outputs;) {
        const bool wide = o + I::panels * I::lanes <= outputs;
        for (int p = 0; p < I::tile; p += I::rows) {
            const auto emit = [&](int m, int n, typename I::Vector sum) {
                I::store(y + (p + m) * y_stride + o + n * I::lanes, SINE ? sine<I>(sum) : sum);
            };
            const typename I::Element *rows = x + p * x_stride;
            const float *from = start + p * start_stride + o;
            if constexpr (I::matrix_unit) {
                if (wide)
                    I::template matrix_block<I::panels>(rows, x_stride, inputs, panels, panel, from, start_stride,
                                                        emit);
                else
                    I::template matrix_block<1>(rows, x_stride, inputs, panels, panel, from, start_stride, emit);
            } else {
                if (wide)
                    register_block<I, I::rows, I::panels>(rows, x_stride, inputs, panels, panel, from, start_stride,
                                                          emit);
                else
                    register_block<I, I::rows, 1>(rows, x_stride, inputs, panels, panel, from, start_stride, emit);
            }
        }
        o += wide ? I::panels * I::lanes : I::lanes;
        panels += wide ? I::panels * panel : panel;
    }
}

// What one thread works with.
template <class I>
struct Workspace {
    using Element = typename I::Element;
    static constexpr int stride = row_stride<I>(STIF_RT_WIDEST);
    alignas(64) Element a[I::tile * stride];
    alignas(64) Element b[I::tile * stride];
    alignas(64) Element feature[I::tile * CHANNELS];
    alignas(64) float first[I::tile * CHANNELS];
    alignas(64) float last[I::tile * CHANNELS];
};

// A SIREN on one tile. `first` holds what has been gathered for the first layer, start included; `local`, where given,
// the activations that meet the first layer's local columns. The result is written to y.
template <class I, class Y>
void siren(const stif_rt_siren &network, Workspace<I> &w, const typename I::Element *local, int local_stride, Y *y,
           int y_stride) {
    constexpr int stride = Workspace<I>::stride;
    typename I::Element *x = w.b, *next = w.a;
    if (local) {
        linear<I, true>(local, local_stride, network.local, w.first, CHANNELS, x, stride);
    } else {
        for (int p = 0; p < I::tile; ++p)
            for (int c = 0; c < CHANNELS; c += I::lanes)
                I::store(x + p * stride + c, sine<I>(I::load(w.first + p * CHANNELS + c)));
    }
    for (int n = 0; n + 1 < network.hidden_count; ++n) {
        const stif_rt_linear &layer = network.hidden[n];
        linear<I, true>(x, stride, layer, static_cast<const float *>(layer.packed), 0, next, stride);
        std::swap(x, next);
    }
    const stif_rt_linear &layer = network.hidden[network.hidden_count - 1];
    linear<I, false>(x, stride, layer, static_cast<const float *>(layer.packed), 0, y, y_stride);
}

// ------------------------------------------------------------------------------------------------------- gathers

inline float to_float(float value) {
    return value;
}

inline float to_float(uint16_t bfloat16) {
    const uint32_t bits = uint32_t(bfloat16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The four neighbours of a position and their shares; a neighbour outside the map has share zero, and its index is
// that of the nearest pixel inside, so that whatever the position, nothing outside is read.
struct Neighbours {
    int64_t index[4];
    float share[4];
};

// y, x: position in pixels, any value. A NaN counts as far outside.
inline Neighbours neighbours(float y, float x, int64_t height, int64_t width) {
    // below -1 and above the size nothing is read: the comparison order sends NaN to -1
    y = y > -1.f ? (y < float(height) ? y : float(height)) : -1.f;
    x = x > -1.f ? (x < float(width) ? x : float(width)) : -1.f;
    const float top = std::floor(y), left = std::floor(x);
    const float down = y - top, right = x - left;
    const int64_t row = int64_t(top), column = int64_t(left);
    const bool up_in = row >= 0 && row < height, down_in = row + 1 < height;
    const bool left_in = column >= 0 && column < width, right_in = column + 1 < width;
    const int64_t row0 = up_in ? row : (row < 0 ? 0 : height - 1), row1 = down_in ? row + 1 : height - 1;
    const int64_t column0 = left_in ? column : (column < 0 ? 0 : width - 1),
                  column1 = right_in ? column + 1 : width - 1;
    const float up_share = up_in ? 1 - down : 0, down_share = down_in ? down : 0;
    const float left_share = left_in ? 1 - right : 0, right_share = right_in ? right : 0;
    return {{row0 * width + column0, row0 * width + column1, row1 * width + column0, row1 * width + column1},
            {up_share * left_share, up_share * right_share, down_share * left_share, down_share * right_share}};
}

// sum[c] = start[c] + bilinear sample of a 64-channel map.
template <class Element>
inline void gather(const Element *__restrict map, const Neighbours &at, const float *__restrict start,
                   float *__restrict sum) {
    const Element *__restrict a = map + at.index[0] * CHANNELS;
    const Element *__restrict b = map + at.index[1] * CHANNELS;
    const Element *__restrict c = map + at.index[2] * CHANNELS;
    const Element *__restrict d = map + at.index[3] * CHANNELS;
    const float p = at.share[0], q = at.share[1], r = at.share[2], s = at.share[3];
    for (int i = 0; i < CHANNELS; ++i)
        sum[i] = start[i] + (p * to_float(a[i]) + q * to_float(b[i]) + (r * to_float(c[i]) + s * to_float(d[i])));
}

inline float clamp(float value, float low, float high) {
    return value > low ? (value < high ? value : high) : low;  // NaN becomes low
}

// sum[c] = bilinear sample of a map of C channels whose border is repeated.
template <int C>
inline void sample_bilinear(const float *map, float y, float x, int64_t height, int64_t width, float *sum) {
    y = clamp(y, 0, float(height - 1)), x = clamp(x, 0, float(width - 1));
    const float top = std::floor(y), left = std::floor(x);
    const float down = y - top, right = x - left;
    const int64_t row = int64_t(top), column = int64_t(left);
    const float *a = map + (row * width + column) * C;
    const float *c = map + ((row + 1 < height ? row + 1 : row) * width + column) * C;
    const int64_t next = column + 1 < width ? C : 0;
    for (int n = 0; n < C; ++n)
        sum[n] =
            (1 - down) * ((1 - right) * a[n] + right * a[next + n]) + down * ((1 - right) * c[n] + right * c[next + n]);
}

// Four floats side by side, which every instruction set has.
typedef float Four __attribute__((vector_size(16)));

inline Four load_four(const float *p) {
    Four v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline Four all_four(float value) {
    return Four{value, value, value, value};
}

// Keys' cubic convolution with a = -3/4: weights of the neighbours at -1, 0, 1 and 2 of a position `d` beyond 0.
inline Four cubic_weights(float d) {
    const Four distance = all_four(d) * Four{1, 1, -1, -1} + Four{1, 0, 1, 2};
    const Four cubic = distance * Four{-0.75f, 1.25f, 1.25f, -0.75f} + Four{3.75f, -2.25f, -2.25f, 3.75f};
    return (cubic * distance + Four{-6, 0, 0, -6}) * distance + Four{3, 1, 1, 3};
}

// sum[c] = bicubic sample of a frame of three channels whose border is repeated. y, x: in [-1, size].
inline void sample_bicubic(const float *__restrict frame, float y, float x, int64_t height, int64_t width,
                           float *__restrict sum) {
    const float top = std::floor(y), left = std::floor(x);
    const int64_t row = int64_t(top), column = int64_t(left);
    const Four down = cubic_weights(y - top), right = cubic_weights(x - left);
    const auto inside = [](int64_t index, int64_t size) {
        return index < 0 ? 0 : (index < size ? index : size - 1);
    };
    Four total = all_four(0);
    if (column >= 1 && column + 3 < width) {  // a pixel is read with the first channel of its neighbour
        for (int i = 0; i < 4; ++i) {
            const float *__restrict p = frame + (inside(row + i - 1, height) * width + column - 1) * 3;
            total +=
                all_four(down[i]) * (all_four(right[0]) * load_four(p) + all_four(right[1]) * load_four(p + 3) +
                                     (all_four(right[2]) * load_four(p + 6) + all_four(right[3]) * load_four(p + 9)));
        }
    } else {
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) {
                const float *p = frame + (inside(row + i - 1, height) * width + inside(column + j - 1, width)) * 3;
                total += all_four(down[i] * right[j]) * Four{p[0], p[1], p[2], 0};
            }
    }
    for (int c = 0; c < 3; ++c) sum[c] = total[c];
}

template <class I>
inline void convert(const float *from, typename I::Element *to, int count) {
    for (int i = 0; i < count; i += I::lanes) I::store(to + i, I::load(from + i));
}

// size: pixels or cells from edge to edge.
inline float to_pixels(float coordinate, float size) {
    return ((coordinate + 1) * size - 1) / 2;
}

// ---------------------------------------------------------------------------------------------------------- passes

// Adds the flow that a velocity implies at output pixel (i, j), in output pixels, to flow[4].
inline void add_flow_of_velocity(const stif_rt_implicit &call, int64_t i, int64_t j, float *flow) {
    const stif_rt_axis &vertical = call.vertical, &horizontal = call.horizontal;
    const float y = vertical.positions[i], x = horizontal.positions[j];
    const float back = (call.time - 0.5f) / vertical.stride;
    float v[2];
    sample_bilinear<2>(call.velocity, y, x, vertical.cell_count, horizontal.cell_count, v);
    sample_bilinear<2>(call.velocity, y - back * v[1], x - back * v[0], vertical.cell_count, horizontal.cell_count, v);
    v[0] *= horizontal.scale, v[1] *= vertical.scale;
    for (int k = 0; k < 4; ++k) flow[k] += (k < 2 ? -call.time : 1 - call.time) * v[k % 2];
}

// Pass 1. Per pixel, with the paper's widths, 37 k (SIF) + 26 k (TIF) multiply-adds and 768 sines.
// Reads the two maps and the velocity, which lie in the cache; writes 64 elements and 4 floats a pixel.
template <class I>
void implicit(const stif_rt_implicit &call, int64_t begin, int64_t end) {
    using Element = typename I::Element;
    const auto w = std::make_unique<Workspace<I>>();
    const Element *nearest_map = static_cast<const Element *>(call.nearest_map);
    const Element *bilinear_map = static_cast<const Element *>(call.bilinear_map);
    const stif_rt_axis &vertical = call.vertical, &horizontal = call.horizontal;
    const auto each = [&](int64_t from, auto body) {  // the last tile repeats its last pixel
        for (int p = 0; p < I::tile; ++p) {
            const int64_t pixel = from + p < end ? from + p : end - 1;
            body(p, call.box.top + pixel / call.box.width, call.box.left + pixel % call.box.width);
        }
    };
    const auto spatial = [&](auto *y) {  // the first network on one tile
        siren<I>(call.first, *w, nullptr, 0, y, CHANNELS);
    };
    for (int64_t from = begin; from < end; from += I::tile) {
        const int64_t count = from + I::tile < end ? I::tile : end - from;
        const auto located = [&](int p, int64_t i, int64_t j) {
            float *__restrict first = w->first + p * CHANNELS;
            const Element *__restrict cell =
                nearest_map + (vertical.cells[i] * horizontal.cell_count + horizontal.cells[j]) * CHANNELS;
            const float y = vertical.relative[i], x = horizontal.relative[j];
            for (int c = 0; c < CHANNELS; ++c)
                first[c] =
                    call.first.start[c] + to_float(cell[c]) + y * call.relative[c] + x * call.relative[CHANNELS + c];
        };
        if (nearest_map) each(from, located);
        if (call.feature) {
            Element *feature = static_cast<Element *>(call.feature) + from * CHANNELS;
            if (nearest_map) {
                spatial(w->feature);
                std::memcpy(feature, w->feature, count * CHANNELS * sizeof(Element));
            } else {
                for (int p = 0; p < I::tile; ++p)  // the last tile repeats its last pixel
                    std::memcpy(w->feature + p * CHANNELS, feature + (p < count ? p : count - 1) * CHANNELS,
                                CHANNELS * sizeof(Element));
            }
            if (!bilinear_map) continue;
            each(from, [&](int p, int64_t i, int64_t j) {
                gather(bilinear_map,
                       neighbours(vertical.positions[i], horizontal.positions[j], vertical.cell_count,
                                  horizontal.cell_count),
                       call.second.start, w->first + p * CHANNELS);
            });
            siren<I>(call.second, *w, w->feature, CHANNELS, w->last, CHANNELS);
        } else {
            spatial(w->last);
        }
        each(from, [&](int p, int64_t i, int64_t j) {
            if (p >= count) return;
            float *flow = call.flow + (from + p) * 4;
            for (int k = 0; k < 4; ++k) flow[k] = w->last[p * CHANNELS + k] * (k % 2 ? vertical : horizontal).flow_unit;
            if (call.velocity) add_flow_of_velocity(call, i, j, flow);
        });
    }
}

// e^x for |x| < 80, to a relative 1e-6, in operations that compilers vectorise.
inline float exponential(float x) {
    const float turns = x * 1.44269504f, whole = (turns + 12582912.f) - 12582912.f, r = turns - whole;
    float p = 1.3333558e-3f * r + 9.6181291e-3f;
    p = ((p * r + 5.5504109e-2f) * r + 2.4022651e-1f) * r + 6.9314718e-1f;
    p = p * r + 1;
    int32_t bits;
    std::memcpy(&bits, &p, sizeof bits);
    bits += int32_t(whole) * (1 << 23);
    std::memcpy(&p, &bits, sizeof p);
    return p;
}

// Weight of the first warped frame, for the decoder's fourth output m: (1 - t) e^m / ((1 - t) e^m + t e^-m).
inline float first_frame_weight(float m, float time) {
    const float against = time * exponential(-2 * clamp(m, -8.f, 8.f));
    return (1 - time) / (1 - time + against);
}

// x in [0, 1] times 255, to the nearest whole number (ties to even, as PyTorch rounds).
inline uint8_t to_byte(float x) {
    return uint8_t(std::nearbyint(clamp(x, 0, 1) * 255));
}

// Pass 2. Per pixel, with the paper's widths, 95 k multiply-adds and 640 sines; 16 gathers of 64 channels, half of them
// from F, and 2 x 4 or 2 x 16 pixels of the frames.
template <class I>
void decode(const stif_rt_decode &call, int64_t begin, int64_t end) {
    using Element = typename I::Element;
    const auto w = std::make_unique<Workspace<I>>();
    const stif_rt_axis &vertical = call.vertical, &horizontal = call.horizontal;
    const Element *feature = static_cast<const Element *>(call.feature);
    constexpr int stride = Workspace<I>::stride;
    alignas(64) float zeros[CHANNELS] = {}, sample[CHANNELS];
    float warped[I::tile][2][3];
    for (int64_t from = begin; from < end; from += I::tile) {
        const int64_t count = from + I::tile < end ? I::tile : end - from;
        for (int p = 0; p < I::tile; ++p) {
            const int64_t pixel = from + p < end ? from + p : end - 1;
            const float i = float(call.region.top + pixel / call.region.width);
            const float j = float(call.region.left + pixel % call.region.width);
            float *first = w->first + p * CHANNELS;
            const float *start = call.decoder.start;
            for (int k = 0; k < 2; ++k) {
                const float u = call.flow ? call.flow[pixel * 4 + 2 * k] : 0;
                const float v = call.flow ? call.flow[pixel * 4 + 2 * k + 1] : 0;
                const float y = clamp(vertical.origin + vertical.step * (i + v), -LIMIT, LIMIT);
                const float x = clamp(horizontal.origin + horizontal.step * (j + u), -LIMIT, LIMIT);
                if (feature) {
                    const float row = to_pixels(y, float(vertical.outputs)) - float(call.box.top);
                    const float column = to_pixels(x, float(horizontal.outputs)) - float(call.box.left);
                    gather(feature, neighbours(row, column, call.box.height, call.box.width), zeros, sample);
                    convert<I>(sample, w->a + p * stride + k * CHANNELS, CHANNELS);
                }
                if (call.maps[k]) {
                    gather(static_cast<const Element *>(call.maps[k]),
                           neighbours(to_pixels(y, vertical.extent), to_pixels(x, horizontal.extent),
                                      vertical.cell_count, horizontal.cell_count),
                           start, sample);
                    std::memcpy(first, sample, sizeof sample);
                    start = first;
                }
                if (call.frames) {
                    const float *frame = call.frames + k * vertical.inputs * horizontal.inputs * 3;
                    const float row = to_pixels(y, float(vertical.inputs));
                    const float column = to_pixels(x, float(horizontal.inputs));
                    if (call.bicubic)
                        sample_bicubic(frame, row, column, vertical.inputs, horizontal.inputs, warped[p][k]);
                    else
                        sample_bilinear<3>(frame, row, column, vertical.inputs, horizontal.inputs, warped[p][k]);
                }
            }
            if (start != first) std::memcpy(first, start, CHANNELS * sizeof(float));
        }
        siren<I>(call.decoder, *w, feature ? w->a : nullptr, stride, w->last, CHANNELS);
        const int64_t plane = call.region.height * call.region.width;
        float first_weight[I::tile];
        for (int p = 0; p < I::tile; ++p)
            first_weight[p] = call.blend ? first_frame_weight(w->last[p * CHANNELS + 3], call.time) : 1 - call.time;
        for (int p = 0; p < count; ++p) {
            float *colour = w->last + p * CHANNELS;
            if (call.frames)
                for (int c = 0; c < 3; ++c)
                    colour[c] += first_weight[p] * warped[p][0][c] + (1 - first_weight[p]) * warped[p][1][c];
            for (int c = 0; c < 3; ++c) {
                if (call.rgb) call.rgb[c * plane + from + p] = colour[c];
                if (call.pixels) call.pixels[(from + p) * 3 + c] = to_byte(colour[c]);
            }
        }
    }
}

// ------------------------------------------------------------------------------------- deformable convolution

// Four shares and neighbours of each position of one pixel, side by side so that the compiler computes several at once.
struct Positions {
    explicit Positions(int count)
        : memory(std::make_unique<float[]>(6 * int64_t(count))),
          indices(std::make_unique<int32_t[]>(4 * int64_t(count))) {
        for (int n = 0; n < 4; ++n) {
            share[n] = memory.get() + n * int64_t(count);
            index[n] = indices.get() + n * int64_t(count);
        }
        tap_y = memory.get() + 4 * int64_t(count);
        tap_x = memory.get() + 5 * int64_t(count);
        for (int n = 0; n < count; ++n) {
            tap_y[n] = float(n % TAPS / 3 - 1);
            tap_x[n] = float(n % TAPS % 3 - 1);
        }
    }
    std::unique_ptr<float[]> memory;
    std::unique_ptr<int32_t[]> indices;
    float *tap_y, *tap_x, *share[4];
    int32_t *index[4];
};

// As `neighbours`, for all positions of pixel (i, j), with the modulation in the shares. Not inlined, or the compiler
// forgets that the arrays do not overlap.
template <class Element>
STIF_RT_NOINLINE void deformed_neighbours(const Element *__restrict offset, const Element *__restrict mask, float i,
                                          float j, int32_t height, int32_t width, int count,
                                          const float *__restrict tap_y, const float *__restrict tap_x,
                                          float *__restrict p, float *__restrict q, float *__restrict r,
                                          float *__restrict s, int32_t *__restrict a, int32_t *__restrict b,
                                          int32_t *__restrict c, int32_t *__restrict d) {
    const float bottom = float(height), side = float(width);
    for (int n = 0; n < count; ++n) {
        float y = i + tap_y[n] + to_float(offset[2 * n]), x = j + tap_x[n] + to_float(offset[2 * n + 1]);
        y = y > -1.f ? y : -1.f;  // sends NaN to -1, where nothing is read
        x = x > -1.f ? x : -1.f;
        y = y < bottom ? y : bottom;
        x = x < side ? x : side;
        const float top = std::floor(y), left = std::floor(x);
        const float modulation = to_float(mask[n]);
        const int32_t row = int32_t(top), column = int32_t(left);
        const float down = (y - top) * modulation, up = modulation - down, right = x - left;
        const bool row_in = (row >= 0) & (row < height), below_in = row + 1 < height;
        const bool column_in = (column >= 0) & (column < width), next_in = column + 1 < width;
        const float up_share = row_in ? up : 0.f, down_share = below_in ? down : 0.f;
        const float left_share = column_in ? 1 - right : 0.f, right_share = next_in ? right : 0.f;
        const int32_t row0 = row < 0 ? 0 : (row < height ? row : height - 1), row1 = below_in ? row + 1 : height - 1;
        const int32_t column0 = column < 0 ? 0 : (column < width ? column : width - 1);
        const int32_t column1 = next_in ? column + 1 : width - 1;
        p[n] = up_share * left_share;
        q[n] = up_share * right_share;
        r[n] = down_share * left_share;
        s[n] = down_share * right_share;
        a[n] = row0 * width + column0;
        b[n] = row0 * width + column1;
        c[n] = row1 * width + column0;
        d[n] = row1 * width + column1;
    }
}

// Per pixel 9 C bilinear gathers and 9 C O multiply-adds. The gathered columns, [pixels, 9 C], stay in the cache.
template <class I>
void deform_conv(const stif_rt_deform_conv &call, int64_t begin, int64_t end) {
    using Element = typename I::Element;
    struct alignas(64) Line {  // new[] aligns to what its type asks for
        unsigned char bytes[64];
    };
    const auto lines = [](int64_t bytes) {
        return std::make_unique<Line[]>((bytes + 63) / 64);
    };
    const int groups = call.groups, channels = call.convolution.inputs / TAPS, share = channels / groups;
    const int inputs = int(round_up(call.convolution.inputs, I::depth));
    const int outputs = int(round_up(call.convolution.outputs, I::lanes));
    const int stride = row_stride<I>(int(round_up(inputs, I::lanes)));
    const auto columns_memory = lines(int64_t(I::tile) * stride * sizeof(Element));
    const auto out_memory = lines(int64_t(I::tile) * outputs * sizeof(Element));
    const auto sample_memory = lines(round_up(inputs, I::lanes) * sizeof(float));
    Element *columns = reinterpret_cast<Element *>(columns_memory.get());
    Element *out = reinterpret_cast<Element *>(out_memory.get());
    float *sample = reinterpret_cast<float *>(sample_memory.get());
    const Positions at(groups * TAPS);
    const Element *image = static_cast<const Element *>(call.x);

    for (int64_t from = begin; from < end; from += I::tile) {
        const int64_t count = from + I::tile < end ? I::tile : end - from;
        for (int p = 0; p < count; ++p) {
            const int64_t pixel = from + p;
            deformed_neighbours(static_cast<const Element *>(call.offset) + pixel * call.offset_stride,
                                static_cast<const Element *>(call.mask) + pixel * call.mask_stride,
                                float(pixel / call.width), float(pixel % call.width), int32_t(call.height),
                                int32_t(call.width), groups * TAPS, at.tap_y, at.tap_x, at.share[0], at.share[1],
                                at.share[2], at.share[3], at.index[0], at.index[1], at.index[2], at.index[3]);
            for (int g = 0; g < groups; ++g)
                for (int k = 0; k < TAPS; ++k) {
                    const int n = g * TAPS + k;
                    const float p0 = at.share[0][n], p1 = at.share[1][n], p2 = at.share[2][n], p3 = at.share[3][n];
                    const Element *__restrict a = image + at.index[0][n] * call.x_stride + g * share;
                    const Element *__restrict b = image + at.index[1][n] * call.x_stride + g * share;
                    const Element *__restrict c = image + at.index[2][n] * call.x_stride + g * share;
                    const Element *__restrict d = image + at.index[3][n] * call.x_stride + g * share;
                    float *__restrict to = sample + k * channels + g * share;
                    const auto mix = [&](int e) {
                        to[e] = p0 * to_float(a[e]) + p1 * to_float(b[e]) + (p2 * to_float(c[e]) + p3 * to_float(d[e]));
                    };
                    int e = 0;
                    for (; e + 8 <= share; e += 8)  // eight at a time: the paper's groups are that wide
                        for (int lane = 0; lane < 8; ++lane) mix(e + lane);
                    for (; e < share; ++e) mix(e);
                }
            convert<I>(sample, columns + p * stride, inputs);
        }
        linear<I, false>(columns, stride, call.convolution, static_cast<const float *>(call.convolution.packed), 0, out,
                         outputs);
        for (int p = 0; p < count; ++p)
            std::memcpy(static_cast<Element *>(call.out) + (from + p) * call.out_stride, out + int64_t(p) * outputs,
                        call.convolution.outputs * sizeof(Element));
    }
}

template <class I>
constexpr Isa describe(const char *name, const char *(*unavailable)()) {
    return {name,        sizeof(typename I::Element) == 2,
            I::lanes,    I::unit,
            I::depth,    I::tile,
            unavailable, implicit<I>,
            decode<I>,   deform_conv<I>,
            sine_all<I>};
}

}  // namespace
}  // namespace stif_rt
