// transfer on CUDA: cuts the reduced problem into launches. Compiled by nvcc, and by the tests for the host.
#pragma once

#include <algorithm>

#include "../for_each.h"
#include "compact.h"
#include "transfer.h"

namespace convweights {

// Calls body(box, table) for boxes of the target that together are all of it, each small enough for one launch: for
// 32-bit indices and for the table of the Select dimensions' indices.
template <class Body>
void for_each_box(Transfer t, int64_t most_elements, int64_t pack, const Body& body) {
  int selects = 0;
  for (int d = 0; d < t.loops(); ++d) selects += t.dims[d].map.kind == MapKind::Select ? 1 : 0;
  int64_t size[kMaxDims];
  int64_t elements = 1;
  // The last dimensions whole as long as they fit, then a part of one, then single positions.
  for (int d = t.loops() - 1; d >= 0; --d) {
    size[d] = std::min(t.dims[d].size, std::max<int64_t>(1, most_elements / elements));
    // A run that is cut is cut between packs.
    if (d == t.loops() - 1) size[d] = std::min(t.dims[d].size, std::max(pack, size[d] / pack * pack));
    if (t.dims[d].map.kind == MapKind::Select) size[d] = std::min<int64_t>(size[d], IndexTable::kSize / selects);
    elements *= size[d];
  }
  const Transfer whole = t;
  int64_t begin[kMaxDims] = {};
  for (;;) {
    IndexTable table;
    int used = 0;
    for (int d = 0; d < t.loops(); ++d) {
      Dim& dim = t.dims[d];
      dim.begin = begin[d];
      dim.size = std::min(size[d], whole.dims[d].size - begin[d]);
      if (dim.map.kind != MapKind::Select) continue;
      dim.table = used;
      for (int64_t j = 0; j < dim.size; ++j) table.at[used++] = selected(dim.map, begin[d] + j);
    }
    body(t, table);
    int d = t.loops() - 1;
    for (; d >= 0; --d) {
      begin[d] += size[d];
      if (begin[d] < whole.dims[d].size) break;
      begin[d] = 0;
    }
    if (d < 0) return;
  }
}

// How many neighbouring elements one thread can take: all or 1. All need a dense run whose length, and every other
// place in memory, is a multiple of them.
inline int64_t pack_of(const Transfer& t, int64_t width) {
  const int64_t last = t.loops() - 1;
  if (last < 0 || t.spreads > 0) return 1;
  const Dim& run = t.dims[last];
  if (run.map.kind != MapKind::Identity || run.dst_stride != 1 || run.src_stride != 1 || run.size % width != 0)
    return 1;
  for (int d = 0; d < last; ++d) {
    if (t.dims[d].dst_stride % width != 0 || t.dims[d].src_stride % width != 0) return 1;
  }
  const auto misaligned = [&](const char* place, int64_t item) {
    return reinterpret_cast<uintptr_t>(place) % static_cast<uintptr_t>(std::min<int64_t>(16, width * item)) != 0;
  };
  return misaligned(t.dst, t.dst_item) || misaligned(t.src, t.src_item) ? 1 : width;
}

template <class D, class S, class C, int V, class Stream>
void launch_boxes(const Transfer& t, int64_t most_elements, Stream stream) {
  for_each_box(t, most_elements, V, [&](const Transfer& box, const IndexTable& table) {
    for_each_element(TransferElement<D, S, C, V>{box, table}, count_of(box) / V, stream);
  });
}

template <class D, class S, class C, class Stream>
void launch_packed(const Transfer& t, int64_t most_elements, Stream stream) {
  constexpr int kWidth = static_cast<int>(16 / std::min(sizeof(D), sizeof(S)));
  if (kWidth > 1 && pack_of(t, kWidth) == kWidth) {
    launch_boxes<D, S, C, kWidth>(t, most_elements, stream);
  } else {
    launch_boxes<D, S, C, 1>(t, most_elements, stream);
  }
}

// A wave of a compaction: rows begin .. , cut into units of T.
template <class T>
struct MoveRows {
  Compaction c;
  int64_t begin;
  int64_t units;  // of a row

