// update's operator: from torch's arguments to pieces and a recipe, for both libraries.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "op_arguments.h"
#include "spans.h"
#include "update.h"
#include "update_recipe.h"

namespace convweights {

using Masks = std::vector<std::optional<Tensor>>;

// The logical index has 50 bits, so that a call's position leaves 16 of its counter to the tag.
constexpr int64_t kMostIndices = int64_t{1} << 50;

inline Piece make_piece(const Tensor& weight, const std::optional<Tensor>& mask, int64_t stream, const int64_t* box) {
  const int64_t rank = weight.dim();
  CW_CHECK(rank <= kMaxDims, "update_: weights must have at most ", kMaxDims, " dimensions, got ", rank);
  CW_CHECK(stream >= 0 && stream <= UINT32_MAX, "update_: streams must be 0 .. 2^32 - 1, got ", stream);
  Piece p;
  p.type = dtype_of(weight);
  CW_CHECK(p.type != Dtype::CopyOnly, "update_: weights must be float64, float32, float16 or bfloat16");
  p.weight = static_cast<char*>(weight.mutable_data_ptr());
  p.item = static_cast<int64_t>(weight.element_size());
  p.stream = static_cast<uint32_t>(stream);
  p.rank = static_cast<int>(rank);
  if (mask) {
    CW_CHECK(mask->dim() == rank && dtype_code(*mask) == aoti_torch_dtype_bool() && mask->device() == weight.device(),
             "update_: masks must be bool, with the rank and the device of their weight");
    p.mask = static_cast<const bool*>(mask->const_data_ptr());
  }
  int64_t index = 1;
  for (int d = p.rank - 1; d >= 0; --d) {
    UpdateDim& dim = p.dims[d];
    dim.size = weight.size(d);
    dim.stride = weight.stride(d);
    if (mask) {
      CW_CHECK(mask->size(d) == dim.size || mask->size(d) == 1, "update_: masks must fit their weight, got size ",
               mask->size(d), " for ", dim.size);
      dim.mask = mask->size(d) == 1 ? 0 : mask->stride(d);
    }
    dim.index = index;
    const int64_t whole = box ? box[d] : dim.size;
    const int64_t offset = box ? box[rank + d] : 0;
    CW_CHECK(offset >= 0 && dim.size <= whole && offset <= whole - dim.size,
             "update_: boxes must lie inside their whole tensor, got ", dim.size, " at ", offset, " of ", whole);
    CW_CHECK(whole <= kMostIndices / std::max<int64_t>(1, index),
             "update_: whole tensors must have at most 2^50 elements");
    p.start += static_cast<uint64_t>(offset * index);
    index *= std::max<int64_t>(1, whole);
  }
  reduce(p);
  return p;
}

// All that is checked is checked before anything is written.
inline std::vector<Piece> make_pieces(const std::vector<Tensor>& weights, const Masks& masks, const Ints& streams,
                                      const Ints& boxes) {
  CW_CHECK(masks.empty() || masks.size() == weights.size(), "update_: masks must hold one entry a weight, or none");
  CW_CHECK(streams.size() == weights.size(), "update_: streams must hold one number a weight");
  for (const Tensor& weight : weights) {
    CW_CHECK(weight.device() == weights[0].device(), "update_: weights must be on one device");
  }
  size_t dims = 0;
  for (const Tensor& weight : weights) dims += static_cast<size_t>(weight.dim());
  CW_CHECK(boxes.empty() || boxes.size() == 2 * dims, "update_: boxes must hold two numbers a dimension, or none");
  std::vector<Piece> pieces;
  pieces.reserve(weights.size());
  const int64_t* box = boxes.empty() ? nullptr : boxes.data();
  for (size_t i = 0; i < weights.size(); ++i) {
    pieces.push_back(make_piece(weights[i], masks.empty() ? std::nullopt : masks[i], streams[i], box));
    if (box) box += 2 * weights[i].dim();
  }
  return pieces;
}

inline Recipe make_recipe(int64_t distribution, double decay, double shift, const std::vector<double>& scales,
                          const Ints& seeds, int64_t step, bool accumulate, bool stochastic,
                          const std::vector<Piece>& pieces) {
  CW_CHECK(distribution >= 0 && distribution <= 3, "update_: distribution must be 0 .. 3, got ", distribution);
  CW_CHECK(step >= 0 && step <= UINT32_MAX, "update_: step must be 0 .. 2^32 - 1, got ", step);
  CW_CHECK(!scales.empty() && seeds.size() == scales.size() && (accumulate || scales.size() == 1),
           "update_: scales and seeds must hold one number each, or as many as each other to accumulate");
  CW_CHECK(static_cast<int64_t>(seeds.size()) <= kMostSeeds, "update_: seeds must be at most ", kMostSeeds);
  for (const Piece& piece : pieces) {
    CW_CHECK(!stochastic || piece.item == 2, "update_: weights must be float16 or bfloat16 to be rounded at random");
  }
  Recipe recipe;
  recipe.distribution = static_cast<Distribution>(distribution);
  recipe.accumulate = accumulate;
  recipe.stochastic = stochastic;
  recipe.decay = decay;
  recipe.shift = shift;
  recipe.scales = scales.data();
  recipe.seeds = seeds.data();
  recipe.count = static_cast<int64_t>(seeds.size());
  recipe.step = static_cast<uint32_t>(step);
  return recipe;
}

// The device tensor of a seed and a step, read when the kernels run.
inline const int64_t* state_of(const std::optional<Tensor>& state, const std::vector<Tensor>& weights, int64_t seeds) {
  if (!state) return nullptr;
  CW_CHECK(dtype_code(*state) == aoti_torch_dtype_int64() && state->dim() == 1 && state->numel() == 2 &&
               state->is_contiguous() && seeds == 1,
           "update_: state must be an int64 tensor of one seed and the step");
  for (const Tensor& weight : weights) {
    CW_CHECK(weight.device() == state->device(), "update_: state must be on the device of the weights");
  }
  return static_cast<const int64_t*>(state->const_data_ptr());
}

}  // namespace convweights
