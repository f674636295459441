#include "simd.h"

#include <atomic>

namespace convweights {
namespace {

std::vector<Runs> find_levels() {
  std::vector<Runs> found;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) found.push_back(runs_avx512());
  if (__builtin_cpu_supports("x86-64-v3")) found.push_back(runs_avx2());
#endif
  found.push_back(runs_portable());
  return found;
}

const std::vector<Runs>& levels() {
  static const std::vector<Runs> found = find_levels();
  return found;
}

std::atomic<const Runs*> chosen = nullptr;

}  // namespace

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const Runs& level : levels()) names.push_back(level.name);
  return names;
}

const Runs& update_runs() {
  const Runs* const level = chosen.load(std::memory_order_relaxed);
  return level ? *level : levels().front();
}

bool choose_simd_level(const std::string& name) {
  for (const Runs& level : levels()) {
    if (name != level.name) continue;
    chosen.store(&level, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace convweights
