// update on the CPU: cuts a list of tensors into units of work, and brings each unit to a run of neighbouring elements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "update.h"
#include "update_recipe.h"

namespace convweights {

// Elements of a unit of work.
constexpr int64_t kUnit = 8192;
// A row of fewer neighbouring elements is gathered with others: it would not fill the vectors in flight.
constexpr int64_t kLeastRow = 256;
constexpr int64_t kStage = 1024;

class PieceUnits {
 public:
  PieceUnits(const Piece& piece, Run run) : p_(piece), run_(run), block_(block_of(piece)) {
    const UpdateDim& last = p_.dims[p_.rank - 1];
    direct_ = last.stride == 1 && last.index == 1 && last.mask == 0 && (p_.rank == 1 || last.size >= kLeastRow);
    if (direct_) {
      block_.rows *= block_.size / last.size;
      block_.size = last.size;
      block_.first = p_.rank - 1;
    }
    chunks_ = ceil_div(block_.size, kUnit);
  }

  int64_t units() const { return block_.rows * chunks_; }

  void operator()(int64_t unit, const Recipe& recipe) const {
    const Spot spot = spot_of(p_.dims, 0, block_.first, unit / chunks_);
    const int64_t begin = unit % chunks_ * kUnit;
    const int64_t end = std::min(block_.size, begin + kUnit);
    if (!direct_) {
      gathered(spot, begin, end, recipe);
    } else if (p_.mask == nullptr || p_.mask[spot.mask]) {
      run_(p_.weight + (spot.weight + begin) * p_.item, p_.start + static_cast<uint64_t>(spot.index + begin),
           end - begin, p_.stream, recipe);
    }
  }

 private:
  // Elements begin .. end - 1 of the block at `spot`, a stage at a time: copied there, updated, copied back.
  void gathered(const Spot& spot, int64_t begin, int64_t end, const Recipe& recipe) const {
    with_raw_type(p_.item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      T* const weight = reinterpret_cast<T*>(p_.weight);
      T stage[kStage];
      for (int64_t size; begin < end; begin += size) {
        size = std::min(end - begin, kStage);
        bool any = p_.mask == nullptr;
        walk(spot, begin, size, [&](int64_t i, int64_t at, int64_t mask) {
          stage[i] = weight[at];
          any = any || p_.mask[mask];
        });
        if (!any) continue;
        run_(stage, p_.start + static_cast<uint64_t>(spot.index + begin), size, p_.stream, recipe);
        walk(spot, begin, size, [&](int64_t i, int64_t at, int64_t mask) {
          if (p_.mask == nullptr || p_.mask[mask]) weight[at] = stage[i];
        });
      }
    });
  }

  // visit(i, place of the weight, place of the mask) for elements begin + i of the block, i below `size`.
  template <class Visit>
  CW_INLINE void walk(const Spot& spot, int64_t begin, int64_t size, const Visit& visit) const {
    if (block_.first == p_.rank) {
      visit(0, spot.weight, spot.mask);
      return;
    }
    const UpdateDim& last = p_.dims[p_.rank - 1];
    for (int64_t i = 0; i < size;) {
      const Spot row = spot_of(p_.dims, block_.first, p_.rank - 1, (begin + i) / last.size);
      const int64_t skipped = (begin + i) % last.size;
      const int64_t rest = std::min(size - i, last.size - skipped);
      int64_t at = spot.weight + row.weight + skipped * last.stride;
      int64_t mask = spot.mask + row.mask + skipped * last.mask;
      for (const int64_t stop = i + rest; i < stop; ++i, at += last.stride, mask += last.mask) visit(i, at, mask);
    }
  }

  const Piece& p_;
  Run run_;
  Block block_;
  bool direct_ = false;
  int64_t chunks_ = 1;
};

// The units of all pieces, counted through.
class UpdateUnits {
 public:
  UpdateUnits(const std::vector<Piece>& pieces, const Runs& runs) {
    units_.reserve(pieces.size());
    for (const Piece& piece : pieces) {
      if (piece.count() == 0) continue;
      units_.emplace_back(piece, runs.of[static_cast<int>(piece.type)]);
      total_ += units_.back().units();
      ends_.push_back(total_);
    }
  }

  int64_t total() const { return total_; }

  void operator()(int64_t begin, int64_t end, const Recipe& recipe) const {
    size_t piece = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin());
    for (int64_t unit = begin; unit < end; ++piece) {
      const int64_t first = piece == 0 ? 0 : ends_[piece - 1];
      for (const int64_t stop = std::min(end, ends_[piece]); unit < stop; ++unit) units_[piece](unit - first, recipe);
    }
  }

 private:
  std::vector<PieceUnits> units_;
  std::vector<int64_t> ends_;
  int64_t total_ = 0;
};

}  // namespace convweights
