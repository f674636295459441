// The runs of update for any processor, 16 bytes a vector.
#include "ops/make_runs.h"

namespace convweights {
namespace {

struct Portable : Lanes<Portable, 16> {};

}  // namespace

Runs runs_portable() { return make_runs<Portable>("portable"); }

}  // namespace convweights
