// Deformable convolution, once for all instruction sets.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "gather.h"
#include "gemm.h"

#define STIF_RT_NOINLINE __attribute__((noinline))

namespace stif_rt {
namespace {  // every source has its own copy, compiled with its own flags

constexpr int TAPS = 9;

// Four weights and neighbours of each position of one pixel, side by side so that the compiler computes several at
// once.
struct Positions {
    explicit Positions(int count)
        : memory(std::make_unique<float[]>(6 * int64_t(count))),
          indices(std::make_unique<int32_t[]>(4 * int64_t(count))) {
        for (int n = 0; n < 4; ++n) {
            weight[n] = memory.get() + n * int64_t(count);
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
    float *tap_y, *tap_x, *weight[4];
    int32_t *index[4];
};

// As `neighbours`, for all positions of pixel (i, j), with the modulation in the weights. Not inlined, or the compiler
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
        const float up_weight = row_in ? up : 0.f, down_weight = below_in ? down : 0.f;
        const float left_weight = column_in ? 1 - right : 0.f, right_weight = next_in ? right : 0.f;
        const int32_t row0 = row < 0 ? 0 : (row < height ? row : height - 1), row1 = below_in ? row + 1 : height - 1;
        const int32_t column0 = column < 0 ? 0 : (column < width ? column : width - 1);
        const int32_t column1 = next_in ? column + 1 : width - 1;
        p[n] = up_weight * left_weight;
        q[n] = up_weight * right_weight;
        r[n] = down_weight * left_weight;
        s[n] = down_weight * right_weight;
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
    const int groups = call.groups, channels = call.convolution.inputs / TAPS, group_channels = channels / groups;
    const int inputs = int(round_up(call.convolution.inputs, I::k_align));
    const int outputs = int(round_up(call.convolution.outputs, I::lanes));
    const int stride = row_stride<I>(int(round_up(inputs, I::lanes)));
    const auto columns_memory = lines(int64_t(I::tile_pixels) * stride * sizeof(Element));
    const auto out_memory = lines(int64_t(I::tile_pixels) * outputs * sizeof(Element));
    const auto sample_memory = lines(round_up(inputs, I::lanes) * sizeof(float));
    Element *columns = reinterpret_cast<Element *>(columns_memory.get());
    Element *out = reinterpret_cast<Element *>(out_memory.get());
    float *sample = reinterpret_cast<float *>(sample_memory.get());
    const Positions at(groups * TAPS);
    const Element *image = static_cast<const Element *>(call.x);

    for (int64_t from = begin; from < end; from += I::tile_pixels) {
        const int64_t count = from + I::tile_pixels < end ? I::tile_pixels : end - from;
        for (int p = 0; p < count; ++p) {
            const int64_t pixel = from + p;
            deformed_neighbours(static_cast<const Element *>(call.offset) + pixel * call.offset_stride,
                                static_cast<const Element *>(call.mask) + pixel * call.mask_stride,
                                float(pixel / call.width), float(pixel % call.width), int32_t(call.height),
                                int32_t(call.width), groups * TAPS, at.tap_y, at.tap_x, at.weight[0], at.weight[1],
                                at.weight[2], at.weight[3], at.index[0], at.index[1], at.index[2], at.index[3]);
            for (int g = 0; g < groups; ++g)
                for (int k = 0; k < TAPS; ++k) {
                    const int n = g * TAPS + k;
                    const float p0 = at.weight[0][n], p1 = at.weight[1][n], p2 = at.weight[2][n], p3 = at.weight[3][n];
                    const Element *__restrict a = image + at.index[0][n] * call.x_stride + g * group_channels;
                    const Element *__restrict b = image + at.index[1][n] * call.x_stride + g * group_channels;
                    const Element *__restrict c = image + at.index[2][n] * call.x_stride + g * group_channels;
                    const Element *__restrict d = image + at.index[3][n] * call.x_stride + g * group_channels;
                    float *__restrict to = sample + k * channels + g * group_channels;
                    const auto mix = [&](int e) {
                        to[e] = p0 * to_float(a[e]) + p1 * to_float(b[e]) + (p2 * to_float(c[e]) + p3 * to_float(d[e]));
                    };
                    int e = 0;
                    for (; e + 8 <= group_channels; e += 8)  // eight at a time: the paper's groups are that wide
                        for (int lane = 0; lane < 8; ++lane) mix(e + lane);
                    for (; e < group_channels; ++e) mix(e);
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

}  // namespace
}  // namespace stif_rt
