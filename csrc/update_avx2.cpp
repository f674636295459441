// The runs of update for AVX2. Everything below the pragma is compiled for it. Headers of others stand above; what
// stands below is inlined or depends on a type of this file, so that no other file can come to run it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#pragma GCC target("arch=x86-64-v3")
#include "ops/make_runs.h"

namespace convweights {
namespace {

struct Avx2 : Lanes<Avx2, 32> {
  using Lanes<Avx2, 32>::load;
  using Lanes<Avx2, 32>::store;

  CW_INLINE static W low_product(W a, uint32_t b) {
    return bit_cast<W>(_mm256_mul_epu32(bit_cast<__m256i>(a), _mm256_set1_epi64x(b)));
  }
  CW_INLINE static W high(W product) { return bit_cast<W>(_mm256_shuffle_epi32(bit_cast<__m256i>(product), 0xf5)); }
  CW_INLINE static F fused(F a, F b, F c) {
    return bit_cast<F>(_mm256_fmadd_ps(bit_cast<__m256>(a), bit_cast<__m256>(b), bit_cast<__m256>(c)));
  }
  CW_INLINE static F square_root(F value) { return bit_cast<F>(_mm256_sqrt_ps(bit_cast<__m256>(value))); }
  CW_INLINE static F load(const Half* place) { return bit_cast<F>(_mm256_cvtph_ps(get<__m128i>(place))); }
  CW_INLINE static void store(Half* place, F value) {
    put(place, _mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
  }
  CW_INLINE static F from_half(I bits) {
    return bit_cast<F>(_mm256_cvtph_ps(bit_cast<__m128i>(__builtin_convertvector(bits, Short))));
  }
  CW_INLINE static I as_half(F value) {
    return bit_cast<I>(_mm256_cvtepi16_epi32(_mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT)));
  }
};

}  // namespace

Runs runs_avx2() { return make_runs<Avx2>("x86-64-v3"); }

}  // namespace convweights
#else
#include "ops/runs.h"

namespace convweights {
Runs runs_avx2() { return {}; }
}  // namespace convweights
#endif
