// All kernels of one instruction set.
//
// An instruction set `I` gives: Vector (float32) with load, store, set, fused multiply-add and round; Element and
// Operand (what products are made of); and the shape of its register block.
#pragma once

#include "deform_conv.h"
#include "implicit.h"
#include "isa.h"
#include "matching.h"
#include "sine.h"

namespace stif_rt {
namespace {  // every source has its own copy, compiled with its own flags

template <class I>
constexpr Isa describe(const char *name, const char *(*unavailable)()) {
    return {name,        sizeof(typename I::Element) == 2,
            I::lanes,    I::kr,
            I::k_align,  I::tile_pixels,
            unavailable, implicit<I>,
            decode<I>,   deform_conv<I>,
            sine_all<I>, warp<I>,
            prelu<I>,    normalise<I>,
            products<I>, solve<I>,
            evidence<I>, choose<I>};
}

}  // namespace
}  // namespace stif_rt
