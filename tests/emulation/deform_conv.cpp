// csrc/cuda/deform_conv.cu on the CPU; see cuda_emulation.h.
#include "cuda_emulation.h"

struct Float16;
struct BFloat16;
float to_float(Float16 value);
float to_float(BFloat16 value);
void from_float(float value, Float16 &result);
template <typename T>
void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], T);

#include "../../csrc/cuda/deform_conv.cu"

float to_float(Float16 value) {
    _Float16 half;
    std::memcpy(&half, &value, 2);
    return half;
}

void from_float(float value, Float16 &result) {
    const _Float16 half = value;
    std::memcpy(&result, &half, 2);
}

// The matrix instruction: lanes show each other their operands and compute the sums that are theirs.
template <typename T>
void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], T) {
    static T left[1024 / 32][16][16], right[1024 / 32][8][16];  // [warp][row or column][depth]
    const int warp = threadIdx.x / 32, r = threadIdx.x % 32 / 4, q = threadIdx.x % 4 * 2;
    for (int i = 0; i < 4; ++i) std::memcpy(&left[warp][r + i % 2 * 8][q + i / 2 * 8], &a[i], 4);
    for (int i = 0; i < 2; ++i) std::memcpy(&right[warp][r][q + i * 8], &b[i], 4);
    __syncwarp();
    for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 16; ++k)
            d[i] += to_float(left[warp][r + i / 2 * 8][k]) * to_float(right[warp][q + i % 2][k]);
    __syncwarp();
}

// arrays: x, offset, mask, weight, bias (may be null). n: the kernel's integers. Returns 0 where the threads wait for
// each other for ever.
#define RUN(NAME, T)                                                                                              \
    extern "C" int run_##NAME(const int *grid, int threads, unsigned seed, const T *const *arrays, const int *n,  \
                              T *out) {                                                                           \
        return emulation::launch({grid[0], grid[1], grid[2]}, threads, seed, [=] {                                \
            NAME(arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], n[0], n[1], n[2], n[3], n[4], n[5], n[6], \
                 n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16], n[17], n[18], out);           \
        });                                                                                                       \
    }

RUN(deform_conv_float32, float)
RUN(deform_conv_float16, Float16)
RUN(deform_conv_bfloat16, BFloat16)
