// convweights._C: importing it registers the CPU kernels; it also says what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "simd.h"

namespace convweights {
void bind_stream(pybind11::module_& m);
}

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "";  // clang's version names it
#else
constexpr const char* kCompiler = "g++ ";
#endif

std::string simd_level() {
  const std::string level = convweights::simd_levels().front();
  return level == "x86-64-v4" ? level + " (AVX-512)" : level == "x86-64-v3" ? level + " (AVX2)" : "baseline";
}

void choose_simd_level(const std::string& name) {
  if (!convweights::choose_simd_level(name)) {
    throw pybind11::value_error("choose_simd_level: name must be one of simd_levels(), got '" + name + "'");
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of convweights";
  m.def("simd_level", &simd_level, "The instruction set whose clones of the loops this processor runs.");
  m.def("simd_levels", &convweights::simd_levels, "The levels that this processor can run, the widest first.");
  m.def("choose_simd_level", &choose_simd_level, "Let update run at a level; for tests and measurements.");
  m.def("compiler", [] { return std::string(kCompiler) + __VERSION__; });
  // In the order of MapKind and Rescale of element/maps.h.
  m.def("map_kinds", [] {
    return pybind11::make_tuple("identity", "tile", "interleave", "blocks", "strided", "offset", "select", "resize",
                                "mean");
  });
  // In the order of Distribution of element/noise.h.
  m.def("distributions", [] { return pybind11::make_tuple("none", "normal", "uniform", "rademacher"); });
  m.def("rescales", [] { return pybind11::make_tuple("none", "uniform", "exact"); });
  convweights::bind_stream(m);
}
