// What the dispatcher knows of one instruction set. Each is compiled in a source of its own, with its own flags.
#pragma once

#include "stif_rt/cpu.h"

namespace stif_rt {

struct Isa {
    const char *name;
    bool bfloat16;
    int lanes;                     // outputs in a panel of packed weights
    int kr;                        // consecutive inputs that one instruction consumes
    int k_align;                   // inputs are padded to a multiple of this
    int tile_pixels;               // pixels worked on together
    const char *(*unavailable)();  // why the CPU or the operating system cannot run it; nullptr where they can
    // Pixels [begin, end) of the box, the region or the image, counted row by row.
    void (*implicit)(const stif_rt_implicit &, int64_t begin, int64_t end);
    void (*decode)(const stif_rt_decode &, int64_t begin, int64_t end);
    void (*deform_conv)(const stif_rt_deform_conv &, int64_t begin, int64_t end);
    void (*sine)(const float *, float *, int64_t);
    // The velocity head: rows [begin, end) of the map; of `prelu` cells, of `normalise` and `products` units.
    void (*warp)(const stif_rt_warp &, int64_t begin, int64_t end);
    void (*prelu)(const stif_rt_prelu &, int64_t begin, int64_t end);
    void (*normalise)(const stif_rt_normalise &, int64_t begin, int64_t end);
    void (*products)(const stif_rt_gauss_newton &, int64_t begin, int64_t end);
    void (*solve)(const stif_rt_gauss_newton &, int64_t begin, int64_t end);
    void (*evidence)(const stif_rt_evidence &, int64_t begin, int64_t end);
    void (*choose)(const stif_rt_choose &, int64_t begin, int64_t end);
};

extern const Isa amx, avx512_bf16, avx512, avx2, portable;

// Static, as everything here that several sources compile: the linker must not share what one set's flags produced.
static inline int64_t round_up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

// Cells of a unit of work of `normalise`, which are as many rows as its neighbourhood has, and of `products`.
constexpr int NORMALISE_ROWS = 17, NORMALISE_COLUMNS = 2 * NORMALISE_ROWS;
constexpr int PRODUCTS_ROWS = 16, PRODUCTS_COLUMNS = 64;

static inline int64_t units(int64_t height, int64_t width, int64_t rows, int64_t columns) {
    return (height + rows - 1) / rows * ((width + columns - 1) / columns);
}

// A packed layer is its bias, padded to PANEL_BIAS, then one panel after another: [inputs / kr, lanes, kr].
constexpr int PANEL_BIAS = 16;

}  // namespace stif_rt
