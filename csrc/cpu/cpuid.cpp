#include "cpuid.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stif_rt {
namespace {

struct Cpu {
    bool avx2, fma, avx512, avx512_bf16, amx_tile, amx_bf16;
};

#if defined(STIF_RT_EMULATED)  // the tests' emulation of the instructions runs on any CPU

Cpu detect() {
    return {true, true, true, true, true, true};
}

#elif defined(__x86_64__)

struct Registers {
    uint32_t eax, ebx, ecx, edx;
};

Registers query(uint32_t leaf, uint32_t subleaf) {
    Registers r{};
    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    return r;
}

// Which registers the operating system saves.
uint64_t saved_state() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

Cpu detect() {
    const auto bit = [](uint64_t word, int position) {
        return (word >> position & 1) != 0;
    };
    const uint32_t leaves = query(0, 0).eax;
    const Registers one = query(1, 0);
    if (leaves < 7 || !bit(one.ecx, 27)) return {};  // no AVX2, or xgetbv is not to be used
    const Registers seven = query(7, 0), more = seven.eax >= 1 ? query(7, 1) : Registers{};
    const uint64_t saved = saved_state();
    const bool vectors = (saved & 0x6) == 0x6, wide = vectors && (saved & 0xe0) == 0xe0;
    const bool tiles = (saved & 0x60000) == 0x60000;
    // F, DQ, BW and VL: what the sources are compiled for, and what every AVX-512 CPU since 2017 has
    const bool avx512 = bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 30) && bit(seven.ebx, 31);
    Cpu found{};
    found.avx2 = vectors && bit(seven.ebx, 5);
    found.fma = vectors && bit(one.ecx, 12);
    found.avx512 = wide && avx512;
    found.avx512_bf16 = wide && bit(more.eax, 5);
    found.amx_tile = tiles && bit(seven.edx, 24);
    found.amx_bf16 = tiles && bit(seven.edx, 22);
    return found;
}

#else

Cpu detect() {
    return {};
}

#endif

const Cpu &cpu() {
    static const Cpu found = detect();
    return found;
}

// Asks the operating system for the tile registers; they are not granted without being asked for.
bool permit_tiles() {
#if defined(STIF_RT_EMULATED)
    return true;
#elif defined(__linux__) && defined(__x86_64__) && defined(SYS_arch_prctl)
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return granted;
#else
    return false;
#endif
}

}  // namespace

const char *avx2_unavailable() {
    if (!cpu().avx2) return "this CPU lacks AVX2";
    return cpu().fma ? nullptr : "this CPU lacks FMA";
}

const char *avx512_unavailable() {
    return cpu().avx512 ? nullptr : "this CPU lacks AVX-512 F, BW, DQ and VL";
}

const char *avx512_bf16_unavailable() {
    if (const char *reason = avx512_unavailable()) return reason;
    return cpu().avx512_bf16 ? nullptr : "this CPU lacks AVX-512 BF16";
}

const char *amx_unavailable() {
    if (const char *reason = avx512_bf16_unavailable()) return reason;
    if (!cpu().amx_tile || !cpu().amx_bf16) return "this CPU lacks AMX BF16";
    return permit_tiles() ? nullptr : "the operating system does not permit AMX";
}

}  // namespace stif_rt
