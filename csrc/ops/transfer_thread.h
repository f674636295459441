// What one thread does for transfer on CUDA where 32 bits are enough for places, few positions are summed and factors
// are few: no table in local memory, no division but by numbers known before the launch.
#pragma once

#include <type_traits>

#include "../element/divisor.h"
#include "../for_each.h"
#include "transfer_general.h"

namespace convweights {

// A dimension of a launch's box, the innermost first.
struct ThreadDim {
  Divisor size;
  Divisor by;  // Tile: n; else m
  MapKind kind;
  int32_t sum;  // which of those that sum, or -1
  uint32_t begin;
  uint32_t n;
  uint32_t start;  // modulo 2^32
  uint32_t table;
  uint32_t dst_stride;
  uint32_t src_stride;
};

// N elements that are read or written as one.
template <class T, int N>
struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) Pack {
  T at[N];
};

// How many dimensions may sum, and how many positions altogether: their sum's levels are in registers.
constexpr int kMostSums = 2;
constexpr int kLevels = 4;
constexpr int64_t kMostTaps = (1 << kLevels) - 1;

// A dimension that sums: each window has `least` positions, or one more.
struct ThreadSum {
  Divisor by;  // m
  MapKind kind;
  uint32_t n;
  uint32_t least;
  uint32_t src_stride;
  double ratio;  // n / m
};

// Where an element is read and written, in elements from where the box begins.
struct TransferSpot {
  uint32_t src = 0;
  uint32_t dst = 0;
  bool reached = true;
  uint32_t sum[kMostSums] = {};  // the target's positions along the dimensions that sum
};

struct ThreadTransfer {
  int32_t rank;
  int32_t count;  // of sums
  ThreadDim dims[kMaxDims];
  ThreadSum sums[kMostSums];       // by position
  double factors[1 << kMostSums];  // by which of them have one position more than the least
  const char* src;
  char* dst;
  Dtype src_type;
  bool same_type;
  bool wide;
  bool keep;
  uint64_t fill[2];

  CW_HD TransferSpot find(uint32_t number, const IndexTable& table) const {
    TransferSpot spot;
    uint32_t rest = number;
    CW_UNROLL
    for (int d = 0; d < kMaxDims; ++d) {
      if (d >= rank) break;
      const ThreadDim& dim = dims[d];
      const uint32_t outer = dim.size.quotient(rest);
      const uint32_t local = rest - outer * dim.size.value();
      rest = outer;
      spot.dst += local * dim.dst_stride;
      if (dim.kind == MapKind::Identity) {
        spot.src += local * dim.src_stride;
        continue;
      }
      const uint32_t j = dim.begin + local;
      uint32_t first = 0;
      if (dim.kind == MapKind::Tile) {
        first = dim.by.remainder(j);
      } else if (dim.kind == MapKind::Interleave) {
        first = dim.by.quotient(j * dim.n);
      } else if (dim.kind == MapKind::Offset) {
        first = j + dim.start;
        spot.reached = spot.reached && first < dim.n;
      } else if (dim.kind == MapKind::Select) {
        first = static_cast<uint32_t>(table.at[dim.table + local]);
      } else {
        (dim.sum == 0 ? spot.sum[0] : spot.sum[1]) = j;
      }
      spot.src += first * dim.src_stride;
    }
    return spot;
  }
};

// One source position an element. V neighbours along the last dimension count as one; S is the source's dtype, which
// a single element may be asked for at run time: void. C as in GeneralElement.
template <class D, class S, class C, int V>
struct GatherElement {
  // Reads under way before the first write, which could be to where the next read is for all that is known.
  static constexpr int kAtOnce = V == 1 ? 4 : 2;
  struct Taken {
    Pack<D, V> value;
    uint32_t place;
    bool written;
  };

  ThreadTransfer t;
  IndexTable table;

  CW_HD Taken take(uint32_t number) const {
    const TransferSpot spot = t.find(number, table);
    if (spot.reached) return {value(spot.src), spot.dst, true};
    Taken filled;
    CW_UNROLL
    for (int v = 0; v < V; ++v) filled.value.at[v] = fill_of<D>(t.fill);
    filled.place = spot.dst;
    filled.written = !t.keep;
    return filled;
  }

  CW_HD void put(const Taken& taken) const {
    if (taken.written) *reinterpret_cast<Pack<D, V>*>(reinterpret_cast<D*>(t.dst) + taken.place) = taken.value;
  }

  CW_HD Pack<D, V> value(uint32_t src) const {
    using Target = Pack<D, V>;
    if constexpr (std::is_void_v<C>) {
      return *reinterpret_cast<const Target*>(reinterpret_cast<const D*>(t.src) + src);
    } else {
      const C factor = static_cast<C>(t.factors[0]);
      if ((std::is_same_v<D, S> || std::is_void_v<S>) && t.same_type && factor == C(1)) {
        return *reinterpret_cast<const Target*>(reinterpret_cast<const D*>(t.src) + src);
      }
      Target made;
      if constexpr (std::is_void_v<S>) {
        made.at[0] = made_of<D>(load_as<C>(t.src, t.src_type, src), factor);
      } else {
        const auto values = *reinterpret_cast<const Pack<S, V>*>(reinterpret_cast<const S*>(t.src) + src);
        CW_UNROLL
        for (int v = 0; v < V; ++v) made.at[v] = made_of<D>(widen<C>(values.at[v]), factor);
      }
      return made;
    }
  }
};

