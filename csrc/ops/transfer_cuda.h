// transfer on CUDA: cuts the reduced problem into launches. Compiled by nvcc, and by the tests for the host.
#pragma once

#include <algorithm>

#include "transfer_sums.h"
#include "transfer_transposed.h"

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

// How many neighbouring elements one thread can take: `width` or 1. All need a dense run whose length, and every other
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

// A copy in the largest units that it can be made in.
inline void widen_copy(Transfer& t) {
  while (t.dst_item < 16 && pack_of(t, 2) == 2) {
    memcpy(reinterpret_cast<char*>(t.fill) + t.dst_item, t.fill, static_cast<size_t>(t.dst_item));
    t.dst_item = t.src_item = 2 * t.dst_item;
    const int last = t.loops() - 1;
    for (int d = 0; d < last; ++d) t.dims[d].dst_stride /= 2, t.dims[d].src_stride /= 2;
    Dim& run = t.dims[last];
    run.size /= 2;
    run.map.n = run.map.m = run.size;
  }
}

// Whether a dimension reads several positions for one of the target's.
inline bool sums(const Map& map) { return averages(map.kind) || map.kind == MapKind::Resize; }
inline bool sums(const Transfer& t) {
  return std::any_of(t.dims, t.dims + t.rank, [](const Dim& dim) { return sums(dim.map); });
}

inline bool resizes(const Transfer& t) {
  return std::any_of(t.dims, t.dims + t.rank, [](const Dim& dim) { return dim.map.kind == MapKind::Resize; });
}

// Whether a dimension can be a ThreadDim: its numbers are small enough, and what it multiplies by has one value, or
// two for the counts of its windows.
inline bool fits_thread(const Map& map) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (map.kind == MapKind::Mean || map.n >= kMost || map.m >= kMost) return false;
  switch (map.kind) {
    case MapKind::Tile:
      return map.rescale != Rescale::Exact || map.m <= map.n || map.m % map.n == 0;
    case MapKind::Interleave:
      return (map.rescale != Rescale::Exact || map.m <= map.n || map.m % map.n == 0) && map.m * map.n < kMost;
    case MapKind::Blocks:
      return (map.m + 1) * map.n + map.m < kMost;
    case MapKind::Offset:
      return std::abs(map.start) < kMost;
    default:
      return true;
  }
}

// Likewise of the whole: places are counted in 32 bits.
inline bool fits_thread(const Transfer& t) {
  int64_t summing = 0, taps = 1, src = 0, dst = 0;
  for (int d = 0; d < t.rank; ++d) {
    const Dim& dim = t.dims[d];
    if (!fits_thread(dim.map)) return false;
    src += std::max<int64_t>(0, dim.map.n - 1) * dim.src_stride;
    dst += (dim.map.m - 1) * dim.dst_stride;
    if (!sums(dim.map)) continue;
    ++summing;
    taps *= dim.map.kind == MapKind::Resize ? 2 : std::min(kMostTaps + 1, ceil_div(dim.map.n, dim.map.m));
  }
  return summing <= kMostSums && taps <= kMostTaps && std::max(src, dst) < int64_t{1} << 32;
}

// What an element is multiplied by, where of the dimensions that sum those whose bit is set in `more` have windows of
// one position more than the least.
inline double factor_with(const Transfer& t, int more) {
  double product = t.scale;
  for (int i = 0, k = 0; i < t.rank; ++i) {
    const Map& map = t.dims[t.order[i]].map;
    Window window = window_of(map, 0, t.wide);
    if (sums(map)) window.count = map.n / map.m + (more >> k++ & 1);
    product *= factor_of(map, window);
  }
  return product;
}

