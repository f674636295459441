// The CUDA kernels on the host: every block and thread of a launch in turn, under AddressSanitizer. Reads cases from
// standard input and writes each target's storage, as it then is, to standard output. test_cuda_on_host.py speaks to
// it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(threads)
#define __shared__ static
#define __grid_constant__

struct Index {
  unsigned x;
};
static Index gridDim, blockDim, blockIdx, threadIdx;
static void __syncthreads() {}

namespace convweights {

// Few blocks, so that small cases already go round the grid more than once.
constexpr unsigned kHostBlocks = 3;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, int, Arguments... arguments) {
  gridDim = {blocks < kHostBlocks ? blocks : kHostBlocks};
  blockDim = {256};
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments...);
  }
}

}  // namespace convweights

#include "ops/compact_cuda.h"
#include "ops/fill_cuda.h"
#include "ops/journal_cuda.h"
#include "ops/transfer_cuda.h"
#include "ops/update_cuda.h"

namespace {

using namespace convweights;

bool read_bytes(void* place, size_t bytes) { return bytes == 0 || fread(place, bytes, 1, stdin) == 1; }

int64_t read_int() {
  int64_t value = 0;
  if (!read_bytes(&value, sizeof(value))) exit(0);
  return value;
}

double read_double() {
  double value = 0;
  if (!read_bytes(&value, sizeof(value))) exit(3);
  return value;
}

// Exactly as long as the storage, so that a byte before or behind it is an error.
char* read_storage(int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, static_cast<size_t>(bytes)) != 0) exit(3);
  char* const place = static_cast<char*>(memory);
  if (!read_bytes(place, static_cast<size_t>(bytes))) exit(3);
  return place;
}

void run_transfer() {
  Transfer t;
  t.rank = static_cast<int>(read_int());
  t.dst_type = static_cast<Dtype>(read_int());
  t.src_type = static_cast<Dtype>(read_int());
  t.dst_item = read_int();
  t.src_item = read_int();
  t.same_type = read_int() != 0;
  t.wide = t.dst_type == Dtype::Float64 || t.src_type == Dtype::Float64;
  const int64_t most_elements = read_int();
  t.keep = read_int() == 0;
  for (uint64_t& word : t.fill) word = static_cast<uint64_t>(read_int());
  t.scale = read_double();
  std::vector<int64_t> tables[kMaxDims];
  for (int d = 0; d < t.rank; ++d) {
    Dim& dim = t.dims[d];
    dim.map.kind = static_cast<MapKind>(read_int());
    dim.map.start = read_int();
    dim.map.rescale = static_cast<Rescale>(read_int());
    dim.map.n = read_int();
    dim.map.m = dim.size = read_int();
    dim.src_stride = read_int();
    dim.dst_stride = read_int();
    if (dim.map.kind != MapKind::Select) continue;
    for (int64_t j = 0; j < dim.map.m; ++j) tables[d].push_back(read_int());
    dim.map.index = tables[d].data();
  }
  const int64_t dst_bytes = read_int();
  const int64_t dst_offset = read_int();
  char* const dst = read_storage(dst_bytes);
  const int64_t src_bytes = read_int();  // 0: the source lies in the target's storage
  const int64_t src_offset = read_int();
  char* const src = src_bytes == 0 ? dst : read_storage(src_bytes);
  t.dst = dst + dst_offset;
  t.src = src + src_offset;
  if (count_of(t) > 0) {
    if (src == dst && is_compaction(t)) {
      const Compaction c = make_compaction(t);
      with_unit_of(c, [&](auto unit) { launch_compaction<typename decltype(unit)::type>(c, most_elements, 0); });
    } else {
      transfer_cuda(t, 0, most_elements);
    }
  }
  fwrite(dst, static_cast<size_t>(dst_bytes), 1, stdout);
  if (src != dst) free(src);
  free(dst);
}

