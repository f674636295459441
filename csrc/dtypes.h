// The dtypes that kernels tell apart, as the element types of csrc/element. Nothing here knows torch.
#pragma once

#include "element/casts.h"

namespace convweights {

// Dtypes that do not compute are only ever copied: their size is all that matters.
enum class Dtype : int32_t { CopyOnly, Float64, Float32, Float16, BFloat16 };

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) for the dtype's element type.
template <class Body>
CW_HD auto with_compute_type(Dtype type, const Body& body) {
  switch (type) {
    case Dtype::Float64:
      return body(Type<double>{});
    case Dtype::Float16:
      return body(Type<Half>{});
    case Dtype::BFloat16:
      return body(Type<BFloat16>{});
    default:  // Float32; nobody asks for the type of what is only copied
      return body(Type<float>{});
  }
}

struct Pair64 {
  uint64_t words[2];
};

// Calls body(Type<T>{}) for an integer of that many bytes, the type of pure copies.
template <class Body>
auto with_raw_type(int64_t bytes, const Body& body) {
  switch (bytes) {
    case 1:
      return body(Type<uint8_t>{});
    case 2:
      return body(Type<uint16_t>{});
    case 4:
      return body(Type<uint32_t>{});
    case 8:
      return body(Type<uint64_t>{});
    default:
      return body(Type<Pair64>{});
  }
}

}  // namespace convweights
