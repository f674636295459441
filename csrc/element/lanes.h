// Vectors of the host in the shape of Scalar: what csrc/element says of one number, said of as many as a register
// holds. Written with the compiler's vectors; an instruction set adds the operations that it does better.
#pragma once

#include <type_traits>
#include <utility>

#include "philox.h"
#include "scalar.h"

namespace convweights {

// A vector of `kBytes` bytes of T, which GCC only takes for one behind a dependent name.
template <class T, int kBytes>
struct Vector {
  typedef T type __attribute__((vector_size(kBytes)));
};

template <class V>
struct Pair {
  V first, second;
};

// Of two vectors of neighbours: the lower and the higher ones, or the even and the odd ones.
enum class Order { Halves, Alternate };

// Self adds or replaces operations.
template <class Self, int kBytes>
struct Lanes {
  static constexpr int kFloats = kBytes / 4;
  static constexpr int kWords = kBytes / 8;

  using W = typename Vector<uint64_t, kBytes>::type;
  using U = typename Vector<uint32_t, kBytes>::type;
  using I = typename Vector<int32_t, kBytes>::type;
  using F = typename Vector<float, kBytes>::type;
  using D = typename Vector<double, kBytes>::type;
  using Narrow = typename Vector<uint16_t, kBytes / 2>::type;
  using Short = typename Vector<int16_t, kBytes / 2>::type;
  using Bytes = typename Vector<uint8_t, kBytes / 4>::type;

  CW_INLINE static W low_product(W a, uint32_t b) { return (a & 0xffffffffu) * b; }
  CW_INLINE static W high(W product) { return product >> 32; }
  CW_INLINE static F splat(float value) { return value - F{}; }
  CW_INLINE static U bits(F value) { return bit_cast<U>(value); }
  CW_INLINE static F floats(U value) { return bit_cast<F>(value); }
  CW_INLINE static I integers(U value) { return bit_cast<I>(value); }
  CW_INLINE static F to_float(I value) { return __builtin_convertvector(value, F); }

  CW_INLINE static F fused(F a, F b, F c) {
    for (int i = 0; i < kFloats; ++i) a[i] = std::fma(a[i], b[i], c[i]);
    return a;
  }
  CW_INLINE static F square_root(F value) {
    for (int i = 0; i < kFloats; ++i) value[i] = std::sqrt(value[i]);
    return value;
  }

  template <class V, class T>
  CW_INLINE static V get(const T* place) {
    V value;
    memcpy(&value, place, sizeof(V));
    return value;
  }
  template <class V, class T>
  CW_INLINE static void put(T* place, V value) {
    memcpy(place, &value, sizeof(V));
  }

  CW_INLINE static F load(const float* place) { return get<F>(place); }
  CW_INLINE static D load(const double* place) { return get<D>(place); }
  CW_INLINE static F load(const BFloat16* place) {
    return bit_cast<F>(__builtin_convertvector(get<Narrow>(place), U) << 16);
  }
  CW_INLINE static F load(const Half* place) {
    F value;
    for (int i = 0; i < kFloats; ++i) value[i] = convweights::to_float(place[i]);
    return value;
  }

  CW_INLINE static void store(float* place, F value) { put(place, value); }
  CW_INLINE static void store(double* place, D value) { put(place, value); }
  CW_INLINE static void store(BFloat16* place, F value) {
    put(place, __builtin_convertvector(rounded(value) >> 16, Narrow));
  }
  CW_INLINE static void store(Half* place, F value) {
    for (int i = 0; i < kFloats; ++i) place[i] = to_half(value[i]);
  }