// A box of the target as a thread takes it, `pack` neighbours of the last dimension as one; without dimension `left`.
inline ThreadTransfer thread_transfer(const Transfer& t, int64_t pack = 1, int left = -1) {
  ThreadTransfer made{};
  made.src_type = t.src_type;
  made.same_type = t.same_type;
  made.wide = t.wide;
  made.keep = t.keep;
  std::copy(t.fill, t.fill + 2, made.fill);
  int which[kMaxDims];  // of those that sum
  for (int i = 0; i < t.rank; ++i) {
    const Dim& dim = t.dims[t.order[i]];
    const Map& map = dim.map;
    which[t.order[i]] = -1;
    if (!sums(map)) continue;
    which[t.order[i]] = made.count;
    made.sums[made.count++] = {Divisor(map.m),
                               map.kind,
                               static_cast<uint32_t>(map.n),
                               static_cast<uint32_t>(map.kind == MapKind::Resize ? 1 : map.n / map.m),
                               static_cast<uint32_t>(dim.src_stride),
                               static_cast<double>(map.n) / static_cast<double>(map.m)};
  }
  for (int more = 0; more < 1 << made.count; ++more) {
    made.factors[more] = factor_with(t, more);
    made.rounded[more] = static_cast<float>(made.factors[more]);
  }
  int64_t src = 0, dst = 0;
  for (int d = t.loops() - 1; d >= 0; --d) {
    const Dim& dim = t.dims[d];
    const Map& map = dim.map;
    const int64_t unit = d == t.loops() - 1 ? pack : 1;
    dst += dim.begin * dim.dst_stride;
    if (map.kind == MapKind::Identity) src += dim.begin * dim.src_stride;
    if (d == left) continue;
    made.dims[made.rank++] = {Divisor(dim.size / unit),
                              Divisor(map.kind == MapKind::Tile ? map.n : map.m),
                              map.kind,
                              which[d],
                              static_cast<uint32_t>(dim.begin),
                              static_cast<uint32_t>(map.n),
                              static_cast<uint32_t>(map.start),
                              static_cast<uint32_t>(dim.table),
                              static_cast<uint32_t>(dim.dst_stride * unit),
                              static_cast<uint32_t>(dim.src_stride * unit)};
  }
  made.src = t.src + src * t.src_item;
  made.dst = t.dst + dst * t.dst_item;
  return made;
}

// The dimension along which the source runs, where that is not the one along which the target does; else -1.
inline int source_run(const Transfer& t) {
  const int last = t.loops() - 1;
  if (last < 0 || t.dims[last].src_stride == 1) return -1;
  for (int d = 0; d < last; ++d) {
    const Dim& dim = t.dims[d];
    if (dim.src_stride == 1 && dim.map.kind == MapKind::Identity && dim.size >= 8) return d;
  }
  return -1;
}

template <class D, class C, class Stream>
void launch_transposed(const Transfer& t, int along, int64_t most_elements, Stream stream) {
  for_each_box(t, most_elements, 1, [&](const Transfer& box, const IndexTable& table) {
    const Dim& run = box.dims[along];
    TransposedBlocks<D, C> blocks{};
    blocks.gather = {thread_transfer(box, 1, along), table};
    blocks.count = static_cast<uint32_t>(count_of(box) / run.size);
    blocks.size = static_cast<uint32_t>(run.size);
    blocks.dst_stride = static_cast<uint32_t>(run.dst_stride);
    blocks.src_stride = static_cast<uint32_t>(run.src_stride);
    blocks.rectangles = Divisor(ceil_div(run.size, blocks.kAlong));
    for_each_block(blocks, ceil_div(blocks.count, blocks.kAcross) * blocks.rectangles.value(), stream);
  });
}

