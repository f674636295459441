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

// Four neighbours of a target that is dense, whatever its source: what is outside the innermost dimension, of four
// positions or more, is asked once, and once more where they reach into its next row.
template <class D, class C>
struct QuadElement {
  static constexpr int kAtOnce = 1;
  static constexpr int kWidth = 4;
  using Gather = GatherElement<D, std::conditional_t<std::is_void_v<C>, D, void>, C, 1>;
  struct Taken {
    Pack<D, kWidth> value;
    uint32_t first;
    uint32_t written;  // a bit for each
  };

  Gather gather;
  uint32_t count;  // elements

  CW_HD Taken take(uint32_t number) const {
    const ThreadTransfer& t = gather.t;
    const ThreadDim& inner = t.dims[0];
    Taken taken;
    taken.first = number * kWidth;
    taken.written = 0;
    const uint32_t row = inner.size.quotient(taken.first);
    const uint32_t begin = taken.first - row * inner.size.value();
    const TransferSpot here = t.template find<1>(row, gather.table);
    TransferSpot next = here;
    if (begin + kWidth > inner.size.value()) next = t.template find<1>(row + 1, gather.table);
    CW_UNROLL
    for (int v = 0; v < kWidth; ++v) {
      if (taken.first + v >= count) continue;
      const bool beyond = begin + v >= inner.size.value();
      TransferSpot spot = beyond ? next : here;
      t.add(spot, inner, begin + v - (beyond ? inner.size.value() : 0), gather.table);
      taken.value.at[v] = spot.reached ? gather.value(spot.src).at[0] : fill_of<D>(t.fill);
      taken.written |= static_cast<uint32_t>(spot.reached || !t.keep) << v;
    }
    return taken;
  }

  CW_HD void put(const Taken& taken) const {
    D* const place = reinterpret_cast<D*>(gather.t.dst) + taken.first;
    if (taken.written == (1u << kWidth) - 1) {
      *reinterpret_cast<Pack<D, kWidth>*>(place) = taken.value;
      return;
    }
    CW_UNROLL
    for (int v = 0; v < kWidth; ++v) {
      if (taken.written >> v & 1u) place[v] = taken.value.at[v];
    }
  }
};

// A few source positions an element, summed. `kResizes`: some of them with weights.
template <class D, class C, bool kResizes>
struct SumElement {
  static constexpr int kAtOnce = 2;
  struct Taken {
    D value;
    uint32_t place;
    bool written;
  };
  struct Taps {
    uint32_t first = 0;
    uint32_t count = 1;
    uint32_t step = 0;  // of the source's elements
    C weights[2] = {C(1), C(1)};
  };

  ThreadTransfer t;
  IndexTable table;
  C factors[1 << kMostSums];

  CW_HD Taken take(uint32_t number) const {
    const TransferSpot spot = t.find(number, table);
    if (!spot.reached) return {fill_of<D>(t.fill), spot.dst, !t.keep};
    Taps taps[kMostSums];
    uint32_t src = spot.src;
    unsigned more = 0;
    CW_UNROLL
    for (int k = 0; k < kMostSums; ++k) {
      if (k >= t.count) break;
      taps[k] = taps_of(t.sums[k], spot.sum[k]);
      more |= static_cast<unsigned>(taps[k].count != t.sums[k].least) << k;
      src += taps[k].first * t.sums[k].src_stride;
    }
    const C factor = factors[more];
    D value;
    if (t.same_type && factor == C(1) && taps[0].count * taps[1].count == 1) {
      value = reinterpret_cast<const D*>(t.src)[src];
    } else {
      with_compute_type(t.src_type, [&](auto type) {
        using S = typename decltype(type)::type;
        if constexpr (sizeof(S) <= sizeof(C)) {
          value = made_of<D>(sum(reinterpret_cast<const S*>(t.src) + src, taps), factor);
        }
      });
    }
    return {value, spot.dst, true};
  }

  CW_HD void put(const Taken& taken) const {
    if (taken.written) reinterpret_cast<D*>(t.dst)[taken.place] = taken.value;
  }

