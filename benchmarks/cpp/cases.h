// The rows of benchmarks/core_cases.txt, which the Python benchmark reads too, as kernels see them.
#pragma once

#include <string>
#include <vector>

#include "kernels/channel_view.h"

namespace torch_ext::bench {

struct Case {
  std::string title;  // as the Python benchmark prints it
  ChannelView view;
  std::string dtype;
  std::string weight_dtype;
  bool misaligned;
};

// In the file's order. Throws std::runtime_error, naming the line, where a row makes no sense.
std::vector<Case> read_cases(const std::string& path);

}  // namespace torch_ext::bench
