// The CPU's inner loops: a panel is a box of target positions whose source positions lie evenly, so that the loops
// over it ask no map. Three dimensions, written rows of runs first; strides in elements.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <type_traits>

#include "../element/cascade.h"
#include "../element/narrow_runs.h"

namespace convweights {

// From here on memcpy's own ways are the faster ones.
constexpr int64_t kInlineBytes = 1024;
// Sums pass through a buffer of the first cache.
constexpr int64_t kBufferElements = 1024;

struct Tap {
  int64_t count;
  int64_t stride;
  double weight[2];
};

struct Axis {
  int64_t size;
  int64_t dst;
  int64_t src;
};
constexpr Axis kPoint{1, 0, 0};

struct Panel {
  char* dst;
  const char* src;
  Axis plane = kPoint;
  Axis row = kPoint;
  Axis run = kPoint;
  int taps = 0;     // windows of more than one position, in the order in which they are summed
  int spreads = 0;  // every value is also written at these strides
  double factor = 1.0;
  uint64_t fill[2];
  Tap tap[kMaxDims];
  Axis spread[kMaxDims];
};

using PanelLoop = void (*)(const Panel&);

// What one dtype of the target and one of the source need.
struct PanelLoops {
  PanelLoop fill;
  PanelLoop copy;  // bits; also of the target from itself
  PanelLoop convert;
  PanelLoop sum;
};

// Puts the axis innermost along which the source is read in order, or, failing that, the longer one.
inline void orient(Panel& p) {
  const bool across = p.run.src != 1 && p.row.src == 1;
  const bool longer = p.run.size < 4 && p.row.size > p.run.size && p.row.src != 0;
  if (p.row.size > 1 && (across || longer)) std::swap(p.row, p.run);
  if (p.run.dst == 1 && p.run.src == 1 && p.row.dst == p.run.size && p.row.src == p.run.size) {
    p.run.size *= p.row.size;
    p.row = kPoint;
  }
}

// The rows of a panel in registers: read from the panel itself, they would be read again after each write.
struct Rows {
  Axis plane, row;
  explicit Rows(const Panel& p) : plane(p.plane), row(p.row) {}

  template <class Body>
  CW_INLINE void operator()(const Body& body) const {
    for (int64_t i = 0; i < plane.size; ++i) {
      for (int64_t j = 0; j < row.size; ++j) body(i * plane.dst + j * row.dst, i * plane.src + j * row.src);
    }
  }
};

// body(offset) for each of the places at which a value is written.
template <class Body>
CW_INLINE void for_each_spread(const Panel& p, const Body& body) {
  int64_t copy[kMaxDims] = {};
  int64_t offset = 0;
  for (;;) {
    body(offset);
    int s = p.spreads - 1;
    for (; s >= 0; --s) {
      offset += p.spread[s].dst;
      if (++copy[s] < p.spread[s].size) break;
      offset -= p.spread[s].size * p.spread[s].dst;
      copy[s] = 0;
    }
    if (s < 0) return;
  }
}

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

template <int Bytes>
CW_INLINE void copy_block(char* dst, const char* src) {
  typedef uint64_t Block __attribute__((vector_size(Bytes)));
  Block block;
  memcpy(&block, src, Bytes);
  memcpy(dst, &block, Bytes);
}

// Short runs as blocks, the last one overlapping; each but the first and last starts on a line of the target.
CW_INLINE void copy_bytes(char* dst, const char* src, int64_t bytes) {
  if (bytes < 32 || bytes > kInlineBytes) {
    memcpy(dst, src, static_cast<size_t>(bytes));
  } else if (bytes < 64) {
    copy_block<32>(dst, src);
    copy_block<32>(dst + bytes - 32, src + bytes - 32);
  } else {
    copy_block<64>(dst, src);
    const int64_t line = 64 - static_cast<int64_t>(reinterpret_cast<uintptr_t>(dst) % 64);
    for (int64_t at = line; at + 64 < bytes; at += 64) copy_block<64>(dst + at, src + at);
    copy_block<64>(dst + bytes - 64, src + bytes - 64);
  }
}

// Rows of `bytes` whose first `period` bytes are there and repeat: what is filled doubles with each copy.
CW_CLONES inline void repeat_rows(char* dst, int64_t rows, int64_t stride, int64_t period, int64_t bytes) {
  for (int64_t row = 0; row < rows; ++row, dst += stride) {
    for (int64_t filled = period; filled < bytes; filled *= 2) {
      copy_bytes(dst + filled, dst, std::min(filled, bytes - filled));
    }
  }
}

#if defined(__SSE2__)
constexpr bool kCanStream = true;
// Past the caches; the source may lie in them.
inline void stream_bytes(char* dst, const char* src, int64_t bytes) {
  const int64_t head = std::min(bytes, static_cast<int64_t>(-reinterpret_cast<uintptr_t>(dst) % 64));
  memcpy(dst, src, static_cast<size_t>(head));
  int64_t at = head;
  for (; at + 64 <= bytes; at += 64) {
    for (int k = 0; k < 64; k += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(dst + at + k),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + at + k)));
    }
  }
  memcpy(dst + at, src + at, static_cast<size_t>(bytes - at));
}
inline void end_of_streams() { _mm_sfence(); }
#else
constexpr bool kCanStream = false;
inline void stream_bytes(char* dst, const char* src, int64_t bytes) { memcpy(dst, src, static_cast<size_t>(bytes)); }
inline void end_of_streams() {}
#endif

