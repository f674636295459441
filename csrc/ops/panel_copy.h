// Panels in which no value is computed: copies of bits, repetitions, fills, and stores past the caches.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "panel.h"

namespace convweights {

// From here on memcpy's own ways are the faster ones.
constexpr int64_t kInlineBytes = 1024;

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

}  // namespace convweights
