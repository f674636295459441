// transfer: target[j] = cast(factor * sum of the source positions that each dimension's map reads).
// The problem and its reduction on the host.
#pragma once

#include <type_traits>
#include <utility>

#include "../dtypes.h"
#include "../element/maps.h"

namespace convweights {

struct Dim {
  Map map;
  int64_t begin = 0;  // the part of the target's positions that is written: begin .. begin + size - 1
  int64_t size = 1;
  int64_t dst_stride = 0;  // in elements
  int64_t src_stride = 0;
  int position = 0;  // before reduction: sums and factors run in this order
  int table = 0;     // Select on CUDA: where its indices start
};

struct Transfer {
  int rank = 0;
  Dim dims[kMaxDims];
  int order[kMaxDims] = {};  // the dimensions by position
  int spreads = 0;           // Mean dimensions stand last: one window, written to every position
  double scale = 1.0;
  Dtype dst_type = Dtype::CopyOnly;
  Dtype src_type = Dtype::CopyOnly;
  bool wide = false;       // sums in float64
  bool same_type = false;  // a window of one position times 1 keeps its bits
  bool keep = false;       // positions that no source reaches are left alone, else they get `fill`
  uint64_t fill[2] = {0, 0};
  const char* src = nullptr;
  char* dst = nullptr;
  int64_t src_item = 0;  // bytes an element
  int64_t dst_item = 0;

  CW_HD int loops() const { return rank - spreads; }
};

// Whether every target position is one source position times 1, which any dtype can do.
inline bool only_copies(const Transfer& t) {
  bool copies = t.same_type && t.scale == 1.0;
  for (int d = 0; d < t.rank; ++d) {
    const Map& map = t.dims[d].map;
    const bool one = !averages(map.kind) && map.kind != MapKind::Resize &&
                     (map.rescale == Rescale::None || (map.rescale == Rescale::Exact && map.m <= map.n));
    copies = copies && (one || map.n == (map.kind == MapKind::Mean ? 1 : map.m));
  }
  return copies;
}

inline int64_t count_of(const Transfer& t) {
  int64_t count = 1;
  for (int d = 0; d < t.loops(); ++d) count *= t.dims[d].size;
  return count;
}

// A map that reads position j for every j, times 1, is the identity whatever its name.
inline void simplify(Transfer& t, Dim& dim) {
  Map& map = dim.map;
  if (map.kind == MapKind::Mean && map.n == 1) map.kind = MapKind::Tile;
  if (map.kind == MapKind::Offset) {
    if (map.rescale == Rescale::None && map.start >= 0 && map.start + map.m <= map.n) {
      t.src += map.start * dim.src_stride * t.src_item;
      map = Map{MapKind::Identity, Rescale::None, map.m, map.m};
    }
  } else if (map.kind != MapKind::Mean && map.kind != MapKind::Select && map.n == map.m) {
    map = Map{MapKind::Identity, Rescale::None, map.m, map.m};
  }
}

// Whether the outer dimension's map, and the identity inside it, are one map over the product of their sizes.
inline bool mergeable(const Dim& outer, const Dim& inner, bool absorb) {
  if (inner.map.kind != MapKind::Identity || outer.map.kind == MapKind::Mean) return false;
  if (outer.dst_stride != inner.dst_stride * inner.map.m || outer.src_stride != inner.src_stride * inner.map.n) {
    return false;
  }
  switch (outer.map.kind) {
    case MapKind::Identity:
      return true;
    case MapKind::Tile:
    case MapKind::Strided:
    case MapKind::Offset:
      return absorb;
    default:
      return false;
  }
}

inline void remove_dim(Transfer& t, int d) {
  for (int i = d; i + 1 < t.rank; ++i) t.dims[i] = t.dims[i + 1];
  --t.rank;
}

// Rewrites the problem with as few dimensions as say the same, ordered by the target's strides, so that what is
// left ends in a long run. `absorb`: let Tile, Strided and Offset take up the identities inside them.
inline void reduce(Transfer& t, bool absorb) {
  for (int d = 0; d < t.rank; ++d) t.dims[d].position = d;
  for (int d = 0; d < t.rank; ++d) simplify(t, t.dims[d]);
  for (int d = t.rank - 1; d >= 0; --d) {
    const Map& map = t.dims[d].map;
    if (map.m != 1) continue;
    const Window window = window_of(map, 0, t.wide);
    if (window.count == 1 && factor_of(map, window) == 1.0) {
      t.src += window.first * t.dims[d].src_stride * t.src_item;
      remove_dim(t, d);
    }
  }
  // Insertion sort keeps dimensions of equal stride in order; Mean dimensions go last.
  for (int d = 1; d < t.rank; ++d) {
    for (int i = d; i > 0; --i) {
      const bool mean = t.dims[i].map.kind == MapKind::Mean;
      const bool before = t.dims[i - 1].map.kind == MapKind::Mean;
      if (before == mean ? t.dims[i - 1].dst_stride >= t.dims[i].dst_stride : mean) break;
      std::swap(t.dims[i - 1], t.dims[i]);
    }
  }
  for (int d = t.rank - 1; d > 0; --d) {
    Dim& outer = t.dims[d - 1];
    const Dim& inner = t.dims[d];
    if (!mergeable(outer, inner, absorb)) continue;
    outer.map.n *= inner.map.n;
    outer.map.m *= inner.map.m;
    outer.map.start *= inner.map.n;
    outer.dst_stride = inner.dst_stride;
    outer.src_stride = inner.src_stride;
    remove_dim(t, d);
  }
  t.spreads = 0;
  for (int d = 0; d < t.rank; ++d) {
    t.dims[d].begin = 0;
    t.dims[d].size = t.dims[d].map.m;
    t.spreads += t.dims[d].map.kind == MapKind::Mean ? 1 : 0;
    t.order[d] = d;
  }
  for (int d = 1; d < t.rank; ++d) {
    for (int i = d; i > 0 && t.dims[t.order[i - 1]].position > t.dims[t.order[i]].position; --i) {
      std::swap(t.order[i - 1], t.order[i]);
    }
  }
}

}  // namespace convweights
