// Where tensors lie in memory: whether elements of one, or two tensors, may share a place.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../check.h"
#include "../host_device.h"

namespace convweights {

using Spans = std::vector<std::pair<const char*, const char*>>;

// Elements from the first to behind the last, by each dimension's `size` and its stride, the member `stride`; 0 where
// strides do not nest, so that two elements may share a place.
template <class Dim>
int64_t span_of(const Dim* given, int rank, int64_t Dim::* stride) {
  Dim dims[kMaxDims];
  std::copy(given, given + rank, dims);
  std::sort(dims, dims + rank, [&](const Dim& a, const Dim& b) { return a.*stride < b.*stride; });
  int64_t span = 1;
  for (int d = 0; d < rank; ++d) {
    if (dims[d].size == 1) continue;
    if (dims[d].*stride < span) return 0;
    span += (dims[d].size - 1) * dims[d].*stride;
  }
  return span;
}

// That no two elements share a place, or may do so as far as the reach of strides tells: who knows better says so.
// Where they lie, in order.
template <class Part, class Dim>
Spans check_disjoint(const char* verb, const std::vector<Part>& parts, int64_t Dim::* stride) {
  Spans spans;
  spans.reserve(parts.size());
  for (const Part& part : parts) {
    if (part.count() == 0) continue;
    const int64_t span = span_of(part.dims, part.rank, stride);
    CW_CHECK(span > 0, verb, ": weights must give each element a place of its own");
    spans.emplace_back(part.weight, part.weight + span * part.item);
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    CW_CHECK(spans[i - 1].second <= spans[i].first, verb, ": weights must not share memory with each other");
  }
  return spans;
}

}  // namespace convweights
