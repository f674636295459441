// Registers the CPU kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "ops/compact.h"
#include "ops/fill_cpu.h"
#include "ops/fill_op.h"
#include "ops/journal_cpu.h"
#include "ops/journal_op.h"
#include "ops/panel_compute.h"
#include "ops/panel_copy.h"
#include "ops/transfer_cpu.h"
#include "ops/transfer_op.h"
#include "ops/update_cpu.h"
#include "ops/update_op.h"
#include "simd.h"

namespace convweights {
namespace {

template <class D, class S>
PanelLoops compute_loops() {
  using C = std::conditional_t<std::is_same_v<D, double> || std::is_same_v<S, double>, double, float>;
  return {nullptr, nullptr, convert_panel<D, S, C>, sum_panel<D, S, C>};
}

}  // namespace

PanelLoops panel_loops(Dtype target, Dtype source, int64_t item) {
  PanelLoops loops{};
  if (target != Dtype::CopyOnly && source != Dtype::CopyOnly) {
    loops = with_compute_type(target, [&](auto d) {
      return with_compute_type(
          source, [&](auto s) { return compute_loops<typename decltype(d)::type, typename decltype(s)::type>(); });
    });
  }
  with_raw_type(item, [&](auto raw) {
    using T = typename decltype(raw)::type;
    loops.fill = fill_panel<T>;
    loops.copy = copy_panel<T>;
  });
  return loops;
}

namespace {

// Below this many bytes a thread, waking another costs more than it saves.
constexpr int64_t kBytesPerThread = 1 << 17;

void compact(const Compaction& c) {
  for (int64_t row = c.first(); row < c.rows;) {
    const int64_t end = c.wave_end(row);
    if (end == row + 1) {
      memmove(c.target(row), c.source(row), static_cast<size_t>(c.to));
    } else {
      torch::stable::parallel_for(row, end, std::max<int64_t>(1, kBytesPerThread / c.to), [&](int64_t a, int64_t b) {
        for (int64_t r = a; r < b; ++r) memcpy(c.target(r), c.source(r), static_cast<size_t>(c.to));
      });
    }
    row = end;
  }
}

void transfer_(Tensor weight, const Tensor source, const Ints kinds, const Ints starts, const Ints rescales,
               const std::vector<Tensor> index, double scale, const Ints fill) {
  Transfer t = make_transfer(weight, source, kinds, starts, rescales, index, scale, fill);
  if (count_of(t) == 0) return;
  if (is_compaction(t) && weight.is_contiguous() && source.is_contiguous()) {
    compact(make_compaction(t));
    return;
  }
  reduce(t, /*absorb=*/true);
  const PanelLoops loops = panel_loops(t.dst_type, t.src_type, t.dst_item);
  const TransferPanels panels(t, loops);
  const int64_t grain = std::max<int64_t>(1, kBytesPerThread / (panels.unit_elements() * t.dst_item));
  torch::stable::parallel_for(0, panels.units(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) panels(unit);
    end_of_streams();
  });
}

// Bytes that fill may write below which waking another thread costs more than it saves.
constexpr int64_t kFillBytesPerThread = 1 << 18;

void fill_(std::vector<Tensor> weights, const MaybeTensors masks, const Ints dims, const Ints counts,
           const Ints positions, const MaybeTensors values, const Ints bits, bool disjoint) {
  const std::vector<Filling> fillings = make_fillings(weights, masks, dims, counts, positions, values, bits, disjoint);
  if (fillings.empty()) return;
  const FillUnits units(fillings);
  const int64_t grain = ceil_div(units.total() * kFillBytesPerThread, std::max<int64_t>(1, units.bytes()));
  torch::stable::parallel_for(0, units.total(), std::max<int64_t>(1, grain),
                              [&](int64_t begin, int64_t end) { units(begin, end); });
}

// Units of update below which waking another thread costs more than it saves.
constexpr int64_t kUnitsPerThread = 4;

void update_(std::vector<Tensor> weights, const Masks masks, const Ints streams, const Ints boxes, int64_t distribution,
             double decay, double shift, const std::vector<double> scales, const Ints seeds, int64_t step,
             bool accumulate, bool stochastic, bool disjoint, const std::optional<Tensor> state) {
  const std::vector<Piece> pieces = make_pieces(weights, masks, streams, boxes);
  if (!disjoint) check_disjoint("update_", pieces, &UpdateDim::stride);
  Recipe recipe = make_recipe(distribution, decay, shift, scales, seeds, step, accumulate, stochastic, pieces);
  const int64_t* const at = state_of(state, weights, recipe.count);
  if (at) {
    recipe.seeds = at;
    recipe.step = static_cast<uint32_t>(at[1]);
  }
  const UpdateUnits units(pieces, update_runs());
  torch::stable::parallel_for(0, units.total(), kUnitsPerThread,
                              [&](int64_t begin, int64_t end) { units(begin, end, recipe); });
}

void journal_(std::vector<Tensor> weights, Tensor journal, const Ints sections, const Ints rooms, int64_t pool,
              const Ints streams, const Ints starts, int64_t distribution, double scale, int64_t seed, int64_t step,
              int64_t action) {
  const std::vector<double> scales{scale};
  const Ints seeds{seed};
  const Journal made =
      make_journal(weights, journal, sections, rooms, pool, streams, starts, distribution, scales, seeds, step, action);
  const JournalChunks chunks(made.pieces, update_runs(), made.pool);
  torch::stable::parallel_for(0, chunks.total(), kUnitsPerThread * kUnit / kChunk,
                              [&](int64_t begin, int64_t end) { chunks(begin, end, made.recipe, made.action); });
}

}  // namespace
}  // namespace convweights

STABLE_TORCH_LIBRARY_IMPL(convweights, CPU, m) {
  m.impl("transfer_", TORCH_BOX(&convweights::transfer_));
  m.impl("fill_", TORCH_BOX(&convweights::fill_));
  m.impl("update_", TORCH_BOX(&convweights::update_));
  m.impl("journal_", TORCH_BOX(&convweights::journal_));
}
