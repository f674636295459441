// A journal on CUDA: a block takes a chunk, each of its threads four calls of the noise. Compiled by nvcc, and by the
// tests for the host.
#pragma once

#include <algorithm>
#include <vector>

#include "../for_each.h"
#include "journal.h"
#include "update_cuda.h"

namespace convweights {

constexpr unsigned kChunkBytes = kChunk / 4;             // of codes, a byte a call
constexpr unsigned kCallsEach = kChunkBytes / kThreads;  // of a thread
static_assert(kCallsEach == 4 && kChunkBytes % kThreads == 0);

// The escapes among the four codes of a byte, at the lower bit of each.
CW_HD unsigned escapes_in(unsigned codes) { return codes >> 1 & ~codes & 0x55u; }
CW_HD unsigned count_of(unsigned escapes) {
  return (escapes & 1) + (escapes >> 2 & 1) + (escapes >> 4 & 1) + (escapes >> 6 & 1);
}

struct JournalEntry {
  char* weight;
  uint64_t start;
  int64_t count;
  int64_t chunks_before;
  Section section;
  uint32_t stream;
  int32_t rank;
  UpdateDim dims[kMaxDims];

  CW_HD bool is_flat() const { return rank == 1 && dims[0].stride == 1; }
};

template <class T, int kEntries>
struct JournalBlocks {
  struct Shared {
    uint8_t codes[kChunkBytes];
    uint16_t ranks[kChunkBytes];  // of each byte's first escape
    uint16_t sums[kThreads];
    uint16_t groups[kThreads / 16];
    uint32_t total;
    bool secured;
  };
  // Of a thread: the calls thread, thread + kThreads, ...
  struct Own {
    T old[kCallsEach][4];
    float change[kCallsEach][4];
  };

  JournalAction action;
  Distribution distribution;
  float scale;
  NoiseSource source;
  int32_t count;
  JournalPool pool;
  JournalEntry entries[kEntries];

