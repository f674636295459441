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

// Four neighbours of a target that is dense, in rows of four or more along the innermost dimension: what is outside of
// it is asked once, and once more where they reach into the next row.
constexpr int kQuad = 4;

struct Quad {
  uint32_t first;
  uint32_t begin;  // of `first` in its row
  uint32_t rest;   // of the row
  TransferSpot here;
  TransferSpot next;

  CW_HD Quad(const ThreadTransfer& t, uint32_t number, const IndexTable& table) : first(number * kQuad) {
    const Divisor& size = t.dims[0].size;
    const uint32_t row = size.quotient(first);
    begin = first - row * size.value();
    rest = size.value() - begin;
    here = t.template find<1>(row, table);
    next = here;
    if (rest < kQuad) next = t.template find<1>(row + 1, table);
  }

  CW_HD bool beyond(int v) const { return static_cast<uint32_t>(v) >= rest; }
  CW_HD const TransferSpot& row(int v) const { return beyond(v) ? next : here; }

  // Where each of the four is read; the bits of those that are reached, out of `count` elements.
  CW_HD uint32_t places(uint32_t (&src)[kQuad], const ThreadTransfer& t, uint32_t count,
                        const IndexTable& table) const {
    constexpr uint32_t kAll = (1u << kQuad) - 1;
    const ThreadDim& inner = t.dims[0];
    const uint32_t before = rest < kQuad ? (1u << rest) - 1 : kAll;
    uint32_t reached = (here.reached ? before : 0) | (next.reached ? kAll & ~before : 0);
    if (inner.kind == MapKind::Identity || inner.kind == MapKind::Tile) {
      const bool tiles = inner.kind == MapKind::Tile;
      const uint32_t end = tiles ? inner.by.value() : ~0u;
      uint32_t from = tiles ? inner.by.remainder(inner.begin + begin) : begin;
      CW_UNROLL
      for (int v = 0; v < kQuad; ++v) {
        if (static_cast<uint32_t>(v) == rest) from = tiles ? inner.by.remainder(inner.begin) : 0;
        src[v] = row(v).src + from * inner.src_stride;
        from = from + 1 == end ? 0 : from + 1;
      }
    } else {
      CW_UNROLL
      for (int v = 0; v < kQuad; ++v) {
        TransferSpot spot = row(v);
        spot.reached = true;
        t.add(spot, inner, beyond(v) ? v - rest : begin + v, table);
        src[v] = spot.src;
        if (!spot.reached) reached &= ~(1u << v);
      }
    }
    return reached & wanted(count);
  }

  // The bits of those that there are.
  CW_HD uint32_t wanted(uint32_t count) const { return count - first < kQuad ? (1u << (count - first)) - 1 : 0xfu; }

  template <class D>
  struct Taken {
    Pack<D, kQuad> value;
    uint32_t first;
    uint32_t written;  // a bit for each
  };

  template <class D>
  CW_HD static void put(D* target, const Taken<D>& taken) {
    D* const place = target + taken.first;
    if (taken.written == 0xfu) {
      *reinterpret_cast<Pack<D, kQuad>*>(place) = taken.value;
      return;
    }
    CW_UNROLL
    for (int v = 0; v < kQuad; ++v) {
      if (taken.written >> v & 1u) place[v] = taken.value.at[v];
    }
  }
};

template <class D, class C>
struct GatherQuads {
  static constexpr int kAtOnce = 1;
  using Taken = Quad::Taken<D>;

  ThreadTransfer t;
  IndexTable table;
  uint32_t count;  // elements

