// The stream of convweights._C: jobs from Python's arguments, checked as the operators check theirs.
#include "stream/stream.h"

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ops/transfer_op.h"

namespace convweights {
namespace {

// A descriptor, and where the tensor begins in its file.
using Place = std::pair<int, int64_t>;
// A position in Dtype, and bytes an element.
using Type = std::pair<int32_t, int64_t>;

Job copy_job(const Place& source, const Place& target, int64_t bytes) {
  Job job;
  job.source = source.first;
  job.source_at = source.second;
  job.target = target.first;
  job.target_at = target.second;
  job.bytes = bytes;
  return job;
}

// `same`: whether the two types are one dtype, which those that only copy do not say.
Job transfer_job(const Place& source, const Place& target, const Type& source_type, const Type& target_type, bool same,
                 const Ints& source_sizes, const Ints& source_strides, const Ints& target_sizes, const Ints& kinds,
                 const Ints& starts, const Ints& rescales, const std::vector<Ints>& indices, double scale,
                 const Ints& fill) {
  const size_t rank = target_sizes.size();
  CW_CHECK(rank <= kMaxDims, "stream: target must have at most ", kMaxDims, " dimensions, got ", rank);
  CW_CHECK(source_sizes.size() == rank && source_strides.size() == rank && kinds.size() == rank &&
               starts.size() == rank && rescales.size() == rank,
           "stream: sizes, strides, kinds, starts and rescales must hold one number a dimension, ", rank);
  Job job = copy_job(source, target, target_type.second);
  job.indices = std::make_shared<const std::vector<Ints>>(indices);
  Transfer t;
  t.rank = static_cast<int>(rank);
  t.scale = scale;
  t.dst_type = static_cast<Dtype>(target_type.first);
  t.src_type = static_cast<Dtype>(source_type.first);
  t.same_type = same;
  t.wide = t.dst_type == Dtype::Float64 || t.src_type == Dtype::Float64;
  t.dst_item = target_type.second;
  t.src_item = source_type.second;
  for (size_t i = 0; i < fill.size() && i < 2; ++i) t.fill[i] = static_cast<uint64_t>(fill[i]);
  size_t selects = 0;
  for (int d = t.rank - 1; d >= 0; --d) {
    Dim& dim = t.dims[d];
    const size_t i = static_cast<size_t>(d);
    dim.map = Map{static_cast<MapKind>(kinds[i]), static_cast<Rescale>(rescales[i]), source_sizes[i], target_sizes[i],
                  starts[i]};
    check_map(dim.map);
    CW_CHECK(dim.map.kind != MapKind::Mean, "stream: kinds must not be mean, whose target is its source");
    dim.map.start = std::clamp(dim.map.start, -dim.map.m, dim.map.n);
    dim.size = dim.map.m;
    dim.dst_stride = job.bytes / t.dst_item;
    dim.src_stride = source_strides[i];
    CW_CHECK(dim.map.m >= 0 && dim.map.n >= 0 && dim.src_stride >= 0, "stream: sizes and strides must be at least 0");
    job.bytes *= dim.map.m;
  }
  for (int d = 0; d < t.rank; ++d) {
    Map& map = t.dims[d].map;
    if (map.kind != MapKind::Select) continue;
    CW_CHECK(selects < job.indices->size(), "stream: indices must hold one for each Select");
    const Ints& index = (*job.indices)[selects++];
    CW_CHECK(static_cast<int64_t>(index.size()) == map.m, "stream: indices must have the target's size, ", map.m);
    check_index(index.data(), map.n, map.m);
    map.index = index.data();
  }
  check_dtypes(t);
  reduce(t, /*absorb=*/false);
  job.transfer = t;
  return job;
}

// Elements that lie in order on both sides, each as the other type.
Job cast_job(const Place& source, const Place& target, const Type& source_type, const Type& target_type,
             int64_t elements) {
  const Ints identity{static_cast<int64_t>(MapKind::Identity)};
  const Ints none{static_cast<int64_t>(Rescale::None)};
  return transfer_job(source, target, source_type, target_type, /*same=*/false, {elements}, {1}, {elements}, identity,
                      {0}, none, {}, 1.0, {});
}

// A source that could not be read: errno, or 0 where it has become shorter. Of its own, so that it is neither what the
// tick has raised nor a target that could not be written.
PyObject* unread = nullptr;

// The jobs in which finite values became infinite. The tick is called with Python's lock, which is where an interrupt
// shows.
pybind11::object stream(const std::vector<Job>& jobs, int workers, int64_t tile_bytes, const pybind11::object& tick) {
  CW_CHECK(workers > 0, "stream: workers must be at least 1, got ", workers);
  Stream stream(jobs, tile_bytes);
  std::optional<FileFault> fault;
  {
    const pybind11::gil_scoped_release released;
    fault = stream.run(workers, [&](int64_t done, size_t job) {
      const pybind11::gil_scoped_acquire acquired;
      if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
      if (!tick.is_none()) tick(done, job);
    });
  }
  if (fault) {
    if (fault->reading) {
      PyErr_SetObject(unread, pybind11::int_(fault->code).ptr());
    } else {
      errno = fault->code;
      PyErr_SetFromErrno(PyExc_OSError);
    }
    throw pybind11::error_already_set();
  }
  return pybind11::cast(stream.overflown());
}

}  // namespace

void bind_stream(pybind11::module_& m) {
  unread = pybind11::exception<FileFault>(m, "Unread").release().ptr();
  pybind11::class_<Job>(m, "Job", "A tensor on its way from one file into another.")
      .def_static("copy", &copy_job)
      .def_static("cast", &cast_job)
      .def_static("transfer", &transfer_job)
      .def_readonly("bytes", &Job::bytes);
  m.def("stream", &stream, "Carry out jobs with so many threads; the jobs in which finite values became infinite.");
}

}  // namespace convweights
