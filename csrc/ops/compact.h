// Truncation inside a tensor's own storage: rows of `from` bytes shrink to the `to` bytes behind their `start`.
// They move in waves that cannot overlap: the rows a .. b - 1 move together where all of them are written below the
// place from which row a is read.
#pragma once

#include <algorithm>

#include "transfer.h"

namespace convweights {

struct Compaction {
  char* base = nullptr;
  int64_t rows = 0;
  int64_t from = 0;
  int64_t to = 0;
  int64_t start = 0;

  CW_HD const char* source(int64_t row) const { return base + row * from + start; }
  CW_HD char* target(int64_t row) const { return base + row * to; }
  bool overlaps_itself(int64_t row) const { return source(row) < target(row) + to; }
  // Row 0 stays where it is if it starts there.
  int64_t first() const { return start == 0 ? 1 : 0; }
  int64_t wave_end(int64_t row) const { return std::min(rows, std::max(row + 1, (row * from + start) / to)); }
};

// Whether the problem is a truncation of a tensor within itself; only that reads and writes the same place twice.
inline bool is_compaction(const Transfer& t) {
  if (static_cast<const char*>(t.dst) != t.src) return false;
  int offsets = 0;
  for (int d = 0; d < t.rank; ++d) {
    const Map& map = t.dims[d].map;
    if (map.kind == MapKind::Mean) return false;
    if (map.kind == MapKind::Offset && (map.start < 0 || map.start + map.m > map.n)) return false;
    offsets += map.kind == MapKind::Offset ? 1 : 0;
    if (map.kind != MapKind::Offset && map.kind != MapKind::Identity) return false;
    if (map.rescale != Rescale::None) return false;
  }
  return offsets == 1 && t.scale == 1.0 && t.same_type;
}

// Of contiguous tensors, which the caller has made sure of.
inline Compaction make_compaction(const Transfer& t) {
  Compaction c;
  c.base = t.dst;
  c.rows = 1;
  int64_t inner = t.dst_item;
  int d = t.rank - 1;
  for (; t.dims[d].map.kind != MapKind::Offset; --d) inner *= t.dims[d].map.m;
  c.from = t.dims[d].map.n * inner;
  c.to = t.dims[d].map.m * inner;
  c.start = t.dims[d].map.start * inner;
  for (--d; d >= 0; --d) c.rows *= t.dims[d].map.m;
  if (c.from == c.to) c.rows = 0;
  return c;
}

}  // namespace convweights
