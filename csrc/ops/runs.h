// The loops of update and of its journal on the CPU, by dtype, with the vectors of one instruction set.
#pragma once

#include "journal.h"
#include "update_recipe.h"

namespace convweights {

// Elements `start` .. of the logical index of the tensor `stream`, `count` of them, which are neighbours in memory.
using Run = void (*)(void* weights, uint64_t start, int64_t count, uint32_t stream, const Recipe& recipe);

// The same elements as chunk `chunk` of a section.
using ChunkRun = void (*)(void* weights, uint64_t start, int64_t count, uint32_t stream, const Recipe& recipe,
                          JournalAction action, const Section& section, int64_t chunk, const JournalPool& pool);

// By Dtype.
struct Runs {
  const char* name = nullptr;  // none where the library was built without it
  Run of[5] = {};
  ChunkRun journal[5] = {};  // none of float64
};

// csrc/update_*.cpp, each compiled for its instruction set.
Runs runs_avx512();
Runs runs_avx2();
Runs runs_portable();

}  // namespace convweights
