// AVX2 and FMA, float32. Twelve accumulators of sixteen registers; each input costs 6 broadcasts, 2 loads, 12 products.
#include <immintrin.h>

#include "cpuid.h"
#include "kernels.h"

namespace stif_rt {
namespace {

struct Avx2 {
    using Element = float;
    using Vector = __m256;
    using Operand = __m256;
    static constexpr int lanes = 8, kr = 1, k_align = 1;
    static constexpr int mr = 6, nr_panels = 2, tile_pixels = 48;
    static constexpr bool matrix_unit = false;

    static Vector load(const float *p) { return _mm256_loadu_ps(p); }
    static void store(float *p, Vector v) { _mm256_storeu_ps(p, v); }
    static Vector set(float value) { return _mm256_set1_ps(value); }
    static Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
    static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
    static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
    static Vector absolute(Vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
    static float sum(Vector a) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
    static Vector round(Vector a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Operand load_operand(const float *p) { return _mm256_load_ps(p); }
    static Operand broadcast_operand(const float *p) { return _mm256_broadcast_ss(p); }
    static Vector multiply_add(Operand a, Operand b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace

const Isa avx2 = describe<Avx2>("avx2", avx2_unavailable);

}  // namespace stif_rt
