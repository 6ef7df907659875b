// Bilinear and bicubic samples of maps and frames.
#pragma once

#include <cmath>
#include <cstring>

#include "isa.h"

namespace stif_rt {
namespace {  // every source has its own copy, compiled with its own flags

constexpr int CHANNELS = STIF_RT_CHANNELS;

inline float to_float(float value) {
    return value;
}

inline float to_float(uint16_t bfloat16) {
    const uint32_t bits = uint32_t(bfloat16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The four neighbours of a position and their weights; a neighbour outside the map has weight zero, and its index is
// that of the nearest pixel inside, so that whatever the position, nothing outside is read.
struct Neighbours {
    int64_t index[4];
    float weight[4];
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
    const float up_weight = up_in ? 1 - down : 0, down_weight = down_in ? down : 0;
    const float left_weight = left_in ? 1 - right : 0, right_weight = right_in ? right : 0;
    return {{row0 * width + column0, row0 * width + column1, row1 * width + column0, row1 * width + column1},
            {up_weight * left_weight, up_weight * right_weight, down_weight * left_weight, down_weight * right_weight}};
}

// sum[c] = start[c] + bilinear sample of a 64-channel map.
template <class Element>
inline void gather(const Element *__restrict map, const Neighbours &at, const float *__restrict start,
                   float *__restrict sum) {
    const Element *__restrict a = map + at.index[0] * CHANNELS;
    const Element *__restrict b = map + at.index[1] * CHANNELS;
    const Element *__restrict c = map + at.index[2] * CHANNELS;
    const Element *__restrict d = map + at.index[3] * CHANNELS;
    const float p = at.weight[0], q = at.weight[1], r = at.weight[2], s = at.weight[3];
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

inline int64_t inside(int64_t index, int64_t size) {
    return index < 0 ? 0 : (index < size ? index : size - 1);
}

// sum[c] = bicubic sample of a frame of three channels whose border is repeated. y, x: in [-1, size].
inline void sample_bicubic(const float *__restrict frame, float y, float x, int64_t height, int64_t width,
                           float *__restrict sum) {
    const float top = std::floor(y), left = std::floor(x);
    const int64_t row = int64_t(top), column = int64_t(left);
    const Four down = cubic_weights(y - top), right = cubic_weights(x - left);
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

}  // namespace
}  // namespace stif_rt
