// Panels whose values are cast, scaled or summed.
#pragma once

#include <type_traits>

#include "../element/cascade.h"
#include "../element/narrow_runs.h"
#include "panel.h"

namespace convweights {

// Sums pass through a buffer of the first cache.
constexpr int64_t kBufferElements = 1024;

// body(offset, coefficient) for each tap of the windows, the last one fastest.
template <class C, class Body>
CW_INLINE void for_each_tap(const Panel& p, const Body& body) {
  int64_t at[kMaxDims] = {};
  int64_t offset = 0;
  for (;;) {
    C coefficient = C(1);
    for (int t = 0; t < p.taps; ++t) {
      if (p.tap[t].count == 2) coefficient *= static_cast<C>(p.tap[t].weight[at[t]]);
    }
    body(offset, coefficient);
    int t = p.taps - 1;
    for (; t >= 0; --t) {
      offset += p.tap[t].stride;
      if (++at[t] < p.tap[t].count) break;
      offset -= p.tap[t].count * p.tap[t].stride;
      at[t] = 0;
    }
    if (t < 0) return;
  }
}

template <int N>
using Width = std::integral_constant<int, N>;

// body(width, i) for pieces of a constant width, straight SIMD code, that together cover 0 .. size - 1. The last one
// may cover positions a second time, which keeps short runs from crawling through a tail.
template <class Body>
CW_INLINE void for_each_piece(int64_t size, const Body& body) {
  const auto pieces = [&](auto width) CW_INLINE_LAMBDA {
    int64_t i = 0;
    for (; i + width <= size; i += width) body(width, i);
    if (i < size) body(width, size - width);
  };
  if (size >= 16) {
    pieces(Width<16>{});
  } else if (size >= 8) {
    pieces(Width<8>{});
  } else {
    for (int64_t i = 0; i < size; ++i) body(Width<1>{}, i);
  }
}

// W elements as one vector of the sum's dtype.
template <class C, int W>
struct Lanes {
  typedef C Vector __attribute__((vector_size(sizeof(C) * W)));

  template <class S>
  CW_INLINE static Vector load(const S* src, int64_t stride) {
    Vector lanes;
    if constexpr (std::is_same_v<S, C>) {
      if (stride == 1) {
        memcpy(&lanes, src, sizeof(Vector));
        return lanes;
      }
    }
    C values[W];
    if (stride == 1) {
      for (int k = 0; k < W; ++k) values[k] = widen<C>(src[k]);
    } else {
      for (int k = 0; k < W; ++k) values[k] = widen<C>(src[k * stride]);
    }
    memcpy(&lanes, values, sizeof(Vector));
    return lanes;
  }

