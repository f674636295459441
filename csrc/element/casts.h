// float16 and bfloat16 as bits, and conversions that give the bits of Tensor.to: to nearest even, subnormals kept.
// The forms for the host have no branches, so that loops over them become SIMD.
#pragma once

#include "../host_device.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace convweights {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
CW_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// `condition ? yes : no` in a form that the compiler cannot turn into a branch, which would keep loops from SIMD.
CW_HD uint32_t select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

CW_HD float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(bit_cast<__half>(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t body = value.bits & 0x7fff;
  // Exponent and mantissa moved to float's place, the bias corrected. A subnormal is counted in units of 2^-24, the
  // last place of a float in [0.5, 1).
  const uint32_t normal = (body << 13) + (112u << 23);
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(body + 0x3f000000u) - 0.5f);
  const uint32_t special = (body << 13) | 0x7f800000u;
  return bit_cast<float>(sign | select(body < 0x0400u, subnormal, select(body >= 0x7c00u, special, normal)));
#endif
}

CW_HD float to_float(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

CW_HD Half to_half(float value) {
#if defined(__CUDA_ARCH__)
  return {bit_cast<uint16_t>(__float2half_rn(value))};
#else
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t body = bits & 0x7fffffffu;
  const uint32_t rebased = body - (112u << 23);
  const uint32_t normal = (rebased + 0x0fffu + ((rebased >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(body) + 0.5f) - 0x3f000000u;
  const uint32_t special = select(body > 0x7f800000u, 0x7e00u, 0x7c00u);
  const uint32_t half = select(body < 0x38800000u, subnormal, select(body >= 0x477ff000u, special, normal));  // 65520
  return {static_cast<uint16_t>(half | sign)};
#endif
}

CW_HD BFloat16 to_bfloat16(float value) {
#if defined(__CUDA_ARCH__)
  return {bit_cast<uint16_t>(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x0040u;
  return {static_cast<uint16_t>(select((bits & 0x7fffffffu) > 0x7f800000u, nan, rounded))};
#endif
}

// Into the dtype of the sum, C, which is float or double.
template <class C>
CW_HD C widen(double value) {
  return static_cast<C>(value);
}
template <class C>
CW_HD C widen(float value) {
  return static_cast<C>(value);
}
template <class C>
CW_HD C widen(Half value) {
  return static_cast<C>(to_float(value));
}
template <class C>
CW_HD C widen(BFloat16 value) {
  return static_cast<C>(to_float(value));
}

// And out of it. float64 reaches the 16-bit types through float32, as in Tensor.to.
template <class D>
struct Narrow {
  template <class C>
  CW_HD static D from(C value) {
    return static_cast<D>(value);
  }
};
template <>
struct Narrow<Half> {
  template <class C>
  CW_HD static Half from(C value) {
    return to_half(static_cast<float>(value));
  }
};
template <>
struct Narrow<BFloat16> {
  template <class C>
  CW_HD static BFloat16 from(C value) {
    return to_bfloat16(static_cast<float>(value));
  }
};

// One rounded operation each: nvcc may not fuse them, and g++ is told so by -ffp-contract=off.
CW_HD float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
CW_HD double multiply(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
CW_HD float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
CW_HD double add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

// Vectors of the host.
template <class T>
CW_HD T multiply(const T& a, const T& b) {
  return a * b;
}
template <class T>
CW_HD T add(const T& a, const T& b) {
  return a + b;
}

}  // namespace convweights
