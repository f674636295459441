// fill on the CPU: runs of memory where mask and value do not change, single elements elsewhere.
#pragma once

#include <algorithm>
#include <vector>

#include "fill.h"

namespace convweights {

// Whether all bytes of a word are the same, so that memset will do, which is faster than any loop of ours.
inline bool is_one_byte(const Filling& f) {
  const char* const bytes = reinterpret_cast<const char*>(&f.word);
  return std::all_of(bytes, bytes + f.item, [&](char byte) { return byte == bytes[0]; });
}

template <class T>
void fill_run(T* place, int64_t count, const T& word, bool one_byte) {
  if (one_byte && count * static_cast<int64_t>(sizeof(T)) > 64) {
    memset(static_cast<void*>(place), *reinterpret_cast<const unsigned char*>(&word),
           static_cast<size_t>(count) * sizeof(T));
  } else {
    for (int64_t i = 0; i < count; ++i) place[i] = word;
  }
}

// Positions begin .. end - 1 of all dimensions but the last, with `first` .. `last` - 1 of the last.
template <class T>
void fill_rows(const Filling& f, int64_t begin, int64_t end, int64_t first, int64_t last) {
  T* const weight = reinterpret_cast<T*>(f.weight);
  const T* const value = reinterpret_cast<const T*>(f.value);
  const T word = word_of<T>(f);
  const bool one_byte = !value && is_one_byte(f);
  const FillDim& inner = f.dims[f.rank - 1];
  const bool masked_rows = f.mask && inner.mask == 0;
  const bool runs = inner.is_run() || (inner.weight == 1 && inner.mask == 0 && !value);
  int64_t at[kMaxDims] = {};
  int64_t rest = begin;
  for (int d = f.rank - 2; d >= 0; --d) {
    at[d] = rest % f.dims[d].size;
    rest /= f.dims[d].size;
  }
  FillSpot spot = spot_of(f.dims, f.rank - 1, begin);
  for (int64_t row = begin; row < end; ++row) {
    if (!masked_rows || f.mask[spot.mask]) {
      FillSpot here = spot;
      here.move(inner, first);
      if (runs) {
        fill_run(weight + here.weight, last - first, value ? value[here.value] : word, one_byte);
      } else {
        const bool* const mask = masked_rows ? nullptr : f.mask;
        for (int64_t i = first; i < last; ++i) {
          fill_element(weight, mask, value, word, here);
          here.move(inner, 1);
        }
      }
    }
    for (int d = f.rank - 2; d >= 0; --d) {
      spot.move(f.dims[d], 1);
      if (++at[d] < f.dims[d].size) break;
      spot.move(f.dims[d], -at[d]);
      at[d] = 0;
    }
  }
}

// All fillings cut into units of about as many bytes each: several rows, or a part of one.
class FillUnits {
 public:
  explicit FillUnits(const std::vector<Filling>& fillings) : fillings_(fillings) {
    cuts_.reserve(fillings.size());
    for (const Filling& f : fillings) {
      const int64_t row = f.dims[f.rank - 1].size, rows = row == 0 ? 0 : f.count() / row;
      Cut cut;
      cut.before = total_;
      cut.elements = std::max<int64_t>(1, kUnitBytes / f.item);
      cut.rows = rows;
      cut.rows_a_unit = row == 0 ? 1 : std::max<int64_t>(1, cut.elements / row);
      cut.parts = cut.rows_a_unit > 1 ? 1 : ceil_div(row, cut.elements);
      total_ += ceil_div(rows, cut.rows_a_unit) * cut.parts;
      cuts_.push_back(cut);
    }
  }

  int64_t total() const { return total_; }

  void operator()(int64_t begin, int64_t end) const {
    const auto above = std::upper_bound(cuts_.begin(), cuts_.end(), begin,
                                        [](int64_t unit, const Cut& cut) { return unit < cut.before; });
    size_t which = static_cast<size_t>(above - cuts_.begin()) - 1;
    for (int64_t unit = begin; unit < end; ++unit) {
      while (which + 1 < cuts_.size() && cuts_[which + 1].before <= unit) ++which;
      run(fillings_[which], cuts_[which], unit - cuts_[which].before);
    }
  }

 private:
  static constexpr int64_t kUnitBytes = 1 << 16;

  struct Cut {
    int64_t before, elements, rows, rows_a_unit, parts;
  };

  static void run(const Filling& f, const Cut& cut, int64_t unit) {
    const int64_t row = unit / cut.parts * cut.rows_a_unit, size = f.dims[f.rank - 1].size;
    const int64_t first = unit % cut.parts * cut.elements;
    const int64_t last = cut.parts == 1 ? size : std::min(size, first + cut.elements);
    with_raw_type(f.item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      fill_rows<T>(f, row, std::min(cut.rows, row + cut.rows_a_unit), first, last);
    });
  }

  const std::vector<Filling>& fillings_;
  std::vector<Cut> cuts_;
  int64_t total_ = 0;
};

}  // namespace convweights
