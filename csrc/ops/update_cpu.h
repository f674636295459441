// update on the CPU: cuts a list of tensors into units of work, and brings each unit to a run of neighbouring elements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "runs.h"
#include "update.h"

namespace convweights {

// Elements of a unit of work.
constexpr int64_t kUnit = 8192;
// A row of fewer neighbouring elements is gathered with others: it would not fill the vectors in flight.
constexpr int64_t kLeastRow = 256;
// Of the logical index, what is gathered at a time.
constexpr int64_t kStage = 1024;

// A position in the piece, which moves along the last dimension and, at its end, to the next row.
struct Walk {
  const Piece& piece;
  int64_t at[kMaxDims];
  Spot spot;

  Walk(const Piece& p, int64_t element) : piece(p), spot(spot_of(p.dims, 0, p.rank, element)) {
    for (int d = p.rank - 1; d >= 0; --d) {
      at[d] = element % p.dims[d].size;
      element /= p.dims[d].size;
    }
  }
  Walk(const Walk&) = default;
  Walk& operator=(const Walk& other) {
    std::copy(other.at, other.at + piece.rank, at);
    spot = other.spot;
    return *this;
  }

  int64_t rest() const { return piece.dims[piece.rank - 1].size - at[piece.rank - 1]; }

  void advance(int64_t length) {
    int d = piece.rank - 1;
    at[d] += length;
    spot.move(piece.dims[d], length);
    for (; d > 0 && at[d] == piece.dims[d].size; --d) {
      spot.move(piece.dims[d], -at[d]);
      at[d] = 0;
      ++at[d - 1];
      spot.move(piece.dims[d - 1], 1);
    }
  }
};

class PieceUnits {
 public:
  PieceUnits(const Piece& piece, Run run) : p_(piece), run_(run), last_(piece.dims[piece.rank - 1]) {
    direct_ = last_.stride == 1 && last_.index == 1 && last_.mask == 0 && (p_.rank == 1 || last_.size >= kLeastRow);
    rows_ = direct_ ? p_.count() / last_.size : 1;
    row_ = direct_ ? last_.size : p_.count();
    chunks_ = ceil_div(row_, kUnit);
  }

  int64_t units() const { return rows_ * chunks_; }

  void operator()(int64_t unit, const Recipe& recipe) const {
    const int64_t begin = unit % chunks_ * kUnit;
    const int64_t end = std::min(row_, begin + kUnit);
    if (!direct_) {
      gathered(begin, end, recipe);
      return;
    }
    const Spot spot = spot_of(p_.dims, 0, p_.rank - 1, unit / chunks_);
    if (p_.mask == nullptr || p_.mask[spot.mask]) {
      run_(p_.weight + (spot.weight + begin) * p_.item, p_.start + static_cast<uint64_t>(spot.index + begin),
           end - begin, p_.stream, recipe);
    }
  }

 private:
  // Elements begin .. end - 1 of the piece, a stretch of the logical index at a time: copied to a stage, updated,
  // copied back. Elements follow one another in the index; those that lie between, of the whole tensor, are updated on
  // the stage and forgotten.
  void gathered(int64_t begin, int64_t end, const Recipe& recipe) const {
    with_raw_type(p_.item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      T* const weight = reinterpret_cast<T*>(p_.weight);
      T stage[kStage] = {};
      Walk walk(p_, begin);
      for (int64_t left = end - begin; left > 0;) {
        const Walk start = walk;
        const int64_t first = walk.spot.index;
        int64_t count = 0;
        int64_t size = 0;
        bool any = p_.mask == nullptr;
        while (count < left && walk.spot.index - first < kStage) {
          const int64_t slot = walk.spot.index - first;
          const int64_t fits = last_.index == 1 ? kStage - slot : ceil_div(kStage - slot, last_.index);
          const int64_t length = std::min(std::min(walk.rest(), left - count), fits);
          for (int64_t i = 0; i < length; ++i) {
            stage[slot + i * last_.index] = weight[walk.spot.weight + i * last_.stride];
            any = any || p_.mask[walk.spot.mask + i * last_.mask];
          }
          size = slot + (length - 1) * last_.index + 1;
          count += length;
          walk.advance(length);
        }
        left -= count;
        if (!any) continue;
        run_(stage, p_.start + static_cast<uint64_t>(first), size, p_.stream, recipe);
        Walk back = start;
        for (int64_t done = 0; done < count;) {
          const int64_t length = std::min(back.rest(), count - done);
          const int64_t slot = back.spot.index - first;
          for (int64_t i = 0; i < length; ++i) {
            if (p_.mask != nullptr && !p_.mask[back.spot.mask + i * last_.mask]) continue;
            weight[back.spot.weight + i * last_.stride] = stage[slot + i * last_.index];
          }
          done += length;
          back.advance(length);
        }
      }
    });
  }

  const Piece& p_;
  Run run_;
  const UpdateDim& last_;
  bool direct_ = false;
  int64_t rows_ = 1;
  int64_t row_ = 1;  // elements
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
