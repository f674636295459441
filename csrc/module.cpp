// convweights._C: importing it registers the CPU kernels; it also says what was built.
#include <pybind11/pybind11.h>

#include <string>

#include "host_device.h"

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "";  // clang's version names it
#else
constexpr const char* kCompiler = "g++ ";
#endif

std::string simd_level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2)";
#endif
  return "baseline";
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of convweights";
  m.def("simd_level", &simd_level, "The instruction set whose clones of the loops this processor runs.");
  m.def("compiler", [] { return std::string(kCompiler) + __VERSION__; });
  // In the order of MapKind and Rescale of element/maps.h.
  m.def("map_kinds", [] {
    return pybind11::make_tuple("identity", "tile", "interleave", "blocks", "strided", "offset", "select", "resize",
                                "mean");
  });
  m.def("rescales", [] { return pybind11::make_tuple("none", "uniform", "exact"); });
}
