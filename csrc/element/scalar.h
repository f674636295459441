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

  CW_HD static W low_product(W a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    // Said in C++, nvcc 13 adds the zero that is the product of the upper halves.
    W product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<uint32_t>(a)), "r"(b));
    return product;
#else
    return static_cast<uint64_t>(static_cast<uint32_t>(a)) * b;
#endif
  }
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

  // Of a positive number that is neither large nor small: 2^-100 to 2^100 will do.
  CW_HD static F square_root(F value) {
#if defined(__CUDA_ARCH__)
    // What __fsqrt_rn does once it has found that the number is such a one.
    F inverse;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(value));
    const F root = __fmul_rn(value, inverse);
    return __fmaf_rn(__fmaf_rn(-root, root, value), __fmul_rn(0.5f, inverse), root);
#else
    return std::sqrt(value);
#endif
  }
};

}  // namespace convweights
