// fill on CUDA: many tensors a launch, from a table among its arguments. Compiled by nvcc, and by the tests for the
// host.
#pragma once

#include <algorithm>
#include <vector>

#include "../element/divisor.h"
#include "../for_each.h"
#include "fill.h"

namespace convweights {

// A row is a run of neighbours with one answer of the mask and one value, or a single element. It is cut into parts of
// so many elements at the most; some neighbouring threads take a part together, and ask the mask once each.
constexpr int64_t kPartElements = 2048;
constexpr unsigned kMostTogether = 32;
// Parts that such a group of threads takes, one after the other.
constexpr unsigned kPartsEach = 8;

// A filling of at most `kDims` dimensions outside its rows, as a launch's table holds it.
template <int kDims>
struct FillEntry {
  struct Outer {
    Divisor size;
    uint32_t weight;
    uint32_t mask;
    uint32_t value;
  };
  struct Spot {
    uint32_t weight = 0;
    uint32_t mask = 0;
    uint32_t value = 0;
  };

  int64_t chunks_before;
  char* weight;
  const bool* mask;
  const char* value;
  Pair64 word;
  int64_t row;     // elements
  uint32_t parts;  // of all rows
  Divisor of_row;  // parts
  Divisor together;
  int32_t rank;
  Outer outer[kDims];  // the innermost first

  CW_HD uint32_t chunk_parts() const { return kThreads / together.value() * kPartsEach; }

  template <class T>
  CW_HD void run(int64_t chunk, unsigned thread, unsigned threads) const {
    const unsigned group = together.quotient(thread), groups = threads / together.value();
    const unsigned lane = thread - group * together.value();
    const uint32_t begin = static_cast<uint32_t>(chunk) * chunk_parts();
    const uint32_t end = parts - begin < chunk_parts() ? parts : begin + chunk_parts();
    for (uint32_t part = begin + group; part < end; part += groups) {
      const uint32_t number = of_row.quotient(part);
      const Spot spot = find(number);
      if (mask && !mask[spot.mask]) continue;
      T written;
      memcpy(&written, &word, sizeof(T));
      if (value) written = reinterpret_cast<const T*>(value)[spot.value];
      const int64_t first = int64_t{part - number * of_row.value()} * kPartElements;
      const uint32_t size = static_cast<uint32_t>(row - first < kPartElements ? row - first : kPartElements);
      T* const place = reinterpret_cast<T*>(weight) + spot.weight + first;
      for (uint32_t i = lane; i < size; i += together.value()) place[i] = written;
    }
  }

