// Large new tensors on huge pages: the first touch of 4 KiB pages costs more than the whole kernel.
#pragma once

#include <ATen/core/Tensor.h>

namespace torch_ext {

// Asks the system for huge pages under a new CPU tensor that nobody has written to yet, if it is
// large enough to gain by it. A hint: never fails, never changes a value.
void advise_huge_pages(const at::Tensor& fresh);

}  // namespace torch_ext
