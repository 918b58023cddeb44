// Tuning switches. Each has an environment variable, which is read once, and a setter for Python.
#pragma once

#include <torch_ext/export.h>

#include <atomic>

namespace torch_ext {

struct Knobs {
  std::atomic<bool> huge_pages;  // TORCH_EXT_HUGE_PAGES, default 1
  std::atomic<bool> nt_stores;   // TORCH_EXT_NT_STORES, default 1
};

TORCH_EXT_API Knobs& knobs();

}  // namespace torch_ext