  CW_HD Taken take(uint32_t number) const {
    const Quad quad(t, number, table);
    uint32_t src[kQuad];
    const uint32_t reached = quad.places(src, t, count, table);
    Taken taken;
    taken.first = quad.first;
    taken.written = t.keep ? reached : quad.wanted(count);
    if constexpr (std::is_void_v<C>) {
      read<D>(taken, src, reached, [](D value) { return value; });
    } else {
      const C factor = t.template factor<C>();
      if (t.same_type && factor == C(1)) {
        read<D>(taken, src, reached, [](D value) { return value; });
      } else {
        with_compute_type(t.src_type, [&](auto type) {
          using S = typename decltype(type)::type;
          if constexpr (sizeof(S) <= sizeof(C)) {
            read<S>(taken, src, reached, [&](S value) { return made_of<D>(widen<C>(value), factor); });
          }
        });
      }
    }
    return taken;
  }

  CW_HD void put(const Taken& taken) const { Quad::put(reinterpret_cast<D*>(t.dst), taken); }

 private:
  template <class S, class Make>
  CW_HD void read(Taken& taken, const uint32_t (&src)[kQuad], uint32_t reached, const Make& make) const {
    const S* const source = reinterpret_cast<const S*>(t.src);
    S values[kQuad];
    CW_UNROLL
    for (int v = 0; v < kQuad; ++v) {
      if (reached >> v & 1u) values[v] = source[src[v]];
    }
    CW_UNROLL
    for (int v = 0; v < kQuad; ++v) {
      taken.value.at[v] = reached >> v & 1u ? make(values[v]) : fill_of<D>(t.fill);
    }
  }
};

// A few source positions an element, summed: what a dimension adds to them.
template <class C>
struct Taps {
  uint32_t first = 0;
  uint32_t count = 1;
  uint32_t step = 0;  // of the source's elements
  C weights[2] = {C(1), C(1)};

  CW_HD C weight(uint32_t tap) const { return tap == 0 ? weights[0] : tap == 1 ? weights[1] : C(1); }
};

// Of an element, or of all elements of a row. `kResizes`: some have weights.
template <class C, bool kResizes>
struct Window2 {
  Taps<C> taps[kMostSums];
  uint32_t src;
  C factor;

  CW_HD Window2(const ThreadTransfer& t, const TransferSpot& spot) : src(spot.src) {
    unsigned more = 0;
    CW_UNROLL
    for (int k = 0; k < kMostSums; ++k) {
      if (k >= t.count) break;
      const ThreadSum& sum = t.sums[k];
      taps[k] = taps_of(sum, spot.sum[k], t.wide);
      more |= static_cast<unsigned>(taps[k].count != sum.least) << k;
      src += taps[k].first * sum.src_stride;
    }
    factor = t.template factor<C>(more);
  }

  CW_HD bool alone() const { return taps[0].count * taps[1].count == 1; }
  CW_HD bool pairs() const { return taps[0].count == 2 && taps[1].count == 1; }

  // The element, whose first term is at `source`. One term times 1 keeps its bits.
  template <class D, class S>
  CW_HD D value(const S* source) const {
    if constexpr (std::is_same_v<D, S>) {
      if (factor == C(1) && alone()) return *source;
    }
    return made_of<D>(sum(source), factor);
  }

 private:
  // The last dimension by position fastest.
  template <class S>
  CW_HD C sum(const S* source) const {
    if constexpr (!kResizes) {
      // The usual number, which needs no counter.
      if (pairs()) return add(widen<C>(source[0]), widen<C>(source[taps[0].step]));
    }
    FlatCascade<C, kLevels> total;
    for (uint32_t outer = 0; outer < taps[0].count; ++outer) {
      for (uint32_t inner = 0; inner < taps[1].count; ++inner) {
        const C term = widen<C>(source[outer * taps[0].step + inner * taps[1].step]);
        if constexpr (kResizes) {
          const C coefficient = multiply(taps[0].weight(outer), taps[1].weight(inner));
          total.push(coefficient == C(1) ? term : multiply(coefficient, term));
        } else {
          total.push(term);
        }
      }
    }
    return total.total();
  }

