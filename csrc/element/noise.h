// From Philox's words to noise. Every operation is rounded on its own, so that every device gives the same bits.
#pragma once

#include "philox.h"

namespace convweights {

// The codes are positions in DISTRIBUTIONS of convweights/stream.py.
enum class Distribution : int32_t { None, Normal, Uniform, Rademacher };

// One Philox call serves elements 4q .. 4q + 3, by pairs of words; for Rademacher 128 elements, by bits.
constexpr int kCallElements = 4;
constexpr int kCallBits = 128;

template <class F>
struct NoisePair {
  F first, second;
};

// Horner's rule, the highest power's coefficient first.
template <class L>
CW_HD typename L::F horner(typename L::F, typename L::F sum) {
  return sum;
}
template <class L, class... Rest>
CW_HD typename L::F horner(typename L::F t, typename L::F sum, float next, Rest... rest) {
  return horner<L>(t, L::fused(sum, t, L::splat(next)), rest...);
}

// Two standard normal numbers of two words, by Box and Muller: a gives the radius and the side, b the angle, which is
// half a turn at the most. Coefficients are minimax fits.
template <class L>
CW_HD NoisePair<typename L::F> normal_pair(typename L::U a, typename L::U b) {
  using U = typename L::U;
  using F = typename L::F;
  // u in [2^-32, 1 - 2^-24], then u = 2^e * (1 + m) with 1 + m in [sqrt(1/2), sqrt(2)); `exponent` is e * 2^23.
  const F u = L::fused(L::to_float(L::integers(a >> 1)), L::splat(0x1.fffffep-32f), L::splat(0x1p-32f));
  const U bits = L::bits(u);
  const U exponent = (bits - 0x3f3504f3u) & 0xff800000u;
  const F m = add(L::floats(bits - exponent), L::splat(-1.0f));
  const F e = L::to_float(L::integers(exponent));
  // s = -2 ln u, and the radius is its root.
  const F log = horner<L>(m, L::splat(0x1.9e329cp-3f), -0x1.4c371cp-2f, 0x1.613e34p-2f, -0x1.978df6p-2f, 0x1.ff63acp-2f,
                          -0x1.5559e6p-1f, 0x1.000078p+0f, -0x1.fffffep+0f);
  const F s = L::fused(e, L::splat(-0x1.62e430p-23f), multiply(m, log));
  const F r = L::floats(L::bits(L::square_root(s)) ^ (a << 31));
  // cos and sin of v quarter turns.
  const F v = multiply(L::to_float(L::integers(b)), L::splat(0x1p-31f));
  const F t = multiply(v, v);
  const F cosine =
      horner<L>(t, L::splat(0x1.c128aap-11f), -0x1.54e8d8p-6f, 0x1.03bc78p-2f, -0x1.3bd39ep+0f, 0x1.fffffep-1f);
  const F sine =
      horner<L>(t, L::splat(0x1.4701dep-13f), -0x1.32e974p-8f, 0x1.466f3ep-4f, -0x1.4abbf0p-1f, 0x1.921fb6p+0f);
  return {multiply(r, cosine), multiply(multiply(r, v), sine)};
}

// 2^24 points, symmetric about 0, in (-1, 1).
template <class L>
CW_HD typename L::F uniform(typename L::U a) {
  return add(multiply(L::to_float(L::integers(a & 0xffffff00u)), L::splat(0x1p-31f)), L::splat(0x1p-24f));
}

// `value` for a bit of 0, -value for a bit of 1; the bit stands in the highest place, the others are arbitrary.
template <class L>
CW_HD typename L::F signed_by(typename L::U bit, typename L::F value) {
  return L::floats(L::bits(value) ^ (bit & 0x80000000u));
}

}  // namespace convweights
