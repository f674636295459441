// A tensor among the arguments of a CUDA launch: where its elements are, and how threads go over them.
#pragma once

#include <algorithm>

#include "update.h"
#include "update_device.h"

namespace convweights {

template <class T>
struct alignas(16) Pack16 {
  T at[16 / sizeof(T)];
};

// Chunks of calls: a thread takes every kThreads-th call, or pair of calls, of a chunk.
constexpr int64_t kChunkCalls = 2048;

// A tensor in one piece.
struct FlatEntry {
  // Calls by which the first pack may begin before the tensor's first call: a pack has four at the most.
  static constexpr int64_t kBefore = 3;

  char* weight;
  int64_t count;
  uint64_t start;
  int64_t chunks_before;
  uint32_t stream;

  int64_t calls() const { return count == 0 ? 0 : static_cast<int64_t>((start + count - 1) / 4 - start / 4 + 1); }

  // 16 bytes at a time where memory and logical index are aligned alike, else element by element.
  template <class T, class C, int kSeeds>
  CW_HD void run(int64_t chunk, unsigned thread, unsigned threads, const DeviceRecipe<C, kSeeds>& r,
                 const NoiseSource& source) const {
    // Of a pack: of 16 bytes, or more for several seeds, whose keys then serve more calls.
    constexpr int kCalls = sizeof(T) == 2 ? 2 : kSeeds == 1 ? 1 : sizeof(T) == 4 ? 4 : 2;
    constexpr int kPack = 4 * kCalls;
    const uint64_t q = start / 4 / kCalls * kCalls + static_cast<uint64_t>(chunk) * kChunkCalls;
    const int64_t at = static_cast<int64_t>(q * 4 - start);  // wraps where the chunk begins before the tensor
    T* const w = reinterpret_cast<T*>(weight) + at;
    const bool aligned = reinterpret_cast<uintptr_t>(w) % 16 == 0;
    if (aligned && at >= 0 && at + 4 * kChunkCalls <= count) {
      // A branch of its own for weights that are not read: elements of 16 bits are then no separate conditions.
      for (unsigned p = thread; p < kChunkCalls / kCalls && r.terms.reads; p += threads) {
        whole<T, kCalls, true>(w + p * kPack, q + p * kCalls, r, source);
      }
      for (unsigned p = thread; p < kChunkCalls / kCalls && !r.terms.reads; p += threads) {
        whole<T, kCalls, false>(w + p * kPack, q + p * kCalls, r, source);
      }
      return;
    }
    for (unsigned p = thread; p < kChunkCalls / kCalls; p += threads) {
      const int64_t first = at + p * kPack;
      if (first >= count) return;
      if (aligned && first >= 0 && first + kPack <= count && r.terms.reads) {
        whole<T, kCalls, true>(w + p * kPack, q + p * kCalls, r, source);
      } else {
        CW_UNROLL
        for (int c = 0; c < kCalls; ++c) part<T>(first + 4 * c, q + p * kCalls + c, r, source);
      }
    }
  }

 private:
  template <class T, int kCalls, bool kReads, class C, int kSeeds>
  CW_HD void whole(T* place, uint64_t q, const DeviceRecipe<C, kSeeds>& r, const NoiseSource& source) const {
    constexpr int kPacks = 4 * kCalls * sizeof(T) / 16;
    Pack16<T> packs[kPacks] = {};
    T w[kCalls][4];
    if constexpr (kReads) {
      CW_UNROLL
      for (int i = 0; i < kPacks; ++i) packs[i] = reinterpret_cast<const Pack16<T>*>(place)[i];
    }
    CW_UNROLL
    for (int i = 0; i < 4 * kCalls; ++i) w[i / 4][i % 4] = packs[i * sizeof(T) / 16].at[i % (16 / sizeof(T))];
    update_calls<kCalls>(w, q, stream, r, source);
    CW_UNROLL
    for (int i = 0; i < 4 * kCalls; ++i) packs[i * sizeof(T) / 16].at[i % (16 / sizeof(T))] = w[i / 4][i % 4];
    CW_UNROLL
    for (int i = 0; i < kPacks; ++i) reinterpret_cast<Pack16<T>*>(place)[i] = packs[i];
  }

