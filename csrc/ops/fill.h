// fill: a value where a mask says so, nothing anywhere else, over a list of tensors. Where a tensor's elements are,
// reduced to what the loops need.
#pragma once

#include <algorithm>
#include <vector>

#include "../dtypes.h"

namespace convweights {

// Strides in elements: of the weight, of the mask, and of the values.
struct FillDim {
  int64_t size = 1;
  int64_t weight = 0;
  int64_t mask = 0;
  int64_t value = 0;

  CW_HD bool is_run() const { return weight == 1 && mask == 0 && value == 0; }
};

// One tensor, or the positions begin .. end - 1 of a dimension of one.
struct Filling {
  char* weight = nullptr;
  const bool* mask = nullptr;   // everything where there is none
  const char* value = nullptr;  // `word` where there is none
  Pair64 word{};                // the value's bits, from the first byte on
  int64_t item = 0;             // bytes
  int rank = 0;
  FillDim dims[kMaxDims];

  int64_t count() const {
    int64_t count = 1;
    for (int d = 0; d < rank; ++d) count *= dims[d].size;
    return count;
  }
};

// In the order of the weight's memory, for which dimensions are put; those of size 1 go, neighbours that are one
// dimension in every respect become one. At least one stays.
inline void reduce(Filling& f) {
  std::stable_sort(f.dims, f.dims + f.rank, [](const FillDim& a, const FillDim& b) { return a.weight > b.weight; });
  int rank = 0;
  for (int d = 0; d < f.rank; ++d) {
    const FillDim dim = f.dims[d];
    if (dim.size == 1) continue;
    FillDim* const outer = rank > 0 ? &f.dims[rank - 1] : nullptr;
    if (outer && outer->weight == dim.size * dim.weight && outer->mask == dim.size * dim.mask &&
        outer->value == dim.size * dim.value) {
      *outer = {outer->size * dim.size, dim.weight, dim.mask, dim.value};
    } else {
      f.dims[rank++] = dim;
    }
  }
  if (rank == 0) f.dims[rank++] = {1, 1, 0, 0};
  f.rank = rank;
}

// Where something is: in elements of the weight, of the mask, and of the values.
struct FillSpot {
  int64_t weight = 0;
  int64_t mask = 0;
  int64_t value = 0;

  CW_HD void move(const FillDim& dim, int64_t by) {
    weight += by * dim.weight;
    mask += by * dim.mask;
    value += by * dim.value;
  }
};

// The spot of position `i` of the first `rank` dimensions, counted in their order.
CW_HD FillSpot spot_of(const FillDim* dims, int rank, int64_t i) {
  FillSpot spot;
  for (int d = rank - 1; d >= 0; --d) {
    const int64_t rest = quotient(i, dims[d].size);
    spot.move(dims[d], i - rest * dims[d].size);
    i = rest;
  }
  return spot;
}

// What is written to one element, unless its mask says no.
template <class T>
CW_HD void fill_element(T* weight, const bool* mask, const T* value, const T& word, const FillSpot& at) {
  if (mask && !mask[at.mask]) return;
  weight[at.weight] = value ? value[at.value] : word;
}

template <class T>
CW_HD T word_of(const Filling& f) {
  T word;
  memcpy(&word, &f.word, sizeof(T));
  return word;
}

}  // namespace convweights
