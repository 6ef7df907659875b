// What the two instruction sets with bfloat16 products share: float32 vectors of AVX-512, stored as bfloat16.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace stif_rt {
namespace {

struct Bfloat16 {
    using Element = uint16_t;
    using Vector = __m512;
    static constexpr int lanes = 16, kr = 2;

    static Vector load(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, Vector v) { _mm512_storeu_ps(p, v); }
    static void store(uint16_t *p, Vector v) {
        const __m256bh rounded = _mm512_cvtneps_pbh(v);
        std::memcpy(p, &rounded, sizeof rounded);
    }
    static Vector set(float value) { return _mm512_set1_ps(value); }
    static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
    static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
    static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
    static Vector absolute(Vector a) { return _mm512_abs_ps(a); }
    static float sum(Vector a) { return _mm512_reduce_add_ps(a); }
    static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
    static Vector round(Vector a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

}  // namespace
}  // namespace stif_rt
