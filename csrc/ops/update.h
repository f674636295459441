// update: w = cast(decay * w + shift + scale * noise) over a list of tensors. Where a tensor's elements are, in memory
// and in the logical index, reduced to what the loops need.
#pragma once

#include "../dtypes.h"

namespace convweights {

struct UpdateDim {
  int64_t size = 1;
  int64_t stride = 0;  // in elements of the weight
  int64_t mask = 0;    // in elements of the mask
  int64_t index = 0;   // in the logical index
};

// One tensor, or a piece of a larger one, in the order of its dimensions.
struct Piece {
  char* weight = nullptr;
  const bool* mask = nullptr;  // all of the tensor where there is none
  Dtype type = Dtype::CopyOnly;
  int64_t item = 0;  // bytes
  uint32_t stream = 0;
  uint64_t start = 0;  // the logical index of its first element
  int rank = 0;
  UpdateDim dims[kMaxDims];

  int64_t count() const {
    int64_t count = 1;
    for (int d = 0; d < rank; ++d) count *= dims[d].size;
    return count;
  }
};

// Dimensions of size 1 go, neighbours that are one dimension in every respect become one. At least one stays.
inline void reduce(Piece& p) {
  int rank = 0;
  for (int d = 0; d < p.rank; ++d) {
    const UpdateDim dim = p.dims[d];
    if (dim.size == 1) continue;
    UpdateDim* const outer = rank > 0 ? &p.dims[rank - 1] : nullptr;
    if (outer && outer->stride == dim.size * dim.stride && outer->mask == dim.size * dim.mask &&
        outer->index == dim.size * dim.index) {
      *outer = {outer->size * dim.size, dim.stride, dim.mask, dim.index};
    } else {
      p.dims[rank++] = dim;
    }
  }
  if (rank == 0) p.dims[rank++] = {1, 1, 0, 1};
  p.rank = rank;
}

// The last dimensions, from `first` on, whose elements follow one another in the logical index: `size` of them, which
// recur `rows` times in the dimensions before. None where even the last dimension's do not; then size is 1.
struct Block {
  int first = 0;
  int64_t size = 1;
  int64_t rows = 1;
};

inline Block block_of(const Piece& p) {
  Block block;
  block.first = p.rank;
  while (block.first > 0 && p.dims[block.first - 1].index == block.size) block.size *= p.dims[--block.first].size;
  for (int d = 0; d < block.first; ++d) block.rows *= p.dims[d].size;
  return block;
}

// Where something begins: in elements of the weight, of the mask, and in the logical index.
struct Spot {
  int64_t weight = 0;
  int64_t mask = 0;
  int64_t index = 0;

  CW_HD void move(const UpdateDim& dim, int64_t by) {
    weight += by * dim.stride;
    mask += by * dim.mask;
    index += by * dim.index;
  }
};

// The spot of position `i` of the dimensions begin .. end - 1, counted in their order.
CW_HD Spot spot_of(const UpdateDim* dims, int begin, int end, int64_t i) {
  Spot spot;
  CW_ROLLED
  for (int d = end - 1; d >= begin; --d) {
    const int64_t rest = quotient(i, dims[d].size);
    spot.move(dims[d], i - rest * dims[d].size);
    i = rest;
  }
  return spot;
}

}  // namespace convweights
