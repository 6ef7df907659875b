// The two passes of the implicit functions, once for all instruction sets.
//
// Both work on a tile of output pixels at a time. Its activations, [pixels, 256] at the widest, stay in the cache from
// the gather to the picture; only F, 64 channels, goes through memory between the passes.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

#include "gather.h"
#include "gemm.h"
#include "sine.h"

namespace stif_rt {
namespace {  // every source has its own copy, compiled with its own flags

constexpr float LIMIT = 1 - 1e-6f;

// What one thread works with.
template <class I>
struct Workspace {
    using Element = typename I::Element;
    static constexpr int stride = row_stride<I>(STIF_RT_WIDEST);
    alignas(64) Element a[I::tile_pixels * stride];
    alignas(64) Element b[I::tile_pixels * stride];
    alignas(64) Element feature[I::tile_pixels * CHANNELS];
    alignas(64) float preact[I::tile_pixels * CHANNELS];
    alignas(64) float last[I::tile_pixels * CHANNELS];
};

// A SIREN on one tile. `preact` holds what has been gathered for the first layer, start included; `local`, where given,
// the activations that meet the first layer's local columns. The result is written to y. A constant network has no
// layers, and `start` is its result.
template <class I, class Y>
void siren(const stif_rt_siren &network, Workspace<I> &w, const typename I::Element *local, int local_stride, Y *y,
           int y_stride) {
    constexpr int stride = Workspace<I>::stride;
    if constexpr (sizeof(Y) == sizeof(float)) {
        if (network.hidden_count == 0) {
            for (int p = 0; p < I::tile_pixels; ++p)
                std::memcpy(y + p * y_stride, network.start, CHANNELS * sizeof(float));
            return;
        }
    }
    typename I::Element *x = w.b, *next = w.a;
    if (local) {
        linear<I, true>(local, local_stride, network.local, w.preact, CHANNELS, x, stride);
    } else {
        for (int p = 0; p < I::tile_pixels; ++p)
            for (int c = 0; c < CHANNELS; c += I::lanes)
                I::store(x + p * stride + c, sine<I>(I::load(w.preact + p * CHANNELS + c)));
    }
    for (int n = 0; n + 1 < network.hidden_count; ++n) {
        const stif_rt_linear &layer = network.hidden[n];
        linear<I, true>(x, stride, layer, static_cast<const float *>(layer.packed), 0, next, stride);
        std::swap(x, next);
    }
    const stif_rt_linear &layer = network.hidden[network.hidden_count - 1];
    linear<I, false>(x, stride, layer, static_cast<const float *>(layer.packed), 0, y, y_stride);
}

// Adds the flow that a velocity implies at output pixel (i, j), in output pixels, to flow[4].
inline void add_flow_of_velocity(const stif_rt_implicit &call, int64_t i, int64_t j, float *flow) {
    const stif_rt_axis &vertical = call.vertical, &horizontal = call.horizontal;
    const float y = vertical.source_coords[i], x = horizontal.source_coords[j];
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
        for (int p = 0; p < I::tile_pixels; ++p) {
            const int64_t pixel = from + p < end ? from + p : end - 1;
            body(p, call.box.top + pixel / call.box.width, call.box.left + pixel % call.box.width);
        }
    };
    const auto run_entry = [&](auto *y) {  // the entry network on one tile
        siren<I>(call.entry, *w, nullptr, 0, y, CHANNELS);
    };
    for (int64_t from = begin; from < end; from += I::tile_pixels) {
        const int64_t count = from + I::tile_pixels < end ? I::tile_pixels : end - from;
        const auto gather_entry = [&](int p, int64_t i, int64_t j) {
            float *__restrict preact = w->preact + p * CHANNELS;
            const Element *__restrict cell =
                nearest_map +
                (vertical.nearest_index[i] * horizontal.cell_count + horizontal.nearest_index[j]) * CHANNELS;
            const float y = vertical.cell_offset[i], x = horizontal.cell_offset[j];
            for (int c = 0; c < CHANNELS; ++c)
                preact[c] = call.entry.start[c] + to_float(cell[c]) + y * call.offset_weights[c] +
                            x * call.offset_weights[CHANNELS + c];
        };
        if (nearest_map) each(from, gather_entry);
        if (call.feature) {
            Element *feature = static_cast<Element *>(call.feature) + from * CHANNELS;
            if (nearest_map) {
                run_entry(w->feature);
                std::memcpy(feature, w->feature, count * CHANNELS * sizeof(Element));
            } else {
                for (int p = 0; p < I::tile_pixels; ++p)  // the last tile repeats its last pixel
                    std::memcpy(w->feature + p * CHANNELS, feature + (p < count ? p : count - 1) * CHANNELS,
                                CHANNELS * sizeof(Element));
            }
            if (!call.flow) continue;
            const auto gather_tif = [&](int p, int64_t i, int64_t j) {
                gather(bilinear_map,
                       neighbours(vertical.source_coords[i], horizontal.source_coords[j], vertical.cell_count,
                                  horizontal.cell_count),
                       call.tif.start, w->preact + p * CHANNELS);
            };
            if (bilinear_map) each(from, gather_tif);
            siren<I>(call.tif, *w, w->feature, CHANNELS, w->last, CHANNELS);
        } else {
            run_entry(w->last);
        }
        each(from, [&](int p, int64_t i, int64_t j) {
            if (p >= count) return;
            float *flow = call.flow + (from + p) * 4;
            for (int k = 0; k < 4; ++k) flow[k] = w->last[p * CHANNELS + k] * (k % 2 ? vertical : horizontal).flow_unit;
            if (call.velocity) add_flow_of_velocity(call, i, j, flow);
        });
    }
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
    float warped[I::tile_pixels][2][3];
    for (int64_t from = begin; from < end; from += I::tile_pixels) {
        const int64_t count = from + I::tile_pixels < end ? I::tile_pixels : end - from;
        for (int p = 0; p < I::tile_pixels; ++p) {
            const int64_t pixel = from + p < end ? from + p : end - 1;
            const float i = float(call.region.top + pixel / call.region.width);
            const float j = float(call.region.left + pixel % call.region.width);
            float *preact = w->preact + p * CHANNELS;
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
                    std::memcpy(preact, sample, sizeof sample);
                    start = preact;
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
            if (start != preact) std::memcpy(preact, start, CHANNELS * sizeof(float));
        }
        siren<I>(call.decoder, *w, feature ? w->a : nullptr, stride, w->last, CHANNELS);
        const int64_t plane = call.region.height * call.region.width;
        float first_weight[I::tile_pixels];
        for (int p = 0; p < I::tile_pixels; ++p)
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

}  // namespace
}  // namespace stif_rt
