// AMX: tiles of 16 x 32 bfloat16 times 32 x 16, accumulated in float32. Sines and gathers in AVX-512.
#include "bfloat16.h"
#include "cpuid.h"

namespace stif_rt {
namespace {

// Compilers' tile loads do not say what memory they read: without this, stores to it could be moved past them.
inline void finish_stores() {
    __asm__ volatile("" ::: "memory");
}

// Palette 1: eight tiles of 16 rows of 64 bytes. 0-3 are sums, 4-5 activations, 6-7 weights.
struct TileConfiguration {
    alignas(64) uint8_t bytes[64] = {};
    TileConfiguration() {
        bytes[0] = 1;
        for (int tile = 0; tile < 8; ++tile) {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = 16;
        }
        finish_stores();
        _tile_loadconfig(bytes);
    }
    TileConfiguration(const TileConfiguration &) = delete;
    TileConfiguration &operator=(const TileConfiguration &) = delete;
    ~TileConfiguration() { _tile_release(); }
};

struct Amx : Bfloat16 {
    static constexpr int k_align = 32;
    static constexpr int mr = 32, nr_panels = 2, tile_pixels = 32;
    static constexpr bool matrix_unit = true;

    // 32 pixels times 16 N outputs. Tile numbers are immediates, so the four blocks are written out.
    template <int N, class Emit>
    static void matrix_block(const uint16_t *x, int x_stride, int inputs, const uint16_t *panels, int64_t panel,
                             const float *start, int start_stride, Emit emit) {
        finish_stores();
        const int x_bytes = x_stride * 2, start_bytes = start_stride * 4;
        _tile_loadd(0, start, start_bytes);  // a stride of zero repeats one row
        _tile_loadd(1, start + 16 * start_stride, start_bytes);
        if constexpr (N == 2) {
            _tile_loadd(2, start + 16, start_bytes);
            _tile_loadd(3, start + 16 * start_stride + 16, start_bytes);
        }
        for (int k = 0; k < inputs; k += k_align) {
            _tile_loadd(4, x + k, x_bytes);
            _tile_loadd(5, x + 16 * x_stride + k, x_bytes);
            _tile_loadd(6, panels + k * lanes, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 5, 6);
            if constexpr (N == 2) {
                _tile_loadd(7, panels + panel + k * lanes, 64);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        alignas(64) float sums[N][32][16];
        _tile_stored(0, sums[0][0], 64);
        _tile_stored(1, sums[0][16], 64);
        if constexpr (N == 2) {
            _tile_stored(2, sums[1][0], 64);
            _tile_stored(3, sums[1][16], 64);
        }
        for (int m = 0; m < 32; ++m)
            for (int n = 0; n < N; ++n) emit(m, n, load(sums[n][m]));
    }
};

// Tiles belong to the thread and need their configuration; a chunk of pixels is long enough to set it each time.
template <class Call, void (*RUN)(const Call &, int64_t, int64_t)>
void with_tiles(const Call &call, int64_t begin, int64_t end) {
    const TileConfiguration configuration;
    RUN(call, begin, end);
}

constexpr Isa describe_amx() {
    Isa isa = describe<Amx>("amx", amx_unavailable);
    isa.implicit = with_tiles<stif_rt_implicit, implicit<Amx>>;
    isa.decode = with_tiles<stif_rt_decode, decode<Amx>>;
    isa.deform_conv = with_tiles<stif_rt_deform_conv, deform_conv<Amx>>;
    return isa;
}

}  // namespace

const Isa amx = describe_amx();

}  // namespace stif_rt
