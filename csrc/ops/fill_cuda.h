// fill on CUDA: many tensors a launch, from a table among its arguments. Compiled by nvcc, and by the tests for the
// host.
#pragma once

#include <algorithm>
#include <vector>

#include "../for_each.h"
#include "fill.h"

namespace convweights {

// Elements that one block serves at a time.
constexpr int64_t kFillChunk = 4096;
constexpr int kFillBytes = 32764;

// A filling of at most `kDims` dimensions, as a launch's table holds it.
template <int kDims>
struct FillEntry {
  int64_t chunks_before;
  int64_t count;
  char* weight;
  const bool* mask;
  const char* value;
  Pair64 word;
  int32_t rank;
  FillDim dims[kDims];

  template <class T>
  CW_HD void run(int64_t chunk, unsigned thread, unsigned threads) const {
    const int64_t begin = chunk * kFillChunk;
    const int64_t end = begin + kFillChunk < count ? begin + kFillChunk : count;
    T written;
    memcpy(&written, &word, sizeof(T));
    for (int64_t i = begin + thread; i < end; i += threads) {
      fill_element(reinterpret_cast<T*>(weight), mask, reinterpret_cast<const T*>(value), written,
                   spot_of(dims, rank, i));
    }
  }
};

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
void launch_fillings(const std::vector<const Filling*>& fillings, Stream stream) {
  FillChunks<T, kDims, kEntries> chunks;
  static_assert(sizeof(chunks) + sizeof(int64_t) <= kFillBytes);
  for (size_t begin = 0; begin < fillings.size(); begin += kEntries) {
    chunks.count = static_cast<int32_t>(std::min<size_t>(kEntries, fillings.size() - begin));
    int64_t total = 0;
    for (int i = 0; i < chunks.count; ++i) {
      const Filling& f = *fillings[begin + static_cast<size_t>(i)];
      FillEntry<kDims>& entry = chunks.entries[i];
      entry = {total, f.count(), f.weight, f.mask, f.value, f.word, f.rank, {}};
      std::copy(f.dims, f.dims + f.rank, entry.dims);
      total += ceil_div(entry.count, kFillChunk);
    }
    for_each_chunk(chunks, total, stream);
  }
}

// Few tensors, the usual case, travel in few arguments.
template <class T, int kDims, class Stream>
void launch_kind(const std::vector<const Filling*>& fillings, Stream stream) {
  constexpr int kMost = (kFillBytes - 64) / static_cast<int>(sizeof(FillEntry<kDims>));
  if (fillings.size() <= 4) {
    launch_fillings<T, kDims, 4>(fillings, stream);
  } else {
    launch_fillings<T, kDims, kMost>(fillings, stream);
  }
}

template <class Stream>
void fill_cuda(const std::vector<Filling>& fillings, Stream stream) {
  constexpr int kUsualDims = 3;
  for (const int64_t item : {1, 2, 4, 8, 16}) {
    std::vector<const Filling*> usual, deep;
    for (const Filling& f : fillings) {
      if (f.item == item && f.count() > 0) (f.rank <= kUsualDims ? usual : deep).push_back(&f);
    }
    with_raw_type(item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      launch_kind<T, kUsualDims>(usual, stream);
      launch_kind<T, kMaxDims>(deep, stream);
    });
  }
}

}  // namespace convweights
