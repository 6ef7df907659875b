// csrc/cuda/implicit.cu on the CPU; see cuda_emulation.h.
#include "cuda_emulation.h"

using std::max;
using std::min;

struct Float2;
void multiply_add(float (&d)[4], const unsigned (&a)[2], unsigned b);
void multiply_add_16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
unsigned pack(float low, float high);
Float2 unpack(unsigned pair);
unsigned multiply_pair(unsigned a, unsigned b);
unsigned multiply_add_pair(unsigned a, unsigned b, unsigned c);
float sine(float radians);

#include "../../csrc/cuda/implicit.cu"

unsigned pack(float low, float high) {
    const _Float16 halves[2] = {(_Float16)low, (_Float16)high};
    unsigned pair;
    std::memcpy(&pair, halves, 4);
    return pair;
}

Float2 unpack(unsigned pair) {
    _Float16 halves[2];
    std::memcpy(halves, &pair, 4);
    return {(float)halves[0], (float)halves[1]};
}

unsigned multiply_pair(unsigned a, unsigned b) {
    return multiply_add_pair(a, b, 0x80008000);
}

unsigned multiply_add_pair(unsigned a, unsigned b, unsigned c) {
    const Float2 x = unpack(a), y = unpack(b), z = unpack(c);
    const _Float16 halves[2] = {(_Float16)((double)x.x * y.x + z.x), (_Float16)((double)x.y * y.y + z.y)};
    unsigned pair;
    std::memcpy(&pair, halves, 4);
    return pair;
}

float sine(float radians) {
    return std::sin(radians);
}

// The matrix instructions m16n8k8 and m16n8k16: lanes show each other their operands and compute the sums that are
// theirs. A lane may already show those of the next one while another still reads, but not of the one after: two turns
// suffice.
template <int HALVES>
void matrix_instruction(float (&d)[4], const unsigned (&a)[2 * HALVES], const unsigned (&b)[HALVES]) {
    struct Operands {
        float a[16][8 * HALVES], b[8][8 * HALVES];  // [row][depth], [column][depth]
    };
    static Operands shown[1024 / 32][2];
    static unsigned turns[1024];
    Operands &operands = shown[threadIdx.x / 32][turns[threadIdx.x]++ % 2];
    const int r = threadIdx.x % 32 / 4, q = threadIdx.x % 4 * 2;
    const auto show = [&](float *row, unsigned pair) {
        const Float2 values = unpack(pair);
        row[q] = values.x;
        row[q + 1] = values.y;
    };
    for (int half = 0; half < HALVES; ++half) {
        show(operands.a[r] + 8 * half, a[2 * half]);
        show(operands.a[r + 8] + 8 * half, a[2 * half + 1]);
        show(operands.b[r] + 8 * half, b[half]);
    }
    __syncwarp();
    for (int i = 0; i < 4; ++i) {
        const float *const row = operands.a[r + i / 2 * 8], *const column = operands.b[q + i % 2];
        for (int k = 0; k < 8 * HALVES; ++k) d[i] += row[k] * column[k];
    }
}

void multiply_add(float (&d)[4], const unsigned (&a)[2], unsigned b) {
    matrix_instruction<1>(d, a, {b});
}

void multiply_add_16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    matrix_instruction<2>(d, a, b);
}

// Return 0 where the threads wait for each other for ever.
#define RUN(NAME, ARGUMENTS)                                                                             \
    extern "C" int run_##NAME(const int *grid, int threads, unsigned seed, const ARGUMENTS *arguments) { \
        return emulation::launch({grid[0], grid[1], grid[2]}, threads, seed, [=] { NAME(*arguments); }); \
    }                                                                                                    \
    extern "C" int size_of_##NAME() {                                                                    \
        return sizeof(ARGUMENTS);                                                                        \
    }

RUN(implicit_float16, Implicit)
RUN(decode_float16, Decode)
