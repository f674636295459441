// What update does to one element once its noise is known, and stochastic rounding.
#pragma once

#include "casts.h"

namespace convweights {

// new = round(round(round(decay * w) + shift) + noise), in C. Terms that are absent are the values that change
// nothing: a decay of 1, and -0.0, the one number whose sum with any other is that other, its sign of zero included.
template <class C>
struct Terms {
  bool reads = true;  // a decay of 0 does not read w: `shift` is then what the noise is added to
  bool plain = true;  // no decay, no shift
  C decay = 1;
  C shift = C(-0.0);
};

template <class C>
CW_HD Terms<C> make_terms(double decay, double shift, bool noisy) {
  Terms<C> terms;
  terms.decay = static_cast<C>(decay);
  terms.reads = terms.decay != C(0);
  if (static_cast<C>(shift) != C(0)) terms.shift = static_cast<C>(shift);
  terms.plain = terms.decay == C(1) && terms.shift == C(0);
  if (!terms.reads && !noisy && terms.shift == C(0)) terms.shift = C(0);
  return terms;
}

template <class F>
CW_HD F moved(F w, F decay, F shift, F noise) {
  return add(add(multiply(decay, w), shift), noise);
}

// Rounds to the nearer of the two neighbours with the probability of its nearness: `random` is added below the last
// bit that stays, what is below is dropped. Infinities, and NaN, as to nearest.
template <class T>
struct NarrowRandomly;

template <>
struct NarrowRandomly<BFloat16> {
  CW_HD static BFloat16 from(float value, uint32_t random) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + (random >> 16)) >> 16;
    return {static_cast<uint16_t>(select((bits & 0x7fffffffu) > 0x7f800000u, (bits >> 16) | 0x0040u, rounded))};
  }
};

template <>
struct NarrowRandomly<Half> {
  CW_HD static Half from(float value, uint32_t random) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t body = bits & 0x7fffffffu;
    const uint32_t exponent = body >> 23;
    // From 2^-14 on the significand loses 13 bits; below, one more for each binade, and what is counted are units of
    // 2^-24. Past 32 bits nothing can round up.
    const uint32_t normal = (body - (112u << 23) + (random >> 19)) >> 13;
    const uint32_t drop = 126u - exponent;
    const uint32_t significand = (body & 0x007fffffu) | 0x00800000u;
    const uint32_t sum = significand + (random >> ((32u - drop) & 31u));
    const uint32_t carried = static_cast<uint32_t>(sum < significand);  // of 32 dropped bits
    const uint32_t subnormal = select(drop < 32u, sum >> (drop & 31u), select(drop == 32u, carried, 0u));
    const uint32_t infinite = select(body > 0x7f800000u, 0x7e00u, 0x7c00u);
    const uint32_t finite = select(exponent < 113u, subnormal, select(normal > 0x7c00u, 0x7c00u, normal));
    return {static_cast<uint16_t>(sign | select(body >= 0x7f800000u, infinite, finite))};
  }
};

}  // namespace convweights