  template <class D>
  CW_INLINE static void store(D* dst, const Vector& lanes) {
    if constexpr (std::is_same_v<D, C>) {
      memcpy(dst, &lanes, sizeof(Vector));
    } else {
      C values[W];
      memcpy(values, &lanes, sizeof(Vector));
      for (int k = 0; k < W; ++k) dst[k] = Narrow<D>::from(values[k]);
    }
  }
};

template <bool Scaled, class D, class S, class C>
CW_INLINE void convert_rows(const Panel& p, C factor) {
  D* __restrict__ const dst = reinterpret_cast<D*>(p.dst);
  const S* __restrict__ const src = reinterpret_cast<const S*>(p.src);
  const Axis run = p.run;
  const Rows rows(p);
  const auto converted = [&](int64_t from) CW_INLINE_LAMBDA {
    const C value = widen<C>(src[from]);
    return Narrow<D>::from(Scaled ? factor * value : value);
  };
  if (run.dst == 1 && run.src == 1) {
    if (run.size >= 64) {
      rows([&](int64_t to, int64_t from) CW_INLINE_LAMBDA {
        for (int64_t i = 0; i < run.size; ++i) dst[to + i] = converted(from + i);
      });
    } else {
      rows([&](int64_t to, int64_t from) CW_INLINE_LAMBDA {
        for_each_piece(run.size, [&](auto width, int64_t i) CW_INLINE_LAMBDA {
          using Piece = Lanes<C, decltype(width)::value>;
          const auto lanes = Piece::load(src + from + i, 1);
          Piece::store(dst + to + i, Scaled ? factor * lanes : lanes);
        });
      });
    }
  } else {
    rows([&](int64_t to, int64_t from) CW_INLINE_LAMBDA {
      for (int64_t i = 0; i < run.size; ++i) dst[to + i * run.dst] = converted(from + i * run.src);
    });
  }
}

// Unscaled values are not multiplied by 1: that would flush subnormals where the user has asked torch to.
template <class D, class S, class C>
CW_CLONES void convert_panel(const Panel& p) {
  const C factor = static_cast<C>(p.factor);
  // float32 and the two 16-bit types among each other.
  if constexpr (std::is_same_v<C, float> && !(std::is_same_v<D, float> && std::is_same_v<S, float>)) {
    if (p.run.dst == 1 && p.run.src == 1 && p.run.size >= 16 && narrow_runs()) {
      const Rows rows(p);
      const int64_t size = p.run.size;
      rows([&](int64_t to, int64_t from) CW_INLINE_LAMBDA {
        convert_run(reinterpret_cast<D*>(p.dst) + to, reinterpret_cast<const S*>(p.src) + from, size, factor);
      });
      return;
    }
  }
  if (factor == C(1)) {
    convert_rows<false, D, S, C>(p, factor);
  } else {
    convert_rows<true, D, S, C>(p, factor);
  }
}

// Pairs of one dtype along plain runs, the commonest average, without the buffer.
template <class T, class C>
CW_CLONES void sum_pairs(const Panel& p) {
  T* __restrict__ const dst = reinterpret_cast<T*>(p.dst);
  const T* __restrict__ const src = reinterpret_cast<const T*>(p.src);
  const C factor = static_cast<C>(p.factor);
  const int64_t size = p.run.size;
  const int64_t step = p.tap[0].stride;
  const Rows rows(p);
  rows([&](int64_t to, int64_t from) CW_INLINE_LAMBDA {
    for_each_piece(size, [&](auto width, int64_t i) CW_INLINE_LAMBDA {
      using Piece = Lanes<C, decltype(width)::value>;
      const T* const terms = src + from + i;
      Piece::store(dst + to + i, factor * (Piece::load(terms, 1) + Piece::load(terms + step, 1)));
    });
  });
}

inline bool is_pair(const Panel& p) {
  const Tap& tap = p.tap[0];
  return p.taps == 1 && tap.count == 2 && tap.weight[0] == 1.0 && tap.weight[1] == 1.0 && p.spreads == 0 &&
         p.run.dst == 1 && p.run.src == 1 && p.factor != 1.0;
}

// The windows' sums, row after row, into a buffer without gaps.
template <class S, class C>
CW_CLONES void sum_rows(const Panel& p, C* buffer) {
  const S* const src = reinterpret_cast<const S*>(p.src);
  const Axis run = p.run;
  const Tap tap = p.tap[0];
  const bool plain = p.taps == 1 && tap.weight[0] == 1.0 && tap.weight[1] == 1.0;
  const Rows rows(p);
  rows([&](int64_t, int64_t from) CW_INLINE_LAMBDA {
    for_each_piece(run.size, [&](auto width, int64_t i) CW_INLINE_LAMBDA {
      using Piece = Lanes<C, decltype(width)::value>;
      Cascade<typename Piece::Vector> sum;
      const S* terms = src + from + i * run.src;
      if (plain) {
        for (int64_t t = 0; t < tap.count; ++t, terms += tap.stride) sum.push(Piece::load(terms, run.src));
      } else {
        for_each_tap<C>(p, [&](int64_t offset, C coefficient) CW_INLINE_LAMBDA {
          const auto lanes = Piece::load(terms + offset, run.src);
          sum.push(coefficient == C(1) ? lanes : coefficient * lanes);
        });
      }
      Piece::store(buffer + i, sum.total());
    });
    buffer += run.size;
  });
}

// The buffer times the factor, cast, to every place where it belongs.
template <class D, class C>
CW_CLONES void store_rows(const Panel& p, const C* buffer) {
  const C factor = static_cast<C>(p.factor);
  const Axis run = p.run;
  const Rows rows(p);
  for_each_spread(p, [&](int64_t spread) CW_INLINE_LAMBDA {
    D* const dst = reinterpret_cast<D*>(p.dst) + spread;
    const C* total = buffer;
    rows([&](int64_t to, int64_t) CW_INLINE_LAMBDA {
      if (run.dst == 1) {
        for_each_piece(run.size, [&](auto width, int64_t i) CW_INLINE_LAMBDA {
          using Piece = Lanes<C, decltype(width)::value>;
          const auto lanes = Piece::load(total + i, 1);
          Piece::store(dst + to + i, factor == C(1) ? lanes : factor * lanes);
        });
      } else {
        for (int64_t i = 0; i < run.size; ++i) {
          dst[to + i * run.dst] = Narrow<D>::from(factor == C(1) ? total[i] : factor * total[i]);
        }
      }
      total += run.size;
    });
  });
}

// In parts that fit the buffer. All of a part is read before any of it is written: a Mean may write where it reads.
template <class D, class S, class C>
void sum_panel(const Panel& panel) {
  if constexpr (std::is_same_v<D, S>) {
    if (is_pair(panel)) return sum_pairs<D, C>(panel);
  }
  C buffer[kBufferElements];
  Panel part = panel;
  part.plane = kPoint;
  part.run.size = std::min(panel.run.size, kBufferElements);
  part.row.size = std::min(panel.row.size, kBufferElements / part.run.size);
  const int64_t run_step = part.run.size;
  const int64_t row_step = part.row.size;
  for (int64_t plane = 0; plane < panel.plane.size; ++plane) {
    for (int64_t row = 0; row < panel.row.size; row += row_step) {
      for (int64_t i = 0; i < panel.run.size; i += run_step) {
        part.row.size = std::min(row_step, panel.row.size - row);
        part.run.size = std::min(run_step, panel.run.size - i);
        const int64_t to = plane * panel.plane.dst + row * panel.row.dst + i * panel.run.dst;
        const int64_t from = plane * panel.plane.src + row * panel.row.src + i * panel.run.src;
        part.dst = panel.dst + to * static_cast<int64_t>(sizeof(D));
        part.src = panel.src + from * static_cast<int64_t>(sizeof(S));
        sum_rows<S, C>(part, buffer);
        store_rows<D, C>(part, buffer);
      }
    }
  }
}

}  // namespace convweights
