// A tensor of a checkpoint on its way from one file into another.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "../ops/transfer.h"

namespace convweights {

struct Job {
  int source = -1;  // descriptors
  int target = -1;
  int64_t source_at = 0;  // where the tensors begin in the files
  int64_t target_at = 0;
  int64_t bytes = 0;                 // of the target
  std::optional<Transfer> transfer;  // else the bytes move as they are; its `src` counts from the tensor's beginning
  std::shared_ptr<const std::vector<std::vector<int64_t>>> indices;  // what its Selects read

  // What reading and writing it moves.
  int64_t moved() const {
    if (!transfer) return 2 * bytes;
    int64_t source_bytes = transfer->src_item;
    for (int d = 0; d < transfer->rank; ++d) source_bytes *= transfer->dims[d].map.n;
    return bytes + source_bytes;
  }
};

}  // namespace convweights
