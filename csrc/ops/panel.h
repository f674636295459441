// The CPU's inner loops: a panel is a box of target positions whose source positions lie evenly, so that the loops
// over it ask no map. Three dimensions, written rows of runs first; strides in elements.
#pragma once

#include <algorithm>
#include <utility>

#include "../dtypes.h"
#include "../element/maps.h"

namespace convweights {

struct Tap {
  int64_t count;
  int64_t stride;
  double weight[2];
};

struct Axis {
  int64_t size;
  int64_t dst;
  int64_t src;
};
constexpr Axis kPoint{1, 0, 0};

struct Panel {
  char* dst;
  const char* src;
  Axis plane = kPoint;
  Axis row = kPoint;
  Axis run = kPoint;
  int taps = 0;     // windows of more than one position, in the order in which they are summed
  int spreads = 0;  // every value is also written at these strides
  double factor = 1.0;
  uint64_t fill[2];
  Tap tap[kMaxDims];
  Axis spread[kMaxDims];
};

using PanelLoop = void (*)(const Panel&);

// What one dtype of the target and one of the source need.
struct PanelLoops {
  PanelLoop fill;
  PanelLoop copy;  // bits; also of the target from itself
  PanelLoop convert;
  PanelLoop sum;
};

// `item` is the target's bytes an element.
PanelLoops panel_loops(Dtype target, Dtype source, int64_t item);

// Puts the axis innermost along which the source is read in order, or, failing that, the longer one.
inline void orient(Panel& p) {
  const bool across = p.run.src != 1 && p.row.src == 1;
  const bool longer = p.run.size < 4 && p.row.size > p.run.size && p.row.src != 0;
  if (p.row.size > 1 && (across || longer)) std::swap(p.row, p.run);
  if (p.run.dst == 1 && p.run.src == 1 && p.row.dst == p.run.size && p.row.src == p.run.size) {
    p.run.size *= p.row.size;
    p.row = kPoint;
  }
}

// The rows of a panel in registers: read from the panel itself, they would be read again after each write.
struct Rows {
  Axis plane, row;
  explicit Rows(const Panel& p) : plane(p.plane), row(p.row) {}

  template <class Body>
  CW_INLINE void operator()(const Body& body) const {
    for (int64_t i = 0; i < plane.size; ++i) {
      for (int64_t j = 0; j < row.size; ++j) body(i * plane.dst + j * row.dst, i * plane.src + j * row.src);
    }
  }
};

// body(offset) for each of the places at which a value is written.
template <class Body>
CW_INLINE void for_each_spread(const Panel& p, const Body& body) {
  int64_t copy[kMaxDims] = {};
  int64_t offset = 0;
  for (;;) {
    body(offset);
    int s = p.spreads - 1;
    for (; s >= 0; --s) {
      offset += p.spread[s].dst;
      if (++copy[s] < p.spread[s].size) break;
      offset -= p.spread[s].size * p.spread[s].dst;
      copy[s] = 0;
    }
    if (s < 0) return;
  }
}

}  // namespace convweights
