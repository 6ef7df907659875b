// The C interface: the list of instruction sets, weight packing, and threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "isa.h"

namespace stif_rt {
namespace {

// What a thread takes at a time: cells or rows of a map, and units that have rows and columns.
constexpr int64_t CHUNK_CELLS = 4096, CHUNK_ROWS = 8, CHUNK_UNITS = 2;

// By preference. What the build could not compile is not listed.
const Isa *const ISAS[] = {
#if defined(STIF_RT_WITH_AMX)
    &amx,
#endif
#if defined(STIF_RT_WITH_AVX512_BF16)
    &avx512_bf16,
#endif
#if defined(STIF_RT_WITH_AVX512)
    &avx512,
#endif
#if defined(STIF_RT_WITH_AVX2)
    &avx2,
#endif
    &portable,
};

uint16_t to_bfloat16(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);  // a NaN stays one
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class Element, class Convert>
void pack(const Isa &isa, const float *weight, int inputs, int outputs, Element *to, Convert convert) {
    const int64_t padded = round_up(inputs, isa.k_align);
    for (int64_t o = 0; o < round_up(outputs, isa.lanes); ++o)
        for (int64_t i = 0; i < padded; ++i) {
            const int64_t panel = o / isa.lanes, lane = o % isa.lanes;
            const int64_t at = (panel * padded + i / isa.kr * isa.kr) * isa.lanes + lane * isa.kr + i % isa.kr;
            to[at] = convert(o < outputs && i < inputs ? weight[o * inputs + i] : 0.f);
        }
}

// Runs body(begin, end) over [0, count) in chunks on up to `threads` threads, the caller's included. Threads live for
// one call: next to its milliseconds they cost little, they inherit the caller's affinity, survive a fork, and do not
// contend with anybody's pool.
template <class Body>
int32_t in_parallel(int64_t count, int64_t chunk, int32_t threads, Body body) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto work = [&] {
        try {
            for (int64_t begin; (begin = next.fetch_add(chunk)) < count;) body(begin, std::min(begin + chunk, count));
        } catch (...) {  // out of memory; nothing may be thrown through the C interface
            failed = true;
        }
    };
    std::vector<std::thread> others;
    try {
        const int64_t wanted = std::min<int64_t>(threads, (count + chunk - 1) / chunk);
        for (int64_t n = 1; n < wanted; ++n) others.emplace_back(work);
    } catch (...) {  // fewer threads than asked for do the same work
    }
    work();
    for (std::thread &other : others) other.join();
    return failed ? 1 : 0;
}

}  // namespace
}  // namespace stif_rt

using namespace stif_rt;

void stif_rt_sizes(int64_t sizes[9]) {
    sizes[0] = sizeof(stif_rt_implicit);
    sizes[1] = sizeof(stif_rt_decode);
    sizes[2] = sizeof(stif_rt_deform_conv);
    sizes[3] = sizeof(stif_rt_warp);
    sizes[4] = sizeof(stif_rt_prelu);
    sizes[5] = sizeof(stif_rt_normalise);
    sizes[6] = sizeof(stif_rt_gauss_newton);
    sizes[7] = sizeof(stif_rt_evidence);
    sizes[8] = sizeof(stif_rt_choose);
}

int32_t stif_rt_isa_count(void) {
    return int32_t(sizeof ISAS / sizeof *ISAS);
}
const char *stif_rt_isa_name(int32_t isa) {
    return ISAS[isa]->name;
}
int32_t stif_rt_isa_bfloat16(int32_t isa) {
    return ISAS[isa]->bfloat16;
}
const char *stif_rt_isa_unavailable(int32_t isa) {
    return ISAS[isa]->unavailable();
}

int64_t stif_rt_packed_bytes(int32_t isa, int32_t inputs, int32_t outputs) {
    const Isa &set = *ISAS[isa];
    const int64_t weights = round_up(inputs, set.k_align) * round_up(outputs, set.lanes);
    return round_up(outputs, PANEL_BIAS) * int64_t(sizeof(float)) + weights * (set.bfloat16 ? 2 : 4);
}

void stif_rt_pack(int32_t isa, const float *weight, const float *bias, int32_t inputs, int32_t outputs, void *packed) {
    const Isa &set = *ISAS[isa];
    float *start = static_cast<float *>(packed);
    const int64_t padded = round_up(outputs, PANEL_BIAS);
    for (int64_t o = 0; o < padded; ++o) start[o] = bias && o < outputs ? bias[o] : 0;
    if (set.bfloat16)
        pack(set, weight, inputs, outputs, reinterpret_cast<uint16_t *>(start + padded), to_bfloat16);
    else
        pack(set, weight, inputs, outputs, start + padded, [](float value) { return value; });
}

int32_t stif_rt_run_implicit(int32_t isa, const stif_rt_implicit *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(call->box.height * call->box.width, 16 * set.tile_pixels, threads,
                       [&](int64_t begin, int64_t end) { set.implicit(*call, begin, end); });
}

int32_t stif_rt_run_decode(int32_t isa, const stif_rt_decode *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(call->region.height * call->region.width, 16 * set.tile_pixels, threads,
                       [&](int64_t begin, int64_t end) { set.decode(*call, begin, end); });
}

int32_t stif_rt_run_deform_conv(int32_t isa, const stif_rt_deform_conv *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(call->height * call->width, 8 * set.tile_pixels, threads,
                       [&](int64_t begin, int64_t end) { set.deform_conv(*call, begin, end); });
}

int32_t stif_rt_run_warp(int32_t isa, const stif_rt_warp *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(call->height, CHUNK_ROWS, threads,
                       [&](int64_t begin, int64_t end) { set.warp(*call, begin, end); });
}

int32_t stif_rt_run_prelu(int32_t isa, const stif_rt_prelu *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(call->cells, CHUNK_CELLS, threads,
                       [&](int64_t begin, int64_t end) { set.prelu(*call, begin, end); });
}

int32_t stif_rt_run_normalise(int32_t isa, const stif_rt_normalise *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(units(call->height, call->width, NORMALISE_ROWS, NORMALISE_COLUMNS), CHUNK_UNITS, threads,
                       [&](int64_t begin, int64_t end) { set.normalise(*call, begin, end); });
}

int32_t stif_rt_run_gauss_newton(int32_t isa, const stif_rt_gauss_newton *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(units(call->height, call->width, PRODUCTS_ROWS, PRODUCTS_COLUMNS), CHUNK_UNITS, threads,
                       [&](int64_t begin, int64_t end) { set.products(*call, begin, end); }) ||
           in_parallel(call->height, 2 * CHUNK_ROWS, threads,
                       [&](int64_t begin, int64_t end) { set.solve(*call, begin, end); });
}

int32_t stif_rt_run_evidence(int32_t isa, const stif_rt_evidence *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(call->height, CHUNK_ROWS, threads,
                       [&](int64_t begin, int64_t end) { set.evidence(*call, begin, end); });
}

int32_t stif_rt_run_choose(int32_t isa, const stif_rt_choose *call, int32_t threads) {
    const Isa &set = *ISAS[isa];
    return in_parallel(call->height, CHUNK_ROWS, threads,
                       [&](int64_t begin, int64_t end) { set.choose(*call, begin, end); });
}

void stif_rt_run_sine(int32_t isa, const float *x, float *y, int64_t count) {
    ISAS[isa]->sine(x, y, count);
}