void run_update() {
  Recipe recipe;
  recipe.distribution = static_cast<Distribution>(read_int());
  recipe.accumulate = read_int() != 0;
  recipe.stochastic = read_int() != 0;
  recipe.step = static_cast<uint32_t>(read_int());
  recipe.decay = read_double();
  recipe.shift = read_double();
  recipe.count = read_int();
  std::vector<double> scales;
  std::vector<int64_t> seeds;
  for (int64_t k = 0; k < recipe.count; ++k) {
    scales.push_back(read_double());
    seeds.push_back(read_int());
  }
  recipe.scales = scales.data();
  recipe.seeds = seeds.data();
  const bool on_device = read_int() != 0;
  const int64_t state[2] = {seeds[0], recipe.step};
  if (on_device) {
    seeds[0] = 0;
    recipe.step = 0;
  }
  std::vector<Piece> pieces(static_cast<size_t>(read_int()));
  std::vector<std::pair<char*, int64_t>> storages;
  std::vector<char*> masks;
  for (Piece& p : pieces) {
    p.type = static_cast<Dtype>(read_int());
    p.item = read_int();
    p.stream = static_cast<uint32_t>(read_int());
    p.start = static_cast<uint64_t>(read_int());
    p.rank = static_cast<int>(read_int());
    for (int d = 0; d < p.rank; ++d) {
      p.dims[d].size = read_int();
      p.dims[d].stride = read_int();
      p.dims[d].mask = read_int();
      p.dims[d].index = read_int();
    }
    const int64_t bytes = read_int();
    const int64_t offset = read_int();
    storages.emplace_back(read_storage(bytes), bytes);
    p.weight = storages.back().first + offset;
    const int64_t mask_bytes = read_int();  // 0: no mask
    const int64_t mask_offset = read_int();
    if (mask_bytes > 0) {
      masks.push_back(read_storage(mask_bytes));
      p.mask = reinterpret_cast<const bool*>(masks.back() + mask_offset);
    }
    reduce(p);
  }
  update_cuda(pieces, recipe, on_device ? state : nullptr, 0);
  for (const auto& [place, bytes] : storages) {
    fwrite(place, static_cast<size_t>(bytes), 1, stdout);
    free(place);
  }
  for (char* const mask : masks) free(mask);
}

void run_fill() {
  std::vector<Filling> fillings(static_cast<size_t>(read_int()));
  std::vector<std::pair<char*, int64_t>> storages;
  std::vector<char*> others;
  // A storage that is only read, and where the tensor begins in it; none of no bytes.
  const auto other = [&]() -> char* {
    const int64_t bytes = read_int(), offset = read_int();
    if (bytes == 0) return nullptr;
    others.push_back(read_storage(bytes));
    return others.back() + offset;
  };
  for (Filling& f : fillings) {
    f.item = read_int();
    f.rank = static_cast<int>(read_int());
    for (uint64_t& word : f.word.words) word = static_cast<uint64_t>(read_int());
    for (int d = 0; d < f.rank; ++d) {
      f.dims[d].size = read_int();
      f.dims[d].weight = read_int();
      f.dims[d].mask = read_int();
      f.dims[d].value = read_int();
    }
    const int64_t bytes = read_int(), offset = read_int();
    storages.emplace_back(read_storage(bytes), bytes);
    f.weight = storages.back().first + offset;
    f.mask = reinterpret_cast<const bool*>(other());
    f.value = other();
    reduce(f);
  }
  fill_cuda(fillings, 0);
  for (const auto& [place, bytes] : storages) {
    fwrite(place, static_cast<size_t>(bytes), 1, stdout);
    free(place);
  }
  for (char* const place : others) free(place);
}

void run_journal() {
  Recipe recipe;
  recipe.distribution = static_cast<Distribution>(read_int());
  recipe.step = static_cast<uint32_t>(read_int());
  const int64_t seed = read_int();
  const double scale = read_double();
  recipe.scales = &scale;
  recipe.seeds = &seed;
  recipe.count = 1;
  const int64_t bytes = read_int(), pool = read_int();
  std::vector<JournalPiece> pieces(static_cast<size_t>(read_int()));
  std::vector<std::pair<char*, int64_t>> storages;
  char* const journal = static_cast<char*>(malloc(static_cast<size_t>(bytes)));
  memset(journal, 0, static_cast<size_t>(bytes));
  for (JournalPiece& made : pieces) {
    Piece& p = made.piece;
    p.type = static_cast<Dtype>(read_int());
    p.item = read_int();
    p.stream = static_cast<uint32_t>(read_int());
    p.start = static_cast<uint64_t>(read_int());
    p.rank = static_cast<int>(read_int());
    int64_t index = 1;
    for (int d = p.rank - 1; d >= 0; --d) {
      p.dims[d].size = read_int();
      p.dims[d].stride = read_int();
      p.dims[d].index = index;
      index *= p.dims[d].size;
    }
    const int64_t at = read_int(), room = read_int();
    made.section = section_at(journal + at, p.count(), p.item, room);
    const int64_t stored = read_int(), offset = read_int();
    storages.emplace_back(read_storage(stored), stored);
    p.weight = storages.back().first + offset;
    reduce(p);
  }
  JournalPool space{reinterpret_cast<uint32_t*>(journal), reinterpret_cast<uint32_t*>(journal) + 1, journal + pool,
                    static_cast<uint32_t>((bytes - pool) / 4)};
  const int64_t actions = read_int();
  for (int64_t k = 0; k < actions; ++k) {
    journal_cuda(pieces, recipe, static_cast<JournalAction>(read_int()), space, 0);
    fwrite(journal, static_cast<size_t>(bytes), 1, stdout);
    for (const auto& [place, stored] : storages) fwrite(place, static_cast<size_t>(stored), 1, stdout);
  }
  for (const auto& [place, stored] : storages) free(place);
  free(journal);
}

}  // namespace

int main() {
  for (;;) {
    const int64_t verb = read_int();
    verb == 0 ? run_transfer() : verb == 1 ? run_update() : verb == 2 ? run_fill() : run_journal();
  }
}