  template <class Threads>
  CW_HD void operator()(int64_t number, Shared& shared, Threads& block) const {
    int below = 0;
    for (int end = count; end - below > 1;) {
      const int middle = (below + end) / 2;
      (entries[middle].chunks_before <= number ? below : end) = middle;
    }
    const JournalEntry& e = entries[below];
    const int64_t chunk = number - e.chunks_before;
    ChunkHead& head = e.section.heads[chunk];
    const bool enters = action == JournalAction::Enter, flips = action == JournalAction::Flip;
    const ChunkState state = enters ? ChunkState::Weights : head.state;
    if (!enters && state == ChunkState::Weights) return;
    const int64_t begin = chunk * kChunk;
    const int size = static_cast<int>(e.count - begin < kChunk ? e.count - begin : kChunk);  // elements
    const float now = state == ChunkState::Minus ? -scale : scale;
    if (!enters) {
      const uint8_t* const codes = e.section.codes_of(chunk);
      block.each([&](unsigned thread, Own&) {
        for (unsigned k = 0; k < kCallsEach; ++k) {
          const unsigned call = thread + k * kThreads;
          shared.codes[call] = static_cast<int>(4 * call) < size ? codes[call] : 0;
        }
      });
      rank(shared, block);
      if (!holds(head, shared.total, e.section, pool)) {
        block.each([&](unsigned thread, Own&) {
          if (thread == 0) leave_pending(e.section, pool);
        });
        return;
      }
    }
    block.each([&](unsigned thread, Own& own) {
      if (enters && thread == 0) head = {};
      CW_UNROLL
      for (unsigned k = 0; k < kCallsEach; ++k) {
        const unsigned call = thread + k * kThreads;
        if (static_cast<int>(4 * call) >= size) continue;
        T w[4];
        load(w, e, begin, call, size);
        float d[4];
        noise_of_call(d, (e.start + static_cast<uint64_t>(begin)) / 4 + call, distribution, now, source.keys,
                      source.site(kNoise, e.stream));
        CW_UNROLL
        for (int i = 0; i < 4; ++i) {
          own.old[k][i] = enters ? w[i] : restored(w[i], d[i], shared.codes[call] >> (2 * i) & 3u);
          own.change[k][i] = flips ? -d[i] : d[i];
        }
        if (enters) continue;
        int64_t next = shared.ranks[call];
        for (int i = 0; i < 4; ++i) {
          if (escapes_in(shared.codes[call]) >> (2 * i) & 1u) {
            memcpy(static_cast<void*>(&own.old[k][i]), e.section.escape(chunk, pool, next++), sizeof(T));
          }
        }
        if (action == JournalAction::Leave) store(own.old[k], e, begin, call, size);
      }
    });
    if (action == JournalAction::Leave) {
      block.each([&](unsigned thread, Own&) {
        if (thread == 0) head.state = ChunkState::Weights;
      });
      return;
    }
    block.each([&](unsigned thread, Own& own) {
      CW_UNROLL
      for (unsigned k = 0; k < kCallsEach; ++k) {
        const unsigned call = thread + k * kThreads;
        unsigned codes = 0;
        for (int i = 0; i < 4 && static_cast<int>(4 * call) + i < size; ++i) {
          codes |= code_of(own.old[k][i], moved(own, k, i), own.change[k][i]) << (2 * i);
        }
        shared.codes[call] = static_cast<uint8_t>(codes);
      }
    });
    rank(shared, block);
    block.each([&](unsigned thread, Own&) {
      if (thread != 0) return;
      shared.secured = secure(head, shared.total, e.section, pool);
      if (!shared.secured) leave_pending(e.section, pool);
    });
    if (!shared.secured) return;
    block.each([&](unsigned thread, Own& own) {
      CW_UNROLL
      for (unsigned k = 0; k < kCallsEach; ++k) {
        const unsigned call = thread + k * kThreads;
        if (static_cast<int>(4 * call) >= size) continue;
        T w[4];
        CW_UNROLL
        for (int i = 0; i < 4; ++i) w[i] = moved(own, k, i);
        store(w, e, begin, call, size);
        e.section.codes_of(chunk)[call] = shared.codes[call];
        int64_t next = shared.ranks[call];
        for (int i = 0; i < 4; ++i) {
          if (escapes_in(shared.codes[call]) >> (2 * i) & 1u) {
            memcpy(e.section.escape(chunk, pool, next++), static_cast<const void*>(&own.old[k][i]), sizeof(T));
          }
        }
      }
      if (thread == 0) head.state = state == ChunkState::Plus ? ChunkState::Minus : ChunkState::Plus;
    });
  }

 private:
  struct alignas(4 * sizeof(T)) Four {
    T at[4];
  };

  CW_HD static T moved(const Own& own, unsigned k, int i) {
    return Narrow<T>::from(add(widen<float>(own.old[k][i]), own.change[k][i]));
  }

  // How many escapes stand before those of each call, and how many there are.
  template <class Threads>
  CW_HD static void rank(Shared& shared, Threads& block) {
    block.each([&](unsigned thread, Own&) {
      unsigned sum = 0;
      for (unsigned call = thread * kCallsEach; call < (thread + 1) * kCallsEach; ++call) {
        sum += count_of(escapes_in(shared.codes[call]));
      }
      shared.sums[thread] = static_cast<uint16_t>(sum);
    });
    block.each([&](unsigned thread, Own&) {
      if (thread >= kThreads / 16) return;
      unsigned sum = 0;
      for (unsigned i = 0; i < 16; ++i) sum += shared.sums[16 * thread + i];
      shared.groups[thread] = static_cast<uint16_t>(sum);
    });
    block.each([&](unsigned thread, Own&) {
      unsigned before = 0;
      for (unsigned i = 0; i < thread / 16; ++i) before += shared.groups[i];
      for (unsigned i = thread / 16 * 16; i < thread; ++i) before += shared.sums[i];
      for (unsigned call = thread * kCallsEach; call < (thread + 1) * kCallsEach; ++call) {
        shared.ranks[call] = static_cast<uint16_t>(before);
        before += count_of(escapes_in(shared.codes[call]));
      }
      if (thread == kThreads - 1) shared.total = before;
    });
  }