// A few source positions an element, summed.
template <class D, class C>
struct SumElement {
  static constexpr int kAtOnce = 2;
  struct Taken {
    D value;
    uint32_t place;
    bool written;
  };

  ThreadTransfer t;
  IndexTable table;

  CW_HD Taken take(uint32_t number) const {
    const TransferSpot spot = t.find(number, table);
    if (!spot.reached) return {fill_of<D>(t.fill), spot.dst, !t.keep};
    Window windows[kMostSums];
    uint32_t src = spot.src;
    int more = 0;
    CW_UNROLL
    for (int k = 0; k < kMostSums; ++k) {
      if (k >= t.count) break;
      windows[k] = window(t.sums[k], spot.sum[k]);
      more |= static_cast<int>(windows[k].count != t.sums[k].least) << k;
      src += static_cast<uint32_t>(windows[k].first) * t.sums[k].src_stride;
    }
    return {value(windows, src, static_cast<C>(t.factors[more])), spot.dst, true};
  }

  CW_HD void put(const Taken& taken) const {
    if (taken.written) reinterpret_cast<D*>(t.dst)[taken.place] = taken.value;
  }

 private:
  CW_HD Window window(const ThreadSum& sum, uint32_t j) const {
    if (sum.kind == MapKind::Resize) return resize_window(sum.n, sum.ratio, j, t.wide);
    const uint32_t m = sum.by.value();
    Window window;
    if (sum.kind == MapKind::Strided) {
      window.first = j;
      window.step = m;
      window.count = sum.by.quotient(sum.n - j + m - 1);
    } else {
      window.first = sum.by.quotient(j * sum.n + m - 1);
      window.count = sum.by.quotient((j + 1) * sum.n + m - 1) - window.first;
    }
    return window;
  }

  // The last dimension by position fastest.
  CW_HD D value(const Window (&windows)[kMostSums], uint32_t src, C factor) const {
    unsigned counts[kMostSums];
    uint32_t steps[kMostSums];
    CW_UNROLL
    for (int k = 0; k < kMostSums; ++k) {
      counts[k] = static_cast<unsigned>(windows[k].count);
      steps[k] = static_cast<uint32_t>(windows[k].step) * t.sums[k].src_stride;
    }
    if (t.same_type && factor == C(1) && counts[0] * counts[1] == 1) return reinterpret_cast<const D*>(t.src)[src];
    FlatCascade<C, kLevels> total;
    for (unsigned outer = 0; outer < counts[0]; ++outer) {
      for (unsigned inner = 0; inner < counts[1]; ++inner) {
        const C term = load_as<C>(t.src, t.src_type, src + outer * steps[0] + inner * steps[1]);
        const C coefficient = multiply(weight(0, windows[0], outer), weight(1, windows[1], inner));
        total.push(coefficient == C(1) ? term : multiply(coefficient, term));
      }
    }
    return made_of<D>(total.total(), factor);
  }

  CW_HD C weight(int k, const Window& window, unsigned tap) const {
    if (k >= t.count || t.sums[k].kind != MapKind::Resize || window.count != 2) return C(1);
    return static_cast<C>(tap == 0 ? window.weight[0] : window.weight[1]);
  }
};

// Where source and target run along different dimensions: a block reads a square of positions along the source's and
// writes it along the target's. `gather` is the problem without the dimension `along`, along which the source runs.
template <class D, class C>
struct TransposedBlocks {
  static constexpr unsigned kResident = 8;
  static constexpr unsigned kSide = 32;
  static constexpr unsigned kRows = kThreads / kSide;  // at a time
  struct Shared {
    D at[kSide][kSide + 1];  // a word more, so that a column's are in different banks
  };
  struct Own {};

  GatherElement<D, std::conditional_t<std::is_void_v<C>, D, void>, C, 1> gather;
  uint32_t count;  // of the positions of gather
  uint32_t size;   // along
  uint32_t dst_stride;
  uint32_t src_stride;
  Divisor squares;  // along

  template <class Threads>
  CW_HD void operator()(int64_t number, Shared& shared, Threads& block) const {
    const uint32_t column = squares.quotient(static_cast<uint32_t>(number));
    const uint32_t across = column * kSide;
    const uint32_t along = (static_cast<uint32_t>(number) - column * squares.value()) * kSide;
    const ThreadTransfer& t = gather.t;
    block.each([&](unsigned thread, Own&) {
      const uint32_t at = along + thread % kSide;
      CW_UNROLL
      for (unsigned row = thread / kSide; row < kSide; row += kRows) {
        if (at >= size || across + row >= count) continue;
        const TransferSpot spot = t.find(across + row, gather.table);
        if (spot.reached) shared.at[row][thread % kSide] = gather.value(spot.src + at * src_stride).at[0];
      }
    });
    block.each([&](unsigned thread, Own&) {
      const uint32_t number_across = across + thread % kSide;
      if (number_across >= count) return;
      const TransferSpot spot = t.find(number_across, gather.table);
      if (!spot.reached && t.keep) return;
      CW_UNROLL
      for (unsigned row = thread / kSide; row < kSide; row += kRows) {
        const uint32_t at = along + row;
        if (at >= size) continue;
        reinterpret_cast<D*>(t.dst)[spot.dst + at * dst_stride] =
            spot.reached ? shared.at[thread % kSide][row] : fill_of<D>(t.fill);
      }
    });
  }
};

}  // namespace convweights