  // Numbers of T as their bits, the sign extended, from and to memory, and from and to what they are worth.
  template <class T>
  CW_INLINE static I load_bits(const T* place) {
    if constexpr (sizeof(T) == 4) return get<I>(place);
    if constexpr (sizeof(T) == 2) return __builtin_convertvector(get<Short>(place), I);
  }
  template <class T>
  CW_INLINE static void store_bits(T* place, I bits) {
    if constexpr (sizeof(T) == 4) put(place, bits);
    if constexpr (sizeof(T) == 2) put(place, __builtin_convertvector(bits, Short));
  }
  template <class T>
  CW_INLINE static F widened(I bits) {
    if constexpr (std::is_same_v<T, float>) return bit_cast<F>(bits);
    if constexpr (std::is_same_v<T, BFloat16>) return bit_cast<F>(bits << 16);
    if constexpr (std::is_same_v<T, Half>) return Self::from_half(bits);
  }
  template <class T>
  CW_INLINE static I narrowed(F value) {
    if constexpr (std::is_same_v<T, float>) return bit_cast<I>(value);
    if constexpr (std::is_same_v<T, BFloat16>) return bit_cast<I>(rounded(value)) >> 16;
    if constexpr (std::is_same_v<T, Half>) return Self::as_half(value);
  }
  CW_INLINE static F from_half(I bits) {
    F value;
    for (int i = 0; i < kFloats; ++i) value[i] = convweights::to_float(Half{static_cast<uint16_t>(bits[i])});
    return value;
  }
  CW_INLINE static I as_half(F value) {
    I bits;
    for (int i = 0; i < kFloats; ++i) bits[i] = static_cast<int16_t>(to_half(value[i]).bits);
    return bits;
  }

  // Two vectors of elements that are neighbours in memory: first the lower ones, then the higher. Of bfloat16, which is
  // the upper half of a float, first the even ones, then the odd: that needs no shuffle.
  template <class T>
  static constexpr Order kOrder = std::is_same_v<T, BFloat16> ? Order::Alternate : Order::Halves;

  template <class T>
  CW_INLINE static Pair<F> load_pair(const T* place) {
    return {Self::load(place), Self::load(place + kFloats)};
  }
  CW_INLINE static Pair<F> load_pair(const BFloat16* place) {
    const U both = get<U>(place);
    return {bit_cast<F>(both << 16), bit_cast<F>(both & 0xffff0000u)};
  }
  template <class T>
  CW_INLINE static void store_pair(T* place, const Pair<F>& values) {
    Self::store(place, values.first);
    Self::store(place + kFloats, values.second);
  }
  CW_INLINE static void store_pair(BFloat16* place, const Pair<F>& values) {
    put(place, (rounded(values.first) >> 16) | (rounded(values.second) & 0xffff0000u));
  }

  // The counters of a group of kWords calls from q on, so that of the two vectors of numbers they give, which are the
  // first and second of x, y and of z, w by turns, `ordered` makes a pair of that order.
  CW_INLINE static W counters(uint64_t q, Order order) {
    W counter = W{} + q;
    for (int lane = 0; lane < kWords; ++lane) {
      counter[lane] += order == Order::Alternate ? lane : lane % 2 * (kWords / 2) + lane / 2;
    }
    return counter;
  }
  template <class V>
  CW_INLINE static Pair<V> ordered(V a, V b, Order order) {
    return order == Order::Alternate ? Pair<V>{a, b} : woven(a, b, std::make_integer_sequence<int, kFloats>{});
  }

  // How far to the left each bit of a word goes to be the highest, for the two vectors of a pair.
  CW_INLINE static Pair<U> bit_shifts(Order order) {
    Pair<U> shifts;
    for (int lane = 0; lane < kFloats; ++lane) {
      shifts.first[lane] = static_cast<uint32_t>(order == Order::Alternate ? 31 - 2 * lane : 31 - lane);
      shifts.second[lane] = static_cast<uint32_t>(order == Order::Alternate ? 30 - 2 * lane : 31 - kFloats - lane);
    }
    return shifts;
  }

  // Philox's tenth round, which brings the words of a call into two vectors: x and z by turns, y and w by turns.
  CW_INLINE static Pair<U> last_round(const PhiloxState<W>& state, const RoundKeys& keys) {
    const PhiloxState<W> words = philox_round<Self>(state, keys, 9);
    return {joined(words.x, words.z), joined(words.y, words.w)};
  }

 private:
  // The upper halves are bfloat16 to nearest even; a NaN is made quiet.
  CW_INLINE static U rounded(F value) {
    const U bits = bit_cast<U>(value);
    return value == value ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x00400000u;
  }

  CW_INLINE static U joined(W low, W high) { return bit_cast<U>((low & 0xffffffffu) | (high << 32)); }

  template <class V, int... lane>
  CW_INLINE static Pair<V> woven(V a, V b, std::integer_sequence<int, lane...>) {
    return {__builtin_shufflevector(a, b, (lane / 4 * 4 + lane % 4 / 2 + lane % 2 * kFloats)...),
            __builtin_shufflevector(a, b, (lane / 4 * 4 + 2 + lane % 4 / 2 + lane % 2 * kFloats)...)};
  }
};

}  // namespace convweights
