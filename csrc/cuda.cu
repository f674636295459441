// Registers the CUDA kernels.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

// Weak, so that this library also loads where torch has no CUDA; check_cuda_symbols tells a broken link from that.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
__attribute__((weak)) AOTITorchError torch_c10_cuda_check_msg(int32_t err, const char* filename,
                                                              const char* function_name, uint32_t line_number,
                                                              bool include_device_assertions, char** error_msg);
__attribute__((weak)) void torch_c10_cuda_free_error_msg(char* error_msg);
}

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "ops/compact_cuda.h"
#include "ops/fill_cuda.h"
#include "ops/fill_op.h"
#include "ops/journal_cuda.h"
#include "ops/journal_op.h"
#include "ops/transfer_cuda.h"
#include "ops/transfer_op.h"
#include "ops/update_cuda.h"
#include "ops/update_op.h"

namespace convweights {
namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  void* handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &handle));
  return static_cast<cudaStream_t>(handle);
}

void transfer_(Tensor weight, const Tensor source, const Ints kinds, const Ints starts, const Ints rescales,
               const std::vector<Tensor> index, double scale, const Ints fill) {
  const Transfer t = make_transfer(weight, source, kinds, starts, rescales, index, scale, fill);
  if (count_of(t) == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(weight.get_device_index());
  const cudaStream_t stream = current_stream(weight);
  if (is_compaction(t) && weight.is_contiguous() && source.is_contiguous()) {
    const Compaction c = make_compaction(t);
    with_unit_of(c, [&](auto unit) { launch_compaction<typename decltype(unit)::type>(c, kMostElements, stream); });
  } else {
    transfer_cuda(t, stream);
  }
}

void update_(std::vector<Tensor> weights, const Masks masks, const Ints streams, const Ints boxes, int64_t distribution,
             double decay, double shift, const std::vector<double> scales, const Ints seeds, int64_t step,
             bool accumulate, bool stochastic, bool disjoint, const std::optional<Tensor> state) {
  const std::vector<Piece> pieces = make_pieces(weights, masks, streams, boxes);
  if (!disjoint) check_disjoint("update_", pieces, &UpdateDim::stride);
  const Recipe recipe = make_recipe(distribution, decay, shift, scales, seeds, step, accumulate, stochastic, pieces);
  const int64_t* const at = state_of(state, weights, recipe.count);
  if (weights.empty()) return;
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  update_cuda(pieces, recipe, at, current_stream(weights[0]));
}

void fill_(std::vector<Tensor> weights, const MaybeTensors masks, const Ints dims, const Ints counts,
           const Ints positions, const MaybeTensors values, const Ints bits, bool disjoint) {
  const std::vector<Filling> fillings = make_fillings(weights, masks, dims, counts, positions, values, bits, disjoint);
  if (fillings.empty()) return;
  const torch::stable::accelerator::DeviceGuard guard(weights[0].get_device_index());
  fill_cuda(fillings, current_stream(weights[0]));
}

void journal_(std::vector<Tensor> weights, Tensor journal, const Ints sections, const Ints rooms, int64_t pool,
              const Ints streams, const Ints starts, int64_t distribution, double scale, int64_t seed, int64_t step,
              int64_t action) {
  const std::vector<double> scales{scale};
  const Ints seeds{seed};
  const Journal made =
      make_journal(weights, journal, sections, rooms, pool, streams, starts, distribution, scales, seeds, step, action);
  const torch::stable::accelerator::DeviceGuard guard(journal.get_device_index());
  journal_cuda(made.pieces, made.recipe, made.action, made.pool, current_stream(journal));
}

void check_cuda_symbols() {
  CW_CHECK(aoti_torch_get_current_cuda_stream != nullptr && torch_c10_cuda_check_msg != nullptr &&
               torch_c10_cuda_free_error_msg != nullptr,
           "the CUDA functions of torch must be found by convweights._cuda, got none; rebuild it with this torch");
}

// nvcc defines the list of the architectures it compiles for.
std::string cuda_architectures() {
  constexpr int architectures[] = {__CUDA_ARCH_LIST__};
  std::string text;
  for (const int architecture : architectures) {
    text += (text.empty() ? "" : ", ") + std::string("sm_") + std::to_string(architecture / 10);
  }
  return text;
}

}  // namespace
}  // namespace convweights

STABLE_TORCH_LIBRARY_FRAGMENT(convweights, m) {
  m.def("check_cuda_symbols() -> ()");
  m.def("cuda_architectures() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(convweights, CompositeExplicitAutograd, m) {
  m.impl("check_cuda_symbols", TORCH_BOX(&convweights::check_cuda_symbols));
  m.impl("cuda_architectures", TORCH_BOX(&convweights::cuda_architectures));
}

STABLE_TORCH_LIBRARY_IMPL(convweights, CUDA, m) {
  m.impl("transfer_", TORCH_BOX(&convweights::transfer_));
  m.impl("fill_", TORCH_BOX(&convweights::fill_));
  m.impl("update_", TORCH_BOX(&convweights::update_));
  m.impl("journal_", TORCH_BOX(&convweights::journal_));
}
