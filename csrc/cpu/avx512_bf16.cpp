// AVX-512 BF16: products of bfloat16 pairs, accumulated in float32.
#include "bfloat16.h"
#include "cpuid.h"

namespace stif_rt {
namespace {

struct Avx512Bf16 : Bfloat16 {
    using Operand = __m512bh;
    static constexpr int k_align = 2;
    static constexpr int mr = 12, nr_panels = 2, tile_pixels = 48;
    static constexpr bool matrix_unit = false;

    static Operand load_operand(const uint16_t *p) {
        Operand pairs;
        std::memcpy(&pairs, p, sizeof pairs);
        return pairs;
    }
    static Operand broadcast_operand(const uint16_t *p) {
        int pair;
        std::memcpy(&pair, p, sizeof pair);
        const __m512i all = _mm512_set1_epi32(pair);
        Operand pairs;
        std::memcpy(&pairs, &all, sizeof pairs);
        return pairs;
    }
    static Vector multiply_add(Operand a, Operand b, Vector c) { return _mm512_dpbf16_ps(c, a, b); }
};

}  // namespace

const Isa avx512_bf16 = describe<Avx512Bf16>("avx512_bf16", avx512_bf16_unavailable);

}  // namespace stif_rt
