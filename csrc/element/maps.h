// Which source positions one target position reads along one dimension, and what multiplies them.
// convweights/maps.py says the same in words; n is the source's size, m the target's, j a target position.
#pragma once

#include "../host_device.h"

namespace convweights {

// The codes are positions in KINDS and RESCALES of convweights/maps.py.
enum class MapKind : int32_t { Identity, Tile, Interleave, Blocks, Strided, Offset, Select, Resize, Mean };
enum class Rescale : int32_t { None, Uniform, Exact };

struct Map {
  MapKind kind = MapKind::Identity;
  Rescale rescale = Rescale::None;
  int64_t n = 1;
  int64_t m = 1;
  int64_t start = 0;               // Offset
  const int64_t* index = nullptr;  // Select, -n <= index[j] < n
};

// The positions first, first + step, ... of which there are `count`; none means that no source reaches j.
struct Window {
  int64_t first = 0;
  int64_t count = 1;
  int64_t step = 1;
  double weight[2] = {1.0, 1.0};  // Resize with two taps; else every position counts once
};

CW_HD int64_t selected(const Map& map, int64_t j) {
  const int64_t index = map.index[j];
  return index < 0 ? index + map.n : index;
}

CW_HD bool averages(MapKind kind) {
  return kind == MapKind::Blocks || kind == MapKind::Strided || kind == MapKind::Mean;
}

// To the dtype in which sums run: float64 where `wide`, else float32.
CW_HD double round_to_compute(double value, bool wide) {
  return wide ? value : static_cast<double>(static_cast<float>(value));
}

// `ratio`: n / m.
CW_HD Window resize_window(int64_t n, double ratio, int64_t j, bool wide) {
  double x = (static_cast<double>(j) + 0.5) * ratio - 0.5;
  x = x < 0.0 ? 0.0 : x;
  Window window;
  window.first = static_cast<int64_t>(x);
  if (window.first > n - 1) window.first = n - 1;
  const double beyond = x - static_cast<double>(window.first);
  const double second = round_to_compute(beyond, wide);
  if (window.first < n - 1 && second != 0.0) {
    window.count = 2;
    window.weight[0] = round_to_compute(1.0 - beyond, wide);
    window.weight[1] = second;
  }
  return window;
}

CW_HD Window window_of(const Map& map, int64_t j, bool wide) {
  Window window;
  switch (map.kind) {
    case MapKind::Identity:
      window.first = j;
      break;
    case MapKind::Tile:
      window.first = j % map.n;
      break;
    case MapKind::Interleave:
      window.first = j * map.n / map.m;
      break;
    case MapKind::Blocks:
      window.first = ceil_div(j * map.n, map.m);
      window.count = ceil_div((j + 1) * map.n, map.m) - window.first;
      break;
    case MapKind::Strided:
      window.first = j;
      window.step = map.m;
      window.count = ceil_div(map.n - j, map.m);
      break;
    case MapKind::Offset:
      window.first = j + map.start;
      window.count = window.first >= 0 && window.first < map.n ? 1 : 0;
      break;
    case MapKind::Select:
      window.first = selected(map, j);
      break;
    case MapKind::Resize:
      window = resize_window(map.n, static_cast<double>(map.n) / static_cast<double>(map.m), j, wide);
      break;
    case MapKind::Mean:
      window.first = 0;
      window.count = map.n;
      break;
  }
  return window;
}

// How many target positions read the one source position that `first` is.
CW_HD int64_t copies_of(const Map& map, int64_t first) {
  if (map.kind == MapKind::Tile) return ceil_div(map.m - first, map.n);
  return ceil_div((first + 1) * map.m, map.n) - ceil_div(first * map.m, map.n);
}

// This dimension's share of the factor, in float64.
CW_HD double factor_of(const Map& map, const Window& window) {
  double factor = 1.0;
  if (map.rescale == Rescale::Uniform) {
    factor = static_cast<double>(map.n) / static_cast<double>(map.m);
  } else if (map.rescale == Rescale::Exact && !averages(map.kind)) {
    factor = 1.0 / static_cast<double>(copies_of(map, window.first));
  }
  if (averages(map.kind) && map.rescale != Rescale::Exact) factor = factor / static_cast<double>(window.count);
  return factor;
}

// A stretch of target positions j .. j + length - 1 with one count, step and factor, whose first positions advance
// evenly: what a loop can run over without asking the map again.
struct Span {
  int64_t length = 1;
  int64_t advance = 1;
  Window window;
};

// The stretch from j on, of `most` positions at the most.
inline Span span_of(const Map& map, int64_t j, int64_t most, bool wide) {
  Span span;
  span.window = window_of(map, j, wide);
  const int64_t first = span.window.first;
  const int64_t rest = most < map.m - j ? most : map.m - j;
  switch (map.kind) {
    case MapKind::Identity:
      span.length = rest;
      break;
    case MapKind::Tile: {
      // Positions before m mod n have one copy more than those after it.
      const int64_t more = map.rescale == Rescale::Exact ? map.m % map.n : 0;
      span.length = (first < more ? more : map.n) - first;
      break;
    }
    case MapKind::Interleave:
      if (map.n % map.m == 0) {
        span.length = rest;
        span.advance = map.n / map.m;
      } else {
        span.length = ceil_div((first + 1) * map.m, map.n) - j;
        span.advance = 0;
      }
      break;
    case MapKind::Blocks:
      if (map.n % map.m == 0) {
        span.length = rest;
        span.advance = map.n / map.m;
      }
      break;
    case MapKind::Strided:
      span.length = j < map.n % map.m ? map.n % map.m - j : rest;
      break;
    case MapKind::Offset:
      if (span.window.count == 1) {
        span.length = map.n - first;
      } else {
        span.length = first < 0 ? -first : rest;
      }
      break;
    case MapKind::Select:
      while (span.length < rest && selected(map, j + span.length) == first + span.length) ++span.length;
      break;
    case MapKind::Resize:
    case MapKind::Mean:
      break;
  }
  if (span.length > rest) span.length = rest;
  return span;
}

}  // namespace convweights
