// update on CUDA: many tensors a launch, from a table among its arguments. Compiled by nvcc, and by the tests for the
// host.
#pragma once

#include <algorithm>
#include <vector>

#include "../for_each.h"
#include "update.h"
#include "update_recipe.h"

namespace convweights {

// The recipe as the kernel takes it. Of several seeds, `kSeeds` at the most.
template <class C, int kSeeds>
struct DeviceRecipe {
  Terms<C> terms;
  Distribution distribution;  // None where there is no noise
  bool accumulate;
  bool stochastic;
  int32_t count;
  uint32_t step;
  const int64_t* state;  // the seed and the step, where they are on the device
  C scales[kSeeds];
  uint64_t seeds[kSeeds];

  CW_HD uint64_t seed(int k) const { return state ? static_cast<uint64_t>(state[0]) : seeds[k]; }
  CW_HD Site site(uint32_t purpose, uint32_t stream) const {
    return {purpose, stream, state ? static_cast<uint32_t>(state[1]) : step};
  }
};

template <class C, int kSeeds>
DeviceRecipe<C, kSeeds> device_recipe(const Recipe& recipe, const int64_t* state) {
  DeviceRecipe<C, kSeeds> r{};
  r.terms = terms_of<C>(recipe);
  r.distribution = is_noisy<C>(recipe) ? recipe.distribution : Distribution::None;
  r.accumulate = recipe.accumulate;
  r.stochastic = recipe.stochastic;
  r.count = static_cast<int32_t>(recipe.count);
  r.step = recipe.step;
  r.state = state;
  for (int64_t k = 0; k < recipe.count; ++k) {
    r.scales[k] = static_cast<C>(recipe.scales[k]);
    r.seeds[k] = static_cast<uint64_t>(recipe.seeds[k]);
  }
  return r;
}

CW_HD PhiloxState<uint64_t> philox(uint64_t q, uint64_t seed, const Site& site) {
  const RoundKeys keys = round_keys(seed);
  PhiloxState<uint64_t> state{q, site.upper(q), site.stream, site.step};
  CW_UNROLL
  for (int round = 0; round < 10; ++round) state = philox_round<Scalar>(state, keys, round);
  return state;
}

// The noise of elements 4q .. 4q + 3.
CW_HD void noise_of_call(float (&z)[4], uint64_t q, Distribution distribution, uint64_t seed, const Site& site) {
  if (distribution == Distribution::Rademacher) {
    const uint64_t index = q * kCallElements;
    const PhiloxState<uint64_t> words = philox(index / kCallBits, seed, site);
    const unsigned which = static_cast<unsigned>(index / 32 % 4);
    const uint32_t word = static_cast<uint32_t>(which == 0   ? words.x
                                                : which == 1 ? words.y
                                                : which == 2 ? words.z
                                                             : words.w);
    CW_UNROLL
    for (unsigned i = 0; i < 4; ++i) z[i] = signed_by<Scalar>(word << (31 - index % 32 - i), 1.0f);
    return;
  }
  const PhiloxState<uint64_t> words = philox(q, seed, site);
  const uint32_t x = static_cast<uint32_t>(words.x), y = static_cast<uint32_t>(words.y);
  const uint32_t u = static_cast<uint32_t>(words.z), v = static_cast<uint32_t>(words.w);
  if (distribution == Distribution::Normal) {
    const NoisePair<float> low = normal_pair<Scalar>(x, y), high = normal_pair<Scalar>(u, v);
    z[0] = low.first, z[1] = low.second, z[2] = high.first, z[3] = high.second;
  } else {
    z[0] = uniform<Scalar>(x), z[1] = uniform<Scalar>(y), z[2] = uniform<Scalar>(u), z[3] = uniform<Scalar>(v);
  }
}

// Elements 4q .. 4q + 3, in place.
template <class T, class C, int kSeeds>
CW_HD void update_call(T (&w)[4], uint64_t q, uint32_t stream, const DeviceRecipe<C, kSeeds>& r) {
  C noise[4] = {C(-0.0), C(-0.0), C(-0.0), C(-0.0)};
  const Site site = r.site(kNoise, stream);
  if (r.accumulate) {
    for (C& sum : noise) sum = C(0);
  }
  if (r.distribution != Distribution::None) {
    for (int k = 0; k < (kSeeds == 1 ? 1 : r.count); ++k) {
      float z[4];
      noise_of_call(z, q, r.distribution, r.seed(k), site);
      CW_UNROLL
      for (int i = 0; i < 4; ++i) noise[i] = add(noise[i], multiply(r.scales[k], static_cast<C>(z[i])));
    }
  }
  C made[4];
  CW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const C old = r.terms.reads ? widen<C>(w[i]) : C(0);
    made[i] = !r.terms.reads  ? add(r.terms.shift, noise[i])
              : r.terms.plain ? add(old, noise[i])
                              : moved(old, r.terms.decay, r.terms.shift, noise[i]);
  }
  if constexpr (sizeof(T) == 2) {
    if (r.stochastic) {
      const PhiloxState<uint64_t> words = philox(q, r.seed(0), r.site(kStochasticRounding, stream));
      const uint32_t random[4] = {static_cast<uint32_t>(words.x), static_cast<uint32_t>(words.y),
                                  static_cast<uint32_t>(words.z), static_cast<uint32_t>(words.w)};
      CW_UNROLL
      for (int i = 0; i < 4; ++i) w[i] = NarrowRandomly<T>::from(made[i], random[i]);
      return;
    }
  }
  CW_UNROLL
  for (int i = 0; i < 4; ++i) w[i] = Narrow<T>::from(made[i]);
}

