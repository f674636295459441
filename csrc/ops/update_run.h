// update on a run of neighbouring elements, with the vectors L. A tile at a time: first the words of its calls, then
// noise and weights together.
#pragma once

#include <algorithm>

#include "../element/lanes.h"
#include "update_recipe.h"

namespace convweights {

// The elements of a tile start at a multiple of its size in the logical index, so that the upper half of a call's
// position is the same for all of them.
constexpr int64_t kTile = 1024;

// How far ahead of the loop its weights are asked for: far enough to be there in time, and no multiple of a page, or
// they would wait for the stores to the same place of the page before.
constexpr int64_t kAheadBytes = 5120;

template <class L>
struct UpdateRun {
  using F = typename L::F;
  using U = typename L::U;
  using W = typename L::W;

  static constexpr int kStep = L::kFloats;
  static constexpr int kGroup = 2 * kStep;  // elements, or words, of a vector of calls
  static constexpr int kInFlight = 4;       // groups, so that each one's chain of operations hides in the others'
  static_assert(kTile % (32 * kGroup) == 0 && kTile % (kInFlight * kGroup) == 0);

  // The stretch begin .. end - 1 of the tile that starts at the logical index `tile`.
  struct Part {
    uint64_t tile;
    int64_t begin, end;
  };

  // With room for the groups in flight behind the last one that is wanted.
  using Words = uint32_t[kTile + kInFlight * kGroup];

  // The words of calls first .. last - 1 behind call q, and of some more up to a whole number of groups: a vector of x
  // and z in turn and one of y and w for each group.
  template <int kGroups>
  CW_INLINE static void make_words(uint32_t* out, uint64_t q, int64_t first, int64_t last, uint64_t seed,
                                   const Site& site, Order order) {
    const RoundKeys keys = round_keys(seed);
    const W upper = W{} + site.upper(q), stream = W{} + site.stream, step = W{} + site.step;
    W counters = L::counters(q + static_cast<uint64_t>(first), order);
    for (int64_t call = first; call < last; call += kGroups * L::kWords) {
      PhiloxState<W> calls[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        calls[g] = {counters, upper, stream, step};
        counters += static_cast<uint64_t>(L::kWords);
      }
#pragma GCC unroll 9
      for (int round = 0; round < 9; ++round) {
        for (int g = 0; g < kGroups; ++g) calls[g] = philox_round<L>(calls[g], keys, round);
      }
      for (int g = 0; g < kGroups; ++g) {
        uint32_t* const place = out + (call + g * L::kWords) * kCallElements;
        const Pair<U> made = L::last_round(calls[g], keys);
        L::put(place, made.first);
        L::put(place + kStep, made.second);
      }
    }
  }

  CW_INLINE static void make_words(uint32_t* out, const Part& part, uint64_t seed, const Site& site, Order order) {
    make_words<kInFlight>(out, part.tile / kCallElements, part.begin / kGroup * L::kWords,
                          ceil_div(part.end, kCallElements), seed, site, order);
  }

  CW_INLINE static void put_in_order(uint32_t* words, int64_t begin, int64_t end) {
    for (int64_t i = begin / kGroup * kGroup; i < end; i += kGroup) {
      const Pair<U> pair =
          L::ordered(L::template get<U>(words + i), L::template get<U>(words + i + kStep), Order::Halves);
      L::put(words + i, pair.first);
      L::put(words + i + kStep, pair.second);
    }
  }

