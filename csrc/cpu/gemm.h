// Layers: products of a tile's activations with packed weights.
#pragma once

#include "sine.h"

// Loops over a register block must unroll before the compiler decides what lives in registers.
#if defined(__clang__)
#define STIF_RT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define STIF_RT_UNROLL _Pragma("GCC unroll 64")
#endif

namespace stif_rt {
namespace {  // every source has its own copy, compiled with its own flags

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
    for (int k = 0; k < inputs; k += I::kr) {
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
    const int inputs = int(round_up(layer.inputs, I::k_align));
    const int outputs = int(round_up(layer.outputs, I::lanes));
    const int64_t panel = int64_t(inputs) * I::lanes;
    const auto *panels = reinterpret_cast<const typename I::Element *>(static_cast<const float *>(layer.packed) +
                                                                       round_up(layer.outputs, PANEL_BIAS));
    for (int o = 0; o < outputs;) {
        const bool wide = o + I::nr_panels * I::lanes <= outputs;
        for (int p = 0; p < I::tile_pixels; p += I::mr) {
            const auto emit = [&](int m, int n, typename I::Vector sum) {
                I::store(y + (p + m) * y_stride + o + n * I::lanes, SINE ? sine<I>(sum) : sum);
            };
            const typename I::Element *rows = x + p * x_stride;
            const float *from = start + p * start_stride + o;
            if constexpr (I::matrix_unit) {
                if (wide)
                    I::template matrix_block<I::nr_panels>(rows, x_stride, inputs, panels, panel, from, start_stride,
                                                           emit);
                else
                    I::template matrix_block<1>(rows, x_stride, inputs, panels, panel, from, start_stride, emit);
            } else {
                if (wide)
                    register_block<I, I::mr, I::nr_panels>(rows, x_stride, inputs, panels, panel, from, start_stride,
                                                           emit);
                else
                    register_block<I, I::mr, 1>(rows, x_stride, inputs, panels, panel, from, start_stride, emit);
            }
        }
        o += wide ? I::nr_panels * I::lanes : I::lanes;
        panels += wide ? I::nr_panels * panel : panel;
    }
}

}  // namespace
}  // namespace stif_rt
