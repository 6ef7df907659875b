// Any CPU: four floats at a time by the vector extension of GCC and Clang, which becomes SSE2, NEON and the like.
#include "kernels.h"

namespace stif_rt {
namespace {

struct Portable {
    using Element = float;
    typedef float Vector __attribute__((vector_size(16)));
    using Operand = Vector;
    static constexpr int lanes = 4, kr = 1, k_align = 1;
    static constexpr int mr = 4, nr_panels = 2, tile_pixels = 48;
    static constexpr bool matrix_unit = false;

    static Vector load(const float *p) {
        Vector v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static void store(float *p, Vector v) { std::memcpy(p, &v, sizeof v); }
    static Vector set(float value) { return Vector{value, value, value, value}; }
    static Vector subtract(Vector a, Vector b) { return a - b; }
    static Vector add(Vector a, Vector b) { return a + b; }
    static Vector multiply(Vector a, Vector b) { return a * b; }
    static Vector absolute(Vector a) { return a < 0 ? -a : a; }
    static float sum(Vector a) { return (a[0] + a[1]) + (a[2] + a[3]); }
    static Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
    static Vector round(Vector a) {
        // adding 1.5 * 2^23 leaves no fraction bits; numbers beyond 2^22 have none that a turn would feel
        const Vector magic = set(12582912.f), large = set(4194304.f);
        return (a < large) & (a > -large) ? (a + magic) - magic : a;
    }
    static Operand load_operand(const float *p) { return load(p); }
    static Operand broadcast_operand(const float *p) { return set(*p); }
    static Vector multiply_add(Operand a, Operand b, Vector c) { return a * b + c; }
};

const char *unavailable() {
    return nullptr;
}

}  // namespace

const Isa portable = describe<Portable>("portable", unavailable);

}  // namespace stif_rt
