// Puts large new tensors on huge pages: the page faults of 4 KiB pages cost more than the whole
// kernel.
#pragma once

#include <ATen/core/Tensor.h>

namespace torch_ext {

// Asks the system for huge pages under a new CPU tensor that has not been written to yet, if it is
// large enough to gain from them. A hint: never fails, never changes a value.
void advise_huge_pages(const at::Tensor& fresh);

}  // namespace torch_ext
