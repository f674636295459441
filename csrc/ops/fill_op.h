// fill's operator: from torch's arguments to fillings, for both libraries.
#pragma once

#include <optional>
#include <vector>

#include "fill.h"
#include "op_arguments.h"
#include "spans.h"

namespace convweights {

using MaybeTensors = std::vector<std::optional<Tensor>>;

// A tensor whose sizes are the weight's or 1 in `rank` dimensions from `first` on: its strides, 0 for size 1.
template <class Set>
void spread(const Tensor& given, const Tensor& weight, int64_t first, const char* name, const Set& set) {
  const int64_t rank = given.dim();
  CW_CHECK(first >= 0 && first + rank <= weight.dim(), "fill_: ", name, " must lie within the dimensions of weights");
  CW_CHECK(given.device() == weight.device(), "fill_: ", name, " must be on the device of weights");
  for (int64_t d = 0; d < rank; ++d) {
    const int64_t size = given.size(d);
    CW_CHECK(size == 1 || size == weight.size(first + d), "fill_: ", name, " must fit weights, got size ", size,
             " for ", weight.size(first + d));
    set(static_cast<int>(first + d), size == 1 ? 0 : given.stride(d));
  }
}

inline Filling make_filling(const Tensor& weight, const std::optional<Tensor>& mask, int64_t first,
                            const std::optional<Tensor>& value, const int64_t* bits) {
  const int64_t rank = weight.dim();
  CW_CHECK(rank <= kMaxDims, "fill_: weights must have at most ", kMaxDims, " dimensions, got ", rank);
  Filling f;
  f.weight = static_cast<char*>(weight.mutable_data_ptr());
  f.item = static_cast<int64_t>(weight.element_size());
  f.rank = static_cast<int>(rank);
  f.word = {{static_cast<uint64_t>(bits[0]), static_cast<uint64_t>(bits[1])}};
  for (int d = 0; d < f.rank; ++d) f.dims[d] = {weight.size(d), weight.stride(d), 0, 0};
  if (mask) {
    CW_CHECK(dtype_code(*mask) == aoti_torch_dtype_bool(), "fill_: masks must be bool");
    f.mask = static_cast<const bool*>(mask->const_data_ptr());
    spread(*mask, weight, first, "masks", [&](int d, int64_t stride) { f.dims[d].mask = stride; });
  }
  if (value) {
    CW_CHECK(dtype_code(*value) == dtype_code(weight), "fill_: values must have the dtype of weights");
    f.value = static_cast<const char*>(value->const_data_ptr());
    spread(*value, weight, weight.dim() - value->dim(), "values",
           [&](int d, int64_t stride) { f.dims[d].value = stride; });
  }
  return f;
}

// The filling of positions `at` .. `at` + `size` - 1 of dimension `dim`.
inline Filling narrowed(Filling f, int64_t dim, int64_t at, int64_t size) {
  FillDim& along = f.dims[dim];
  f.weight += at * along.weight * f.item;
  if (f.value) f.value += at * along.value * f.item;
  along.size = size;
  return f;
}

// That no mask is written where it is still to be read.
inline void check_masks(const std::vector<Filling>& fillings, const Spans& weights) {
  for (const Filling& f : fillings) {
    if (!f.mask || f.count() == 0) continue;
    const char* const begin = reinterpret_cast<const char*>(f.mask);
    const char* end = begin + 1;
    for (int d = 0; d < f.rank; ++d) end += (f.dims[d].size - 1) * f.dims[d].mask;
    const auto after = std::lower_bound(weights.begin(), weights.end(), end,
                                        [](const auto& span, const char* at) { return span.first < at; });
    CW_CHECK(after == weights.begin() || std::prev(after)->second <= begin,
             "fill_: masks must not share memory with weights");
  }
}

// All that is checked is checked before anything is written. Of `counts` -1 stands for no list of positions: a mask,
// or everything, is meant then.
inline std::vector<Filling> make_fillings(const std::vector<Tensor>& weights, const MaybeTensors& masks,
                                          const Ints& dims, const Ints& counts, const Ints& positions,
                                          const MaybeTensors& values, const Ints& bits, bool disjoint) {
  const size_t n = weights.size();
  CW_CHECK(masks.size() == n && dims.size() == n && counts.size() == n && values.size() == n && bits.size() == 2 * n,
           "fill_: masks, dims, counts, values and bits must hold one entry a weight");
  std::vector<Filling> fillings, wholes;
  fillings.reserve(n);
  if (!disjoint) wholes.reserve(n);
  size_t next = 0;
  for (size_t i = 0; i < n; ++i) {
    CW_CHECK(weights[i].device() == weights[0].device(), "fill_: weights must be on one device");
    Filling f = make_filling(weights[i], masks[i], dims[i], values[i], &bits[2 * i]);
    if (!disjoint) wholes.push_back(f);
    if (counts[i] < 0) {
      reduce(f);
      fillings.push_back(f);
      continue;
    }
    CW_CHECK(!masks[i] && dims[i] >= 0 && dims[i] < weights[i].dim(), "fill_: dims must name a dimension of weights");
    const size_t count = static_cast<size_t>(counts[i]), end = next + count;
    CW_CHECK(count <= positions.size() - next, "fill_: positions must hold as many numbers as counts say");
    const int64_t size = weights[i].size(dims[i]);
    while (next < end) {
      const int64_t at = positions[next++];
      int64_t run = 1;  // no longer than the dimension, so that nothing wraps
      CW_CHECK(at >= 0 && at < size, "fill_: positions must lie in 0 .. ", size - 1, ", got ", at);
      while (next < end && run < size - at && positions[next] == at + run) ++next, ++run;
      fillings.push_back(narrowed(f, dims[i], at, run));
      reduce(fillings.back());
    }
  }
  CW_CHECK(next == positions.size(), "fill_: positions must hold as many numbers as counts say");
  if (!disjoint) check_masks(wholes, check_disjoint("fill_", wholes, &FillDim::weight));
  return fillings;
}

}  // namespace convweights
