// The runs with the vectors L.
#pragma once

#include "journal_run.h"
#include "runs.h"
#include "update_run.h"

namespace convweights {

template <class L>
Runs make_runs(const char* name) {
  Runs runs;
  runs.name = name;
  runs.of[static_cast<int>(Dtype::Float64)] = UpdateRun<L>::template run<double>;
  runs.of[static_cast<int>(Dtype::Float32)] = UpdateRun<L>::template run<float>;
  runs.of[static_cast<int>(Dtype::Float16)] = UpdateRun<L>::template run<Half>;
  runs.of[static_cast<int>(Dtype::BFloat16)] = UpdateRun<L>::template run<BFloat16>;
  runs.journal[static_cast<int>(Dtype::Float32)] = JournalRun<L, float>::run;
  runs.journal[static_cast<int>(Dtype::Float16)] = JournalRun<L, Half>::run;
  runs.journal[static_cast<int>(Dtype::BFloat16)] = JournalRun<L, BFloat16>::run;
  return runs;
}

}  // namespace convweights
