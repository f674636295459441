// What keeps memory safe when an operator is called past the Python functions, which give the readable errors.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#define CW_CHECK(condition, ...) STD_TORCH_CHECK(condition, "convweights: ", __VA_ARGS__)
