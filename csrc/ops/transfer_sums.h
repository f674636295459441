// What one thread does for transfer on CUDA where a few source positions make an element.
#pragma once

#include "transfer_quads.h"

namespace convweights {

// What a dimension adds to the source positions of an element.
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
struct SumWindow {
  Taps<C> taps[kMostSums];
  uint32_t src;
  C factor;

  CW_HD SumWindow(const ThreadTransfer& t, const TransferSpot& spot) : src(spot.src) {
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
    const SumWindow<C, kResizes> window(t, spot);
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
    Taken taken = quad.taken<D>(t.keep ? reached : quad.wanted(count));
    const SumWindow<C, false> here(t, quad.here), next(t, quad.next);
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
          SumWindow<C, false> window = here;
          if (quad.beyond(v)) window = next;
          taken.value.at[v] = window.template value<D>(source + src[v]);
        }
      }
    });
    return taken;
  }

  CW_HD void put(const Taken& taken) const { Quad::put(reinterpret_cast<D*>(t.dst), taken); }
};

}  // namespace convweights
