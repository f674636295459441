// Whether finite values became infinite in a transfer.
#pragma once

#include <cmath>

#include "../ops/transfer.h"

namespace convweights {

template <class Word>
CW_INLINE bool any_infinite(const Word* words, int64_t count, Word infinity) {
  const Word magnitude = static_cast<Word>(~Word{0}) >> 1;
  // Without an end inside the loop, so that it becomes SIMD.
  Word found = 0;
  for (int64_t i = 0; i < count; ++i) found |= static_cast<Word>((words[i] & magnitude) == infinity);
  return found != 0;
}

CW_CLONES inline bool has_infinity(Dtype type, const char* values, int64_t count) {
  switch (type) {
    case Dtype::Float64:
      return any_infinite<uint64_t>(reinterpret_cast<const uint64_t*>(values), count, 0x7ff0000000000000u);
    case Dtype::Float32:
      return any_infinite<uint32_t>(reinterpret_cast<const uint32_t*>(values), count, 0x7f800000u);
    case Dtype::Float16:
      return any_infinite<uint16_t>(reinterpret_cast<const uint16_t*>(values), count, 0x7c00u);
    case Dtype::BFloat16:
      return any_infinite<uint16_t>(reinterpret_cast<const uint16_t*>(values), count, 0x7f80u);
    default:
      return false;
  }
}

inline double value_at(Dtype type, const char* values, int64_t i) {
  return with_compute_type(type, [&](auto t) {
    using T = typename decltype(t)::type;
    return static_cast<double>(widen<double>(reinterpret_cast<const T*>(values)[i]));
  });
}

// Whether all that this position of the target reads is finite; false where it reads nothing.
inline bool reads_finite(const Transfer& t, const int64_t (&position)[kMaxDims]) {
  Window windows[kMaxDims];
  int64_t src = 0;
  for (int d = 0; d < t.rank; ++d) {
    windows[d] = window_of(t.dims[d].map, position[d], t.wide);
    if (windows[d].count == 0) return false;
    src += windows[d].first * t.dims[d].src_stride;
  }
  int64_t tap[kMaxDims] = {};
  for (;;) {
    int64_t offset = src;
    for (int d = 0; d < t.rank; ++d) offset += tap[d] * windows[d].step * t.dims[d].src_stride;
    if (!std::isfinite(value_at(t.src_type, t.src, offset))) return false;
    int d = t.rank - 1;
    for (; d >= 0; --d) {
      if (++tap[d] < windows[d].count) break;
      tap[d] = 0;
    }
    if (d < 0) return true;
  }
}

// Whether a position of the target, which has been written, is infinite and reads only finite values.
inline bool overflows(const Transfer& t) {
  if (t.src_type == Dtype::CopyOnly || t.dst_type == Dtype::CopyOnly) return false;
  int64_t position[kMaxDims];
  for (int d = 0; d < t.rank; ++d) position[d] = t.dims[d].begin;
  for (;;) {
    int64_t dst = 0;
    for (int d = 0; d < t.rank; ++d) dst += position[d] * t.dims[d].dst_stride;
    if (std::isinf(value_at(t.dst_type, t.dst, dst)) && reads_finite(t, position)) return true;
    int d = t.rank - 1;
    for (; d >= 0; --d) {
      if (++position[d] < t.dims[d].begin + t.dims[d].size) break;
      position[d] = t.dims[d].begin;
    }
    if (d < 0) return false;
  }
}

}  // namespace convweights
