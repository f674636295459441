// The operations of csrc/element on one number, each rounded once. On the host csrc/element/lanes.h has the same on
// vectors; functions of both take either as L.
#pragma once

#include <cmath>

#include "casts.h"

namespace convweights {

struct Scalar {
  using W = uint64_t;  // a 32-bit word and arbitrary bits above it
  using U = uint32_t;
  using I = int32_t;
  using F = float;

  CW_HD static W low_product(W a, uint32_t b) { return static_cast<uint64_t>(static_cast<uint32_t>(a)) * b; }
  CW_HD static W high(W product) { return product >> 32; }
  CW_HD static F splat(float value) { return value; }
  CW_HD static U bits(F value) { return bit_cast<U>(value); }
  CW_HD static F floats(U value) { return bit_cast<F>(value); }
  CW_HD static I integers(U value) { return static_cast<I>(value); }

  CW_HD static F to_float(I value) {
#if defined(__CUDA_ARCH__)
    return __int2float_rn(value);
#else
    return static_cast<float>(value);
#endif
  }

  CW_HD static F fused(F a, F b, F c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return std::fma(a, b, c);
#endif
  }

  CW_HD static F square_root(F value) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(value);
#else
    return std::sqrt(value);
#endif
  }
};

}  // namespace convweights
