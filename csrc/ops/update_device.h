// What a CUDA thread does for update: the noise of a call, and the four elements it serves.
#pragma once

#include "update_recipe.h"

namespace convweights {

// The recipe as the kernel takes it. Of several seeds, `kSeeds` at the most.
template <class C, int kSeeds>
struct DeviceRecipe {
  Terms<C> terms;
  Distribution distribution;  // None where there is no noise
  bool accumulate;
  bool stochastic;
  int32_t count;
  uint32_t step;
  const int64_t* state;  // the seed and the step, where they are on the device
  C scales[kSeeds];
  uint64_t seeds[kSeeds];

  CW_HD uint64_t seed(int k) const { return state ? static_cast<uint64_t>(state[0]) : seeds[k]; }
  CW_HD Site site(uint32_t purpose, uint32_t stream) const {
    return {purpose, stream, state ? static_cast<uint32_t>(state[1]) : step};
  }
};

template <class C, int kSeeds>
DeviceRecipe<C, kSeeds> device_recipe(const Recipe& recipe, const int64_t* state) {
  DeviceRecipe<C, kSeeds> r{};
  r.terms = terms_of<C>(recipe);
  r.distribution = is_noisy<C>(recipe) ? recipe.distribution : Distribution::None;
  r.accumulate = recipe.accumulate;
  r.stochastic = recipe.stochastic;
  r.count = static_cast<int32_t>(recipe.count);
  r.step = recipe.step;
  r.state = state;
  for (int64_t k = 0; k < recipe.count; ++k) {
    r.scales[k] = static_cast<C>(recipe.scales[k]);
    r.seeds[k] = static_cast<uint64_t>(recipe.seeds[k]);
  }
  return r;
}

CW_HD PhiloxState<uint64_t> philox(uint64_t q, uint64_t seed, const Site& site) {
  const RoundKeys keys = round_keys(seed);
  PhiloxState<uint64_t> state{q, site.upper(q), site.stream, site.step};
  CW_UNROLL
  for (int round = 0; round < 10; ++round) state = philox_round<Scalar>(state, keys, round);
  return state;
}

// The noise of elements 4q .. 4q + 3.
CW_HD void noise_of_call(float (&z)[4], uint64_t q, Distribution distribution, uint64_t seed, const Site& site) {
  if (distribution == Distribution::Rademacher) {
    const uint64_t index = q * kCallElements;
    const PhiloxState<uint64_t> words = philox(index / kCallBits, seed, site);
    const unsigned which = static_cast<unsigned>(index / 32 % 4);
    const uint32_t word = static_cast<uint32_t>(which == 0   ? words.x
                                                : which == 1 ? words.y
                                                : which == 2 ? words.z
                                                             : words.w);
    CW_UNROLL
    for (unsigned i = 0; i < 4; ++i) z[i] = signed_by<Scalar>(word << (31 - index % 32 - i), 1.0f);
    return;
  }
  const PhiloxState<uint64_t> words = philox(q, seed, site);
  const uint32_t x = static_cast<uint32_t>(words.x), y = static_cast<uint32_t>(words.y);
  const uint32_t u = static_cast<uint32_t>(words.z), v = static_cast<uint32_t>(words.w);
  if (distribution == Distribution::Normal) {
    const NoisePair<float> low = normal_pair<Scalar>(x, y), high = normal_pair<Scalar>(u, v);
    z[0] = low.first, z[1] = low.second, z[2] = high.first, z[3] = high.second;
  } else {
    z[0] = uniform<Scalar>(x), z[1] = uniform<Scalar>(y), z[2] = uniform<Scalar>(u), z[3] = uniform<Scalar>(v);
  }
}

// Elements 4q .. 4q + 3, in place.
template <class T, class C, int kSeeds>
CW_HD void update_call(T (&w)[4], uint64_t q, uint32_t stream, const DeviceRecipe<C, kSeeds>& r) {
  C noise[4] = {C(-0.0), C(-0.0), C(-0.0), C(-0.0)};
  const Site site = r.site(kNoise, stream);
  if (r.accumulate) {
    for (C& sum : noise) sum = C(0);
  }
  if (r.distribution != Distribution::None) {
    for (int k = 0; k < (kSeeds == 1 ? 1 : r.count); ++k) {
      float z[4];
      noise_of_call(z, q, r.distribution, r.seed(k), site);
      CW_UNROLL
      for (int i = 0; i < 4; ++i) noise[i] = add(noise[i], multiply(r.scales[k], static_cast<C>(z[i])));
    }
  }
  C made[4];
  CW_UNROLL
  for (int i = 0; i < 4; ++i) {
    const C old = r.terms.reads ? widen<C>(w[i]) : C(0);
    made[i] = !r.terms.reads  ? add(r.terms.shift, noise[i])
              : r.terms.plain ? add(old, noise[i])
                              : moved(old, r.terms.decay, r.terms.shift, noise[i]);
  }
  if constexpr (sizeof(T) == 2) {
    if (r.stochastic) {
      const PhiloxState<uint64_t> words = philox(q, r.seed(0), r.site(kStochasticRounding, stream));
      const uint32_t random[4] = {static_cast<uint32_t>(words.x), static_cast<uint32_t>(words.y),
                                  static_cast<uint32_t>(words.z), static_cast<uint32_t>(words.w)};
      CW_UNROLL
      for (int i = 0; i < 4; ++i) w[i] = NarrowRandomly<T>::from(made[i], random[i]);
      return;
    }
  }
  CW_UNROLL
  for (int i = 0; i < 4; ++i) w[i] = Narrow<T>::from(made[i]);
}

}  // namespace convweights
