// Where a tile's elements lie in memory, and which stretches of the files they come from and go to.
#pragma once

#include <vector>

#include "runs.h"
#include "tile.h"

namespace convweights {

// Elements of one side of a tile: `span` neighbours in the file, again and again along the `outer` dimensions.
struct Staged {
  int64_t strides[kMaxDims] = {};  // in memory, in elements
  int64_t origin = 0;              // the tile's first element, counted in the file from the tensor's own
  int64_t first = 0;               // what the strides make of the tile's first position
  int64_t span = 1;
  int64_t elements = 1;  // that memory has to hold
  int outer = 0;
  int64_t sizes[kMaxDims] = {};  // of the outer dimensions, the longest stride first
  int64_t steps[kMaxDims] = {};  // in the file
  int64_t pitches[kMaxDims] = {};

  int64_t runs() const {
    int64_t count = 1;
    for (int i = 0; i < outer; ++i) count *= sizes[i];
    return count;
  }

  // In the order of the file where dimensions do not overlap.
  void add_runs(std::vector<FileRun>& to, int file, int64_t at, char* memory, int64_t item) const {
    const int64_t count = runs();
    for (int64_t run = 0; run < count; ++run) {
      int64_t rest = run;
      int64_t from = origin;
      int64_t into = 0;
      for (int i = outer - 1; i >= 0; --i) {
        const int64_t position = rest % sizes[i];
        rest /= sizes[i];
        from += position * steps[i];
        into += position * pitches[i];
      }
      to.push_back({file, at + from * item, memory + into * item, span * item});
    }
  }
};

// A system call takes as long as moving so many bytes: what lies between two stretches is read along up to here.
constexpr int64_t kCallBytes = 2048;

// `gap` is how many bytes may be moved to spare a call; 0 where only wanted elements may be.
inline Staged stage(const Transfer& t, const Range (&ranges)[kMaxDims], int64_t Dim::* stride, int64_t item,
                    int64_t gap) {
  Staged staged;
  int order[kMaxDims];
  int count = 0;
  for (int d = 0; d < t.rank; ++d) {
    const int64_t step = t.dims[d].*stride;
    staged.origin += ranges[d].begin * step;
    if (ranges[d].size() == 1 || step == 0) continue;
    int at = count++;
    for (; at > 0 && t.dims[order[at - 1]].*stride > step; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  int i = 0;
  for (; i < count; ++i) {
    const int64_t step = t.dims[order[i]].*stride;
    const int64_t size = ranges[order[i]].size();
    const int64_t along = (size - 1) * step + staged.span;
    if (along != size * staged.span && along * item > size * (staged.span * item + gap)) break;
    staged.strides[order[i]] = step;
    staged.span = along;
  }
  staged.elements = staged.span;
  staged.outer = count - i;
  for (; i < count; ++i) {
    const int d = order[i];
    const int place = count - 1 - i;
    staged.sizes[place] = ranges[d].size();
    staged.steps[place] = t.dims[d].*stride;
    staged.pitches[place] = staged.strides[d] = staged.elements;
    staged.elements *= ranges[d].size();
  }
  for (int d = 0; d < t.rank; ++d) staged.first += ranges[d].begin * staged.strides[d];
  return staged;
}

// The transfer of one tile, in memory.
inline Transfer tile_transfer(const Transfer& t, const Box& box, const Staged& target, const Staged& source, char* dst,
                              const char* src) {
  Transfer tile = t;
  int64_t dst_first = target.first;
  int64_t src_first = source.first;
  for (int d = 0; d < t.rank; ++d) {
    Dim& dim = tile.dims[d];
    const Range& range = box.target[d];
    dim.dst_stride = target.strides[d];
    dim.src_stride = source.strides[d];
    dim.size = range.size();
    dim.begin = range.begin;
    if (dim.map.kind == MapKind::Identity) {
      dim.map.n = dim.map.m = range.size();
      dim.begin = 0;
      dst_first -= range.begin * dim.dst_stride;
      src_first -= range.begin * dim.src_stride;
    }
  }
  tile.dst = dst - dst_first * t.dst_item;
  tile.src = src - src_first * t.src_item;
  return tile;
}

}  // namespace convweights
