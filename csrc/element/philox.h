// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, SC'11), counter to four words.
#pragma once

#include "scalar.h"

namespace convweights {

// What the key adds in each of the ten rounds, widened, so that a vector's lanes can take it from memory.
struct RoundKeys {
  uint64_t first[10];
  uint64_t second[10];
};

CW_HD RoundKeys round_keys(uint64_t seed) {
  RoundKeys keys;
  uint32_t first = static_cast<uint32_t>(seed);
  uint32_t second = static_cast<uint32_t>(seed >> 32);
  CW_UNROLL
  for (int round = 0; round < 10; ++round) {
    keys.first[round] = first;
    keys.second[round] = second;
    first += 0x9e3779b9u;
    second += 0xbb67ae85u;
  }
  return keys;
}

// The four words of one counter, or of as many counters as W has lanes. Each word is the low half of 64 bits, what
// stands above it is arbitrary: so a round is two multiplications and nothing has to be masked.
template <class W>
struct PhiloxState {
  W x, y, z, w;
};

constexpr uint32_t kFirstFactor = 0xd2511f53u;
constexpr uint32_t kSecondFactor = 0xcd9e8d57u;

// L is Scalar, or the vectors of csrc/element/lanes.h.
template <class L>
CW_HD PhiloxState<typename L::W> philox_round(const PhiloxState<typename L::W>& c, const RoundKeys& keys, int round) {
  const typename L::W p = L::low_product(c.x, kFirstFactor);
  const typename L::W q = L::low_product(c.z, kSecondFactor);
  return {L::high(q) ^ c.y ^ keys.first[round], q, L::high(p) ^ c.w ^ keys.second[round], p};
}

// What a call's counter says beside its position q: the purpose of the words, the tensor and the step.
struct Site {
  uint32_t purpose = 0;
  uint32_t stream = 0;
  uint32_t step = 0;

  // The second word of the counter. Bits 12 to 15 of the tag, the stream's version, are 0.
  CW_HD uint32_t upper(uint64_t q) const { return (static_cast<uint32_t>(q >> 32) & 0xffffu) | purpose << 16; }
};

constexpr uint32_t kNoise = 0;
constexpr uint32_t kStochasticRounding = 1;

}  // namespace convweights
