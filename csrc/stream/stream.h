// Carries out jobs on a few threads, in memory that does not grow with them.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "hand.h"

namespace convweights {

class Stream {
 public:
  // `tile_bytes`: of source and target together in a tile.
  Stream(const std::vector<Job>& jobs, int64_t tile_bytes)
      : jobs_(jobs), tile_bytes_(std::max<int64_t>(2, tile_bytes)), overflown_(jobs.size()) {
    std::map<int, size_t> lanes;
    tiles_.reserve(jobs_.size());
    for (size_t j = 0; j < jobs_.size(); ++j) {
      const Job& job = jobs_[j];
      if (job.bytes == 0) {
        tiles_.emplace_back();
        continue;
      }
      tiles_.push_back(job.transfer ? std::optional<Tiles>(std::in_place, *job.transfer, tile_bytes_) : std::nullopt);
      const size_t lane = lanes.try_emplace(job.target, lanes.size()).first->second;
      if (lane == lanes_.size()) lanes_.emplace_back();
      add_items(lanes_[lane], j);
    }
  }

  Stream(const Stream&) = delete;

  // Does everything with `workers` threads. `tick(done, job)` is called on this one from time to time, with how many
  // bytes are written and which job was taken up last; what it throws ends the work and is thrown on.
  std::optional<FileFault> run(int workers, const std::function<void(int64_t, size_t)>& tick) {
    std::vector<std::thread> threads;
    std::exception_ptr error;
    try {
      while (static_cast<int>(threads.size()) < workers) threads.emplace_back([this] { begin(); });
    } catch (...) {  // no more threads are to be had: those there are are told to stop
      error = std::current_exception();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    running_ += static_cast<int>(threads.size());
    stopped_ = stopped_ || error;
    while (!ended_.wait_for(lock, std::chrono::milliseconds(50), [this] { return running_ == 0; })) {
      if (error) continue;
      const int64_t done = done_;
      const size_t job = current_;
      lock.unlock();
      try {
        tick(done, job);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      stopped_ = stopped_ || error;
    }
    lock.unlock();
    for (std::thread& thread : threads) thread.join();
    if (error) std::rethrow_exception(error);
    if (thrown_) std::rethrow_exception(thrown_);
    return fault_;
  }

  // The jobs in which finite values became infinite.
  std::vector<size_t> overflown() const {
    std::vector<size_t> found;
    for (size_t j = 0; j < jobs_.size(); ++j) {
      if (overflown_[j]) found.push_back(j);
    }
    return found;
  }

 private:
  // One tile of a job, or several small jobs as a whole.
  struct Item {
    size_t job;
    size_t jobs;
    int64_t tile;
    int64_t moved;
  };

  // What there is to do for one file, and how many are at it: a file takes one write at a time.
  struct Lane {
    std::vector<Item> items;
    size_t next = 0;
    int at_work = 0;

    bool empty() const { return next == items.size(); }
  };

  int64_t copy_bytes() const { return tile_bytes_ / 2; }

  int64_t tiles_of(size_t j) const { return tiles_[j] ? tiles_[j]->count() : ceil_div(jobs_[j].bytes, copy_bytes()); }

  void add_items(Lane& lane, size_t j) {
    const int64_t moved = jobs_[j].moved();
    if (tiles_of(j) == 1 && !lane.items.empty()) {
      Item& last = lane.items.back();
      if (last.job + last.jobs == j && tiles_of(last.job) == 1 && last.moved + moved <= tile_bytes_) {
        last.jobs += 1;
        last.moved += moved;
        return;
      }
    }
    for (int64_t tile = 0; tile < tiles_of(j); ++tile) lane.items.push_back({j, 1, tile, moved});
  }

  // The next item of the lane that the thread is on, else of the one with the fewest others.
  const Item* take(Lane*& lane) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (lane && (lane->empty() || stopped_)) {
      lane->at_work -= 1;
      lane = nullptr;
    }
    if (stopped_) return nullptr;
    if (!lane) {
      for (Lane& other : lanes_) {
        if (!other.empty() && (!lane || other.at_work < lane->at_work)) lane = &other;
      }
      if (!lane) return nullptr;
      lane->at_work += 1;
    }
    const Item& item = lane->items[lane->next++];
    current_ = item.job;
    return &item;
  }

  // A thread's whole life.
  void begin() {
    work();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--running_ == 0) ended_.notify_all();
  }

  void work() {
    Hand hand;
    Lane* lane = nullptr;
    while (const Item* item = take(lane)) {
      FileFault fault;
      bool well = false;
      std::exception_ptr thrown;
      try {
        well = carry_out(*item, hand, fault);
      } catch (...) {
        thrown = std::current_exception();
      }
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!well && !stopped_) {
        if (thrown) {
          thrown_ = thrown;
        } else {
          fault_ = fault;
        }
        stopped_ = true;
      }
    }
  }

  bool carry_out(const Item& item, Hand& hand, FileFault& fault) {
    hand.clear();
    int64_t bytes = 0;
    for (size_t j = item.job; j < item.job + item.jobs; ++j) {
      const Job& job = jobs_[j];
      if (job.transfer) {
        const Box box = tiles_[j]->box(item.tile);
        hand.add(job, box);
        int64_t elements = job.transfer->dst_item;
        for (int d = 0; d < job.transfer->rank; ++d) elements *= box.target[d].size();
        bytes += elements;
      } else {
        const int64_t begin = item.tile * copy_bytes();
        const Range range{begin, std::min(job.bytes, begin + copy_bytes())};
        hand.add(job, range);
        bytes += range.size();
      }
    }
    const auto overflowed = [this](const Job& job) {
      const std::lock_guard<std::mutex> lock(mutex_);
      overflown_[static_cast<size_t>(&job - jobs_.data())] = true;
    };
    if (!hand.carry_out(fault, overflowed)) return false;
    done_ += bytes;
    return true;
  }

  const std::vector<Job> jobs_;
  const int64_t tile_bytes_;
  std::vector<std::optional<Tiles>> tiles_;
  std::vector<Lane> lanes_;
  std::vector<bool> overflown_;
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;
  std::condition_variable ended_;
  std::optional<FileFault> fault_;
  std::exception_ptr thrown_;
  size_t current_ = 0;
  int running_ = 0;  // below 0 while threads end that are not counted yet
  bool stopped_ = false;
};

}  // namespace convweights
