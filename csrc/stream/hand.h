// What one thread of a stream works with: it reads the tiles that an item needs, computes them and writes them.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "../ops/transfer_cpu.h"
#include "job.h"
#include "overflow.h"
#include "staged.h"

namespace convweights {

// Memory that grows to the largest item.
class Buffer {
 public:
  void clear() { used_ = 0; }

  // Where `bytes` lie, right behind the last ones as far as elements of `item` bytes allow it.
  int64_t reserve(int64_t bytes, int64_t item) {
    const int64_t at = ceil_div(used_, item) * item;
    used_ = at + bytes;
    return at;
  }

  char* memory() {
    if (used_ > size_) {
      memory_.reset();
      memory_.reset(
          static_cast<char*>(std::aligned_alloc(kAlign, static_cast<size_t>(ceil_div(used_, kAlign) * kAlign))));
      if (!memory_) throw std::bad_alloc();
      size_ = used_;
    }
    return memory_.get();
  }

 private:
  static constexpr int64_t kAlign = 4096;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t size_ = 0;
  int64_t used_ = 0;
};

class Hand {
 public:
  void clear() {
    source_.clear();
    target_.clear();
    copies_.clear();
    parts_.clear();
  }

  // A stretch of a job's bytes, to be moved as they are.
  void add(const Job& job, const Range& bytes) { copies_.push_back({&job, bytes, target_.reserve(bytes.size(), 1)}); }

  // A tile of a job's transfer.
  void add(const Job& job, const Box& box) {
    const Transfer& t = *job.transfer;
    Part part{&job, box, stage(t, box.target, &Dim::dst_stride, t.dst_item, 0), {}, 0, 0};
    part.target_at = target_.reserve(part.target.elements * t.dst_item, t.dst_item);
    if (box.reads) {
      part.source = stage(t, box.source, &Dim::src_stride, t.src_item, kCallBytes);
      part.source_at = source_.reserve(part.source.elements * t.src_item, t.src_item);
    }
    parts_.push_back(part);
  }

  // Reads, computes and writes all that was added. `overflowed(job)` is called where finite values became infinite.
  template <class Overflowed>
  bool carry_out(FileFault& fault, const Overflowed& overflowed) {
    char* const source = source_.memory();
    char* const target = target_.memory();
    runs_.clear();
    for (const Copy& copy : copies_) {
      runs_.push_back({copy.job->source, copy.job->source_at + copy.bytes.begin, target + copy.at, copy.bytes.size()});
    }
    for (const Part& part : parts_) {
      if (!part.box.reads) continue;
      const Job& job = *part.job;
      part.source.add_runs(runs_, job.source, job.source_at + source_offset(*job.transfer), source + part.source_at,
                           job.transfer->src_item);
    }
    if (!read_runs(runs_, fault)) return false;
    runs_.clear();
    for (const Copy& copy : copies_) {
      runs_.push_back({copy.job->target, copy.job->target_at + copy.bytes.begin, target + copy.at, copy.bytes.size()});
    }
    for (const Part& part : parts_) {
      const Job& job = *part.job;
      const Transfer tile = tile_transfer(*job.transfer, part.box, part.target, part.source, target + part.target_at,
                                          source + part.source_at);
      compute(tile);
      if (may_overflow(tile) && has_infinity(tile.dst_type, target + part.target_at, part.target.elements) &&
          overflows(tile)) {
        overflowed(job);
      }
      part.target.add_runs(runs_, job.target, job.target_at, target + part.target_at, tile.dst_item);
    }
    return write_runs(runs_, fault);
  }

 private:
  struct Copy {
    const Job* job;
    Range bytes;
    int64_t at;
  };
  struct Part {
    const Job* job;
    Box box;
    Staged target;
    Staged source;
    int64_t target_at;
    int64_t source_at;
  };

  static int64_t source_offset(const Transfer& t) { return t.src - static_cast<const char*>(nullptr); }

  static bool may_overflow(const Transfer& t) {
    return t.src_type != Dtype::CopyOnly && t.dst_type != Dtype::CopyOnly && !only_copies(t);
  }

  static void compute(const Transfer& tile) {
    const PanelLoops loops = panel_loops(tile.dst_type, tile.src_type, tile.dst_item);
    const TransferPanels panels(tile, loops);
    for (int64_t unit = 0; unit < panels.units(); ++unit) panels(unit);
    end_of_streams();
  }

  Buffer source_;
  Buffer target_;
  std::vector<Copy> copies_;
  std::vector<Part> parts_;
  std::vector<FileRun> runs_;
};

}  // namespace convweights
