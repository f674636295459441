// Division by a number that is known before the launch, as a product and a shift (Granlund, Montgomery: Division by
// invariant integers using multiplication, PLDI'94).
#pragma once

#include "../host_device.h"

namespace convweights {

// Of numbers below kMost, by one from 1 to kMost.
class Divisor {
 public:
  static constexpr int64_t kMost = int64_t{1} << 31;

  Divisor() = default;
  explicit Divisor(int64_t by) : value_(static_cast<uint32_t>(by)) {
    while ((uint64_t{1} << shift_) < static_cast<uint64_t>(by)) ++shift_;
    const uint64_t above = (uint64_t{1} << shift_) - static_cast<uint64_t>(by);
    factor_ = static_cast<uint32_t>((above << 32) / static_cast<uint64_t>(by) + 1);
  }

  CW_HD uint32_t value() const { return value_; }

  CW_HD uint32_t quotient(uint32_t a) const {
#if defined(__CUDA_ARCH__)
    const uint32_t high = __umulhi(a, factor_);
#else
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(a) * factor_ >> 32);
#endif
    return (high + a) >> shift_;
  }

  CW_HD uint32_t remainder(uint32_t a) const { return a - quotient(a) * value_; }

 private:
  uint32_t value_ = 1;
  uint32_t factor_ = 1;
  uint32_t shift_ = 0;
};

}  // namespace convweights
