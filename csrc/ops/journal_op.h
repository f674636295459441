// A journal's operator: from torch's arguments to pieces with their sections, for both libraries.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "journal.h"
#include "update_op.h"

namespace convweights {

struct Journal {
  std::vector<JournalPiece> pieces;
  JournalPool pool;
  Recipe recipe;
  JournalAction action = JournalAction::Enter;
};

// A weight's place in a journal of `bytes` bytes, and its elements in the logical index from `start` on.
inline JournalPiece make_journal_piece(const Tensor& weight, int64_t stream, int64_t start, char* journal, int64_t end,
                                       int64_t at, int64_t room) {
  JournalPiece made;
  made.piece = make_piece(weight, std::nullopt, stream, nullptr);
  const Piece& piece = made.piece;
  CW_CHECK(piece.type != Dtype::Float64, "journal_: weights must be float32, float16 or bfloat16");
  CW_CHECK(start >= 0 && start % kChunk == 0 && start <= kMostIndices - piece.count(),
           "journal_: starts must be multiples of ", kChunk, " below 2^50, got ", start);
  made.piece.start = static_cast<uint64_t>(start);
  CW_CHECK(room >= 0 && room <= kChunk && at >= 0 && at % 8 == 0, "journal_: sections must begin at a multiple of 8");
  const int64_t bytes = section_bytes(piece.count(), piece.item, room);
  CW_CHECK(at <= end - bytes, "journal_: sections must lie before the pool, got ", at, " .. ", at + bytes);
  made.section = section_at(journal + at, piece.count(), piece.item, room);
  return made;
}

// All that is checked is checked before anything is written. `recipe` reads `scale` and `seed` where they are.
inline Journal make_journal(const std::vector<Tensor>& weights, const Tensor& journal, const Ints& sections,
                            const Ints& rooms, int64_t pool, const Ints& streams, const Ints& starts,
                            int64_t distribution, const std::vector<double>& scale, const Ints& seed, int64_t step,
                            int64_t action) {
  const size_t n = weights.size();
  CW_CHECK(sections.size() == n && rooms.size() == n && streams.size() == n && starts.size() == n,
           "journal_: sections, rooms, streams and starts must hold one number a weight");
  CW_CHECK(action >= 0 && action <= 2, "journal_: action must be 0, 1 or 2, got ", action);
  CW_CHECK(distribution >= 1, "journal_: distribution must be 1, 2 or 3, got ", distribution);
  CW_CHECK(dtype_code(journal) == aoti_torch_dtype_uint8() && journal.dim() == 1 && journal.is_contiguous(),
           "journal_: journal must be a row of bytes");
  const int64_t bytes = journal.numel();
  char* const place = static_cast<char*>(journal.mutable_data_ptr());
  CW_CHECK(pool >= 8 && pool <= bytes && pool % 8 == 0 && reinterpret_cast<uintptr_t>(place) % 8 == 0,
           "journal_: pool must begin at a multiple of 8 in the journal, got ", pool);
  CW_CHECK(std::isfinite(static_cast<float>(scale[0])), "journal_: scale must be finite in float32, got ", scale[0]);
  Journal made;
  std::vector<Piece> pieces;
  std::vector<std::pair<int64_t, int64_t>> places{{0, 8}};
  for (size_t i = 0; i < n; ++i) {
    CW_CHECK(weights[i].device() == journal.device(), "journal_: weights must be on the journal's device");
    made.pieces.push_back(make_journal_piece(weights[i], streams[i], starts[i], place, pool, sections[i], rooms[i]));
    pieces.push_back(made.pieces.back().piece);
    places.emplace_back(sections[i], sections[i] + section_bytes(pieces[i].count(), pieces[i].item, rooms[i]));
  }
  std::sort(places.begin(), places.end());
  for (size_t i = 1; i < places.size(); ++i) {
    CW_CHECK(places[i - 1].second <= places[i].first, "journal_: sections must not overlap");
  }
  for (const auto& [begin, end] : check_disjoint("journal_", pieces, &UpdateDim::stride)) {
    CW_CHECK(end <= place || begin >= place + bytes, "journal_: weights must not lie in the journal");
  }
  made.pool.used = reinterpret_cast<uint32_t*>(place);
  made.pool.flag = made.pool.used + 1;
  made.pool.words = place + pool;
  made.pool.size = static_cast<uint32_t>(std::min<int64_t>((bytes - pool) / 4, int64_t{1} << 31));
  made.recipe = make_recipe(distribution, 1.0, 0.0, scale, seed, step, false, false, {});
  made.action = static_cast<JournalAction>(action);
  return made;
}

}  // namespace convweights
