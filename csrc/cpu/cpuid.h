// What this CPU and its operating system support.
#pragma once

#include <initializer_list>

namespace stif_rt {

struct Cpu {
    bool avx2, fma, avx512, avx512_bf16, amx_tile, amx_bf16;
};

const Cpu &cpu();

// Asks the operating system for the tile registers; they are not granted without being asked for.
bool permit_tiles();

struct Feature {
    const char *name;
    bool present;
};

// "the CPU lacks NAME" for the first feature that is not present, or nullptr.
const char *missing(std::initializer_list<Feature> features);

}  // namespace stif_rt