  // visit(i, noise) with the noise, times `scale`, of elements i .. i + kGroup - 1 of the tile, a pair in the order
  // that is asked for, for every group that the part touches.
  template <Order kOrder, class Visit>
  CW_INLINE static void for_noise(const Part& part, Distribution distribution, float scale, uint64_t seed,
                                  const Site& site, const Visit& visit) {
    alignas(64) Words words;
    const int64_t first = part.begin / kGroup * kGroup;
    const F factor = L::splat(scale);
    if (distribution == Distribution::Rademacher) {
      make_words<1>(words, part.tile / kCallBits, part.begin / (32 * kGroup) * L::kWords, ceil_div(part.end, kCallBits),
                    seed, site, Order::Halves);
      put_in_order(words, part.begin / 32, ceil_div(part.end, 32));
      const Pair<U> shifts = L::bit_shifts(kOrder);
      for (int64_t i = first; i < part.end; i += kGroup) {
        const U word = U{} + (words[i / 32] >> (i % 32));
        visit(i, Pair<F>{signed_by<L>(word << shifts.first, factor), signed_by<L>(word << shifts.second, factor)});
      }
      return;
    }
    make_words(words, part, seed, site, kOrder);
    const auto visit_pair = [&](int64_t i, const NoisePair<F>& z) CW_INLINE_LAMBDA {
      visit(i, L::ordered(multiply(factor, z.first), multiply(factor, z.second), kOrder));
    };
    if (distribution == Distribution::Normal) {
      // Twice, so that more of it overlaps: 1.08 times the speed on AVX-512.
#pragma GCC unroll 2
      for (int64_t i = first; i < part.end; i += kGroup) {
        visit_pair(i, normal_pair<L>(L::template get<U>(words + i), L::template get<U>(words + i + kStep)));
      }
    } else {
      for (int64_t i = first; i < part.end; i += kGroup) {
        visit_pair(i, {uniform<L>(L::template get<U>(words + i)), uniform<L>(L::template get<U>(words + i + kStep))});
      }
    }
  }

  // How a weight moves: without being read, by its noise alone, or by every term.
  enum class Move { Write, Add, All };

  template <Move kMove, class V, class C>
  CW_INLINE static V moved_by(const V& w, const V& noise, const C& decay, const C& shift) {
    if constexpr (kMove == Move::Write) return add(shift, noise);
    if constexpr (kMove == Move::Add) return add(w, noise);
    return moved(w, decay, shift, noise);
  }

  // body(constant) with the recipe's Move as a constant.
  template <class C, class Body>
  CW_INLINE static void with_move(const Terms<C>& terms, const Body& body) {
    if (!terms.reads) {
      body(std::integral_constant<Move, Move::Write>{});
    } else if (terms.plain) {
      body(std::integral_constant<Move, Move::Add>{});
    } else {
      body(std::integral_constant<Move, Move::All>{});
    }
  }

  // Into the second cache, for the loop that will come there.
  template <class T>
  CW_INLINE static void fetch_ahead(const T* w, int64_t count) {
    for (int64_t line = 0; line < count * static_cast<int64_t>(sizeof(T)); line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(w) + kAheadBytes + line, 0, 2);
    }
  }

  // A whole tile of one seed's noise, which never reaches memory.
  template <class T>
  CW_INLINE static void move_tile(T* w, uint64_t tile, const Terms<float>& terms, const Recipe& recipe,
                                  const Site& site) {
    const F decay = L::splat(terms.decay), shift = terms.shift - F{};
    with_move(terms, [&](auto move) CW_INLINE_LAMBDA {
      constexpr Move kMove = decltype(move)::value;
      const auto visit = [&](int64_t i, const Pair<F>& noise) CW_INLINE_LAMBDA {
        fetch_ahead(w + i, kGroup);
        Pair<F> old{};
        if constexpr (kMove != Move::Write) old = L::load_pair(w + i);
        L::store_pair(w + i, Pair<F>{moved_by<kMove>(old.first, noise.first, decay, shift),
                                     moved_by<kMove>(old.second, noise.second, decay, shift)});
      };
      for_noise<L::template kOrder<T>>(Part{tile, 0, kTile}, recipe.distribution, static_cast<float>(recipe.scales[0]),
                                       static_cast<uint64_t>(recipe.seeds[0]), site, visit);
    });
  }