// Whether a box's elements lie side by side in the target, in their order, and aligned for four at a time; with rows of
// four or more.
inline bool takes_quads(const Transfer& box) {
  int64_t elements = 1;
  for (int d = box.loops() - 1; d >= 0; --d) {
    if (box.dims[d].size > 1 && box.dims[d].dst_stride != elements) return false;
    elements *= box.dims[d].size;
  }
  const uintptr_t unit = static_cast<uintptr_t>(std::min<int64_t>(16, 4 * box.dst_item));
  int64_t begin = 0;
  for (int d = 0; d < box.loops(); ++d) begin += box.dims[d].begin * box.dims[d].dst_stride;
  return box.loops() > 0 && box.dims[box.loops() - 1].size >= 4 &&
         (reinterpret_cast<uintptr_t>(box.dst) + static_cast<uintptr_t>(begin * box.dst_item)) % unit == 0;
}

// Element by element, or four at a time. D is the target's dtype, C that of the sum, or void for a copy of bits.
template <class D, class C, class Stream>
void launch_elements(const Transfer& t, int64_t most_elements, Stream stream) {
  using S = std::conditional_t<std::is_void_v<C>, D, void>;
  const bool fits = fits_thread(t);
  for_each_box(t, most_elements, 1, [&](const Transfer& box, const IndexTable& table) {
    const int64_t count = count_of(box);
    if (!fits) return for_each_element(GeneralElement<D, C>{box, table}, count, stream);
    const ThreadTransfer made = thread_transfer(box);
    const bool quads = sizeof(D) <= 8 && takes_quads(box);
    const uint32_t elements = static_cast<uint32_t>(count);
    if constexpr (!std::is_void_v<C>) {
      if (resizes(t)) return for_each_element(SumElement<D, C, true>{made, table}, count, stream);
      if (sums(t)) {
        if (quads && made.dims[0].kind == MapKind::Identity) {
          return for_each_element(SumQuads<D, C>{made, table, elements}, ceil_div(count, kQuad), stream);
        }
        return for_each_element(SumElement<D, C, false>{made, table}, count, stream);
      }
    }
    if constexpr (sizeof(D) <= 8) {
      if (quads) return for_each_element(GatherQuads<D, C>{made, table, elements}, ceil_div(count, kQuad), stream);
    }
    for_each_element(GatherElement<D, S, C, 1>{made, table}, count, stream);
  });
}

// By the way that the problem allows. Neighbours that can be taken together are left as they are; else as many
// dimensions as possible become one.
template <class Stream>
void transfer_cuda(const Transfer& whole, Stream stream, int64_t most_elements = kMostElements) {
  const bool copies = only_copies(whole);
  Transfer packed = whole;
  reduce(packed, /*absorb=*/false);
  Transfer t = whole;
  reduce(t, /*absorb=*/true);
  const int along = fits_thread(packed) ? source_run(packed) : -1;
  if (copies) {
    widen_copy(packed);
    const Transfer& copy = packed.dst_item > t.dst_item || along >= 0 ? packed : t;
    with_raw_type(copy.dst_item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      if (along >= 0) {
        launch_transposed<T, void>(copy, along, most_elements, stream);
      } else {
        launch_elements<T, void>(copy, most_elements, stream);
      }
    });
    return;
  }
  const bool gathers = fits_thread(packed) && !sums(packed);
  with_compute_type(t.dst_type, [&](auto d) {
    with_compute_type(t.src_type, [&](auto s) {
      using D = typename decltype(d)::type;
      using S = typename decltype(s)::type;
      using C = std::conditional_t<std::is_same_v<D, double> || std::is_same_v<S, double>, double, float>;
      constexpr int kWidth = static_cast<int>(16 / std::min(sizeof(D), sizeof(S)));
      if (gathers && pack_of(packed, kWidth) == kWidth) {
        for_each_box(packed, most_elements, kWidth, [&](const Transfer& box, const IndexTable& table) {
          for_each_element(GatherElement<D, S, C, kWidth>{thread_transfer(box, kWidth), table}, count_of(box) / kWidth,
                           stream);
        });
      } else if (gathers && along >= 0) {
        launch_transposed<D, C>(packed, along, most_elements, stream);
      } else {
        launch_elements<D, C>(t, most_elements, stream);
      }
    });
  });
}

}  // namespace convweights
