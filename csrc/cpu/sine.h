// The sine, of vectors.
#pragma once

#include <cstring>

#include "isa.h"

namespace stif_rt {
namespace {  // every source has its own copy, compiled with its own flags

// e^x for |x| < 80, to a relative 1e-6, in operations that compilers vectorise.
inline float exponential(float x) {
    const float turns = x * 1.44269504f, whole = (turns + 12582912.f) - 12582912.f, r = turns - whole;
    float p = 1.3333558e-3f * r + 9.6181291e-3f;
    p = ((p * r + 5.5504109e-2f) * r + 2.4022651e-1f) * r + 6.9314718e-1f;
    p = p * r + 1;
    int32_t bits;
    std::memcpy(&bits, &p, sizeof bits);
    bits += int32_t(whole) * (1 << 23);
    std::memcpy(&p, &bits, sizeof p);
    return p;
}

// sin(2 pi z) = r P(r^2) with r = z - round(z) in [-1/2, 1/2]; P is minimax. Error below 8e-7 for every finite z
// with |z| < 2^22; beyond, float32 no longer resolves the turn.
template <class I>
inline typename I::Vector sine(typename I::Vector z) {
    const typename I::Vector r = I::subtract(z, I::round(z));
    const typename I::Vector s = I::multiply(r, r);
    typename I::Vector p = I::set(-12.271262613f);
    p = I::fma(p, s, I::set(41.2053950574f));
    p = I::fma(p, s, I::set(-76.5801005781f));
    p = I::fma(p, s, I::set(81.5961838793f));
    p = I::fma(p, s, I::set(-41.341421399f));
    p = I::fma(p, s, I::set(6.28318281856f));
    return I::multiply(p, r);
}

template <class I>
void sine_all(const float *x, float *y, int64_t count) {
    int64_t i = 0;
    for (; i + I::lanes <= count; i += I::lanes) I::store(y + i, sine<I>(I::load(x + i)));
    float rest[I::lanes] = {};
    if (i < count) {
        std::memcpy(rest, x + i, (count - i) * sizeof(float));
        I::store(rest, sine<I>(I::load(rest)));
        std::memcpy(y + i, rest, (count - i) * sizeof(float));
    }
}

}  // namespace
}  // namespace stif_rt
