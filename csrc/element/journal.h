// What brings a weight back from its perturbed value: w' = cast(w + d) is undone by r = cast(w' - d) almost, and what
// is left is how many of the dtype's numbers lie between r and w.
#pragma once

#include <cmath>

#include "casts.h"

namespace convweights {

// The bits of a number of 32 or 16 bits, the sign extended.
template <class T>
CW_HD int32_t bits_of(T value) {
  if constexpr (sizeof(T) == 4) return bit_cast<int32_t>(value);
  if constexpr (sizeof(T) == 2) return bit_cast<int16_t>(value);
}
template <class T>
CW_HD T number_of(int32_t bits) {
  if constexpr (sizeof(T) == 4) return bit_cast<T>(bits);
  if constexpr (sizeof(T) == 2) return bit_cast<T>(static_cast<int16_t>(bits));
}

template <class T>
constexpr int32_t kMagnitude = sizeof(T) == 4 ? 0x7fffffff : 0x7fff;

// Where a number stands in the order of all numbers of its dtype, -0 just below 0; its own inverse.
template <class T, class I>
CW_HD I ordinal(I bits) {
  return bits ^ ((bits >> 31) & kMagnitude<T>);
}

// 16-bit types take w' - d for 0 where it is as small as a rounding error of w': a weight of 0 then comes back as one.
template <class T>
constexpr float kSnap = 0.0f;
template <>
inline constexpr float kSnap<Half> = 2048.0f;
template <>
inline constexpr float kSnap<BFloat16> = 256.0f;

// r for the perturbed value of a number, and what was added to it.
template <class T>
CW_HD int32_t undone(T perturbed, float d) {
  const float wide = widen<float>(perturbed);
  const float back = add(wide, -d);
  if constexpr (sizeof(T) == 2) {
    if (multiply(std::fabs(back), kSnap<T>) <= std::fabs(wide)) return 0;
  }
  return bits_of(Narrow<T>::from(back));
}

// A correction of two bits: -1, 0 or 1, or that the weight is stored whole.
constexpr uint32_t kEscape = 2;

template <class T>
CW_HD uint32_t code_of(T weight, T perturbed, float d) {
  const uint32_t off =
      static_cast<uint32_t>(ordinal<T>(bits_of(weight))) - static_cast<uint32_t>(ordinal<T>(undone(perturbed, d)));
  return off + 1 > 2 ? kEscape : off & 3;
}

// The weight, unless the code is an escape.
template <class T>
CW_HD T restored(T perturbed, float d, uint32_t code) {
  const int32_t off = static_cast<int32_t>(code << 30) >> 30;
  const uint32_t found = static_cast<uint32_t>(ordinal<T>(undone(perturbed, d))) + static_cast<uint32_t>(off);
  return number_of<T>(ordinal<T>(static_cast<int32_t>(found)));
}

}  // namespace convweights
