// Cuts a transfer into tiles: boxes of the target that, with all that they read, fit into a buffer.
// Positions count elements of whole tensors; nothing here touches memory.
#pragma once

#include <algorithm>

#include "../ops/transfer.h"

namespace convweights {

// Positions begin .. end - 1.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
};

// The source positions between the first and the last that the target's positions read; empty where they read none.
inline Range source_range(const Map& map, const Range& j, bool wide) {
  const int64_t last = j.end - 1;
  switch (map.kind) {
    case MapKind::Identity:
      return j;
    case MapKind::Tile:
      if (j.begin / map.n != last / map.n) return {0, map.n};
      return {j.begin % map.n, last % map.n + 1};
    case MapKind::Offset:
      return {std::clamp(j.begin + map.start, int64_t{0}, map.n), std::clamp(j.end + map.start, int64_t{0}, map.n)};
    case MapKind::Select: {
      Range range{map.n, 0};
      for (int64_t at = j.begin; at < j.end; ++at) {
        const int64_t position = selected(map, at);
        range = {std::min(range.begin, position), std::max(range.end, position + 1)};
      }
      return range;
    }
    case MapKind::Strided: {
      // The last position of all belongs to one of the windows, else every window ends in one order.
      const int64_t ends = (map.n - 1) % map.m;
      if (ends >= j.begin && ends < j.end) return {j.begin, map.n};
      return {j.begin, last + (ceil_div(map.n - last, map.m) - 1) * map.m + 1};
    }
    default: {  // windows that move on with j
      const Window first = window_of(map, j.begin, wide);
      const Window end = window_of(map, last, wide);
      return {first.first, end.first + end.count};
    }
  }
}

// How many source positions any `size` neighbours of the target reach at the most.
inline int64_t source_reach(const Map& map, int64_t size) {
  switch (map.kind) {
    case MapKind::Identity:
    case MapKind::Offset:
    case MapKind::Tile:  // cut where a period ends
      return std::min(size, map.n);
    case MapKind::Interleave:
    case MapKind::Blocks:
    case MapKind::Resize:
      return std::min(map.n, ceil_div(size * map.n, map.m) + 2);
    default:
      return map.n;
  }
}

struct Box {
  Range target[kMaxDims];
  Range source[kMaxDims];
  bool reads = true;  // whether any source position reaches it
};

class Tiles {
 public:
  // `t` is reduced, without absorbed dimensions. A tile takes `bytes` of source and target together, or four times as
  // much where its rows would else be shorter than what a system call is worth.
  Tiles(const Transfer& t, int64_t bytes) : t_(t) {
    for (int d = 0; d < t.rank; ++d) cut_[d] = t.dims[d].map.m;
    while (taken() > bytes && halve()) {
    }
    if (std::min(run(&Dim::dst_stride, false), run(&Dim::src_stride, true)) < kShortRun) {
      for (int d = 0; d < t.rank; ++d) cut_[d] = t.dims[d].map.m;
      while (taken() > 4 * bytes && halve()) {
      }
    }
    for (int d = 0; d < t.rank; ++d) count_ *= pieces(d);
  }

  int64_t count() const { return count_; }

  Box box(int64_t tile) const {
    Box box;
    for (int d = t_.rank - 1; d >= 0; --d) {
      const int64_t of = pieces(d);
      box.target[d] = piece(d, tile % of);
      tile /= of;
      box.source[d] = source_range(t_.dims[d].map, box.target[d], t_.wide);
      box.reads = box.reads && box.source[d].size() > 0;
    }
    return box;
  }

 private:
  static constexpr int64_t kShortRun = 16384;

  bool periodic(int d) const { return t_.dims[d].map.kind == MapKind::Tile && cut_[d] < t_.dims[d].map.m; }

  // Of a Tile that is cut each period by itself, so that a piece reads neighbours.
  int64_t pieces(int d) const {
    const Map& map = t_.dims[d].map;
    if (!periodic(d)) return ceil_div(map.m, cut_[d]);
    return map.m / map.n * ceil_div(map.n, cut_[d]) + ceil_div(map.m % map.n, cut_[d]);
  }

  Range piece(int d, int64_t number) const {
    const Map& map = t_.dims[d].map;
    int64_t origin = 0;
    int64_t end = map.m;
    if (periodic(d)) {
      const int64_t of = ceil_div(map.n, cut_[d]);
      origin = number / of * map.n;
      end = std::min(map.m, origin + map.n);
      number %= of;
    }
    const int64_t begin = origin + number * cut_[d];
    return {begin, std::min(end, begin + cut_[d])};
  }

  int64_t taken() const {
    int64_t target = t_.dst_item;
    int64_t source = t_.src_item;
    for (int d = 0; d < t_.rank; ++d) {
      target *= cut_[d];
      source *= source_reach(t_.dims[d].map, cut_[d]);
    }
    return target + source;
  }

  // How many bytes of a tile follow each other, in the target's file or in the source's.
  int64_t run(int64_t Dim::* stride, bool of_source) const {
    int64_t elements = 1;
    for (bool found = true; found;) {
      found = false;
      for (int d = 0; d < t_.rank && !found; ++d) {
        const Map& map = t_.dims[d].map;
        const int64_t reach = of_source ? source_reach(map, cut_[d]) : cut_[d];
        if (reach > 1 && t_.dims[d].*stride == elements) {
          elements *= reach;
          found = reach == (of_source ? map.n : map.m);
          if (!found) break;
        }
      }
    }
    return elements * (of_source ? t_.src_item : t_.dst_item);
  }

  // Halves a dimension; whether there is one that makes tiles smaller. One along which less of the source is read then
  // goes first, as each tile of another would read the same again.
  bool halve() { return halve(true) || halve(false); }

  // Halves the dimension that leaves the longest runs on both sides.
  bool halve(bool reads_less) {
    const int64_t before = taken();
    int best = -1;
    int64_t longest = -1;
    for (int d = 0; d < t_.rank; ++d) {
      const Map& map = t_.dims[d].map;
      if (cut_[d] == 1 || (reads_less && source_reach(map, half(d)) >= source_reach(map, cut_[d]))) continue;
      const int64_t size = cut_[d];
      cut_[d] = half(d);
      const int64_t shorter = std::min(run(&Dim::dst_stride, false), run(&Dim::src_stride, true));
      if (taken() < before && shorter > longest) {
        best = d;
        longest = shorter;
      }
      cut_[d] = size;
    }
    if (best < 0) return false;
    cut_[best] = half(best);
    return true;
  }

  int64_t half(int d) const {
    const Map& map = t_.dims[d].map;
    const int64_t size = map.kind == MapKind::Tile ? std::min(cut_[d], 2 * map.n) : cut_[d];
    return ceil_div(size, 2);
  }

  const Transfer& t_;
  int64_t cut_[kMaxDims] = {};
  int64_t count_ = 1;
};

}  // namespace convweights
