// What fuse_norm_prelu asks at every call of a norm, in C++ because models of small tensors notice
// it.
#pragma once

#include <pybind11/pybind11.h>

namespace torch_ext {

void define_norm_calls(pybind11::module_& m);

}  // namespace torch_ext
