// The parallel loops and the one place where a CUDA kernel is launched. Without nvcc the includer provides
// __global__, __shared__, blockIdx and their kin, __syncthreads and launch(): the tests run the kernels that way.
#pragma once

#include "host_device.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>
#endif

namespace convweights {

constexpr unsigned kThreads = 256;
// Blocks enough to fill any card several times over; each takes elements in strides of the grid.
constexpr unsigned kMostBlocks = 132 * 32;
// Elements of one launch: their number and some strides of the grid must add up within 32 bits.
constexpr int64_t kMostElements = int64_t{1} << 30;
constexpr int64_t kStageBytes = 32768;
// What the arguments of one launch may take.
constexpr int kArgumentBytes = 32764;

#if defined(__CUDACC__)
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, cudaStream_t stream, Arguments... arguments) {
  kernel<<<blocks, kThreads, 0, stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}
#endif

template <class Kernel>
__global__ void __launch_bounds__(kThreads) run_elements(const __grid_constant__ Kernel kernel, uint32_t count) {
  constexpr unsigned kAtOnce = Kernel::kAtOnce;
  const uint32_t step = gridDim.x * blockDim.x;
  uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if constexpr (kAtOnce > 1) {
    for (; i + (kAtOnce - 1) * step < count; i += kAtOnce * step) {
      typename Kernel::Taken taken[kAtOnce];
      CW_UNROLL
      for (unsigned k = 0; k < kAtOnce; ++k) taken[k] = kernel.take(i + k * step);
      CW_UNROLL
      for (unsigned k = 0; k < kAtOnce; ++k) kernel.put(taken[k]);
    }
  }
  for (; i < count; i += step) kernel.put(kernel.take(i));
}

// kernel.put(kernel.take(i)) for each i below `count`, in any order: what is read and computed, then written. A thread
// takes several elements before it puts the first, so that their reads are under way together.
template <class Kernel, class Stream>
void for_each_element(const Kernel& kernel, int64_t count, Stream stream) {
  if (count == 0) return;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  launch(run_elements<Kernel>, blocks < kMostBlocks ? static_cast<unsigned>(blocks) : kMostBlocks, stream, kernel,
         static_cast<uint32_t>(count));
}

template <class Kernel>
__global__ void __launch_bounds__(kThreads) run_chunks(const __grid_constant__ Kernel kernel, int64_t chunks) {
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) kernel(chunk, threadIdx.x, blockDim.x);
}

// kernel(chunk, thread, threads) for each chunk, in any order, by all the threads of a block. The kernel may be some
// 32 kB: it is read where it is, among the launch's arguments.
template <class Kernel, class Stream>
void for_each_chunk(const Kernel& kernel, int64_t chunks, Stream stream) {
  if (chunks == 0) return;
  launch(run_chunks<Kernel>, static_cast<unsigned>(chunks < kMostBlocks ? chunks : kMostBlocks), stream, kernel,
         chunks);
}

constexpr unsigned kWarp = 32;
constexpr unsigned kWarps = kThreads / kWarp;

// The sum of four counts, which are the bytes of a word.
CW_HD uint32_t sum_of_four(uint32_t counts) {
  const uint32_t pairs = (counts & 0x00ff00ffu) + (counts >> 8 & 0x00ff00ffu);
  return (pairs + (pairs >> 16)) & 0xffffu;
}

// Where a thread's four counts stand among those of its block, in the order of the warps, then of the four, then of a
// warp's threads. Each count is 7 at the most: what a warp's threads have of one of the four fits into a byte, too.
struct Standing {
  uint32_t warps_before;  // the sum of all their counts
  uint32_t warp;          // the sums of its four, as bytes
  uint32_t lanes_before;  // the same of the threads before this one

  // The sum of what comes before count k.
  CW_HD uint32_t before(unsigned k) const {
    return warps_before + sum_of_four(warp & ((1u << 8 * k) - 1)) + (lanes_before >> 8 * k & 0xffu);
  }
};

