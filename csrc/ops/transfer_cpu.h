// transfer on the CPU: cuts the reduced problem into panels and spreads these over threads.
#pragma once

#include "panel.h"
#include "panel_copy.h"
#include "transfer.h"

namespace convweights {

// What a unit writes: enough to make its set-up small, little enough to stay in the first cache.
constexpr int64_t kUnitBytes = 32768;
// A target that no cache holds is written around them: that spares reading what is about to be overwritten. Measured
// on an Emerald Rapids core, 48 MB: 24 GB/s against 12; 19 MB: 23 against 26.
constexpr int64_t kStreamBytes = int64_t{32} << 20;
// Rows of a panel whose source lies across: the lines that are written at once must all stay in the cache.
constexpr int64_t kAcrossRows = 16;
// Rows where spans along the run are short, so that panels are long in the other direction.
constexpr int64_t kScatteredRows = 256;

class TransferPanels {
 public:
  TransferPanels(const Transfer& transfer, const PanelLoops& loops) : t_(transfer), loops_(loops) {
    choose_axes();
    choose_blocks();
  }

  int64_t units() const { return units_; }
  int64_t unit_elements() const { return row_block_ * run_block_ * plane_size_; }

  // Writes the part of the target that is unit number `unit`. Identities begin at 0.
  void operator()(int64_t unit) const {
    Cursor cursor;
    cursor.base = t_.dst;
    for (int d = t_.loops(); d < t_.rank; ++d) cursor.take(t_, d, span_of(t_.dims[d].map, 0, 1, t_.wide));
    int64_t rest = unit;
    int64_t row_begin = 0;
    if (!across_) row_begin = digit(rest, row_blocks_) * row_block_;
    int64_t run_begin = digit(rest, run_blocks_) * run_block_;
    for (int d = t_.loops() - 1; d >= 0; --d) {
      if (d == run_ || d == row_ || d == plane_) continue;
      const int64_t j = t_.dims[d].begin + digit(rest, t_.dims[d].size);
      cursor.take(t_, d, span_of(t_.dims[d].map, j, 1, t_.wide));
      cursor.dst += j * t_.dims[d].dst_stride;
    }
    if (across_) row_begin = rest * row_block_;
    int64_t row_end = std::min(row_begin + row_block_, row_size_);
    int64_t run_end = std::min(run_begin + run_block_, run_size_);
    shift(row_begin, row_end, row_);
    shift(run_begin, run_end, run_);
    if (!streams_) {
      rows(cursor, row_begin, row_end, run_begin, run_end);
      return;
    }
    alignas(64) char scratch[kUnitBytes];
    int64_t origin = cursor.dst + run_begin;
    if (row_ >= 0) origin += row_begin * t_.dims[row_].dst_stride;
    cursor.base = scratch;
    cursor.dst -= origin;
    rows(cursor, row_begin, row_end, run_begin, run_end);
    stream_bytes(t_.dst + origin * t_.dst_item, scratch, (row_end - row_begin) * (run_end - run_begin) * t_.dst_item);
  }

 private:
  // What the dimensions looked at so far have fixed.
  struct Cursor {
    char* base;
    int64_t src = 0;
    int64_t dst = 0;
    Window windows[kMaxDims];
    double factors[kMaxDims] = {1, 1, 1, 1, 1, 1, 1, 1};
    bool reached = true;

    void take(const Transfer& t, int d, const Span& span) {
      windows[d] = span.window;
      reached = reached && span.window.count > 0;
      factors[d] = span.window.count > 0 ? factor_of(t.dims[d].map, span.window) : 1.0;
      src += span.window.first * t.dims[d].src_stride;
    }
  };

  static int64_t digit(int64_t& rest, int64_t base) {
    const int64_t value = rest % base;
    rest /= base;
    return value;
  }

  // From counting the positions that are written to counting the target's.
  void shift(int64_t& begin, int64_t& end, int d) const {
    if (d < 0) return;
    begin += t_.dims[d].begin;
    end += t_.dims[d].begin;
  }

  // Roughly how far a span of this dimension reaches.
  static int64_t typical_span(const Map& map) {
    switch (map.kind) {
      case MapKind::Identity:
      case MapKind::Strided:
      case MapKind::Offset:
        return map.m;
      case MapKind::Tile:
        return std::min(map.n, map.m);
      case MapKind::Interleave:
        return map.n % map.m == 0 ? map.m : std::max<int64_t>(1, map.m / map.n);
      case MapKind::Blocks:
        return map.n % map.m == 0 ? map.m : 1;
      default:
        return 1;
    }
  }

  void choose_axes() {
    const int loops = t_.loops();
    run_ = loops - 1;
    if (run_ < 0) return;
    run_size_ = t_.dims[run_].size;
    // A source that lies across is read along the dimension where it is dense.
    if (t_.dims[run_].src_stride != 1) {
      for (int d = 0; d < run_; ++d) {
        if (t_.dims[d].map.kind == MapKind::Identity && t_.dims[d].src_stride == 1 && t_.dims[d].size >= 4) {
          row_ = d;
          across_ = true;
        }
      }
    }
    for (int d = run_ - 1; d >= 0 && !across_; --d) {
      if (row_ < 0 ||
          (typical_span(t_.dims[row_].map) < 8 && typical_span(t_.dims[d].map) > typical_span(t_.dims[row_].map))) {
        row_ = d;
      }
    }
    if (row_ >= 0) row_size_ = t_.dims[row_].size;
    if (across_ && run_ - 1 > row_ && t_.dims[run_ - 1].map.kind == MapKind::Identity) {
      plane_ = run_ - 1;
      plane_size_ = t_.dims[plane_].size;
    }
  }

