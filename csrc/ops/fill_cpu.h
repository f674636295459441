// fill on the CPU: runs of memory where mask and value do not change, single elements elsewhere.
#pragma once

#include <algorithm>
#include <utility>
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
  } else if (count * static_cast<int64_t>(sizeof(T)) <= 64) {
    for (int64_t i = 0; i < count; ++i) {
      place[i] = word;
      asm volatile("" ::: "memory");  // no vectors: getting them under way takes longer than a few stores
    }
  } else {
    for (int64_t i = 0; i < count; ++i) place[i] = word;
  }
}

// `count` elements in a row by a mask beside them: AVX-512 stores under masks of its own.
template <class T>
CW_CLONES void fill_masked(T* __restrict__ place, const uint8_t* __restrict__ mask, int64_t count, T word) {
  for (int64_t i = 0; i < count; ++i) {
    if (mask[i]) place[i] = word;
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
  const bool runs = inner.is_run(), masked_run = f.mask && !value && inner.weight == 1 && inner.mask == 1;
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
      } else if (masked_run) {
        fill_masked(weight + here.weight, reinterpret_cast<const uint8_t*>(f.mask + here.mask), last - first, word);
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

constexpr int64_t kFillUnitBytes = 1 << 16;

// A mask along one dimension alone, behind which memory is contiguous, as the runs that it leaves to fill: the time
// then follows what is masked. Runs are offset and length in elements, and none is longer than a unit. Where they are
// so short that one finds some in most lines of memory, the mask of a whole row is spread out instead.
struct MaskRuns {
  int dim = -1;  // none: the mask is something else
  std::vector<std::pair<int64_t, int64_t>> runs;
  std::vector<uint8_t> spread;  // a mask of each element, or empty
  int64_t elements = 0;         // of all runs

  explicit MaskRuns(const Filling& f) {
    if (!f.mask || f.value) return;
    int masked = -1;
    for (int d = 0; d < f.rank; ++d) {
      if (f.dims[d].mask == 0) continue;
      if (masked >= 0) return;
      masked = d;
    }
    if (masked < 0) return;
    const FillDim& along = f.dims[masked];
    const bool last = masked == f.rank - 1;
    const int64_t inner = last ? 1 : f.dims[f.rank - 1].size;
    if (along.weight != inner || masked < f.rank - 2 || (!last && !f.dims[f.rank - 1].is_run())) return;
    dim = masked;
    const int64_t most = std::max<int64_t>(1, kFillUnitBytes / (f.item * std::max<int64_t>(1, inner)));
    for (int64_t j = 0; j < along.size;) {
      if (!f.mask[j * along.mask]) {
        ++j;
        continue;
      }
      int64_t end = j + 1;
      while (end < along.size && end - j < most && f.mask[end * along.mask]) ++end;
      runs.emplace_back(j * inner, (end - j) * inner);
      elements += (end - j) * inner;
      j = end;
    }
    const int64_t row = along.size * inner, lines = ceil_div(row * f.item, 64);
    if (f.item > 8 || static_cast<int64_t>(runs.size()) * kLinesPerRun < lines) return;
    spread.resize(static_cast<size_t>(row));
    for (const auto& [at, count] : runs) std::fill_n(spread.begin() + at, count, uint8_t{1});
  }

 private:
  // What storing a short run takes, in lines that are stored under a mask.
  static constexpr int64_t kLinesPerRun = 4;
};

// The beginning of a run, which no processor foresees; the rest follows.
CW_INLINE void prefetch(const void* run, int64_t bytes) {
  const char* const from = static_cast<const char*>(run);
  for (int64_t at = 0; at < std::min<int64_t>(bytes, 1024); at += 64) __builtin_prefetch(from + at, 1);
}

// Rows begin .. end - 1 of the dimensions before the mask's, with runs, or elements, `first` .. `last` - 1 of each.
template <class T>
void fill_mask_runs(const Filling& f, const MaskRuns& m, int64_t begin, int64_t end, size_t first, size_t last) {
  const T word = word_of<T>(f);
  const bool one_byte = is_one_byte(f);
  for (int64_t row = begin; row < end; ++row) {
    T* const place = reinterpret_cast<T*>(f.weight) + spot_of(f.dims, m.dim, row).weight;
    if (!m.spread.empty()) {
      fill_masked(place + first, &m.spread[first], static_cast<int64_t>(last - first), word);
      continue;
    }
    for (size_t k = first; k < last; ++k) {
      if (k + 2 < last) prefetch(place + m.runs[k + 2].first, m.runs[k + 2].second * static_cast<int64_t>(sizeof(T)));
      fill_run(place + m.runs[k].first, m.runs[k].second, word, one_byte);
    }
  }
}

// All fillings cut into units of about as many bytes each: several rows, or a part of one.
class FillUnits {
 public:
  explicit FillUnits(const std::vector<Filling>& fillings) : fillings_(fillings) {
    cuts_.reserve(fillings.size());
    for (const Filling& f : fillings) {
      cuts_.push_back(cut_of(f));
      cuts_.back().before = total_;
      bytes_ += cuts_.back().rows * cuts_.back().bytes;
      total_ += ceil_div(cuts_.back().rows, cuts_.back().rows_a_unit) * cuts_.back().parts;
    }
  }

  int64_t total() const { return total_; }
  int64_t bytes() const { return bytes_; }

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
  // `rows` of `entries` each, elements or runs of them, which cover `bytes`: so many rows a unit, or so many entries.
  struct Cut {
    Cut(MaskRuns r, int64_t count, int64_t each, int64_t row_bytes)
        : runs(std::move(r)), rows(count), entries(each), bytes(row_bytes) {
      rows_a_unit = std::max<int64_t>(1, kFillUnitBytes / std::max<int64_t>(1, bytes));
      entries_a_unit = bytes <= kFillUnitBytes ? each : std::max<int64_t>(1, each * kFillUnitBytes / bytes);
      parts = entries_a_unit == 0 ? 0 : ceil_div(each, entries_a_unit);
    }

    MaskRuns runs;
    int64_t rows, entries, bytes, rows_a_unit, entries_a_unit, parts;
    int64_t before = 0;
  };

  static Cut cut_of(const Filling& f) {
    MaskRuns runs(f);
    if (f.count() == 0) return Cut(std::move(runs), 0, 0, 0);
    if (runs.dim >= 0) {
      int64_t rows = 1;
      for (int d = 0; d < runs.dim; ++d) rows *= f.dims[d].size;
      const size_t entries = runs.spread.empty() ? runs.runs.size() : runs.spread.size();
      const int64_t bytes = runs.spread.empty() ? runs.elements * f.item : static_cast<int64_t>(entries) * f.item;
      return Cut(std::move(runs), rows, static_cast<int64_t>(entries), bytes);
    }
    const int64_t row = f.dims[f.rank - 1].size;
    return Cut(std::move(runs), f.count() / row, row, row * f.item);
  }

  static void run(const Filling& f, const Cut& cut, int64_t unit) {
    const int64_t row = unit / cut.parts * cut.rows_a_unit, end = std::min(cut.rows, row + cut.rows_a_unit);
    const int64_t first = unit % cut.parts * cut.entries_a_unit;
    const int64_t last = std::min(cut.entries, first + cut.entries_a_unit);
    with_raw_type(f.item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      if (cut.runs.dim >= 0) {
        fill_mask_runs<T>(f, cut.runs, row, end, static_cast<size_t>(first), static_cast<size_t>(last));
      } else {
        fill_rows<T>(f, row, end, first, last);
      }
    });
  }

  const std::vector<Filling>& fillings_;
  std::vector<Cut> cuts_;
  int64_t total_ = 0, bytes_ = 0;
};

}  // namespace convweights