  CW_HD static T* place_of(const JournalEntry& e, int64_t element) {
    return reinterpret_cast<T*>(e.weight) +
           (e.is_flat() ? element : spot_of(e.dims, 0, static_cast<int>(e.rank), element).weight);
  }

  CW_HD static bool is_four(const JournalEntry& e, int64_t element, unsigned call, int size) {
    return e.is_flat() && static_cast<int>(4 * call) + 4 <= size &&
           reinterpret_cast<uintptr_t>(place_of(e, element)) % sizeof(Four) == 0;
  }

  CW_HD static void load(T (&w)[4], const JournalEntry& e, int64_t begin, unsigned call, int size) {
    const int64_t element = begin + 4 * call;
    if (is_four(e, element, call, size)) {
      const Four four = *reinterpret_cast<const Four*>(place_of(e, element));
      CW_UNROLL
      for (int i = 0; i < 4; ++i) w[i] = four.at[i];
      return;
    }
    for (int i = 0; i < 4; ++i) w[i] = static_cast<int>(4 * call) + i < size ? *place_of(e, element + i) : T{};
  }

  CW_HD static void store(const T (&w)[4], const JournalEntry& e, int64_t begin, unsigned call, int size) {
    const int64_t element = begin + 4 * call;
    if (is_four(e, element, call, size)) {
      Four four;
      CW_UNROLL
      for (int i = 0; i < 4; ++i) four.at[i] = w[i];
      *reinterpret_cast<Four*>(place_of(e, element)) = four;
      return;
    }
    for (int i = 0; i < 4; ++i) {
      if (static_cast<int>(4 * call) + i < size) *place_of(e, element + i) = w[i];
    }
  }
};

template <class T, class Stream>
void launch_journal(const std::vector<const JournalPiece*>& pieces, const Recipe& recipe, JournalAction action,
                    const JournalPool& pool, Stream stream) {
  constexpr int kEntries = (kArgumentBytes - 512) / static_cast<int>(sizeof(JournalEntry));
  JournalBlocks<T, kEntries> blocks;
  static_assert(sizeof(blocks) + sizeof(int64_t) <= kArgumentBytes);
  blocks.action = action;
  blocks.distribution = recipe.distribution;
  blocks.scale = static_cast<float>(recipe.scales[0]);
  blocks.source = {round_keys(static_cast<uint64_t>(recipe.seeds[0])), recipe.step};
  blocks.pool = pool;
  for (size_t begin = 0; begin < pieces.size(); begin += kEntries) {
    blocks.count = static_cast<int32_t>(std::min<size_t>(kEntries, pieces.size() - begin));
    int64_t total = 0;
    for (int i = 0; i < blocks.count; ++i) {
      const JournalPiece& p = *pieces[begin + static_cast<size_t>(i)];
      JournalEntry& entry = blocks.entries[i];
      entry.weight = p.piece.weight;
      entry.start = p.piece.start;
      entry.count = p.piece.count();
      entry.chunks_before = total;
      entry.section = p.section;
      entry.stream = p.piece.stream;
      entry.rank = p.piece.rank;
      std::copy(p.piece.dims, p.piece.dims + p.piece.rank, entry.dims);
      total += ceil_div(entry.count, kChunk);
    }
    for_each_block(blocks, total, stream);
  }
}

template <class Stream>
void journal_cuda(const std::vector<JournalPiece>& pieces, const Recipe& recipe, JournalAction action,
                  const JournalPool& pool, Stream stream) {
  for (const Dtype type : {Dtype::Float32, Dtype::BFloat16, Dtype::Float16}) {
    std::vector<const JournalPiece*> alike;
    for (const JournalPiece& p : pieces) {
      if (p.piece.type == type && p.piece.count() > 0) alike.push_back(&p);
    }
    with_compute_type(type, [&](auto element) {
      using T = typename decltype(element)::type;
      if constexpr (sizeof(T) <= 4) launch_journal<T>(alike, recipe, action, pool, stream);
    });
  }
}

}  // namespace convweights