template <class T>
struct alignas(16) Pack16 {
  T at[16 / sizeof(T)];
};

// Chunks of calls: a thread takes every kThreads-th call, or pair of calls, of a chunk.
constexpr int64_t kChunkCalls = 1024;

// A tensor in one piece.
struct FlatEntry {
  char* weight;
  int64_t count;
  uint64_t start;
  int64_t chunks_before;
  uint32_t stream;

  int64_t calls() const { return count == 0 ? 0 : static_cast<int64_t>((start + count - 1) / 4 - start / 4 + 1); }

  // 16 bytes at a time where memory and logical index are aligned alike, else element by element.
  template <class T, class C, int kSeeds>
  CW_HD void run(int64_t chunk, unsigned thread, unsigned threads, const DeviceRecipe<C, kSeeds>& r) const {
    constexpr int kCalls = sizeof(T) == 2 ? 2 : 1;  // of a pack
    constexpr int kPack = 4 * kCalls;
    T* const w = reinterpret_cast<T*>(weight);
    const uint64_t first = start / 4 / kCalls + static_cast<uint64_t>(chunk) * (kChunkCalls / kCalls);
    for (uint64_t p = first + thread; p < first + kChunkCalls / kCalls; p += threads) {
      const int64_t at = static_cast<int64_t>(p * kPack - start);  // wraps where the pack begins before the tensor
      if (at >= count) return;
      if (at >= 0 && at + kPack <= count && reinterpret_cast<uintptr_t>(w + at) % 16 == 0) {
        whole<T, kCalls>(w + at, p * kCalls, r);
      } else {
        CW_UNROLL
        for (int c = 0; c < kCalls; ++c) part(w, at + 4 * c, p * kCalls + c, r);
      }
    }
  }

 private:
  template <class T, int kCalls, class C, int kSeeds>
  CW_HD void whole(T* place, uint64_t q, const DeviceRecipe<C, kSeeds>& r) const {
    constexpr int kPacks = 4 * kCalls * sizeof(T) / 16;
    Pack16<T> packs[kPacks];
    T w[kCalls][4] = {};
    if (r.terms.reads) {
      CW_UNROLL
      for (int i = 0; i < kPacks; ++i) packs[i] = reinterpret_cast<const Pack16<T>*>(place)[i];
      CW_UNROLL
      for (int i = 0; i < 4 * kCalls; ++i) w[i / 4][i % 4] = packs[i * sizeof(T) / 16].at[i % (16 / sizeof(T))];
    }
    CW_UNROLL
    for (int c = 0; c < kCalls; ++c) update_call(w[c], q + c, stream, r);
    CW_UNROLL
    for (int i = 0; i < 4 * kCalls; ++i) packs[i * sizeof(T) / 16].at[i % (16 / sizeof(T))] = w[i / 4][i % 4];
    CW_UNROLL
    for (int i = 0; i < kPacks; ++i) reinterpret_cast<Pack16<T>*>(place)[i] = packs[i];
  }