template <class T>
CW_CLONES void fill_panel(const Panel& p) {
  T value;
  memcpy(&value, p.fill, sizeof(T));
  const Axis run = p.run;
  const Rows rows(p);
  for_each_spread(p, [&](int64_t spread) CW_INLINE_LAMBDA {
    T* const dst = reinterpret_cast<T*>(p.dst) + spread;
    rows([&](int64_t at, int64_t) CW_INLINE_LAMBDA {
      if (run.dst == 1) {
        for (int64_t i = 0; i < run.size; ++i) dst[at + i] = value;
      } else {
        for (int64_t i = 0; i < run.size; ++i) dst[at + i * run.dst] = value;
      }
    });
  });
}

#if defined(__GNUC__)
// Eight runs of eight 4-byte elements, turned.
CW_INLINE void transpose_8x8(uint32_t* dst, int64_t dst_stride, const uint32_t* const (&lines)[8], int64_t offset) {
  typedef uint32_t Vector __attribute__((vector_size(32)));
  Vector a[8], b[8];
  for (int i = 0; i < 8; ++i) memcpy(&a[i], lines[i] + offset, sizeof(Vector));
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], Vector{0, 8, 1, 9, 4, 12, 5, 13});
    b[2 * i + 1] = __builtin_shuffle(a[2 * i], a[2 * i + 1], Vector{2, 10, 3, 11, 6, 14, 7, 15});
  }
  for (int i = 0; i < 2; ++i) {
    for (int k = 0; k < 2; ++k) {
      a[4 * i + 2 * k] = __builtin_shuffle(b[4 * i + k], b[4 * i + k + 2], Vector{0, 1, 8, 9, 4, 5, 12, 13});
      a[4 * i + 2 * k + 1] = __builtin_shuffle(b[4 * i + k], b[4 * i + k + 2], Vector{2, 3, 10, 11, 6, 7, 14, 15});
    }
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = __builtin_shuffle(a[i], a[i + 4], Vector{0, 1, 2, 3, 8, 9, 10, 11});
    b[i + 4] = __builtin_shuffle(a[i], a[i + 4], Vector{4, 5, 6, 7, 12, 13, 14, 15});
  }
  for (int i = 0; i < 8; ++i) memcpy(dst + i * dst_stride, &b[i], sizeof(Vector));
}

// A panel whose runs are dense in the source and whose rows and planes together are dense in the target: blocks of
// 8 x 8 are turned in registers. Whether the panel was of that kind.
CW_INLINE bool transpose_panel(const Panel& p) {
  const bool dense = p.row.dst == 1 && (p.plane.size == 1 || p.plane.dst == p.row.size);
  const int64_t lines = p.row.size * p.plane.size;
  if (!dense || p.run.src != 1 || p.run.size % 8 != 0 || lines < 8) return false;
  uint32_t* const dst = reinterpret_cast<uint32_t*>(p.dst);
  const uint32_t* const src = reinterpret_cast<const uint32_t*>(p.src);
  for (int64_t line = 0; line < lines; line += 8) {
    const int64_t first = std::min(line, lines - 8);
    const uint32_t* sources[8];
    int64_t plane = first / p.row.size;
    int64_t row = first % p.row.size;
    for (int i = 0; i < 8; ++i) {
      sources[i] = src + plane * p.plane.src + row * p.row.src;
      if (++row == p.row.size) {
        row = 0;
        ++plane;
      }
    }
    for (int64_t i = 0; i < p.run.size; i += 8) transpose_8x8(dst + first + i * p.run.dst, p.run.dst, sources, i);
  }
  return true;
}
#endif

template <class T>
CW_CLONES void copy_panel(const Panel& p) {
#if defined(__GNUC__)
  if (sizeof(T) == 4 && transpose_panel(p)) return;
#endif
  T* __restrict__ const dst = reinterpret_cast<T*>(p.dst);
  const T* __restrict__ const src = reinterpret_cast<const T*>(p.src);
  const Axis run = p.run;
  const Rows rows(p);
  if (run.dst == 1 && run.src == 1) {
    const int64_t bytes = run.size * static_cast<int64_t>(sizeof(T));
    rows([&](int64_t to, int64_t from) CW_INLINE_LAMBDA {
      copy_bytes(reinterpret_cast<char*>(dst + to), reinterpret_cast<const char*>(src + from), bytes);
    });
  } else if (run.src == 1) {
    rows([&](int64_t to, int64_t from) CW_INLINE_LAMBDA {
      for (int64_t i = 0; i < run.size; ++i) dst[to + i * run.dst] = src[from + i];
    });
  } else {
    rows([&](int64_t to, int64_t from) CW_INLINE_LAMBDA {
      for (int64_t i = 0; i < run.size; ++i) dst[to + i * run.dst] = src[from + i * run.src];
    });
  }
}

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
