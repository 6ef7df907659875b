// The AVX-512 and AMX intrinsics that csrc/cpu uses, in plain C++ after Intel's definitions, so that those sources run
// in tests on any CPU. Found in place of the compiler's <immintrin.h>. Misuse aborts: unaligned aligned loads, tiles
// without a configuration.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulation {

inline void require(bool condition, const char *what) {
    if (!condition) {
        std::fprintf(stderr, "emulated instruction: %s\n", what);
        std::abort();
    }
}

inline float widen(uint16_t bfloat16) {
    const uint32_t bits = uint32_t(bfloat16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint16_t narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (std::isnan(value)) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulation

struct __m512 {
    float lane[16];
};
struct __m512i {
    int32_t lane[16];
};
struct __m512bh {
    uint16_t lane[32];
};
struct __m256bh {
    uint16_t lane[16];
};

constexpr int _MM_FROUND_TO_NEAREST_INT = 0, _MM_FROUND_NO_EXC = 8;

inline __m512 _mm512_loadu_ps(const void *p) {
    __m512 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline __m512 _mm512_load_ps(const void *p) {
    emulation::require(reinterpret_cast<uintptr_t>(p) % 64 == 0, "unaligned address in _mm512_load_ps");
    return _mm512_loadu_ps(p);
}
inline void _mm512_storeu_ps(void *p, __m512 v) {
    std::memcpy(p, &v, sizeof v);
}

template <class F>
inline __m512 emulated_lanes(F f) {
    __m512 v;
    for (int i = 0; i < 16; ++i) v.lane[i] = f(i);
    return v;
}
inline __m512 _mm512_set1_ps(float value) {
    return emulated_lanes([&](int) { return value; });
}
inline __m512 _mm512_add_ps(__m512 a, __m512 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
}
inline __m512 _mm512_abs_ps(__m512 a) {
    for (float &lane : a.lane) lane = std::fabs(lane);
    return a;
}
inline float _mm512_reduce_add_ps(__m512 a) {
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) a.lane[i] += a.lane[i + n];
    return a.lane[0];
}
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) {
    return emulated_lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) {
    return emulated_lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return emulated_lanes([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
// imm8[7:4] is the number of fraction bits that stay; only zero is used
inline __m512 _mm512_roundscale_ps(__m512 a, int imm8) {
    emulation::require(imm8 == (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                       "rounding mode of _mm512_roundscale_ps");
    return emulated_lanes([&](int i) { return std::nearbyint(a.lane[i]); });
}
inline __m512i _mm512_set1_epi32(int value) {
    __m512i v;
    for (int i = 0; i < 16; ++i) v.lane[i] = value;
    return v;
}
inline __m256bh _mm512_cvtneps_pbh(__m512 a) {
    __m256bh v;
    for (int i = 0; i < 16; ++i) v.lane[i] = emulation::narrow(a.lane[i]);
    return v;
}
// VDPBF16PS: the odd product first, then the even one, each fused
inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    return emulated_lanes([&](int i) {
        const float odd =
            std::fma(emulation::widen(a.lane[2 * i + 1]), emulation::widen(b.lane[2 * i + 1]), sum.lane[i]);
        return std::fma(emulation::widen(a.lane[2 * i]), emulation::widen(b.lane[2 * i]), odd);
    });
}

namespace emulation {

struct Tiles {
    bool configured = false;
    int rows[8] = {}, bytes[8] = {};
    alignas(64) unsigned char data[8][16][64];
};

inline Tiles &tiles() {
    thread_local Tiles state;
    return state;
}

}  // namespace emulation

inline void _tile_loadconfig(const void *memory) {
    const unsigned char *configuration = static_cast<const unsigned char *>(memory);
    emulation::require(configuration[0] == 1, "palette of the tile configuration");
    emulation::Tiles &tiles = emulation::tiles();
    for (int tile = 0; tile < 8; ++tile) {
        tiles.bytes[tile] = configuration[16 + 2 * tile] | configuration[17 + 2 * tile] << 8;
        tiles.rows[tile] = configuration[48 + tile];
        emulation::require(tiles.bytes[tile] <= 64 && tiles.rows[tile] <= 16, "size of a tile");
    }
    tiles.configured = true;
}
inline void _tile_release() {
    emulation::tiles().configured = false;
}
inline void _tile_loadd(int tile, const void *base, int64_t stride) {
    emulation::Tiles &tiles = emulation::tiles();
    emulation::require(tiles.configured, "tile load without a configuration");
    for (int row = 0; row < tiles.rows[tile]; ++row)
        std::memcpy(tiles.data[tile][row], static_cast<const unsigned char *>(base) + row * stride, tiles.bytes[tile]);
}
inline void _tile_stored(int tile, void *base, int64_t stride) {
    emulation::Tiles &tiles = emulation::tiles();
    emulation::require(tiles.configured, "tile store without a configuration");
    for (int row = 0; row < tiles.rows[tile]; ++row)
        std::memcpy(static_cast<unsigned char *>(base) + row * stride, tiles.data[tile][row], tiles.bytes[tile]);
}
// TDPBF16PS: sum[m][n] += the even and the odd product of each pair, pair by pair
inline void _tile_dpbf16ps(int sum, int a, int b) {
    emulation::Tiles &tiles = emulation::tiles();
    emulation::require(tiles.configured, "tile product without a configuration");
    emulation::require(tiles.bytes[a] / 4 == tiles.rows[b] && tiles.rows[sum] == tiles.rows[a],
                       "sizes of a tile product");
    for (int m = 0; m < tiles.rows[sum]; ++m) {
        float total[16];
        std::memcpy(total, tiles.data[sum][m], sizeof total);
        for (int k = 0; k < tiles.rows[b]; ++k) {
            uint16_t x[2], y[32];
            std::memcpy(x, &tiles.data[a][m][4 * k], sizeof x);
            std::memcpy(y, tiles.data[b][k], sizeof y);
            for (int n = 0; n < 16; ++n)
                total[n] = std::fma(emulation::widen(x[0]), emulation::widen(y[2 * n]), total[n]);
            for (int n = 0; n < 16; ++n)
                total[n] = std::fma(emulation::widen(x[1]), emulation::widen(y[2 * n + 1]), total[n]);
        }
        std::memcpy(tiles.data[sum][m], total, tiles.bytes[sum]);
    }
}
