// Runs of 16-bit floats to and from float32 by the processor's own instructions: the bits of casts.h, but several times
// the speed of what a compiler makes of its integers. x86 only; elsewhere narrow_runs() is false.
#pragma once

#include "casts.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
#include <immintrin.h>
#define CW_AVX2 __attribute__((target("avx2,f16c")))
#endif

namespace convweights {

#if defined(CW_AVX2)

inline bool narrow_runs() {
  static const bool supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  return supported;
}

CW_AVX2 inline __m256 load_8(const Half* src) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
}
CW_AVX2 inline __m256 load_8(const BFloat16* src) {
  const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
CW_AVX2 inline __m256 load_8(const float* src) { return _mm256_loadu_ps(src); }

CW_AVX2 inline void store_16(Half* dst, __m256 low, __m256 high) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 8), _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
}
// To nearest even in integers, which keep subnormals; a NaN is made quiet.
CW_AVX2 inline __m256i rounded_8(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), _mm256_or_si256(upper, _mm256_set1_epi32(0x40)), nan);
}
CW_AVX2 inline void store_16(BFloat16* dst, __m256 low, __m256 high) {
  const __m256i mixed = _mm256_packus_epi32(rounded_8(low), rounded_8(high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), _mm256_permute4x64_epi64(mixed, 0xd8));
}
CW_AVX2 inline void store_16(float* dst, __m256 low, __m256 high) {
  _mm256_storeu_ps(dst, low);
  _mm256_storeu_ps(dst + 8, high);
}

// How far ahead of the loop its source is asked for; an address past the end is no fault. Measured against the same
// loop without, four times in turn, large casts to bfloat16, 2 threads of an Emerald Rapids VM: 1.06 to 1.21 times the
// speed of copy_ where it was 0.93 to 0.95.
constexpr int64_t kPrefetchBytes = 2048;

// dst[i] = factor * src[i]. A factor of 1 is not multiplied by: that would flush subnormals where the user asked to.
template <class D, class S>
CW_AVX2 void convert_run(D* dst, const S* src, int64_t size, float factor) {
  const bool scaled = factor != 1.0f;
  const __m256 factors = _mm256_set1_ps(factor);
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(src + i) + kPrefetchBytes, _MM_HINT_T0);
    __m256 low = load_8(src + i);
    __m256 high = load_8(src + i + 8);
    if (scaled) {
      low = _mm256_mul_ps(low, factors);
      high = _mm256_mul_ps(high, factors);
    }
    store_16(dst + i, low, high);
  }
  for (; i < size; ++i) {
    const float value = widen<float>(src[i]);
    dst[i] = Narrow<D>::from(scaled ? factor * value : value);
  }
}

#else

inline bool narrow_runs() { return false; }
template <class D, class S>
void convert_run(D*, const S*, int64_t, float) {}

#endif

}  // namespace convweights
