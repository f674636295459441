// transfer's operator: from torch's arguments to the reduced problem, for both libraries.
#pragma once

#include <algorithm>
#include <vector>

#include "op_arguments.h"
#include "transfer.h"

namespace convweights {

inline void check_map(const Map& map) {
  CW_CHECK(map.kind >= MapKind::Identity && map.kind <= MapKind::Mean, "transfer_: kinds must be 0 .. 8, got ",
           static_cast<int>(map.kind));
  CW_CHECK(map.rescale >= Rescale::None && map.rescale <= Rescale::Exact, "transfer_: rescales must be 0 .. 2, got ",
           static_cast<int>(map.rescale));
  const bool exact = map.kind >= MapKind::Tile && map.kind <= MapKind::Strided;
  const bool uniform = exact || map.kind == MapKind::Offset || map.kind == MapKind::Select;
  CW_CHECK(map.rescale == Rescale::None || (map.rescale == Rescale::Uniform ? uniform : exact),
           "transfer_: rescales must be ways in which the map rescales, got ", static_cast<int>(map.rescale),
           " for kind ", static_cast<int>(map.kind));
  const bool averaging = map.kind == MapKind::Blocks || map.kind == MapKind::Strided;
  const bool fits = map.kind == MapKind::Identity ? map.n == map.m
                    : averaging                   ? map.n >= map.m
                                                  : map.kind == MapKind::Offset || map.n > 0 || map.m == 0;
  CW_CHECK(fits, "transfer_: source must have a size that its map can read, got ", map.n, " for a weight of size ",
           map.m);
}

inline void check_index(const int64_t* values, int64_t n, int64_t m) {
  for (int64_t j = 0; j < m; ++j) {
    CW_CHECK(values[j] >= -n && values[j] < n, "transfer_: index must lie in ", -n, " .. ", n - 1, ", got ", values[j]);
  }
}

inline const int64_t* checked_index(const Tensor& index, int64_t n, int64_t m) {
  CW_CHECK(dtype_code(index) == aoti_torch_dtype_int64() && index.is_cpu() && index.dim() == 1 && index.numel() == m &&
               index.is_contiguous(),
           "transfer_: index must hold one contiguous int64 tensor on the CPU for each Select, of length ", m);
  const int64_t* const values = static_cast<const int64_t*>(index.const_data_ptr());
  check_index(values, n, m);
  return values;
}

inline void check_dtypes(const Transfer& t) {
  const bool computes = t.dst_type != Dtype::CopyOnly && t.src_type != Dtype::CopyOnly;
  CW_CHECK(computes || only_copies(t),
           "transfer_: weight and source must both be float64, float32, float16 or bfloat16 unless values of one dtype "
           "are only copied");
}

// The problem as it was asked for, not yet reduced; `count_of` it is 0 where nothing is to be written.
inline Transfer make_transfer(const Tensor& weight, const Tensor& source, const Ints& kinds, const Ints& starts,
                              const Ints& rescales, const std::vector<Tensor>& index, double scale, const Ints& fill) {
  const int64_t rank = weight.dim();
  CW_CHECK(rank <= kMaxDims, "transfer_: weight must have at most ", kMaxDims, " dimensions, got ", rank);
  CW_CHECK(source.dim() == rank, "transfer_: source must have the rank of weight, ", rank, ", got ", source.dim());
  const size_t dims = static_cast<size_t>(rank);
  CW_CHECK(kinds.size() == dims && starts.size() == dims && rescales.size() == dims,
           "transfer_: kinds, starts and rescales must hold one number a dimension, ", rank);
  CW_CHECK(weight.device() == source.device(), "transfer_: source must be on the device of weight");

  Transfer t;
  t.rank = static_cast<int>(rank);
  t.scale = scale;
  t.dst_type = dtype_of(weight);
  t.src_type = dtype_of(source);
  t.same_type = dtype_code(weight) == dtype_code(source);
  t.wide = t.dst_type == Dtype::Float64 || t.src_type == Dtype::Float64;
  t.keep = fill.empty();
  for (size_t i = 0; i < fill.size() && i < 2; ++i) t.fill[i] = static_cast<uint64_t>(fill[i]);
  t.dst = static_cast<char*>(weight.mutable_data_ptr());
  t.src = static_cast<const char*>(source.const_data_ptr());
  t.dst_item = static_cast<int64_t>(weight.element_size());
  t.src_item = static_cast<int64_t>(source.element_size());

  size_t selects = 0;
  for (int d = 0; d < t.rank; ++d) {
    Dim& dim = t.dims[d];
    dim.map = Map{static_cast<MapKind>(kinds[d]), static_cast<Rescale>(rescales[d]), source.size(d), weight.size(d),
                  starts[d]};
    dim.size = dim.map.m;
    dim.dst_stride = weight.stride(d);
    dim.src_stride = source.stride(d);
    check_map(dim.map);
    // Farther out nothing changes, and sums with it cannot overflow.
    dim.map.start = std::clamp(dim.map.start, -dim.map.m, dim.map.n);
    if (dim.map.kind == MapKind::Select) {
      CW_CHECK(selects < index.size(), "transfer_: index must hold a tensor for each Select");
      dim.map.index = checked_index(index[selects++], dim.map.n, dim.map.m);
    }
  }
  check_dtypes(t);
  return t;
}

}  // namespace convweights
