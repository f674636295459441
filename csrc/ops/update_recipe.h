// What update does to every element of its list of tensors.
#pragma once

#include "../dtypes.h"
#include "../element/noise.h"
#include "../element/update.h"

namespace convweights {

// So many fit among the arguments of a CUDA kernel, beside its tensors.
constexpr int kMostSeeds = 1024;

struct Recipe {
  Distribution distribution = Distribution::None;
  bool accumulate = false;  // several seeds, whose noise is summed from 0 up; `scales` are their coefficients
  bool stochastic = false;
  double decay = 1.0;
  double shift = 0.0;
  const double* scales = nullptr;
  const int64_t* seeds = nullptr;
  int64_t count = 0;  // of seeds and scales
  uint32_t step = 0;
};

template <class C>
CW_HD bool is_noisy(const Recipe& r) {
  return r.distribution != Distribution::None && (r.accumulate || static_cast<C>(r.scales[0]) != C(0));
}

template <class C>
CW_HD Terms<C> terms_of(const Recipe& r) {
  return make_terms<C>(r.decay, r.shift, is_noisy<C>(r));
}

}  // namespace convweights
