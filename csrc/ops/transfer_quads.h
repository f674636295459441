// What one thread does for transfer on CUDA where four elements of the target are one access.
#pragma once

#include "transfer_thread.h"

namespace convweights {

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

  // Of those whose bits are set; the values are still to come.
  template <class D>
  CW_HD Taken<D> taken(uint32_t written) const {
    Taken<D> made;
    made.first = first;
    made.written = written;
    return made;
  }

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
    Taken taken = quad.taken<D>(t.keep ? reached : quad.wanted(count));
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

}  // namespace convweights
