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
  float rounded[1 << kMostSums];   // the same for sums in float32
  const char* src;
  char* dst;
  Dtype src_type;
  bool same_type;
  bool wide;
  bool keep;
  uint64_t fill[2];

  template <class C>
  CW_HD C factor(unsigned more = 0) const {
    if constexpr (std::is_same_v<C, float>) {
      return rounded[more];
    } else {
      return factors[more];
    }
  }

  // Adds what a position of the box along one dimension says.
  CW_HD void add(TransferSpot& spot, const ThreadDim& dim, uint32_t local, const IndexTable& table) const {
    spot.dst += local * dim.dst_stride;
    if (dim.kind == MapKind::Identity) {
      spot.src += local * dim.src_stride;
      return;
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

  // The spot of position `number` of the dimensions from kFirst on, counted in their order.
  template <int kFirst = 0>
  CW_HD TransferSpot find(uint32_t number, const IndexTable& table) const {
    TransferSpot spot;
    CW_UNROLL
    for (int d = kFirst; d < kMaxDims; ++d) {
      if (d >= rank) break;
      const uint32_t outer = dims[d].size.quotient(number);
      add(spot, dims[d], number - outer * dims[d].size.value(), table);
      number = outer;
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
      const C factor = t.template factor<C>();
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

}  // namespace convweights
