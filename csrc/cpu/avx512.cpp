// AVX-512 float32. 24 accumulators of 32 registers; products take the activation straight from memory.
#include <immintrin.h>

#include "cpuid.h"
#include "kernels.h"

namespace stif_rt {
namespace {

struct Avx512 {
    using Element = float;
    using Vector = __m512;
    using Operand = __m512;
    static constexpr int lanes = 16, kr = 1, k_align = 1;
    static constexpr int mr = 12, nr_panels = 2, tile_pixels = 48;
    static constexpr bool matrix_unit = false;

    static Vector load(const float *p) { return _mm512_loadu_ps(p); }
    static void store(float *p, Vector v) { _mm512_storeu_ps(p, v); }
    static Vector set(float value) { return _mm512_set1_ps(value); }
    static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
    static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
    static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
    static Vector absolute(Vector a) { return _mm512_abs_ps(a); }
    static float sum(Vector a) { return _mm512_reduce_add_ps(a); }
    static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
    static Vector round(Vector a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Operand load_operand(const float *p) { return _mm512_load_ps(p); }
    static Operand broadcast_operand(const float *p) { return _mm512_set1_ps(*p); }
    static Vector multiply_add(Operand a, Operand b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

const Isa avx512 = describe<Avx512>("avx512", avx512_unavailable);

}  // namespace stif_rt
