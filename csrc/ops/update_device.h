// What a CUDA thread does for update: the noise of a call, and the four elements it serves.
#pragma once

#include "update_recipe.h"

namespace convweights {

// What noise is drawn from: a seed, as the keys that follow from it, and a step.
struct NoiseSource {
  RoundKeys keys;
  uint32_t step;

  CW_HD Site site(uint32_t purpose, uint32_t stream) const { return {purpose, stream, step}; }
};

// The recipe as the kernel takes it. Of several seeds, `kSeeds` at the most.
template <class C, int kSeeds>
struct DeviceRecipe {
  Terms<C> terms;
  Distribution distribution;  // None where there is no noise
  bool stochastic;
  int32_t count;
  C scales[kSeeds];
  uint64_t seeds[kSeeds];
  NoiseSource source;    // of the first seed
  const int64_t* state;  // that seed and the step, where they are on the device

  CW_HD NoiseSource source_on_device() const {
    return {round_keys(static_cast<uint64_t>(state[0])), static_cast<uint32_t>(state[1])};
  }
};

template <class C, int kSeeds>
DeviceRecipe<C, kSeeds> device_recipe(const Recipe& recipe, const int64_t* state) {
  DeviceRecipe<C, kSeeds> r{};
  r.terms = terms_of<C>(recipe);
  r.distribution = is_noisy<C>(recipe) ? recipe.distribution : Distribution::None;
  r.stochastic = recipe.stochastic;
  r.count = static_cast<int32_t>(recipe.count);
  for (int64_t k = 0; k < recipe.count; ++k) {
    r.scales[k] = static_cast<C>(recipe.scales[k]);
    r.seeds[k] = static_cast<uint64_t>(recipe.seeds[k]);
  }
  r.source = {round_keys(r.seeds[0]), recipe.step};
  r.state = state;
  return r;
}

CW_HD PhiloxState<uint64_t> philox(uint64_t q, const RoundKeys& keys, const Site& site) {
  PhiloxState<uint64_t> state{q, site.upper(q), site.stream, site.step};
  CW_UNROLL
  for (int round = 0; round < 10; ++round) state = philox_round<Scalar>(state, keys, round);
  return state;
}

// The noise of elements 4q .. 4q + 3, times `scale`.
template <class C>
CW_HD void noise_of_call(C (&noise)[4], uint64_t q, Distribution distribution, C scale, const RoundKeys& keys,
                         const Site& site) {
  if (distribution == Distribution::Rademacher) {
    const uint64_t index = q * kCallElements;
    const PhiloxState<uint64_t> words = philox(index / kCallBits, keys, site);
    const unsigned at = static_cast<unsigned>(index);
    const uint64_t half = at & 64 ? (at & 32 ? words.w : words.z) : (at & 32 ? words.y : words.x);
    const uint32_t word = static_cast<uint32_t>(half) << (28 - at % 32);
    CW_UNROLL
    for (unsigned i = 0; i < 4; ++i) {
      if constexpr (sizeof(C) == 4) {
        noise[i] = signed_by<Scalar>(word << (3 - i), scale);
      } else {
        noise[i] = static_cast<int32_t>(word << (3 - i)) < 0 ? -scale : scale;
      }
    }
    return;
  }
  const PhiloxState<uint64_t> words = philox(q, keys, site);
  const uint32_t x = static_cast<uint32_t>(words.x), y = static_cast<uint32_t>(words.y);
  const uint32_t u = static_cast<uint32_t>(words.z), v = static_cast<uint32_t>(words.w);
  float z[4];
  if (distribution == Distribution::Normal) {
    const NoisePair<float> low = normal_pair<Scalar>(x, y), high = normal_pair<Scalar>(u, v);
    z[0] = low.first, z[1] = low.second, z[2] = high.first, z[3] = high.second;
  } else {
    z[0] = uniform<Scalar>(x), z[1] = uniform<Scalar>(y), z[2] = uniform<Scalar>(u), z[3] = uniform<Scalar>(v);
  }
  CW_UNROLL
  for (int i = 0; i < 4; ++i) noise[i] = multiply(scale, static_cast<C>(z[i]));
}

// Elements 4q .. 4q + 3, in place.
template <class T, class C, int kSeeds>
CW_HD void update_call(T (&w)[4], uint64_t q, uint32_t stream, const DeviceRecipe<C, kSeeds>& r,
                       const NoiseSource& source) {
  C noise[4] = {C(-0.0), C(-0.0), C(-0.0), C(-0.0)};
  const Site site = source.site(kNoise, stream);
  if constexpr (kSeeds > 1) {
    for (C& sum : noise) sum = C(0);
    if (r.distribution != Distribution::None) {
      for (int k = 0; k < r.count; ++k) {
        C more[4];
        noise_of_call(more, q, r.distribution, r.scales[k], round_keys(r.seeds[k]), site);
        CW_UNROLL
        for (int i = 0; i < 4; ++i) noise[i] = add(noise[i], more[i]);
      }
    }
  } else if (r.distribution != Distribution::None) {
    noise_of_call(noise, q, r.distribution, r.scales[0], source.keys, site);
  }
  C made[4];
  if (!r.terms.reads) {
    CW_UNROLL
    for (int i = 0; i < 4; ++i) made[i] = add(r.terms.shift, noise[i]);
  } else if (r.terms.plain) {
    CW_UNROLL
    for (int i = 0; i < 4; ++i) made[i] = add(widen<C>(w[i]), noise[i]);
  } else {
    CW_UNROLL
    for (int i = 0; i < 4; ++i) made[i] = moved(widen<C>(w[i]), r.terms.decay, r.terms.shift, noise[i]);
  }
  if constexpr (sizeof(T) == 2) {
    if (r.stochastic) {
      const PhiloxState<uint64_t> words = philox(q, source.keys, source.site(kStochasticRounding, stream));
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
