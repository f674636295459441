// A chunk of a journal on the CPU, with the vectors L: a tile at a time, first its noise, then weights and codes.
#pragma once

#include "journal.h"
#include "update_run.h"

namespace convweights {

template <class L, class T>
struct JournalRun {
  using F = typename L::F;
  using U = typename L::U;
  using I = typename L::I;
  using Update = UpdateRun<L>;

  static constexpr int kLanes = L::kFloats;
  static constexpr int64_t kTiles = kChunk / kTile;

  // Chunk `chunk` of a section: `count` elements at `weights`, the first of which is `start` in the logical index.
  static void run(void* weights, uint64_t start, int64_t count, uint32_t stream, const Recipe& recipe,
                  JournalAction action, const Section& section, int64_t chunk, const JournalPool& pool) {
    ChunkHead& head = section.heads[chunk];
    if (action == JournalAction::Enter) head = {};
    if (action != JournalAction::Enter && head.state == ChunkState::Weights) return;
    if (action != JournalAction::Enter) {
      fetch_next(section, chunk);
      if (!holds(head, escapes_in(section.codes_of(chunk), count), section, pool)) {
        leave_pending(section, pool);
        return;
      }
    }
    const float scale = static_cast<float>(recipe.scales[0]);
    const float now = head.state == ChunkState::Minus ? -scale : scale;
    const bool flips = action == JournalAction::Flip;
    const Site site{kNoise, stream, recipe.step};
    alignas(64) T old[kChunk];
    alignas(64) uint8_t packed[kChunk / 4];
    T* const w = static_cast<T*>(weights);
    int64_t rank = 0;  // of the next escape
    for (int64_t begin = 0; begin < count; begin += kTile) {
      const int64_t size = std::min(kTile, count - begin);
      const Noise noise(w + begin, start + static_cast<uint64_t>(begin), size, now, recipe, site);
      const uint8_t* const codes = section.codes_of(chunk) + begin / 4;
      T* const place = old + begin;
      if (action == JournalAction::Enter) {
        in_whole_tiles(w + begin, size,
                       [&](T* tile) CW_INLINE_LAMBDA { encode(tile, noise.d, 0, tile, place, packed + begin / 4); });
        continue;
      }
      in_whole_tiles(w + begin, size,
                     [&](T* tile) CW_INLINE_LAMBDA { restore(tile, noise.d, codes, size, flips ? place : tile); });
      T* const found = flips ? place : w + begin;
      for_escapes(codes, size, [&](int64_t i) CW_INLINE_LAMBDA {
        memcpy(static_cast<void*>(found + i), section.escape(chunk, head.base, pool, rank++), sizeof(T));
      });
      if (!flips) continue;
      in_whole_tiles(w + begin, size,
                     [&](T* tile) CW_INLINE_LAMBDA { encode(place, noise.d, kSign, tile, place, packed + begin / 4); });
    }
    if (action == JournalAction::Leave) {
      head.state = ChunkState::Weights;
      return;
    }
    if (!secure(head, escapes_in(packed, count), section, pool)) {
      leave_pending(section, pool);
      undo(w, old, start, count, now, flips, recipe, site);
      return;
    }
    // The codes behind the last element are 0.
    if (count % 4 != 0) packed[count / 4] &= static_cast<uint8_t>((1u << (count % 4 * 2)) - 1);
    memcpy(section.codes_of(chunk), packed, static_cast<size_t>(ceil_div(count, 4)));
    rank = 0;
    for_escapes(packed, count, [&](int64_t i) CW_INLINE_LAMBDA {
      memcpy(section.escape(chunk, head.base, pool, rank++), static_cast<const void*>(old + i), sizeof(T));
    });
    head.state = flips && head.state == ChunkState::Plus ? ChunkState::Minus : ChunkState::Plus;
  }

 private:
  // The noise of a tile, which starts at a multiple of its size, times a scale; or the opposite of another.
  struct Noise {
    alignas(64) float d[kTile + Update::kGroup];

    // `w` is where its weights are.
    Noise(const T* w, uint64_t start, int64_t size, float scale, const Recipe& recipe, const Site& site) {
      const auto visit = [&](int64_t i, const Pair<F>& pair) CW_INLINE_LAMBDA {
        Update::fetch_ahead(w + i, Update::kGroup);
        L::store(d + i, pair.first);
        L::store(d + i + kLanes, pair.second);
      };
      Update::template for_noise<Order::Halves>({start, 0, size}, recipe.distribution, scale,
                                                static_cast<uint64_t>(recipe.seeds[0]), site, visit);
    }
  };

  // body(tile) for a whole tile that holds the first `size` elements at `place`, the rest whatever it is.
  template <class Body>
  CW_INLINE static void in_whole_tiles(T* place, int64_t size, const Body& body) {
    if (size == kTile) {
      body(place);
      return;
    }
    T tile[kTile] = {};
    std::copy_n(place, size, tile);
    body(tile);
    std::copy_n(tile, size, place);
  }

