// What lets one source be compiled by g++ and by nvcc. Nothing here knows torch.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define CW_HD __host__ __device__ __forceinline__
#define CW_UNROLL _Pragma("unroll")
#define CW_ROLLED _Pragma("unroll 1")
#else
// Always inlined: an instruction set's clone of a function reaches only what is inlined into it.
#define CW_HD inline __attribute__((always_inline))
#define CW_UNROLL
#define CW_ROLLED
#endif

// Clones of a function for AVX-512, AVX2 and the baseline, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && !defined(CW_NO_CLONES)
#define CW_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CW_CLONES
#endif

// The same for functions and lambdas of the host alone.
#define CW_INLINE inline __attribute__((always_inline))
#define CW_INLINE_LAMBDA __attribute__((always_inline))

namespace convweights {

constexpr int kMaxDims = 8;

CW_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// In 32 bits where they do, which on CUDA takes a fraction of the time.
CW_HD int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

}  // namespace convweights