  CW_HD static Taps<C> taps_of(const ThreadSum& sum, uint32_t j, bool wide) {
    Taps<C> taps;
    taps.step = sum.src_stride;
    if (sum.kind == MapKind::Strided) {
      taps.first = j;
      taps.count = sum.by.quotient(sum.n - j + sum.by.value() - 1);
      taps.step *= sum.by.value();
    } else if (!kResizes || sum.kind == MapKind::Blocks) {
      taps.first = sum.by.quotient(j * sum.n + sum.by.value() - 1);
      taps.count = sum.by.quotient((j + 1) * sum.n + sum.by.value() - 1) - taps.first;
    } else {
      const Window window = resize_window(sum.n, sum.ratio, j, wide);
      taps.first = static_cast<uint32_t>(window.first);
      taps.count = static_cast<uint32_t>(window.count);
      taps.weights[0] = static_cast<C>(window.weight[0]);
      taps.weights[1] = static_cast<C>(window.weight[1]);
    }
    return taps;
  }
};

template <class D, class C, bool kResizes>
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
    const Window2<C, kResizes> window(t, spot);
    Taken taken;
    taken.place = spot.dst;
    taken.written = true;
    with_compute_type(t.src_type, [&](auto type) {
      using S = typename decltype(type)::type;
      if constexpr (sizeof(S) <= sizeof(C)) {
        taken.value = window.template value<D>(reinterpret_cast<const S*>(t.src) + window.src);
      }
    });
    return taken;
  }

  CW_HD void put(const Taken& taken) const {
    if (taken.written) reinterpret_cast<D*>(t.dst)[taken.place] = taken.value;
  }
};

// The same of four neighbours, where the innermost dimension is the identity.
template <class D, class C>
struct SumQuads {
  static constexpr int kAtOnce = 1;
  using Taken = Quad::Taken<D>;

  ThreadTransfer t;
  IndexTable table;
  uint32_t count;  // elements

  CW_HD Taken take(uint32_t number) const {
    const Quad quad(t, number, table);
    uint32_t src[kQuad];
    const uint32_t reached = quad.places(src, t, count, table);
    Taken taken;
    taken.first = quad.first;
    taken.written = t.keep ? reached : quad.wanted(count);
    const Window2<C, false> here(t, quad.here), next(t, quad.next);
    with_compute_type(t.src_type, [&](auto type) {
      using S = typename decltype(type)::type;
      if constexpr (sizeof(S) <= sizeof(C)) {
        const S* const source = reinterpret_cast<const S*>(t.src);
        // `src` has the row's place and the one in the row; a window's has the row's and the one of its first term.
        const uint32_t to_here = here.src - quad.here.src, to_next = next.src - quad.next.src;
        CW_UNROLL
        for (int v = 0; v < kQuad; ++v) {
          src[v] += quad.beyond(v) ? to_next : to_here;
          taken.value.at[v] = fill_of<D>(t.fill);
        }
        if (here.pairs() && next.pairs()) {
          // All are read before the first is used.
          S first[kQuad], second[kQuad];
          CW_UNROLL
          for (int v = 0; v < kQuad; ++v) {
            if (!(reached >> v & 1u)) continue;
            first[v] = source[src[v]];
            second[v] = source[src[v] + here.taps[0].step];
          }
          CW_UNROLL
          for (int v = 0; v < kQuad; ++v) {
            if (!(reached >> v & 1u)) continue;
            const C total = add(widen<C>(first[v]), widen<C>(second[v]));
            taken.value.at[v] = made_of<D>(total, quad.beyond(v) ? next.factor : here.factor);
          }
          return;
        }
        CW_UNROLL
        for (int v = 0; v < kQuad; ++v) {
          if (!(reached >> v & 1u)) continue;
          // A copy and no reference, which would need them in memory.
          Window2<C, false> window = here;
          if (quad.beyond(v)) window = next;
          taken.value.at[v] = window.template value<D>(source + src[v]);
        }
      }
    });
    return taken;
  }

  CW_HD void put(const Taken& taken) const { Quad::put(reinterpret_cast<D*>(t.dst), taken); }
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
