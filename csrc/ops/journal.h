// A journal: what brings perturbed weights back to the bit, in two bits an element and room for those that two bits do
// not serve. Where it lies in one tensor of bytes:
//
//   used, flag                           the words of the pool that are taken; whether a chunk is pending
//   a section for each tensor            pending, heads, rooms, codes
//   the pool                             behind the last section, in words of 4 bytes
//
// A chunk is kChunk elements in row-major order. Its escapes, the weights that are stored whole, lie in its room in the
// order of the elements; more of them in the pool, from the head's base on. A chunk whose escapes find no space is left
// as it was and is pending; one that is not moved cannot be flipped.
#pragma once

#include "../element/journal.h"
#include "update.h"

namespace convweights {

constexpr int64_t kChunk = 4096;

enum class JournalAction : int32_t { Enter, Flip, Leave };

// What a chunk's elements are: the weights, or moved by the noise, or by its opposite.
enum class ChunkState : uint16_t { Weights, Plus, Minus };

struct ChunkHead {
  uint32_t base;  // in the pool, of `held` words
  uint16_t held;
  ChunkState state;
};
static_assert(sizeof(ChunkHead) == 8);

struct JournalPool {
  uint32_t* used = nullptr;
  uint32_t* flag = nullptr;
  char* words = nullptr;
  uint32_t size = 0;
};

// The part of a journal that is one tensor's.
struct Section {
  uint32_t* pending = nullptr;
  ChunkHead* heads = nullptr;
  char* rooms = nullptr;
  uint8_t* codes = nullptr;
  int64_t room = 0;  // escapes a chunk
  int64_t item = 0;

  CW_HD char* room_of(int64_t chunk) const { return rooms + chunk * room * item; }
  CW_HD uint8_t* codes_of(int64_t chunk) const { return codes + chunk * (kChunk / 4); }
  // Of a chunk's escapes number `rank`, where those beyond the room begin at `base` of the pool.
  CW_HD char* escape(int64_t chunk, uint32_t base, const JournalPool& pool, int64_t rank) const {
    if (rank < room) return room_of(chunk) + rank * item;
    return pool.words + int64_t{4} * base + (rank - room) * item;
  }
};

CW_HD int64_t padded(int64_t bytes) { return (bytes + 7) / 8 * 8; }

// Bytes of a section. convweights/ops/journal.py has the same.
inline int64_t section_bytes(int64_t count, int64_t item, int64_t room) {
  const int64_t chunks = ceil_div(count, kChunk);
  return 8 + 8 * chunks + padded(chunks * room * item) + padded(ceil_div(count, 4));
}

inline Section section_at(char* place, int64_t count, int64_t item, int64_t room) {
  const int64_t chunks = ceil_div(count, kChunk);
  Section s;
  s.pending = reinterpret_cast<uint32_t*>(place);
  s.heads = reinterpret_cast<ChunkHead*>(place + 8);
  s.rooms = place + 8 + 8 * chunks;
  s.codes = reinterpret_cast<uint8_t*>(s.rooms + padded(chunks * room * item));
  s.room = room;
  s.item = item;
  return s;
}

// Words of the pool for what does not fit into a room.
CW_HD uint32_t words_beyond(int64_t escapes, int64_t room, int64_t item) {
  return escapes <= room ? 0 : static_cast<uint32_t>(((escapes - room) * item + 3) / 4);
}

// What `place` holds before `more` is added to it.
CW_HD uint32_t fetch_add(uint32_t* place, uint32_t more) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(place, more);
#else
  return __atomic_fetch_add(place, more, __ATOMIC_RELAXED);
#endif
}

// `next` instead of `found`, unless `place` holds something else.
CW_HD void exchange(uint32_t* place, uint32_t found, uint32_t next) {
#if defined(__CUDA_ARCH__)
  atomicCAS(place, found, next);
#else
  __atomic_compare_exchange_n(place, &found, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
#endif
}

CW_HD uint32_t value_at(const uint32_t* place) {
#if defined(__CUDA_ARCH__)
  return *static_cast<const volatile uint32_t*>(place);
#else
  return __atomic_load_n(place, __ATOMIC_RELAXED);
#endif
}

CW_HD bool has_words(const JournalPool& pool, uint32_t used, uint32_t words) {
  return used <= pool.size && words <= pool.size - used;
}

// Words of the pool, which begin at `base`; whether there were so many. It is one addition, as exchanges in a loop
// would make those of other chunks fail. A sum beyond the end is taken back unless another chunk has added to it since:
// then it stays, and the pool has no more words for anybody. Who finds too few of them does not add, so 32 bits hold
// the sums of those that come at the same time above the 2^31 words that a pool has at the most.
CW_HD bool take(const JournalPool& pool, uint32_t words, uint32_t& base) {
  if (!has_words(pool, value_at(pool.used), words)) return false;
  const uint32_t used = fetch_add(pool.used, words);
  if (!has_words(pool, used, words)) {
    exchange(pool.used, used + words, used);
    return false;
  }
  base = used;
  return true;
}

// Whether a chunk's escapes fit into its room and the words that it has.
CW_HD bool fits(const ChunkHead& head, int64_t escapes, const Section& section) {
  return words_beyond(escapes, section.room, section.item) <= head.held;
}

// Space for a chunk's escapes, its own again where they fit; whether there was some.
CW_HD bool secure(ChunkHead& head, int64_t escapes, const Section& section, const JournalPool& pool) {
  const uint32_t words = words_beyond(escapes, section.room, section.item);
  if (words <= head.held) return true;
  if (!take(pool, words, head.base)) return false;
  head.held = static_cast<uint16_t>(words);
  return true;
}

// Whether a chunk's escapes can be where its head says, which a journal of other bytes may get wrong.
CW_HD bool holds(const ChunkHead& head, int64_t escapes, const Section& section, const JournalPool& pool) {
  const uint32_t words = words_beyond(escapes, section.room, section.item);
  return words <= head.held && (words == 0 || (head.base <= pool.size && head.held <= pool.size - head.base));
}

CW_HD void leave_pending(const Section& section, const JournalPool& pool) {
  fetch_add(section.pending, 1);
  fetch_add(pool.flag, 1);
}

// One tensor, or a piece of one, whose elements follow one another in the logical index, and its section.
struct JournalPiece {
  Piece piece;
  Section section;
};

}  // namespace convweights
