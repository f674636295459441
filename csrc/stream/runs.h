// Stretches of a file and the memory that they are read into or written from.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <vector>

namespace convweights {

struct FileRun {
  int file;
  int64_t at;
  char* memory;
  int64_t bytes;

  // Whether the other one goes on where this one ends, in the file and in memory.
  bool continues(const FileRun& next) const {
    return next.file == file && next.at == at + bytes && next.memory == memory + bytes;
  }
};

// Why reading or writing stopped.
struct FileFault {
  int file = -1;
  int code = 0;  // errno; 0 where a file ended before its time
  bool reading = false;
};

// Calls `move` (pread or pwrite) until all of the run is moved.
template <class Move>
bool move_all(const FileRun& run, const Move& move, FileFault& fault) {
  for (int64_t done = 0; done < run.bytes;) {
    const ssize_t count = move(run.file, run.memory + done, static_cast<size_t>(run.bytes - done), run.at + done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      fault.file = run.file;
      fault.code = count < 0 ? errno : 0;
      return false;
    }
    done += count;
  }
  return true;
}

// Neighbours go as one.
template <class Move>
bool move_runs(const std::vector<FileRun>& runs, const Move& move, FileFault& fault) {
  for (size_t i = 0; i < runs.size();) {
    FileRun whole = runs[i++];
    for (; i < runs.size() && whole.continues(runs[i]); ++i) whole.bytes += runs[i].bytes;
    if (!move_all(whole, move, fault)) return false;
  }
  return true;
}

inline bool read_runs(const std::vector<FileRun>& runs, FileFault& fault) {
  fault.reading = true;
  return move_runs(
      runs, [](int file, void* memory, size_t bytes, int64_t at) { return pread(file, memory, bytes, at); }, fault);
}

inline bool write_runs(const std::vector<FileRun>& runs, FileFault& fault) {
  fault.reading = false;
  return move_runs(
      runs, [](int file, const void* memory, size_t bytes, int64_t at) { return pwrite(file, memory, bytes, at); },
      fault);
}

}  // namespace convweights