  // noise[begin] .. noise[end - 1]: of all seeds, weighed and summed in their order. `w` is where the part's weights
  // are.
  template <class C, class T>
  CW_INLINE static void sum_noise(C* noise, const T* w, const Part& part, const Recipe& recipe, const Site& site) {
    std::fill(noise + part.begin, noise + part.end, recipe.accumulate ? C(0) : C(-0.0));
    if (!is_noisy<C>(recipe)) return;
    for (int64_t k = 0; k < recipe.count; ++k) {
      const C scale = static_cast<C>(recipe.scales[k]);
      const auto visit = [&](int64_t i, const Pair<F>& pair) CW_INLINE_LAMBDA {
        if (k == 0) fetch_ahead(w + i - part.begin, kGroup);
        if constexpr (std::is_same_v<C, float>) {
          L::store(noise + i, add(L::load(noise + i), pair.first));
          L::store(noise + i + kStep, add(L::load(noise + i + kStep), pair.second));
        } else {
          float z[kGroup];
          L::store(z, pair.first);
          L::store(z + kStep, pair.second);
          for (int j = 0; j < kGroup; ++j) noise[i + j] = add(noise[i + j], multiply(scale, static_cast<C>(z[j])));
        }
      };
      // Only float32 multiplies in float32.
      for_noise<Order::Halves>(part, recipe.distribution, std::is_same_v<C, float> ? static_cast<float>(scale) : 1.0f,
                               static_cast<uint64_t>(recipe.seeds[k]), site, visit);
    }
  }

  // target[i] = the moved w[i], rounded to nearest; the last few one by one.
  template <class T, class S, class C>
  CW_INLINE static void move(T* target, const S* w, const C* noise, int64_t count, const Terms<C>& terms) {
    using V = decltype(L::load(noise));
    constexpr int64_t kLanes = sizeof(V) / sizeof(C);
    const V decay = terms.decay - V{}, shift = terms.shift - V{};
    with_move(terms, [&](auto move) CW_INLINE_LAMBDA {
      constexpr Move kMove = decltype(move)::value;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        V old{};
        if constexpr (kMove != Move::Write) old = L::load(w + i);
        L::store(target + i, moved_by<kMove>(old, L::load(noise + i), decay, shift));
      }
      for (; i < count; ++i) {
        C old{};
        if constexpr (kMove != Move::Write) old = widen<C>(w[i]);
        target[i] = Narrow<T>::from(moved_by<kMove>(old, noise[i], terms.decay, terms.shift));
      }
    });
  }

  template <class T>
  CW_INLINE static void round_randomly(T* w, const float* values, const Part& part, const Recipe& recipe, Site site) {
    alignas(64) Words words;
    site.purpose = kStochasticRounding;
    make_words(words, part, static_cast<uint64_t>(recipe.seeds[0]), site, Order::Halves);
    put_in_order(words, part.begin, part.end);
    for (int64_t i = part.begin; i < part.end; ++i) {
      w[i - part.begin] = NarrowRandomly<T>::from(values[i], words[i]);
    }
  }

  template <class T>
  static void run(void* weights, uint64_t start, int64_t count, uint32_t stream, const Recipe& recipe) {
    using C = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const Terms<C> terms = terms_of<C>(recipe);
    const Site site{kNoise, stream, recipe.step};
    const bool direct = is_noisy<C>(recipe) && !recipe.accumulate && !recipe.stochastic;
    T* w = static_cast<T*>(weights);
    for (T* const end = w + count; w < end;) {
      const int64_t begin = static_cast<int64_t>(start % kTile);
      const int64_t size = std::min(kTile - begin, end - w);
      const Part part{start - static_cast<uint64_t>(begin), begin, begin + size};
      if constexpr (std::is_same_v<C, float>) {
        if (direct && size == kTile) {
          move_tile(w, part.tile, terms, recipe, site);
          w += size;
          start += kTile;
          continue;
        }
      }
      alignas(64) C noise[kTile + kGroup];
      sum_noise(noise, w, part, recipe, site);
      if constexpr (sizeof(T) == 2) {
        if (recipe.stochastic) {
          move(noise + begin, w, noise + begin, size, terms);
          round_randomly(w, noise, part, recipe, site);
        } else {
          move(w, w, noise + begin, size, terms);
        }
      } else {
        move(w, w, noise + begin, size, terms);
      }
      w += size;
      start += static_cast<uint64_t>(size);
    }
  }
};

}  // namespace convweights