  void choose_blocks() {
    const int64_t unit = kUnitBytes / t_.dst_item;
    run_block_ = std::min(run_size_, unit);
    int64_t rows = unit / run_block_;
    if (run_ >= 0 && typical_span(t_.dims[run_].map) < 8) rows = std::max(rows, kScatteredRows);
    if (across_) rows = kAcrossRows;
    row_block_ = std::min(row_size_, std::max<int64_t>(1, rows));
    streams_ = can_stream();
    row_blocks_ = ceil_div(row_size_, row_block_);
    run_blocks_ = ceil_div(run_size_, run_block_);
    units_ = row_blocks_ * run_blocks_;
    for (int d = 0; d < t_.loops(); ++d) {
      if (d != run_ && d != row_ && d != plane_) units_ *= t_.dims[d].size;
    }
  }

  // Whether the target is large and each unit one stretch of it, all of which is written.
  bool can_stream() const {
    if (!kCanStream || run_ < 0 || across_ || t_.keep || t_.spreads > 0) return false;
    const int64_t elements = row_block_ * run_block_;
    const bool dense = t_.dims[run_].dst_stride == 1 &&
                       (row_block_ == 1 || (run_block_ == run_size_ && t_.dims[row_].dst_stride == run_size_));
    return dense && elements * t_.dst_item <= kUnitBytes && elements * t_.dst_item >= kUnitBytes / 8 &&
           count_of(t_) * t_.dst_item >= kStreamBytes;
  }

  void rows(const Cursor& outer, int64_t begin, int64_t end, int64_t run_begin, int64_t run_end) const {
    if (row_ < 0) {
      runs(outer, kPoint, run_begin, run_end);
      return;
    }
    const Dim& dim = t_.dims[row_];
    for (int64_t j = begin; j < end;) {
      const Span span = span_of(dim.map, j, end - j, t_.wide);
      Cursor cursor = outer;
      cursor.take(t_, row_, span);
      cursor.dst += j * dim.dst_stride;
      const int64_t size = span.length;
      runs(cursor, Axis{size, dim.dst_stride, span.advance * dim.src_stride}, run_begin, run_end);
      j += size;
    }
  }

  void runs(const Cursor& outer, const Axis& row, int64_t begin, int64_t end) const {
    if (run_ < 0) {
      panel(outer, row, kPoint);
      return;
    }
    const Dim& dim = t_.dims[run_];
    const int64_t period = dim.map.n;
    for (int64_t j = begin; j < end;) {
      if (dim.map.kind == MapKind::Tile && j - begin >= period && repeats(outer)) {
        const int64_t start = (outer.dst + j - period) * t_.dst_item;
        repeat_rows(outer.base + start, row.size, row.dst * t_.dst_item, period * t_.dst_item,
                    (end - j + period) * t_.dst_item);
        return;
      }
      const Span span = span_of(dim.map, j, end - j, t_.wide);
      const int64_t size = span.length;
      Cursor cursor = outer;
      cursor.take(t_, run_, span);
      cursor.dst += j * dim.dst_stride;
      panel(cursor, row, Axis{size, dim.dst_stride, span.advance * dim.src_stride});
      j += size;
    }
  }

  // Whether what a period's first pass wrote can be copied from there.
  bool repeats(const Cursor& outer) const {
    return outer.reached && t_.dims[run_].dst_stride == 1 && t_.spreads == 0 && plane_ < 0;
  }

  void panel(const Cursor& cursor, const Axis& row, const Axis& run) const {
    if (!cursor.reached && t_.keep) return;
    Panel p;
    p.dst = cursor.base + cursor.dst * t_.dst_item;
    p.src = t_.src + cursor.src * t_.src_item;
    p.row = row;
    p.run = run;
    if (plane_ >= 0) p.plane = Axis{plane_size_, t_.dims[plane_].dst_stride, t_.dims[plane_].src_stride};
    for (int d = t_.loops(); d < t_.rank; ++d) {
      p.spread[p.spreads++] = Axis{t_.dims[d].size, t_.dims[d].dst_stride, 0};
    }
    if (!cursor.reached) {
      p.fill[0] = t_.fill[0];
      p.fill[1] = t_.fill[1];
      loops_.fill(p);
      return;
    }
    double factor = t_.scale;
    for (int i = 0; i < t_.rank; ++i) {
      const int d = t_.order[i];
      const Window& window = cursor.windows[d];
      factor *= cursor.factors[d];
      if (window.count == 1) continue;
      p.tap[p.taps++] = Tap{window.count, window.step * t_.dims[d].src_stride, {window.weight[0], window.weight[1]}};
    }
    p.factor = round_to_compute(factor, t_.wide);
    orient(p);
    if (p.taps > 0 || p.spreads > 0) {
      loops_.sum(p);
    } else if (t_.same_type && p.factor == 1.0) {
      loops_.copy(p);
    } else {
      loops_.convert(p);
    }
  }

  const Transfer& t_;
  const PanelLoops& loops_;
  int run_ = -1;
  int row_ = -1;
  int plane_ = -1;
  bool across_ = false;
  bool streams_ = false;
  int64_t run_size_ = 1;
  int64_t row_size_ = 1;
  int64_t plane_size_ = 1;
  int64_t run_block_ = 1;
  int64_t row_block_ = 1;
  int64_t run_blocks_ = 1;
  int64_t row_blocks_ = 1;
  int64_t units_ = 1;
};

}  // namespace convweights