  template <class T, class C, int kSeeds>
  CW_HD void part(T* w, int64_t at, uint64_t q, const DeviceRecipe<C, kSeeds>& r) const {
    if (at + 4 <= 0 || at >= count) return;
    T values[4] = {};
    CW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (at + i >= 0 && at + i < count && r.terms.reads) values[i] = w[at + i];
    }
    update_call(values, q, stream, r);
    CW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (at + i >= 0 && at + i < count) w[at + i] = values[i];
    }
  }
};

// A tensor of any strides, with a mask or a place in a larger one: rows whose elements follow one another in the
// logical index, each cut into calls, with one to spare, since a row may begin inside a call.
struct StridedEntry {
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
  CW_HD void run(int64_t chunk, unsigned thread, unsigned threads, const DeviceRecipe<C, kSeeds>& r) const {
    const int64_t begin = chunk * kChunkCalls;
    const int64_t end = begin + kChunkCalls < rows * row_calls ? begin + kChunkCalls : rows * row_calls;
    for (int64_t call = begin + thread; call < end; call += threads) {
      const int64_t number = quotient(call, row_calls);
      const Spot spot = spot_of(dims, 0, first, number);
      const uint64_t index = start + static_cast<uint64_t>(spot.index);
      const uint64_t q = index / 4 + static_cast<uint64_t>(call - number * row_calls);
      update_part<T>(spot, q, static_cast<int64_t>(q * 4 - index), r);
    }
  }

 private:
  // Call q, whose first element is number `at` of the row at `spot`.
  template <class T, class C, int kSeeds>
  CW_HD void update_part(const Spot& spot, uint64_t q, int64_t at, const DeviceRecipe<C, kSeeds>& r) const {
    if (at + 4 <= 0 || at >= row) return;
    T* const w = reinterpret_cast<T*>(weight) + spot.weight;
    T values[4] = {};
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
      if (r.terms.reads) values[i] = w[places[i]];
    }
    if (!any) return;
    update_call(values, q, stream, r);
    CW_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (wanted[i]) w[places[i]] = values[i];
    }
  }
};

// What fits into a launch's arguments, of which there are 32,764 bytes; few tensors travel in less.
constexpr int kMostBytes = 32764;
constexpr int kFewBytes = 4096;

template <class Entry, int kSeeds>
constexpr int entries_in(int bytes) {
  return (bytes - 128 - 16 * kSeeds) / static_cast<int>(sizeof(Entry));
}

template <class T, class C, class Entry, int kSeeds, int kEntries>
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
    entries[below].template run<T>(chunk - entries[below].chunks_before, thread, threads, recipe);
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

template <class T, class C, class Entry, int kEntries, int kSeeds, class Stream>
void launch_pieces(const std::vector<const Piece*>& pieces, const DeviceRecipe<C, kSeeds>& recipe, Stream stream) {
  UpdateChunks<T, C, Entry, kSeeds, kEntries> chunks;
  static_assert(sizeof(chunks) + sizeof(int64_t) <= kMostBytes);
  chunks.recipe = recipe;
  for (size_t begin = 0; begin < pieces.size(); begin += kEntries) {
    chunks.count = static_cast<int32_t>(std::min<size_t>(kEntries, pieces.size() - begin));
    int64_t total = 0;
    for (int i = 0; i < chunks.count; ++i) {
      Entry entry = entry_of(*pieces[begin + i], static_cast<Entry*>(nullptr));
      entry.chunks_before = total;
      // One call more, for packs that begin before the first.
      total += ceil_div(entry.calls() + 1, kChunkCalls);
      chunks.entries[i] = entry;
    }
    for_each_chunk(chunks, total, stream);
  }
}

template <class T, class C, class Entry, int kSeeds, class Stream>
void launch_kind(const std::vector<const Piece*>& pieces, const DeviceRecipe<C, kSeeds>& recipe, Stream stream) {
  if constexpr (kSeeds == 1) {
    constexpr int kFew = entries_in<Entry, kSeeds>(kFewBytes);
    if (pieces.size() <= kFew) {
      launch_pieces<T, C, Entry, kFew>(pieces, recipe, stream);
      return;
    }
  }
  launch_pieces<T, C, Entry, entries_in<Entry, kSeeds>(kMostBytes)>(pieces, recipe, stream);
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

template <class Stream>
void update_cuda(const std::vector<Piece>& pieces, const Recipe& recipe, const int64_t* state, Stream stream) {
  if (recipe.accumulate) {
    launch_update<kMostSeeds>(pieces, recipe, state, stream);
  } else {
    launch_update<1>(pieces, recipe, state, stream);
  }
}

}  // namespace convweights
