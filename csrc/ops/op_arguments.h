// What the operators of all verbs ask of torch's arguments.
#pragma once

#include <vector>

#include "../check.h"
#include "../dtypes.h"

namespace convweights {

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

// torch's code of the dtype. ScalarType cannot say the newest ones, which are copied all the same.
inline int32_t dtype_code(const Tensor& tensor) {
  int32_t code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

inline Dtype dtype_of(const Tensor& tensor) {
  const int32_t code = dtype_code(tensor);
  if (code == aoti_torch_dtype_float64()) return Dtype::Float64;
  if (code == aoti_torch_dtype_float32()) return Dtype::Float32;
  if (code == aoti_torch_dtype_float16()) return Dtype::Float16;
  if (code == aoti_torch_dtype_bfloat16()) return Dtype::BFloat16;
  return Dtype::CopyOnly;
}

}  // namespace convweights
