// torch_ext._C: build information, tuning knobs, and what Python asks at every call of a fused
// norm. The operators are not here: libtorch_ext, which contains no Python, registers them with
// PyTorch's dispatcher.
#include <pybind11/pybind11.h>

#include "ops/build_info.h"
#include "ops/knobs.h"
#include "ops/override_aten.h"
#include "python/norm_calls.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.def(
      "build_info",
      [] { return py::module_::import("json").attr("loads")(torch_ext::build_info()); },
      "What the library was built from and for.");
  m.def(
      "instruction_set", torch_ext::instruction_set,
      "The instruction set whose CPU kernels run: one of build_info()'s cpu_capabilities.");
  m.def(
      "huge_pages", [] { return torch_ext::knobs().huge_pages.load(); },
      "Whether large results ask for huge pages.");
  m.def(
      "set_huge_pages", [](bool enabled) { torch_ext::knobs().huge_pages = enabled; },
      py::arg("enabled"), "As the environment variable TORCH_EXT_HUGE_PAGES, for this process.");
  m.def(
      "nt_stores", [] { return torch_ext::knobs().nt_stores.load(); },
      "Whether large results are written past the caches (non-temporal stores).");
  m.def(
      "set_nt_stores", [](bool enabled) { torch_ext::knobs().nt_stores = enabled; },
      py::arg("enabled"), "As the environment variable TORCH_EXT_NT_STORES, for this process.");
  m.def(
      "enter_override_aten", torch_ext::enter_override_aten,
      "Runs aten::prelu on our kernels until as many calls of leave_override_aten.");
  m.def("leave_override_aten", torch_ext::leave_override_aten, "Ends one enter_override_aten.");
  torch_ext::define_norm_calls(m);
}
