// A journal on CUDA: a block takes a chunk, each of its warps 128 calls of the noise, four a thread. Compiled by nvcc,
// and by the tests for the host.
#pragma once

#include <algorithm>
#include <vector>

#include "../for_each.h"
#include "journal.h"
#include "update_cuda.h"

namespace convweights {

// Of a thread. Its codes are then one word, a byte a call.
constexpr unsigned kCallsEach = 4;
static_assert(kChunk == kThreads * kCallsEach * kCallElements);

// The escapes among the codes of a word, at the lower bit of each; and how many of them each byte has.
CW_HD uint32_t escapes_in(uint32_t codes) { return codes >> 1 & ~codes & 0x55555555u; }
CW_HD uint32_t counts_of(uint32_t escapes) {
  const uint32_t pairs = (escapes & 0x11111111u) + (escapes >> 2 & 0x11111111u);
  return (pairs & 0x0f0f0f0fu) + (pairs >> 4 & 0x0f0f0f0fu);
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
  struct alignas(4 * sizeof(T)) Four {
    T at[4];
  };
  // Blocks that a multiprocessor has registers for at once.
  static constexpr unsigned kResident = 6;

  struct Shared {
    Four old[kThreads * kCallsEach];  // the weights themselves, by calls
    uint32_t found[kWarps], made[kWarps];
    ChunkHead head;
    bool secured;
  };
  struct Own {
    uint32_t codes;
    Standing standing;  // among the chunk's escapes, with those of each call
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
    const Section& section = e.section;
    const int64_t chunk = number - e.chunks_before;
    const bool enters = action == JournalAction::Enter, leaves = action == JournalAction::Leave;
    ChunkHead head = enters ? ChunkHead{} : section.heads[chunk];
    const ChunkState state = head.state;
    if (!enters && state == ChunkState::Weights) return;
    const Weights weights(e, chunk * kChunk);
    const float now = state == ChunkState::Minus ? -scale : scale;
    uint8_t* const codes = section.codes_of(chunk);

    // visit(k, call) for each of a thread's calls. One body for all of them keeps the code and the registers small:
    // while a thread waits, others go on.
    const auto for_calls = [&](unsigned thread, const auto& visit) {
      CW_ROLLED
      for (unsigned k = 0; k < kCallsEach; ++k) {
        const unsigned call = call_of(thread, k);
        if (static_cast<int>(4 * call) < weights.size) visit(k, call);
      }
    };
    // What is added to the weights of a call.
    const auto changes = [&](float (&d)[1][4], unsigned call) {
      noise_of_calls<1>(d, (e.start + static_cast<uint64_t>(weights.begin)) / 4 + call, distribution, now, source.keys,
                        source.site(kNoise, e.stream));
    };
    // visit(i, place) for each escape among the weights of a call.
    const auto for_escapes = [&](const Own& own, unsigned k, const auto& visit) {
      const uint32_t escapes = escapes_in(own.codes >> 8 * k & 0xffu);
      if (escapes == 0) return;
      int64_t rank = own.standing.before(k);
      CW_ROLLED
      for (int i = 0; i < 4; ++i) {
        if (escapes >> 2 * i & 1u) visit(i, reinterpret_cast<T*>(section.escape(chunk, head.base, pool, rank++)));
      }
    };

    if (!enters) {
      const uint32_t found = block.count(shared.found, [&](unsigned thread, Own& own) {
        own.codes = 0;
        CW_UNROLL
        for (unsigned k = 0; k < kCallsEach; ++k) {
          const unsigned call = call_of(thread, k);
          if (static_cast<int>(4 * call) < weights.size) own.codes |= (codes[call] & weights.codes_in(call)) << 8 * k;
        }
        return counts_of(escapes_in(own.codes));
      });
      if (!holds(head, found, section, pool)) {
        block.each([&](unsigned thread, Own&) {
          if (thread == 0) leave_pending(section, pool);
        });
        return;
      }
    }
    // The weights are written before there is space for their escapes, and put back where there is none: so little is
    // left to do behind the barriers, and the moved ones need not be kept.
    const uint32_t made = block.count(shared.made, [&](unsigned thread, Own& own) {
      if (enters) own.codes = 0;
      for_calls(thread, [&](unsigned k, unsigned call) {
        Four w = weights.load(call);
        float d[1][4];
        changes(d, call);
        const uint32_t found = own.codes >> 8 * k & 0xffu;
        Four& old = shared.old[call];
        if (enters) {
          old = w;
        } else {
          CW_UNROLL
          for (int i = 0; i < 4; ++i) w.at[i] = restored(w.at[i], d[0][i], found >> 2 * i & 3u);
          old = w;
          for_escapes(own, k, [&](int i, const T* place) { old.at[i] = *place; });
          w = old;
        }
        if (!leaves) {
          uint32_t next = 0;
          CW_UNROLL
          for (int i = 0; i < 4; ++i) {
            const T before = w.at[i];
            const float change = enters ? d[0][i] : -d[0][i];
            w.at[i] = sum_of(before, change);
            next |= code_of(before, w.at[i], change) << 2 * i;
          }
          own.codes ^= (found ^ (next & weights.codes_in(call))) << 8 * k;
        }
        weights.store(call, w);
      });
      return counts_of(escapes_in(own.codes));
    });
    if (!fits(head, made, section)) {
      block.each([&](unsigned thread, Own&) {
        if (thread != 0) return;
        shared.head = head;
        shared.secured = secure(shared.head, made, section, pool);
        if (shared.secured) return;
        leave_pending(section, pool);
        section.heads[chunk] = head;
      });
      if (!shared.secured) {
        block.each([&](unsigned thread, Own&) {
          for_calls(thread, [&](unsigned, unsigned call) {
            Four w = shared.old[call];
            if (!enters) {
              float d[1][4];
              changes(d, call);
              CW_UNROLL
              for (int i = 0; i < 4; ++i) w.at[i] = sum_of(w.at[i], d[0][i]);
            }
            weights.store(call, w);
          });
        });
        return;
      }
      head = shared.head;
    }
    head.state = leaves ? ChunkState::Weights : state == ChunkState::Plus ? ChunkState::Minus : ChunkState::Plus;
    block.each([&](unsigned thread, Own& own) {
      if (thread == 0) section.heads[chunk] = head;
      if (leaves) return;
      for_calls(thread, [&](unsigned k, unsigned call) {
        codes[call] = static_cast<uint8_t>(own.codes >> 8 * k);
        for_escapes(own, k, [&](int i, T* place) { *place = shared.old[call].at[i]; });
      });
    });
  }

 private:
  // Call k of a thread, in the order of Standing: neighbours in a warp have neighbours in memory.
  CW_HD static unsigned call_of(unsigned thread, unsigned k) {
    return (thread / kWarp * kCallsEach + k) * kWarp + thread % kWarp;
  }

  // The weights of a chunk, by calls.
  class Weights {
   public:
    const int64_t begin;
    const int size;

    CW_HD Weights(const JournalEntry& entry, int64_t first)
        : begin(first),
          size(static_cast<int>(entry.count - first < kChunk ? entry.count - first : kChunk)),
          entry_(entry),
          row_(entry.is_flat() ? reinterpret_cast<T*>(entry.weight) + first : nullptr),
          fours_(row_ != nullptr && reinterpret_cast<uintptr_t>(row_) % sizeof(Four) == 0 ? size / 4 : 0) {}

    CW_HD Four load(unsigned call) const {
      if (static_cast<int>(call) < fours_) return reinterpret_cast<const Four*>(row_)[call];
      Four w = {};
      CW_ROLLED
      for (int i = 0; i < 4; ++i) {
        if (has(call, i)) w.at[i] = *place_of(call, i);
      }
      return w;
    }

    CW_HD void store(unsigned call, const Four& w) const {
      if (static_cast<int>(call) < fours_) {
        reinterpret_cast<Four*>(row_)[call] = w;
        return;
      }
      const Four kept = w;
      CW_ROLLED
      for (int i = 0; i < 4; ++i) {
        if (has(call, i)) *place_of(call, i) = kept.at[i];
      }
    }

    // The bits of a call's byte of codes that have weights.
    CW_HD uint32_t codes_in(unsigned call) const {
      const int rest = size - static_cast<int>(4 * call);
      return rest < 4 ? (1u << 2 * rest) - 1 : 0xffu;
    }

   private:
    CW_HD bool has(unsigned call, int i) const { return static_cast<int>(4 * call) + i < size; }
    CW_HD T* place_of(unsigned call, int i) const {
      if (row_ != nullptr) return row_ + 4 * call + i;
      return reinterpret_cast<T*>(entry_.weight) + spot_of(entry_.dims, 0, entry_.rank, begin + 4 * call + i).weight;
    }

    const JournalEntry& entry_;
    T* const row_;     // where they lie side by side
    const int fours_;  // calls whose weights are one access
  };

  CW_HD static T sum_of(T weight, float change) { return Narrow<T>::from(add(widen<float>(weight), change)); }
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
