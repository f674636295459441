// A journal on the CPU: chunks of all tensors, counted through.
#pragma once

#include <algorithm>
#include <vector>

#include "runs.h"
#include "update_cpu.h"

namespace convweights {

class JournalChunks {
 public:
  JournalChunks(const std::vector<JournalPiece>& pieces, const Runs& runs, const JournalPool& pool)
      : pieces_(pieces), runs_(runs), pool_(pool) {
    for (const JournalPiece& p : pieces) {
      total_ += ceil_div(p.piece.count(), kChunk);
      ends_.push_back(total_);
    }
  }

  int64_t total() const { return total_; }

  void operator()(int64_t begin, int64_t end, const Recipe& recipe, JournalAction action) const {
    size_t which = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin());
    for (int64_t chunk = begin; chunk < end; ++which) {
      const int64_t first = which == 0 ? 0 : ends_[which - 1];
      for (const int64_t stop = std::min(end, ends_[which]); chunk < stop; ++chunk) {
        run(pieces_[which], chunk - first, recipe, action);
      }
    }
  }

 private:
  void run(const JournalPiece& p, int64_t chunk, const Recipe& recipe, JournalAction action) const {
    const Piece& piece = p.piece;
    const int64_t begin = chunk * kChunk, count = std::min(kChunk, piece.count() - begin);
    const auto chunk_run = [&](void* weights) {
      runs_.journal[static_cast<int>(piece.type)](weights, piece.start + static_cast<uint64_t>(begin), count,
                                                  piece.stream, recipe, action, p.section, chunk, pool_);
    };
    if (piece.rank == 1 && piece.dims[0].stride == 1) {
      chunk_run(piece.weight + begin * piece.item);
      return;
    }
    with_raw_type(piece.item, [&](auto raw) {
      using T = typename decltype(raw)::type;
      T* const weight = reinterpret_cast<T*>(piece.weight);
      alignas(64) T stage[kChunk];
      copy(piece, begin, count, [&](int64_t i, int64_t place) { stage[i] = weight[place]; });
      chunk_run(stage);
      copy(piece, begin, count, [&](int64_t i, int64_t place) { weight[place] = stage[i]; });
    });
  }

  // visit(i, place in the weight) for elements begin .. in row-major order.
  template <class Visit>
  static void copy(const Piece& piece, int64_t begin, int64_t count, const Visit& visit) {
    const int64_t stride = piece.dims[piece.rank - 1].stride;
    Walk walk(piece, begin);
    for (int64_t done = 0; done < count;) {
      const int64_t length = std::min(walk.rest(), count - done);
      for (int64_t i = 0; i < length; ++i) visit(done + i, walk.spot.weight + i * stride);
      done += length;
      walk.advance(length);
    }
  }

  const std::vector<JournalPiece>& pieces_;
  const Runs& runs_;
  const JournalPool pool_;
  std::vector<int64_t> ends_;
  int64_t total_ = 0;
};

}  // namespace convweights
