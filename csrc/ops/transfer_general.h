// What one thread does for transfer on CUDA whatever the maps, the sizes and the number of positions that are summed:
// the meaning, at the price of tables in local memory. csrc/ops/transfer_thread.h has what most problems need.
#pragma once

#include <type_traits>

#include "../element/cascade.h"
#include "transfer.h"

namespace convweights {

// The indices of a launch's Select dimensions travel with its arguments: no device memory, no copy, no wait.
struct IndexTable {
  static constexpr int kSize = 256;
  int64_t at[kSize];
};

// Element number `offset` of memory of that type, as a term of the sum.
template <class C>
CW_HD C load_as(const char* src, Dtype type, int64_t offset) {
  switch (type) {
    case Dtype::Float64:
      return widen<C>(reinterpret_cast<const double*>(src)[offset]);
    case Dtype::Float16:
      return widen<C>(reinterpret_cast<const Half*>(src)[offset]);
    case Dtype::BFloat16:
      return widen<C>(reinterpret_cast<const BFloat16*>(src)[offset]);
    default:
      return widen<C>(reinterpret_cast<const float*>(src)[offset]);
  }
}

template <class D>
CW_HD D fill_of(const uint64_t (&words)[2]) {
  D fill;
  memcpy(&fill, words, sizeof(D));
  return fill;
}

// The sum times the factor; a factor of 1 leaves NaN's bits alone.
template <class D, class C>
CW_HD D made_of(C total, C factor) {
  return Narrow<D>::from(factor == C(1) ? total : multiply(factor, total));
}

// D is the target's dtype, C that of the sum, or void for a copy of bits.
template <class D, class C>
struct GeneralElement {
  static constexpr int kAtOnce = 1;
  struct Taken {
    D value;
    int64_t place;
    bool written;
  };

  Transfer t;
  IndexTable table;

  CW_HD Taken take(uint32_t element) const {
    Window windows[kMaxDims];
    int64_t src = 0;
    int64_t dst = 0;
    bool reached = true;
    uint32_t rest = element;
    for (int d = t.loops() - 1; d >= 0; --d) {
      const Dim& dim = t.dims[d];
      const uint32_t size = static_cast<uint32_t>(dim.size);
      const int64_t local = rest % size;
      rest /= size;
      const int64_t j = dim.begin + local;
      if (dim.map.kind == MapKind::Select) {
        windows[d] = Window{};
        windows[d].first = table.at[dim.table + local];
      } else {
        windows[d] = window_of(dim.map, j, t.wide);
      }
      src += windows[d].first * dim.src_stride;
      dst += j * dim.dst_stride;
      reached = reached && windows[d].count > 0;
    }
    if (!reached) return {fill_of<D>(t.fill), dst, !t.keep};
    for (int d = t.loops(); d < t.rank; ++d) windows[d] = window_of(t.dims[d].map, 0, t.wide);
    return {value(windows, src), dst, true};
  }

  CW_HD void put(const Taken& taken) const {
    if (!taken.written) return;
    int64_t copy[kMaxDims] = {};
    for (;;) {
      int64_t offset = taken.place;
      for (int d = t.loops(); d < t.rank; ++d) offset += copy[d] * t.dims[d].dst_stride;
      reinterpret_cast<D*>(t.dst)[offset] = taken.value;
      int d = t.rank - 1;
      for (; d >= t.loops(); --d) {
        if (++copy[d] < t.dims[d].size) break;
        copy[d] = 0;
      }
      if (d < t.loops()) return;
    }
  }

 private:
  CW_HD D value(const Window (&windows)[kMaxDims], int64_t src) const {
    const D* const source = reinterpret_cast<const D*>(t.src) + src;
    if constexpr (std::is_void_v<C>) {
      return *source;
    } else {
      double product = t.scale;
      bool alone = true;
      for (int i = 0; i < t.rank; ++i) {
        const int d = t.order[i];
        product *= factor_of(t.dims[d].map, windows[d]);
        alone = alone && windows[d].count == 1;
      }
      const C factor = static_cast<C>(product);
      if (alone && factor == C(1) && t.same_type) return *source;
      return made_of<D>(alone ? load_as<C>(t.src, t.src_type, src) : sum<C>(windows, src), factor);
    }
  }

  // Over all taps of all windows, the last dimension by position fastest.
  template <class T>
  CW_HD T sum(const Window (&windows)[kMaxDims], int64_t src) const {
    Cascade<T> sums;
    int64_t tap[kMaxDims] = {};
    for (;;) {
      int64_t offset = src;
      T coefficient = T(1);
      for (int i = 0; i < t.rank; ++i) {
        const int d = t.order[i];
        offset += tap[d] * windows[d].step * t.dims[d].src_stride;
        if (t.dims[d].map.kind == MapKind::Resize && windows[d].count == 2) {
          coefficient = multiply(coefficient, static_cast<T>(windows[d].weight[tap[d]]));
        }
      }
      const T term = load_as<T>(t.src, t.src_type, offset);
      sums.push(coefficient == T(1) ? term : multiply(coefficient, term));
      int i = t.rank - 1;
      for (; i >= 0; --i) {
        const int d = t.order[i];
        if (++tap[d] < windows[d].count) break;
        tap[d] = 0;
      }
      if (i < 0) return sums.total();
    }
  }
};

}  // namespace convweights
