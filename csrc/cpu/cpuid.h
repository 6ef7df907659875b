// What this CPU and its operating system support. Compiled for any CPU, unlike the sources that it is about.
#pragma once

namespace stif_rt {

// Why an instruction set cannot be run here; nullptr where it can.
const char *amx_unavailable();
const char *avx512_bf16_unavailable();
const char *avx512_unavailable();
const char *avx2_unavailable();

}  // namespace stif_rt