  CW_HD void operator()(uint32_t i) const {
    const int64_t row = begin + i / units;
    const int64_t unit = i % units;
    reinterpret_cast<T*>(c.target(row))[unit] = reinterpret_cast<const T*>(c.source(row))[unit];
  }
};

// All rows front to back by one block, a stage at a time: for many small waves, for rows that overlap themselves, and
// for rows of more elements than a launch has.
template <class T>
struct WalkRows {
  Compaction c;
  int64_t begin;
  int64_t stages;  // of a row

  CW_HD void operator()(int64_t phase, char* stage, unsigned thread, unsigned threads) const {
    const int64_t step = phase / 2;
    const int64_t row = begin + step / stages;
    const int64_t offset = step % stages * kStageBytes;
    const int64_t rest = c.to - offset;
    const int64_t units = (rest < kStageBytes ? rest : kStageBytes) / static_cast<int64_t>(sizeof(T));
    T* const staged = reinterpret_cast<T*>(stage);
    const T* const source = reinterpret_cast<const T*>(c.source(row) + offset);
    T* const target = reinterpret_cast<T*>(c.target(row) + offset);
    for (int64_t i = thread; i < units; i += threads) {
      if (phase % 2 == 0) {
        staged[i] = source[i];
      } else {
        target[i] = staged[i];
      }
    }
  }
};

constexpr int kMostWaves = 64;

inline bool walks(const Compaction& c, int64_t units, int64_t most_elements) {
  if (units > most_elements) return true;
  int waves = 0;
  for (int64_t row = c.first(); row < c.rows; row = c.wave_end(row)) {
    if (c.overlaps_itself(row) || ++waves > kMostWaves) return true;
  }
  return false;
}

template <class T, class Stream>
void launch_compaction(const Compaction& c, int64_t most_elements, Stream stream) {
  const int64_t units = c.to / static_cast<int64_t>(sizeof(T));
  if (walks(c, units, most_elements)) {
    const int64_t stages = ceil_div(c.to, kStageBytes);
    for_each_phase(WalkRows<T>{c, c.first(), stages}, (c.rows - c.first()) * stages * 2, stream);
    return;
  }
  const int64_t rows = most_elements / units;
  for (int64_t row = c.first(); row < c.rows;) {
    const int64_t end = std::min(c.wave_end(row), row + rows);
    for_each_element(MoveRows<T>{c, row, units}, (end - row) * units, stream);
    row = end;
  }
}

// Calls body(Type<T>{}) with the widest integer that divides every place and length of the compaction.
template <class Body>
void with_unit_of(const Compaction& c, const Body& body) {
  const int64_t places = static_cast<int64_t>(reinterpret_cast<uintptr_t>(c.base)) | c.from | c.to | c.start;
  int64_t unit = 1;
  while (unit < 16 && places % (2 * unit) == 0) unit *= 2;
  with_raw_type(unit, body);
}

template <class Stream>
void transfer_cuda(Transfer t, Stream stream, int64_t most_elements = kMostElements) {
  const bool copies = only_copies(t);
  reduce(t, /*absorb=*/false);
  if (copies) {
    with_raw_type(t.dst_item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      launch_packed<T, T, void>(t, most_elements, stream);
    });
    return;
  }
  with_compute_type(t.dst_type, [&](auto d) {
    with_compute_type(t.src_type, [&](auto s) {
      using D = typename decltype(d)::type;
      using S = typename decltype(s)::type;
      using C = std::conditional_t<std::is_same_v<D, double> || std::is_same_v<S, double>, double, float>;
      launch_packed<D, S, C>(t, most_elements, stream);
    });
  });
}

}  // namespace convweights
