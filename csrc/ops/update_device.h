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

// The noise of the elements of calls q .. q + kCalls - 1, times `scale`. For q a multiple of kCalls, and that a power
// of two up to 32: one call's bits then serve all of them where a bit serves an element.
template <int kCalls, class C>
CW_HD void noise_of_calls(C (&noise)[kCalls][4], uint64_t q, Distribution distribution, C scale, const RoundKeys& keys,
                          const Site& site) {
  if (distribution == Distribution::Rademacher) {
    const uint64_t index = q * kCallElements;
    const PhiloxState<uint64_t> words = philox(index / kCallBits, keys, site);
    const unsigned at = static_cast<unsigned>(index);
    CW_UNROLL
    for (int c = 0; c < kCalls; ++c) {
      // Which word: the same for all calls of up to eight.
      const unsigned first = at + 4 * (kCalls <= 8 ? 0 : c);
      const uint64_t half = first & 64 ? (first & 32 ? words.w : words.z) : (first & 32 ? words.y : words.x);
      const uint32_t word = static_cast<uint32_t>(half) << (28 - (at + 4 * c) % 32);
      CW_UNROLL
      for (unsigned i = 0; i < 4; ++i) {
        if constexpr (sizeof(C) == 4) {
          noise[c][i] = signed_by<Scalar>(word << (3 - i), scale);
        } else {
          noise[c][i] = static_cast<int32_t>(word << (3 - i)) < 0 ? -scale : scale;
        }
      }
    }
    return;
  }
  CW_UNROLL
  for (int c = 0; c < kCalls; ++c) {
    const PhiloxState<uint64_t> words = philox(q + c, keys, site);
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
    for (int i = 0; i < 4; ++i) noise[c][i] = multiply(scale, static_cast<C>(z[i]));
  }
}

// A call's elements once their noise is known.
template <class T, class C, int kSeeds>
CW_HD void finish_call(T (&w)[4], const C (&noise)[4], uint64_t q, uint32_t stream, const DeviceRecipe<C, kSeeds>& r,
                       const NoiseSource& source) {
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

// Calls q .. q + kCalls - 1, in place; q as for noise_of_calls.
template <int kCalls, class T, class C, int kSeeds>
CW_HD void update_calls(T (&w)[kCalls][4], uint64_t q, uint32_t stream, const DeviceRecipe<C, kSeeds>& r,
                        const NoiseSource& source) {
  C noise[kCalls][4];
  const Site site = source.site(kNoise, stream);
  if (kSeeds == 1 && r.distribution != Distribution::None) {
    noise_of_calls<kCalls>(noise, q, r.distribution, r.scales[0], source.keys, site);
  } else {
    CW_UNROLL
    for (int c = 0; c < kCalls; ++c) {
      CW_UNROLL
      for (int i = 0; i < 4; ++i) noise[c][i] = kSeeds > 1 ? C(0) : C(-0.0);
    }
    for (int k = 0; kSeeds > 1 && k < r.count && r.distribution != Distribution::None; ++k) {
      C more[kCalls][4];
      noise_of_calls<kCalls>(more, q, r.distribution, r.scales[k], round_keys(r.seeds[k]), site);
      CW_UNROLL
      for (int c = 0; c < kCalls; ++c) {
        CW_UNROLL
        for (int i = 0; i < 4; ++i) noise[c][i] = add(noise[c][i], more[c][i]);
      }
    }
  }
  CW_UNROLL
  for (int c = 0; c < kCalls; ++c) finish_call(w[c], noise[c], q + c, stream, r, source);
}

}  // namespace convweights
