// Which instruction set's vectors update runs on: the widest that the processor has, unless another is chosen.
#pragma once

#include <string>
#include <vector>

#include "ops/runs.h"

namespace convweights {

// The levels that this processor can run, the widest first.
std::vector<std::string> simd_levels();

const Runs& update_runs();

// For tests and measurements. Whether there is such a level.
bool choose_simd_level(const std::string& name);

}  // namespace convweights