  CW_INLINE static I undone(I perturbed, F d) {
    const F wide = L::template widened<T>(perturbed), back = wide - d;
    const I bits = L::template narrowed<T>(back);
    if constexpr (sizeof(T) == 2) {
      const U magnitude = U{} + 0x7fffffffu;
      const F far = bit_cast<F>(bit_cast<U>(back) & magnitude) * kSnap<T>;
      return far <= bit_cast<F>(bit_cast<U>(wide) & magnitude) ? I{} : bits;
    }
    return bits;
  }

  static constexpr uint32_t kSign = 0x80000000u;

  // A whole tile: to[i] = from[i] moved by d[i], or with the `sign` by -d[i]; old[i] = from[i], and the codes that lead
  // back there.
  CW_INLINE static void encode(const T* from, const float* d, uint32_t sign, T* to, T* old, uint8_t* packed) {
    alignas(64) uint8_t codes[kTile];
    for (int64_t i = 0; i < kTile; i += kLanes) {
      const F noise = bit_cast<F>(bit_cast<U>(L::load(d + i)) ^ sign);
      const I weight = L::template load_bits<T>(from + i);
      const I moved = L::template narrowed<T>(L::template widened<T>(weight) + noise);
      const U off = bit_cast<U>(ordinal<T>(weight)) - bit_cast<U>(ordinal<T>(undone(moved, noise)));
      const U code = off + 1u > 2u ? U{} + kEscape : off & 3u;
      L::template store_bits<T>(old + i, weight);
      L::template store_bits<T>(to + i, moved);
      L::put(codes + i, __builtin_convertvector(code, typename L::Bytes));
      asm volatile("" ::: "memory");  // or GCC would copy `old` by itself, with a slower instruction
    }
    for (int64_t i = 0; i < kTile / 4; ++i) {
      uint32_t four;
      memcpy(&four, codes + 4 * i, 4);
      packed[i] = static_cast<uint8_t>(four | four >> 6 | four >> 12 | four >> 18);
    }
  }

  // A whole tile, of which `size` elements have codes: old[i] = what perturbed[i] was.
  CW_INLINE static void restore(const T* perturbed, const float* d, const uint8_t* codes, int64_t size, T* old) {
    U shifts;
    for (int lane = 0; lane < kLanes; ++lane) shifts[lane] = static_cast<uint32_t>(30 - 2 * lane);
    for (int64_t i = 0; i < size; i += kLanes) {
      uint32_t word = 0;  // of 2 * kLanes bits, some of them behind the last element
      memcpy(&word, codes + i / 4, kLanes / 4);
      const I off = bit_cast<I>((U{} + word) << shifts) >> 30;
      const I near = undone(L::template load_bits<T>(perturbed + i), L::load(d + i));
      const U found = bit_cast<U>(ordinal<T>(near)) + bit_cast<U>(off);
      L::template store_bits<T>(old + i, ordinal<T>(bit_cast<I>(found)));
    }
  }

  // The codes and the room of the chunk that comes next, which nothing else foresees.
  CW_INLINE static void fetch_next(const Section& section, int64_t chunk) {
    const uint8_t* const codes = section.codes_of(chunk + 1);
    for (int64_t line = 0; line < kChunk / 4; line += 64) __builtin_prefetch(codes + line);
    const char* const room = section.room_of(chunk + 1);
    for (int64_t line = 0; line < section.room * section.item; line += 64) __builtin_prefetch(room + line);
  }

  // The escapes among `count` codes, behind which 8 bytes are made whole.
  CW_INLINE static int64_t escapes_in(const uint8_t* codes, int64_t count) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += 32) found += __builtin_popcountll(escapes_at(codes, i, count));
    return found;
  }

  // Those among the codes i .. i + 31, at the lower bit of each.
  CW_INLINE static uint64_t escapes_at(const uint8_t* codes, int64_t i, int64_t count) {
    uint64_t word;
    memcpy(&word, codes + i / 4, 8);
    const uint64_t escapes = word >> 1 & ~word & 0x5555555555555555u;
    return count - i < 32 ? escapes & ((uint64_t{1} << (2 * (count - i))) - 1) : escapes;
  }

  // visit(i) for each escape among `count` codes, behind which 8 bytes are made whole.
  template <class Visit>
  CW_INLINE static void for_escapes(const uint8_t* codes, int64_t count, const Visit& visit) {
    for (int64_t i = 0; i < count; i += 32) {
      for (uint64_t escapes = escapes_at(codes, i, count); escapes != 0; escapes &= escapes - 1)
        visit(i + __builtin_ctzll(escapes) / 2);
    }
  }

  // The chunk as it was before, from its weights.
  static void undo(T* w, const T* old, uint64_t start, int64_t count, float scale, bool flips, const Recipe& recipe,
                   const Site& site) {
    std::copy_n(old, count, w);
    for (int64_t begin = 0; flips && begin < count; begin += kTile) {
      const int64_t size = std::min(kTile, count - begin);
      const Noise noise(w + begin, start + static_cast<uint64_t>(begin), size, scale, recipe, site);
      in_whole_tiles(w + begin, size, [&](T* tile) CW_INLINE_LAMBDA {
        for (int64_t i = 0; i < kTile; i += kLanes) {
          const F weight = L::template widened<T>(L::template load_bits<T>(tile + i));
          L::template store_bits<T>(tile + i, L::template narrowed<T>(weight + L::load(noise.d + i)));
        }
      });
    }
  }
};

}  // namespace convweights