  template <class T, class C, int kSeeds>
  CW_HD void part(int64_t at, uint64_t q, const DeviceRecipe<C, kSeeds>& r, const NoiseSource& source) const {
    if (at + 4 <= 0 || at >= count) return;
    T* const w = reinterpret_cast<T*>(weight);
    T values[1][4] = {};
    CW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (at + i >= 0 && at + i < count && r.terms.reads) values[0][i] = w[at + i];
    }
    update_calls<1>(values, q, stream, r, source);
    CW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (at + i >= 0 && at + i < count) w[at + i] = values[0][i];
    }
  }
};

// A tensor of any strides, with a mask or a place in a larger one: rows whose elements follow one another in the
// logical index, each cut into calls, with one to spare, since a row may begin inside a call.
struct StridedEntry {
  static constexpr int64_t kBefore = 0;

  char* weight;
  const bool* mask;
  uint64_t start;
  int64_t row;        // elements
  int64_t row_calls;  // an upper bound
  int64_t rows;
  int64_t chunks_before;
  uint32_t stream;
  int16_t rank;
  int16_t first;  // dimension of a row
  UpdateDim dims[kMaxDims];

  int64_t calls() const { return rows * row_calls; }

  template <class T, class C, int kSeeds>
  CW_HD void run(int64_t chunk, unsigned thread, unsigned threads, const DeviceRecipe<C, kSeeds>& r,
                 const NoiseSource& source) const {
    const int64_t begin = chunk * kChunkCalls;
    const int64_t end = begin + kChunkCalls < rows * row_calls ? begin + kChunkCalls : rows * row_calls;
    for (int64_t call = begin + thread; call < end; call += threads) {
      const int64_t number = quotient(call, row_calls);
      const Spot spot = spot_of(dims, 0, first, number);
      const uint64_t index = start + static_cast<uint64_t>(spot.index);
      const uint64_t q = index / 4 + static_cast<uint64_t>(call - number * row_calls);
      update_part<T>(spot, q, static_cast<int64_t>(q * 4 - index), r, source);
    }
  }

 private:
  // Call q, whose first element is number `at` of the row at `spot`.
  template <class T, class C, int kSeeds>
  CW_HD void update_part(const Spot& spot, uint64_t q, int64_t at, const DeviceRecipe<C, kSeeds>& r,
                         const NoiseSource& source) const {
    if (at + 4 <= 0 || at >= row) return;
    T* const w = reinterpret_cast<T*>(weight) + spot.weight;
    T values[1][4] = {};
    int64_t places[4];
    bool wanted[4];
    bool any = false;
    const UpdateDim last = first < rank ? dims[rank - 1] : UpdateDim{};
    Spot inner;
    int64_t left = 0;  // of the last dimension, along which the next element is a step away
    CW_UNROLL
    for (int i = 0; i < 4; ++i) {
      wanted[i] = at + i >= 0 && at + i < row;
      places[i] = 0;
      if (!wanted[i]) continue;
      if (left == 0) {
        inner = spot_of(dims, first, rank, at + i);
        left = last.size - (at + i - quotient(at + i, last.size) * last.size);
      } else {
        inner.move(last, 1);
      }
      --left;
      places[i] = inner.weight;
      wanted[i] = mask == nullptr || mask[spot.mask + inner.mask];
      if (!wanted[i]) continue;
      any = true;
      if (r.terms.reads) values[0][i] = w[places[i]];
    }
    if (!any) return;
    update_calls<1>(values, q, stream, r, source);
    CW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (wanted[i]) w[places[i]] = values[0][i];
    }
  }
};

inline FlatEntry entry_of(const Piece& p, FlatEntry*) { return {p.weight, p.dims[0].size, p.start, 0, p.stream}; }

inline StridedEntry entry_of(const Piece& p, StridedEntry*) {
  const Block block = block_of(p);
  StridedEntry entry{};
  entry.weight = p.weight;
  entry.mask = p.mask;
  entry.start = p.start;
  entry.row = block.size;
  entry.row_calls = ceil_div(block.size, 4) + 1;
  entry.rows = block.rows;
  entry.stream = p.stream;
  entry.rank = static_cast<int16_t>(p.rank);
  entry.first = static_cast<int16_t>(block.first);
  std::copy(p.dims, p.dims + p.rank, entry.dims);
  return entry;
}

inline bool is_flat(const Piece& p) {
  return p.rank == 1 && p.dims[0].stride == 1 && p.dims[0].index == 1 && p.mask == nullptr;
}

}  // namespace convweights
