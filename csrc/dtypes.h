// torch's dtypes as the element types of csrc/element, once for both libraries.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "element/casts.h"

namespace convweights {

using torch::headeronly::ScalarType;

inline bool computes(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) for the dtype's element type.
template <class Body>
auto with_compute_type(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Double: return body(Type<double>{});
    case ScalarType::Half: return body(Type<Half>{});
    case ScalarType::BFloat16: return body(Type<BFloat16>{});
    default: return body(Type<float>{});
  }
}

struct Pair64 {
  uint64_t words[2];
};

// Calls body(Type<T>{}) for an integer of that many bytes, the type of pure copies.
template <class Body>
auto with_raw_type(int64_t bytes, const Body& body) {
  switch (bytes) {
    case 1: return body(Type<uint8_t>{});
    case 2: return body(Type<uint16_t>{});
    case 4: return body(Type<uint32_t>{});
    case 8: return body(Type<uint64_t>{});
    default: return body(Type<Pair64>{});
  }
}

}  // namespace convweights
