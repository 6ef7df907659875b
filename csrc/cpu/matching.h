// What the velocity head does besides convolutions, once for all instruction sets. stif_rt/ops/matching/reference.py
// has the formulas. Maps are channels last: a bilinear read takes whole vectors of channels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "gather.h"
#include "sine.h"

namespace stif_rt {
namespace {  // every source has its own copy, compiled with its own flags

constexpr int BLOCK = 16;                               // channels worked on together
constexpr int SIDE = NORMALISE_ROWS, REACH = SIDE / 2;  // cells along a neighbourhood, and from its middle on
constexpr int SUMS = 6;      // what Gauss-Newton sums over a neighbourhood: xx, xy, yy, xr, yr, trust
constexpr int OFFERED = 19;  // velocities that are mixed

struct alignas(64) CacheLine {
    float at[16];
};

inline std::unique_ptr<CacheLine[]> lines(int64_t floats) {
    return std::make_unique<CacheLine[]>((floats + 15) / 16);
}

// The four cells around a position in a map whose border is repeated, as offsets in elements, and their weights.
struct Cells {
    int64_t offset[4];
    float weight[4];
};

inline Cells cells_around(float y, float x, int64_t height, int64_t width, int64_t stride) {
    y = clamp(y, 0, float(height - 1)), x = clamp(x, 0, float(width - 1));
    const int64_t row = int64_t(y), column = int64_t(x);
    const float down = y - float(row), right = x - float(column);
    const int64_t top = row * width + column, below = row + 1 < height ? width : 0, beside = column + 1 < width;
    return {{top * stride, (top + beside) * stride, (top + below) * stride, (top + below + beside) * stride},
            {(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right}};
}

// N vectors of channels, read bilinearly.
template <class I, int N>
inline void read_bilinear(const float *__restrict map, const Cells &at, typename I::Vector (&sum)[N]) {
    for (int n = 0; n < N; ++n) sum[n] = I::multiply(I::set(at.weight[0]), I::load(map + at.offset[0] + n * I::lanes));
    for (int k = 1; k < 4; ++k)
        for (int n = 0; n < N; ++n)
            sum[n] = I::fma(I::set(at.weight[k]), I::load(map + at.offset[k] + n * I::lanes), sum[n]);
}

// sum[e] = the bilinear read of channel e of a map.
template <class Element>
inline void read_channels(const Element *__restrict map, const Cells &at, int channels, float *__restrict sum) {
    const float p = at.weight[0], q = at.weight[1], r = at.weight[2], s = at.weight[3];
    const Element *__restrict a = map + at.offset[0], *__restrict b = map + at.offset[1];
    const Element *__restrict c = map + at.offset[2], *__restrict d = map + at.offset[3];
    const auto mix = [&](int e) {
        sum[e] = p * to_float(a[e]) + q * to_float(b[e]) + (r * to_float(c[e]) + s * to_float(d[e]));
    };
    int e = 0;
    for (; e + 8 <= channels; e += 8)
        for (int lane = 0; lane < 8; ++lane) mix(e + lane);
    for (; e < channels; ++e) mix(e);
}

// A cell's channels; `from` has room for whole vectors.
template <class I>
inline void write_channels(const float *from, int channels, void *out, int64_t offset) {
    alignas(64) typename I::Element rounded[STIF_RT_WIDEST];
    convert<I>(from, rounded, int(round_up(channels, I::lanes)));
    std::memcpy(static_cast<typename I::Element *>(out) + offset, rounded, channels * sizeof *rounded);
}

// Rows [begin, end) of a map, read where the flow points.
template <class I>
void warp(const stif_rt_warp &call, int64_t begin, int64_t end) {
    using Element = typename I::Element;
    const float *const horizontal = call.flow, *const vertical = call.flow + call.height * call.width;
    alignas(64) float sum[STIF_RT_WIDEST] = {};
    for (int64_t y = begin; y < end; ++y)
        for (int64_t x = 0; x < call.width; ++x) {
            const int64_t cell = y * call.width + x;
            const Cells at = cells_around(float(y) + vertical[cell], float(x) + horizontal[cell], call.height,
                                          call.width, call.maps_stride);
            read_channels(static_cast<const Element *>(call.maps), at, int(call.channels), sum);
            write_channels<I>(sum, int(call.channels), call.out, cell * call.channels);
        }
}

// Cells [begin, end): x where it is positive, else its channel's slope times x; in place.
template <class I>
void prelu(const stif_rt_prelu &call, int64_t begin, int64_t end) {
    using Element = typename I::Element;
    const int channels = int(call.channels), whole = channels / BLOCK * BLOCK;
    const float *const slopes = call.slopes;
    const auto activate = [&](float value, int c) {  // without a branch, which would be guessed wrong
        const float positive = value < 0 ? 0 : value, negative = value < 0 ? value : 0;
        return positive + slopes[c] * negative;
    };
    alignas(64) float block[BLOCK] = {};
    for (int64_t cell = begin; cell < end; ++cell) {
        Element *const x = static_cast<Element *>(call.x) + cell * channels;
        for (int c = 0; c < whole; c += BLOCK) {
            for (int e = 0; e < BLOCK; ++e) block[e] = activate(to_float(x[c + e]), c + e);
            convert<I>(block, x + c, BLOCK);
        }
        for (int c = whole; c < channels; ++c) block[c - whole] = activate(to_float(x[c]), c);
        if (whole < channels) write_channels<I>(block, channels - whole, x, whole);
    }
}

// BLOCK channels of a cell, of which `count` are there and the others 0. end: where the map does.
inline void load_block(const float *from, int count, const float *end, float *__restrict to) {
    if (count >= BLOCK) {
        std::memcpy(to, from, BLOCK * sizeof(float));
    } else if (from + BLOCK <= end) {  // with the next cell's channels, which are cleared
        uint32_t bits[BLOCK];
        std::memcpy(bits, from, sizeof bits);
        for (int e = 0; e < BLOCK; ++e) bits[e] = e < count ? bits[e] : 0;
        std::memcpy(to, bits, sizeof bits);
    } else {
        for (int e = 0; e < BLOCK; ++e) to[e] = e < count ? from[e] : 0;
    }
}

inline void add_to(float *__restrict sum, const float *__restrict more, int count) {
    for (int e = 0; e < count; ++e) sum[e] += more[e];
}

// Units [begin, end) of SIDE rows and NORMALISE_COLUMNS columns. A sum over a neighbourhood is one of cells up to a
// middle line, and one of cells after it: of SIDE sums that all cross the same line, each part is the part before and
// one cell more.
template <class I>
void normalise(const stif_rt_normalise &call, int64_t begin, int64_t end) {
    constexpr int ROWS = 2 * SIDE - 1, COLUMNS = NORMALISE_COLUMNS + 2 * REACH,
                  PAIR = 2 * BLOCK;  // means, then means of squares
    const int64_t strips = (call.width + NORMALISE_COLUMNS - 1) / NORMALISE_COLUMNS;
    const auto tile_memory = lines(int64_t(ROWS) * COLUMNS * PAIR), line_memory = lines(int64_t(COLUMNS) * PAIR);
    float *const tile = tile_memory[0].at, *const line = line_memory[0].at;
    const auto tile_row = [&](int r) {
        return tile + int64_t(r) * COLUMNS * PAIR;
    };
    const float *const ends[2] = {
        call.maps[0] + (call.height * call.width - 1) * call.maps_stride + call.channels,
        call.maps[1] + (call.height * call.width - 1) * call.maps_stride + call.channels,
    };
    alignas(64) float first[BLOCK], second[BLOCK], before[SIDE][PAIR], after[PAIR];
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t top = unit / strips * SIDE, left = unit % strips * NORMALISE_COLUMNS;
        for (int64_t channel = 0; channel < call.channels; channel += BLOCK) {
            const int count = int(std::min<int64_t>(BLOCK, call.channels - channel));
            const auto load = [&](int64_t cell) {
                load_block(call.maps[0] + cell * call.maps_stride + channel, count, ends[0], first);
                load_block(call.maps[1] + cell * call.maps_stride + channel, count, ends[1], second);
            };
            for (int r = 0; r < ROWS; ++r) {
                const int64_t y = top - REACH + r;
                float *const row = tile_row(r);
                if (y < 0 || y >= call.height) {
                    std::memset(row, 0, COLUMNS * PAIR * sizeof(float));
                    continue;
                }
                for (int c = 0; c < COLUMNS; ++c) {
                    const int64_t x = left - REACH + c;
                    float *const to = row + c * PAIR;
                    if (x < 0 || x >= call.width) {
                        std::memset(to, 0, PAIR * sizeof(float));
                        continue;
                    }
                    load(y * call.width + x);
                    for (int e = 0; e < BLOCK; ++e) to[e] = (first[e] + second[e]) / 2;
                    for (int e = 0; e < BLOCK; ++e) to[BLOCK + e] = (first[e] * first[e] + second[e] * second[e]) / 2;
                }
            }
            for (int r = SIDE - 2; r >= 0; --r) add_to(tile_row(r), tile_row(r + 1), COLUMNS * PAIR);
            for (int r = SIDE + 1; r < ROWS; ++r) add_to(tile_row(r), tile_row(r - 1), COLUMNS * PAIR);
            for (int j = 0; j < SIDE && top + j < call.height; ++j) {
                const int64_t y = top + j;
                std::memcpy(line, tile_row(j), COLUMNS * PAIR * sizeof(float));
                if (j > 0) add_to(line, tile_row(j + SIDE - 1), COLUMNS * PAIR);
                const int64_t rows = std::min(y + REACH, call.height - 1) - std::max<int64_t>(y - REACH, 0) + 1;
                for (int from = 0; from < NORMALISE_COLUMNS; from += SIDE) {
                    std::memcpy(before[SIDE - 1], line + (from + SIDE - 1) * PAIR, sizeof after);
                    for (int k = SIDE - 2; k >= 0; --k) {
                        std::memcpy(before[k], before[k + 1], sizeof after);
                        add_to(before[k], line + (from + k) * PAIR, PAIR);
                    }
                    std::memset(after, 0, sizeof after);
                    for (int k = 0; k < SIDE && left + from + k < call.width; ++k) {
                        const int64_t x = left + from + k;
                        if (k > 0) add_to(after, line + (from + SIDE - 1 + k) * PAIR, PAIR);
                        const int64_t columns =
                            std::min(x + REACH, call.width - 1) - std::max<int64_t>(x - REACH, 0) + 1;
                        const float each = 1 / float(rows * columns);
                        const int64_t cell = y * call.width + x;
                        load(cell);
                        float *const out0 = call.out[0] + cell * call.out_stride + channel;
                        float *const out1 = call.out[1] + cell * call.out_stride + channel;
                        for (int e = 0; e < BLOCK; ++e) {
                            const float mean = (before[k][e] + after[e]) * each;
                            const float power = (before[k][BLOCK + e] + after[BLOCK + e]) * each;
                            const float variance = power - mean * mean + call.smallest_variance;
                            const float least = call.smallest_variance;
                            const float scale = 1 / std::sqrt(variance > least ? variance : least);
                            out0[e] = (first[e] - mean) * scale;
                            out1[e] = (second[e] - mean) * scale;
                        }
                    }
                }
            }
        }
    }
}

// Units of PRODUCTS_ROWS rows and PRODUCTS_COLUMNS columns: of both frames as they are midway, the products of
// gradients and difference, and the trust, [SUMS, height, width].
template <class I, int N>
void products_of(const stif_rt_gauss_newton &call, int64_t begin, int64_t end) {
    using Vector = typename I::Vector;
    const int64_t strips = (call.width + PRODUCTS_COLUMNS - 1) / PRODUCTS_COLUMNS, plane = call.height * call.width;
    constexpr int CHANNELS_READ = N * I::lanes;
    // of three rows in turn the mean of both frames, with a column beyond either end, and their difference
    alignas(64) float means[3][PRODUCTS_COLUMNS + 2][CHANNELS_READ],
        differences[3][PRODUCTS_COLUMNS + 2][CHANNELS_READ];
    float sums[SUMS][PRODUCTS_COLUMNS];
    Vector gain[N];
    for (int n = 0; n < N; ++n) gain[n] = I::load(call.gain + n * I::lanes);
    const float each = 1 / float(call.channels);
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t top = unit / strips * PRODUCTS_ROWS, bottom = std::min(top + PRODUCTS_ROWS, call.height);
        const int64_t left = unit % strips * PRODUCTS_COLUMNS, right = std::min(left + PRODUCTS_COLUMNS, call.width);
        const auto warp_row = [&](int64_t y) {
            for (int64_t x = std::max<int64_t>(left - 1, 0); x < std::min(right + 1, call.width); ++x) {
                const int64_t cell = y * call.width + x;
                const float u = call.velocity[cell] / 2, v = call.velocity[plane + cell] / 2;
                Vector a[N], b[N];
                read_bilinear<I>(call.maps[0],
                                 cells_around(float(y) - v, float(x) - u, call.height, call.width, call.maps_stride),
                                 a);
                read_bilinear<I>(call.maps[1],
                                 cells_around(float(y) + v, float(x) + u, call.height, call.width, call.maps_stride),
                                 b);
                for (int n = 0; n < N; ++n) {
                    const Vector difference = I::multiply(gain[n], I::subtract(a[n], b[n]));
                    I::store(differences[y % 3][x - left + 1] + n * I::lanes, difference);
                    // a - (a - b) / 2
                    I::store(means[y % 3][x - left + 1] + n * I::lanes,
                             I::fma(I::set(-0.5f), difference, I::multiply(gain[n], a[n])));
                }
            }
        };
        const Vector half = I::set(0.5f);
        if (top > 0) warp_row(top - 1);
        warp_row(top);
        for (int64_t y = top; y < bottom; ++y) {
            if (y + 1 < call.height) warp_row(y + 1);
            const int64_t above = std::max<int64_t>(y - 1, 0) % 3, below = std::min(y + 1, call.height - 1) % 3;
            for (int64_t x = left; x < right; ++x) {
                const int64_t c = x - left + 1, before = x > 0 ? c - 1 : c, after = x + 1 < call.width ? c + 1 : c;
                Vector xx = I::set(0), xy = xx, yy = xx, xr = xx, yr = xx, size = xx;
                for (int n = 0; n < N; ++n) {
                    const int e = n * I::lanes;
                    const Vector gx = I::multiply(
                        half, I::subtract(I::load(means[y % 3][after] + e), I::load(means[y % 3][before] + e)));
                    const Vector gy =
                        I::multiply(half, I::subtract(I::load(means[below][c] + e), I::load(means[above][c] + e)));
                    const Vector r = I::load(differences[y % 3][c] + e);
                    xx = I::fma(gx, gx, xx), xy = I::fma(gx, gy, xy), yy = I::fma(gy, gy, yy);
                    xr = I::fma(gx, r, xr), yr = I::fma(gy, r, yr);
                    size = I::add(size, I::absolute(r));
                }
                const int64_t at = x - left;
                sums[0][at] = I::sum(xx), sums[1][at] = I::sum(xy), sums[2][at] = I::sum(yy);
                sums[3][at] = I::sum(xr), sums[4][at] = I::sum(yr), sums[5][at] = I::sum(size);
            }
            float *const to = call.sums + y * call.width + left;
            for (int64_t n = 0; n < right - left; ++n) {
                const float size = sums[5][n] * each / call.tolerance, trust = 1 / (1 + size * size) + 1e-3f;
                for (int k = 0; k < 5; ++k) to[k * plane + n] = sums[k][n] * each * trust;
                to[5 * plane + n] = trust;
            }
        }
    }
}

template <class I>
void products(const stif_rt_gauss_newton &call, int64_t begin, int64_t end) {
    constexpr int PARTS = BLOCK / I::lanes;
    if (call.channels <= BLOCK)
        products_of<I, PARTS>(call, begin, end);
    else
        products_of<I, 2 * PARTS>(call, begin, end);
}

inline float hyperbolic_tangent(float x) {
    return 1 - 2 / (exponential(2 * clamp(x, -9, 9)) + 1);
}

// [1 4 6 4 1] / 16 of a row whose ends are repeated. from: has two cells before and after the row.
inline void smooth_row(float *__restrict from, float *__restrict to, int64_t width) {
    from[-1] = from[-2] = from[0];
    from[width] = from[width + 1] = from[width - 1];
    for (int64_t x = 0; x < width; ++x)
        to[x] = (from[x - 2] + from[x + 2] + 4 * (from[x - 1] + from[x + 1]) + 6 * from[x]) * (1.f / 16);
}

// Rows [begin, end) of a step: the products smoothed twice along both axes, then two equations in each cell.
template <class I>
void solve(const stif_rt_gauss_newton &call, int64_t begin, int64_t end) {
    constexpr int FAR = 4;  // two smoothings reach so far
    constexpr float KERNEL[5] = {0.0625f, 0.25f, 0.375f, 0.25f, 0.0625f};
    const int64_t width = call.width, plane = call.height * width;
    const int64_t from = std::max<int64_t>(begin - FAR, 0), to = std::min(end + FAR, call.height);
    const auto row_memory = lines((to - from) * SUMS * width), line_memory = lines(2 * (width + 4) + SUMS * width);
    float *const once = line_memory[0].at + 2, *const twice = once + width + 4, *const sums = twice + width + 2;
    const auto row = [&](int64_t y, int k) {
        return row_memory[0].at + ((y - from) * SUMS + k) * width;
    };
    for (int64_t y = from; y < to; ++y)
        for (int k = 0; k < SUMS; ++k) {
            std::memcpy(once, call.sums + k * plane + y * width, width * sizeof(float));
            smooth_row(once, twice, width);
            smooth_row(twice, row(y, k), width);
        }
    const auto row_inside = [&](int64_t y) {
        return inside(y, call.height);
    };
    for (int64_t y = begin; y < end; ++y) {
        float weight[2 * FAR + 1] = {};  // of rows y - 4 to y + 4, the border repeated in both smoothings
        for (int i = -2; i <= 2; ++i)
            for (int j = -2; j <= 2; ++j)
                weight[row_inside(row_inside(y + i) + j) - y + FAR] += KERNEL[i + 2] * KERNEL[j + 2];
        std::memset(sums, 0, SUMS * width * sizeof(float));
        for (int64_t other = row_inside(y - FAR); other <= row_inside(y + FAR); ++other) {
            const float share = weight[other - y + FAR];
            const float *__restrict source = row(other, 0);
            float *__restrict sum = sums;
            for (int64_t n = 0; n < SUMS * width; ++n) sum[n] += share * source[n];
        }
        const float *__restrict s = sums;
        float *__restrict vx = call.velocity + y * width, *__restrict vy = vx + plane;
        float *__restrict step_x = call.step + y * width, *__restrict step_y = step_x + plane;
        float *__restrict matrix = call.matrix + y * width;
        for (int64_t x = 0; x < width; ++x) {
            const float total = 1 / s[5 * width + x];
            const float mxx = s[x] * total, xy = s[width + x] * total, myy = s[2 * width + x] * total;
            const float bx = s[3 * width + x] * total, by = s[4 * width + x] * total;
            matrix[x] = mxx, matrix[plane + x] = xy, matrix[2 * plane + x] = myy;
            const float xx = mxx + call.damping, yy = myy + call.damping, determinant = 1 / (xx * yy - xy * xy);
            step_x[x] = (yy * bx - xy * by) * determinant;
            step_y[x] = (xx * by - xy * bx) * determinant;
        }
        for (int64_t x = 0; x < width; ++x) {
            vx[x] += call.largest_step * hyperbolic_tangent(step_x[x] / call.largest_step);
            vy[x] += call.largest_step * hyperbolic_tangent(step_y[x] / call.largest_step);
        }
    }
}

// Rows [begin, end) of what a level's network sees; stif_rt_evidence has the order.
template <class I>
void evidence(const stif_rt_evidence &call, int64_t begin, int64_t end) {
    const int64_t width = call.width, plane = call.height * width;
    const int match = int(call.match), seen = int(call.seen), context = int(call.context);
    alignas(64) float first[STIF_RT_WIDEST], second[STIF_RT_WIDEST], all[STIF_RT_WIDEST] = {};
    for (int64_t y = begin; y < end; ++y)
        for (int64_t x = 0; x < width; ++x) {
            const int64_t cell = y * width + x;
            const float u = call.velocity[cell], v = call.velocity[plane + cell];
            const auto read = [&](int k, float sign, float *sum) {
                const Cells at = cells_around(float(y) + sign * v / 2, float(x) + sign * u / 2, call.height, width,
                                              call.maps_stride);
                read_channels(call.maps[k], at, match + seen, sum);
            };
            read(0, -1, first);
            read(1, 1, second);
            float difference = 0;
            for (int e = 0; e < match; ++e) difference += std::fabs(first[e] - second[e]);
            float *to = all;
            std::memcpy(to, first + match, seen * sizeof(float));
            std::memcpy(to += seen, second + match, seen * sizeof(float));
            to += seen;
            for (int k = 0; k < 2; ++k) *to++ = call.step[k * plane + cell];
            for (int k = 0; k < 3; ++k) *to++ = clamp(call.matrix[k * plane + cell], -4, 4);
            *to++ = difference / float(match);
            *to++ = u / 4;
            *to++ = v / 4;
            std::memcpy(to, call.given + cell * context, context * sizeof(float));
            const int channels = int(to - all) + context;
            write_channels<I>(all, channels, call.out, cell * channels);
        }
}

// Rows [begin, end) of the velocities that a level ends with: those that are offered, mixed, and a correction. A row at
// a time, so that cells are side by side in vectors.
template <class I>
void choose(const stif_rt_choose &call, int64_t begin, int64_t end) {
    using Element = typename I::Element;
    constexpr int NEAR = 1, FAR = 3, ROWS = 5, GIVEN = 2 + OFFERED;
    constexpr int64_t APART[ROWS] = {-FAR, -NEAR, 0, NEAR, FAR};
    constexpr int ROW_OF[2][3] = {{1, 2, 3}, {0, 2, 4}};  // of APART, by reach
    const int64_t width = call.width, padded = width + 2 * FAR, plane = call.height * width;
    const auto memory = lines((GIVEN + 4) * width + 2 * ROWS * padded);
    float *const scores = memory[0].at, *const largest = scores + GIVEN * width, *const rows = largest + 4 * width;
    float *const total = largest + width, *const sum_u = total + width, *const sum_v = sum_u + width;
    for (int64_t y = begin; y < end; ++y) {
        const Element *given = static_cast<const Element *>(call.scores) + y * width * call.scores_stride;
        for (int64_t x = 0; x < width; ++x, given += call.scores_stride)
            for (int n = 0; n < GIVEN; ++n) scores[n * width + x] = to_float(given[n]);
        for (int n = 0; n < 2 * ROWS; ++n) {  // the velocity around, its border repeated
            const float *from = call.velocity + n % 2 * plane + inside(y + APART[n / 2], call.height) * width;
            float *to = rows + n * padded;
            for (int k = 0; k < FAR; ++k) to[k] = from[0], to[FAR + width + k] = from[width - 1];
            std::memcpy(to + FAR, from, width * sizeof(float));
        }
        for (int64_t x = 0; x < width; ++x) largest[x] = -INFINITY;
        for (int k = 0; k < OFFERED; ++k) {
            float *__restrict score = scores + (2 + k) * width, *__restrict most = largest;
            for (int64_t x = 0; x < width; ++x) {
                score[x] += call.preference[k];
                most[x] = score[x] > most[x] ? score[x] : most[x];
            }
        }
        std::memset(total, 0, 3 * width * sizeof(float));
        for (int k = 0; k < OFFERED; ++k) {
            const int reach = k < 9 ? NEAR : FAR, row = 2 * ROW_OF[k / 9 % 2][k / 3 % 3];
            const int64_t shift = FAR + (k % 3 - 1) * reach;
            const bool is_start = k == OFFERED - 1;
            const float *u = is_start ? call.start + y * width : rows + row * padded + shift;
            const float *v = is_start ? u + plane : rows + (row + 1) * padded + shift;
            const float *__restrict score = scores + (2 + k) * width, *__restrict most = largest;
            float *__restrict all = total, *__restrict all_u = sum_u, *__restrict all_v = sum_v;
            for (int64_t x = 0; x < width; ++x) {
                const float weight = exponential(clamp(score[x] - most[x], -80, 0));
                all[x] += weight, all_u[x] += weight * u[x], all_v[x] += weight * v[x];
            }
        }
        float *__restrict out = call.out + y * width;
        for (int64_t x = 0; x < width; ++x) {
            out[x] = sum_u[x] / total[x] + scores[x];
            out[plane + x] = sum_v[x] / total[x] + scores[width + x];
        }
    }
}

}  // namespace
}  // namespace stif_rt
