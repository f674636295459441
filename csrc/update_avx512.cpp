// The runs of update for AVX-512. Everything below the pragma is compiled for it. Headers of others stand above; what
// stands below is inlined or depends on a type of this file, so that no other file can come to run it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// GCC 12 takes the undefined operand of its own unmasked intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("arch=x86-64-v4")
#include "ops/make_runs.h"

namespace convweights {
namespace {

struct Avx512 : Lanes<Avx512, 64> {
  using Lanes<Avx512, 64>::load;
  using Lanes<Avx512, 64>::store;

  CW_INLINE static W low_product(W a, uint32_t b) {
    return bit_cast<W>(_mm512_mul_epu32(bit_cast<__m512i>(a), _mm512_set1_epi64(b)));
  }
  // A shuffle and not a shift: shifts share the multiplications' only port.
  CW_INLINE static W high(W product) {
    return bit_cast<W>(_mm512_shuffle_epi32(bit_cast<__m512i>(product), _MM_PERM_DDBB));
  }
  // The halves change places under a mask, before they are combined instead of after.
  CW_INLINE static Pair<U> last_round(const PhiloxState<W>& state, const RoundKeys& keys) {
    const W p = low_product(state.x, kFirstFactor);
    const W q = low_product(state.z, kSecondFactor);
    const W products =
        bit_cast<W>(_mm512_mask_shuffle_epi32(bit_cast<__m512i>(p), kLower, bit_cast<__m512i>(q), _MM_PERM_DDBB));
    const uint64_t key = keys.first[9] | keys.second[9] << 32;
    return {bit_cast<U>(products ^ joined(state.y, state.w) ^ key), bit_cast<U>(joined(q, p))};
  }
  CW_INLINE static F fused(F a, F b, F c) {
    return bit_cast<F>(_mm512_fmadd_ps(bit_cast<__m512>(a), bit_cast<__m512>(b), bit_cast<__m512>(c)));
  }
  CW_INLINE static F square_root(F value) { return bit_cast<F>(_mm512_sqrt_ps(bit_cast<__m512>(value))); }
  CW_INLINE static F load(const Half* place) { return bit_cast<F>(_mm512_cvtph_ps(get<__m256i>(place))); }
  CW_INLINE static void store(Half* place, F value) {
    put(place, _mm512_cvtps_ph(bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
  }
  CW_INLINE static F from_half(I bits) {
    return bit_cast<F>(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(bit_cast<__m512i>(bits))));
  }
  CW_INLINE static I as_half(F value) {
    return bit_cast<I>(_mm512_cvtepi16_epi32(_mm512_cvtps_ph(bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT)));
  }

 private:
  static constexpr __mmask16 kLower = 0x5555, kUpper = 0xaaaa;  // of each 64 bits

  CW_INLINE static W joined(W low, W high) {
    return bit_cast<W>(
        _mm512_mask_shuffle_epi32(bit_cast<__m512i>(low), kUpper, bit_cast<__m512i>(high), _MM_PERM_CCAA));
  }
};

}  // namespace

Runs runs_avx512() { return make_runs<Avx512>("x86-64-v4"); }

}  // namespace convweights
#else
#include "ops/runs.h"

namespace convweights {
Runs runs_avx512() { return {}; }
}  // namespace convweights
#endif
