// update on CUDA: many tensors a launch, from a table among its arguments. Compiled by nvcc, and by the tests for the
// host.
#pragma once

#include <algorithm>
#include <vector>

#include "../for_each.h"
#include "update_entries.h"

namespace convweights {

// Few tensors travel in less than a launch's arguments may take.
constexpr int kFewBytes = 4096;

template <class Entry, int kSeeds>
constexpr int entries_in(int bytes) {
  return (bytes - 256 - 16 * kSeeds) / static_cast<int>(sizeof(Entry));
}

// `kState`: the seed and the step are on the device.
template <class T, class C, class Entry, int kSeeds, bool kState, int kEntries>
struct UpdateChunks {
  static_assert(kEntries > 0);

  DeviceRecipe<C, kSeeds> recipe;
  int32_t count;
  Entry entries[kEntries];

  CW_HD void operator()(int64_t chunk, unsigned thread, unsigned threads) const {
    int below = 0;
    for (int end = count; end - below > 1;) {
      const int middle = (below + end) / 2;
      (entries[middle].chunks_before <= chunk ? below : end) = middle;
    }
    const Entry& entry = entries[below];
    if constexpr (kState) {
      entry.template run<T>(chunk - entry.chunks_before, thread, threads, recipe, recipe.source_on_device());
    } else {
      entry.template run<T>(chunk - entry.chunks_before, thread, threads, recipe, recipe.source);
    }
  }
};

template <class T, class C, class Entry, bool kState, int kEntries, int kSeeds, class Stream>
void launch_pieces(const std::vector<const Piece*>& pieces, const DeviceRecipe<C, kSeeds>& recipe, Stream stream) {
  UpdateChunks<T, C, Entry, kSeeds, kState, kEntries> chunks;
  static_assert(sizeof(chunks) + sizeof(int64_t) <= kArgumentBytes);
  chunks.recipe = recipe;
  for (size_t begin = 0; begin < pieces.size(); begin += kEntries) {
    chunks.count = static_cast<int32_t>(std::min<size_t>(kEntries, pieces.size() - begin));
    int64_t total = 0;
    for (int i = 0; i < chunks.count; ++i) {
      Entry entry = entry_of(*pieces[begin + i], static_cast<Entry*>(nullptr));
      entry.chunks_before = total;
      total += ceil_div(entry.calls() + Entry::kBefore, kChunkCalls);
      chunks.entries[i] = entry;
    }
    for_each_chunk(chunks, total, stream);
  }
}

template <class T, class C, class Entry, int kSeeds, class Stream>
void launch_kind(const std::vector<const Piece*>& pieces, const DeviceRecipe<C, kSeeds>& recipe, Stream stream) {
  constexpr int kMany = entries_in<Entry, kSeeds>(kArgumentBytes);
  if constexpr (kSeeds == 1) {
    constexpr int kFew = entries_in<Entry, kSeeds>(kFewBytes);
    if (recipe.state) {
      launch_pieces<T, C, Entry, true, kMany>(pieces, recipe, stream);
    } else if (pieces.size() <= kFew) {
      launch_pieces<T, C, Entry, false, kFew>(pieces, recipe, stream);
    } else {
      launch_pieces<T, C, Entry, false, kMany>(pieces, recipe, stream);
    }
  } else {
    launch_pieces<T, C, Entry, false, kMany>(pieces, recipe, stream);
  }
}

template <int kSeeds, class Stream>
void launch_update(const std::vector<Piece>& pieces, const Recipe& recipe, const int64_t* state, Stream stream) {
  for (const Dtype type : {Dtype::Float32, Dtype::BFloat16, Dtype::Float16, Dtype::Float64}) {
    std::vector<const Piece*> flat, strided;
    for (const Piece& piece : pieces) {
      if (piece.type == type && piece.count() > 0) (is_flat(piece) ? flat : strided).push_back(&piece);
    }
    with_compute_type(type, [&](auto element) {
      using T = typename decltype(element)::type;
      using C = std::conditional_t<std::is_same_v<T, double>, double, float>;
      const auto device = device_recipe<C, kSeeds>(recipe, state);
      launch_kind<T, C, FlatEntry>(flat, device, stream);
      launch_kind<T, C, StridedEntry>(strided, device, stream);
    });
  }
}

// Several seeds are never on the device.
template <class Stream>
void update_cuda(const std::vector<Piece>& pieces, const Recipe& recipe, const int64_t* state, Stream stream) {
  if (recipe.accumulate) {
    launch_update<kMostSeeds>(pieces, recipe, state, stream);
  } else {
    launch_update<1>(pieces, recipe, state, stream);
  }
}

}  // namespace convweights