// The threads of a block, each with an Own that lasts from one step to the next: all have taken a step before any takes
// the following one.
template <class Own>
class BlockThreads {
 public:
#if defined(__CUDACC__)
  template <class Step>
  __device__ void each(const Step& step) {
    step(threadIdx.x, own_);
    __syncthreads();
  }

  // A step that returns four counts of a thread, as the bytes of a word, and then finds where they stand, as
  // own.standing; the sum of all. The step itself may use what own.standing was. `sums` is in use until all have taken
  // one more step.
  template <class Step>
  __device__ uint32_t count(uint32_t (&sums)[kWarps], const Step& step) {
    const uint32_t counts = step(threadIdx.x, own_);
    const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint32_t upto = counts;
    CW_UNROLL
    for (unsigned distance = 1; distance < kWarp; distance *= 2) {
      const uint32_t below = __shfl_up_sync(~0u, upto, distance);
      if (lane >= distance) upto += below;
    }
    own_.standing = {0, __shfl_sync(~0u, upto, kWarp - 1), upto - counts};
    if (lane == 0) sums[warp] = sum_of_four(own_.standing.warp);
    __syncthreads();
    uint32_t all = 0;
    CW_UNROLL
    for (unsigned i = 0; i < kWarps; ++i) {
      if (i == warp) own_.standing.warps_before = all;
      all += sums[i];
    }
    return all;
  }

 private:
  Own own_;
#else
  template <class Step>
  void each(const Step& step) {
    for (unsigned thread = 0; thread < kThreads; ++thread) step(thread, own_[thread]);
  }

  template <class Step>
  uint32_t count(uint32_t (&)[kWarps], const Step& step) {
    uint32_t all = 0;
    for (unsigned first = 0; first < kThreads; first += kWarp) {
      uint32_t warp = 0;
      for (unsigned thread = first; thread < first + kWarp; ++thread) {
        const uint32_t counts = step(thread, own_[thread]);
        own_[thread].standing.lanes_before = warp;
        warp += counts;
      }
      for (unsigned thread = first; thread < first + kWarp; ++thread) {
        own_[thread].standing.warps_before = all;
        own_[thread].standing.warp = warp;
      }
      all += sum_of_four(warp);
    }
    return all;
  }

 private:
  Own own_[kThreads];
#endif
};

#if defined(__CUDACC__)
template <class Kernel>
__global__ void __launch_bounds__(kThreads, Kernel::kResident)
    run_blocks(const __grid_constant__ Kernel kernel, int64_t count) {
  __shared__ typename Kernel::Shared shared;
  BlockThreads<typename Kernel::Own> block;
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) kernel(i, shared, block);
}
#endif

// kernel(i, shared, block) for each i below `count`, in any order, each by all the threads of a block.
template <class Kernel, class Stream>
void for_each_block(const Kernel& kernel, int64_t count, Stream stream) {
  if (count == 0) return;
#if defined(__CUDACC__)
  launch(run_blocks<Kernel>, static_cast<unsigned>(count < kMostBlocks ? count : kMostBlocks), stream, kernel, count);
#else
  static_cast<void>(stream);
  typename Kernel::Shared shared;
  BlockThreads<typename Kernel::Own> block;
  for (int64_t i = 0; i < count; ++i) kernel(i, shared, block);
#endif
}

template <class Kernel>
__global__ void __launch_bounds__(kThreads) run_phases(Kernel kernel, int64_t begin, int64_t end) {
  alignas(16) __shared__ char stage[kStageBytes];
  for (int64_t phase = begin; phase < end; ++phase) {
    kernel(phase, stage, threadIdx.x, blockDim.x);
    __syncthreads();
  }
}

// kernel(phase, stage, thread, threads) for each phase in turn, by the threads of one block, which share the stage.
template <class Kernel, class Stream>
void for_each_phase(const Kernel& kernel, int64_t phases, Stream stream) {
#if defined(__CUDACC__)
  launch(run_phases<Kernel>, 1, stream, kernel, int64_t{0}, phases);
#else
  // One phase a launch stands for the barrier between them.
  for (int64_t phase = 0; phase < phases; ++phase) {
    launch(run_phases<Kernel>, 1, stream, kernel, phase, phase + 1);
  }
#endif
}

}  // namespace convweights