 private:
  CW_HD Taps taps_of(const ThreadSum& sum, uint32_t j) const {
    Taps taps;
    taps.step = sum.src_stride;
    if (sum.kind == MapKind::Strided) {
      taps.first = j;
      taps.count = sum.by.quotient(sum.n - j + sum.by.value() - 1);
      taps.step *= sum.by.value();
    } else if (!kResizes || sum.kind == MapKind::Blocks) {
      taps.first = sum.by.quotient(j * sum.n + sum.by.value() - 1);
      taps.count = sum.by.quotient((j + 1) * sum.n + sum.by.value() - 1) - taps.first;
    } else {
      const Window window = resize_window(sum.n, sum.ratio, j, t.wide);
      taps.first = static_cast<uint32_t>(window.first);
      taps.count = static_cast<uint32_t>(window.count);
      taps.weights[0] = static_cast<C>(window.weight[0]);
      taps.weights[1] = static_cast<C>(window.weight[1]);
    }
    return taps;
  }

  // The last dimension by position fastest.
  template <class S>
  CW_HD C sum(const S* source, const Taps (&taps)[kMostSums]) const {
    if constexpr (!kResizes) {
      // The usual number. One term has no partner, and two need no counter.
      if (taps[1].count == 1 && taps[0].count == 2) return add(widen<C>(source[0]), widen<C>(source[taps[0].step]));
    }
    FlatCascade<C, kLevels> total;
    for (uint32_t outer = 0; outer < taps[0].count; ++outer) {
      for (uint32_t inner = 0; inner < taps[1].count; ++inner) {
        const C term = widen<C>(source[outer * taps[0].step + inner * taps[1].step]);
        if constexpr (kResizes) {
          const C coefficient = multiply(weight(taps[0], outer), weight(taps[1], inner));
          total.push(coefficient == C(1) ? term : multiply(coefficient, term));
        } else {
          total.push(term);
        }
      }
    }
    return total.total();
  }

  CW_HD static C weight(const Taps& taps, uint32_t tap) {
    return tap == 0 ? taps.weights[0] : tap == 1 ? taps.weights[1] : C(1);
  }
};

// Where source and target run along different dimensions: a block reads a rectangle of positions along the source's and
// writes it along the target's. `gather` is the problem without the dimension `along`, along which the source runs.
template <class D, class C>
struct TransposedBlocks {
  static constexpr unsigned kResident = 8;
  static constexpr unsigned kAcross = kWarp;
  static constexpr unsigned kAlong = sizeof(D) <= 4 ? 4 * kWarp : 16 / sizeof(D) * kWarp;
  struct Shared {
    D at[kAcross][kAlong + 1];  // one more, so that a column's are in different banks
  };
  struct Own {};

  GatherElement<D, std::conditional_t<std::is_void_v<C>, D, void>, C, 1> gather;
  uint32_t count;  // of the positions of gather
  uint32_t size;   // along
  uint32_t dst_stride;
  uint32_t src_stride;
  Divisor rectangles;  // along

  template <class Threads>
  CW_HD void operator()(int64_t number, Shared& shared, Threads& block) const {
    const uint32_t column = rectangles.quotient(static_cast<uint32_t>(number));
    const uint32_t across = column * kAcross;
    const uint32_t along = (static_cast<uint32_t>(number) - column * rectangles.value()) * kAlong;
    const ThreadTransfer& t = gather.t;
    // A warp's threads stand side by side along the source's run, then along the target's.
    block.each([&](unsigned thread, Own&) {
      const unsigned lane = thread % kWarp;
      for (unsigned row = thread / kWarp; row < kAcross && across + row < count; row += kWarps) {
        const TransferSpot spot = t.find(across + row, gather.table);
        if (!spot.reached) continue;
        CW_UNROLL
        for (unsigned at = lane; at < kAlong; at += kWarp) {
          if (along + at < size) shared.at[row][at] = gather.value(spot.src + (along + at) * src_stride).at[0];
        }
      }
    });
    block.each([&](unsigned thread, Own&) {
      const unsigned row = thread % kWarp;
      if (across + row >= count) return;
      const TransferSpot spot = t.find(across + row, gather.table);
      if (!spot.reached && t.keep) return;
      D* const target = reinterpret_cast<D*>(t.dst);
      for (unsigned at = thread / kWarp; at < kAlong && along + at < size; at += kWarps) {
        target[spot.dst + (along + at) * dst_stride] = spot.reached ? shared.at[row][at] : fill_of<D>(t.fill);
      }
    });
  }
};

}  // namespace convweights
