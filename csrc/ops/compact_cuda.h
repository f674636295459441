// Truncation inside a tensor's own storage on CUDA. Compiled by nvcc, and by the tests for the host.
#pragma once

#include <algorithm>

#include "../element/divisor.h"
#include "../for_each.h"
#include "compact.h"

namespace convweights {

// A wave of a compaction: rows begin .. , cut into units of T.
template <class T>
struct MoveRows {
  static constexpr int kAtOnce = 4;
  struct Taken {
    T value;
    T* place;
  };

  Compaction c;
  int64_t begin;
  Divisor units;  // of a row

  CW_HD Taken take(uint32_t i) const {
    const int64_t row = begin + units.quotient(i);
    const uint32_t unit = units.remainder(i);
    return {reinterpret_cast<const T*>(c.source(row))[unit], reinterpret_cast<T*>(c.target(row)) + unit};
  }

  CW_HD void put(const Taken& taken) const { *taken.place = taken.value; }
};

// All rows front to back by one block, a stage at a time: for many small waves, for rows that overlap themselves, and
// for rows of more elements than a launch has.
template <class T>
struct WalkRows {
  Compaction c;
  int64_t begin;
  int64_t stages;  // of a row

  CW_HD void operator()(int64_t phase, char* stage, unsigned thread, unsigned threads) const {
    const int64_t step = phase / 2;
    const int64_t row = begin + step / stages;
    const int64_t offset = step % stages * kStageBytes;
    const int64_t rest = c.to - offset;
    const int64_t units = (rest < kStageBytes ? rest : kStageBytes) / static_cast<int64_t>(sizeof(T));
    T* const staged = reinterpret_cast<T*>(stage);
    const T* const source = reinterpret_cast<const T*>(c.source(row) + offset);
    T* const target = reinterpret_cast<T*>(c.target(row) + offset);
    for (int64_t i = thread; i < units; i += threads) {
      if (phase % 2 == 0) {
        staged[i] = source[i];
      } else {
        target[i] = staged[i];
      }
    }
  }
};

constexpr int kMostWaves = 64;

inline bool walks(const Compaction& c, int64_t units, int64_t most_elements) {
  if (units > most_elements) return true;
  int waves = 0;
  for (int64_t row = c.first(); row < c.rows; row = c.wave_end(row)) {
    if (c.overlaps_itself(row) || ++waves > kMostWaves) return true;
  }
  return false;
}

template <class T, class Stream>
void launch_compaction(const Compaction& c, int64_t most_elements, Stream stream) {
  const int64_t units = c.to / static_cast<int64_t>(sizeof(T));
  if (walks(c, units, most_elements)) {
    const int64_t stages = ceil_div(c.to, kStageBytes);
    for_each_phase(WalkRows<T>{c, c.first(), stages}, (c.rows - c.first()) * stages * 2, stream);
    return;
  }
  const int64_t rows = most_elements / units;
  for (int64_t row = c.first(); row < c.rows;) {
    const int64_t end = std::min(c.wave_end(row), row + rows);
    for_each_element(MoveRows<T>{c, row, Divisor(units)}, (end - row) * units, stream);
    row = end;
  }
}

// Calls body(Type<T>{}) with the widest integer that divides every place and length of the compaction.
template <class Body>
void with_unit_of(const Compaction& c, const Body& body) {
  const int64_t places = static_cast<int64_t>(reinterpret_cast<uintptr_t>(c.base)) | c.from | c.to | c.start;
  int64_t unit = 1;
  while (unit < 16 && places % (2 * unit) == 0) unit *= 2;
  with_raw_type(unit, body);
}

}  // namespace convweights