 private:
  CW_HD Spot find(uint32_t number) const {
    Spot spot;
    CW_UNROLL
    for (int d = 0; d < kDims; ++d) {
      if (d >= rank) break;
      const Outer& dim = outer[d];
      const uint32_t rest = dim.size.quotient(number);
      const uint32_t at = number - rest * dim.size.value();
      number = rest;
      spot.weight += at * dim.weight;
      spot.mask += at * dim.mask;
      spot.value += at * dim.value;
    }
    return spot;
  }
};

// How many parts a filling has.
inline int64_t parts_of(const Filling& f) {
  const FillDim& last = f.dims[f.rank - 1];
  return last.is_run() ? f.count() / last.size * ceil_div(last.size, kPartElements) : f.count();
}

template <int kDims>
FillEntry<kDims> entry_of(const Filling& f) {
  FillEntry<kDims> entry{};
  entry.weight = f.weight;
  entry.mask = f.mask;
  entry.value = f.value;
  entry.word = f.word;
  entry.rank = f.rank;
  entry.row = 1;
  if (f.dims[f.rank - 1].is_run()) entry.row = f.dims[--entry.rank].size;
  entry.parts = static_cast<uint32_t>(parts_of(f));
  entry.of_row = Divisor(ceil_div(entry.row, kPartElements));
  unsigned together = 1;
  while (together < kMostTogether && together < entry.row) together *= 2;
  entry.together = Divisor(together);
  for (int d = 0; d < entry.rank; ++d) {
    const FillDim& dim = f.dims[entry.rank - 1 - d];
    entry.outer[d] = {Divisor(dim.size), static_cast<uint32_t>(dim.weight), static_cast<uint32_t>(dim.mask),
                      static_cast<uint32_t>(dim.value)};
  }
  return entry;
}

// Whether parts, and places in elements, can be counted in 32 bits.
inline bool is_small(const Filling& f, int64_t most_parts) {
  FillSpot last;
  for (int d = 0; d < f.rank; ++d) last.move(f.dims[d], f.dims[d].size - 1);
  return parts_of(f) <= most_parts && std::max({last.weight, last.mask, last.value}) >> 32 == 0;
}

// Calls body(piece) for pieces of the filling that are.
template <class Body>
void for_each_small(const Filling& f, int64_t most_parts, const Body& body) {
  if (f.count() == 0) return;
  if (is_small(f, most_parts)) {
    body(f);
    return;
  }
  // The outermost dimension that can be halved.
  int d = 0;
  while (f.dims[d].size == 1) ++d;
  Filling half = f;
  half.dims[d].size = f.dims[d].size / 2;
  for_each_small(half, most_parts, body);
  FillSpot spot;
  spot.move(f.dims[d], half.dims[d].size);
  half.weight += spot.weight * f.item;
  if (half.mask) half.mask += spot.mask;
  if (half.value) half.value += spot.value * f.item;
  half.dims[d].size = f.dims[d].size - half.dims[d].size;
  for_each_small(half, most_parts, body);
}

template <class T, int kDims, int kEntries>
struct FillChunks {
  int32_t count;
  FillEntry<kDims> entries[kEntries];

  CW_HD void operator()(int64_t chunk, unsigned thread, unsigned threads) const {
    int below = 0;
    for (int end = count; end - below > 1;) {
      const int middle = (below + end) / 2;
      (entries[middle].chunks_before <= chunk ? below : end) = middle;
    }
    entries[below].template run<T>(chunk - entries[below].chunks_before, thread, threads);
  }
};

template <class T, int kDims, int kEntries, class Stream>
void launch_fillings(const std::vector<Filling>& fillings, Stream stream) {
  FillChunks<T, kDims, kEntries> chunks;
  static_assert(sizeof(chunks) + sizeof(int64_t) <= kArgumentBytes);
  for (size_t begin = 0; begin < fillings.size(); begin += kEntries) {
    chunks.count = static_cast<int32_t>(std::min<size_t>(kEntries, fillings.size() - begin));
    int64_t total = 0;
    for (int i = 0; i < chunks.count; ++i) {
      FillEntry<kDims> entry = entry_of<kDims>(fillings[begin + static_cast<size_t>(i)]);
      entry.chunks_before = total;
      total += ceil_div(entry.parts, entry.chunk_parts());
      chunks.entries[i] = entry;
    }
    for_each_chunk(chunks, total, stream);
  }
}

// Few tensors, the usual case, travel in few arguments.
template <class T, int kDims, class Stream>
void launch_kind(const std::vector<Filling>& fillings, Stream stream) {
  constexpr int kMost = (kArgumentBytes - 64) / static_cast<int>(sizeof(FillEntry<kDims>));
  if (fillings.size() <= 4) {
    launch_fillings<T, kDims, 4>(fillings, stream);
  } else {
    launch_fillings<T, kDims, kMost>(fillings, stream);
  }
}

template <class Stream>
void fill_cuda(const std::vector<Filling>& fillings, Stream stream, int64_t most_parts = int64_t{1} << 30) {
  constexpr int kUsualDims = 3;
  for (const int64_t item : {1, 2, 4, 8, 16}) {
    std::vector<Filling> usual, deep;
    for (const Filling& f : fillings) {
      if (f.item != item) continue;
      for_each_small(f, most_parts,
                     [&](const Filling& small) { (small.rank <= kUsualDims ? usual : deep).push_back(small); });
    }
    with_raw_type(item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      launch_kind<T, kUsualDims>(usual, stream);
      launch_kind<T, kMaxDims>(deep, stream);
    });
  }
}

}  // namespace convweights
