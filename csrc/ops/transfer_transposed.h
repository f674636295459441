// What a block does for transfer on CUDA where source and target run along different dimensions.
#pragma once

#include "transfer_thread.h"

namespace convweights {

// Reads a rectangle of positions along the source's dimension and writes it along the target's. `gather` is the problem
// without the dimension `along`, along which the source runs.
template <class D, class C>
struct TransposedBlocks {
  static constexpr unsigned kResident = 8;
  static constexpr unsigned kAcross = kWarp;
  static constexpr unsigned kAlong = sizeof(D) <= 4 ? 4 * kWarp : 16 / sizeof(D) * kWarp;
  struct Shared {
    D at[kAcross][kAlong + 1];  // one more, so that a column's are in different banks
  };
  struct Own {};

  GatherElement<D, std::conditional_t<std::is_void_v<C>, D, void>, C, 1> gather;
  uint32_t count;  // of the positions of gather
  uint32_t size;   // along
  uint32_t dst_stride;
  uint32_t src_stride;
  Divisor rectangles;  // along

  template <class Threads>
  CW_HD void operator()(int64_t number, Shared& shared, Threads& block) const {
    const uint32_t column = rectangles.quotient(static_cast<uint32_t>(number));
    const uint32_t across = column * kAcross;
    const uint32_t along = (static_cast<uint32_t>(number) - column * rectangles.value()) * kAlong;
    const ThreadTransfer& t = gather.t;
    // A warp's threads stand side by side along the source's run, then along the target's.
    block.each([&](unsigned thread, Own&) {
      const unsigned lane = thread % kWarp;
      for (unsigned row = thread / kWarp; row < kAcross && across + row < count; row += kWarps) {
        const TransferSpot spot = t.find(across + row, gather.table);
        if (!spot.reached) continue;
        CW_UNROLL
        for (unsigned at = lane; at < kAlong; at += kWarp) {
          if (along + at < size) shared.at[row][at] = gather.value(spot.src + (along + at) * src_stride).at[0];
        }
      }
    });
    block.each([&](unsigned thread, Own&) {
      const unsigned row = thread % kWarp;
      if (across + row >= count) return;
      const TransferSpot spot = t.find(across + row, gather.table);
      if (!spot.reached && t.keep) return;
      D* const target = reinterpret_cast<D*>(t.dst);
      for (unsigned at = thread / kWarp; at < kAlong && along + at < size; at += kWarps) {
        target[spot.dst + (along + at) * dst_stride] = spot.reached ? shared.at[row][at] : fill_of<D>(t.fill);
      }
    });
  }
};

}  // namespace convweights
