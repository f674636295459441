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

}  // namespace convweights
