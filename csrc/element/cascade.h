// The order of a window's sum: pairwise, in ascending order of the source. A binary counter holds one partial sum for
// each power of two, so that 2^k equal terms add up without a rounding, and errors grow with the logarithm.
#pragma once

#include "casts.h"

namespace convweights {

// T is float, double, or a vector of either.
template <class T>
struct Cascade {
  static constexpr int kLevels = 40;
  T level[kLevels];
  int64_t count = 0;

  CW_HD void push(T value) {
    int l = 0;
    for (; (count >> l) & 1; ++l) value = add(level[l], value);
    level[l] = value;
    ++count;
  }

  CW_HD T total() const {
    int l = 0;
    while (!((count >> l) & 1)) ++l;
    T sum = level[l];
    for (++l; (count >> l) != 0; ++l) {
      if ((count >> l) & 1) sum = add(level[l], sum);
    }
    return sum;
  }
};

// The same for at most 2^kLevels - 1 terms, with levels few enough for registers, which are known by constants: every
// level is looked at.
template <class T, int kLevels>
struct FlatCascade {
  T level[kLevels];
  uint32_t count = 0;

  CW_HD void push(T value) {
    bool placed = false;
    CW_UNROLL
    for (int l = 0; l < kLevels; ++l) {
      const bool taken = (count >> l & 1u) != 0;
      if (!placed && taken) value = add(level[l], value);
      if (!placed && !taken) level[l] = value;
      placed = placed || !taken;
    }
    ++count;
  }

  CW_HD T total() const {
    T sum = T(0);
    bool begun = false;
    CW_UNROLL
    for (int l = 0; l < kLevels; ++l) {
      if ((count >> l & 1u) == 0) continue;
      sum = begun ? add(level[l], sum) : level[l];
      begun = true;
    }
    return sum;
  }
};

}  // namespace convweights
