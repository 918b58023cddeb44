// aten::prelu on our kernels while an override is open, PyTorch's own kernel otherwise.
//
// The kernel is registered once, by the first override of the process, and stays; a counter decides
// in each call. Registering on entry and unregistering on exit would be unsafe each time: PyTorch
// protects its dispatch table against other writers only, so a thread inside aten::prelu could read
// a half-written entry or call a kernel that was just freed. Registering when this library is
// loaded would be safer still, but a program that never asks for an override should keep PyTorch's
// operator as it is.
#include "ops/override_aten.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/prelu_compositeimplicitautograd_dispatch.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/Exception.h>
#include <torch/library.h>
#include <torch_ext/override_aten.h>
#include <torch_ext/prelu.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "ops/tensors.h"

namespace torch_ext {
namespace {

// How many overrides are open. The state is process-wide because the feature is.
std::atomic<int64_t>& open_overrides() {
  static std::atomic<int64_t> count{0};
  return count;
}

// What torch.compile, export and make_fx record must not depend on a switch that they cannot see:
// their caches, on disk too, would hand our operator to a program that never asked for it.
bool is_being_recorded() {
  if (!c10::impl::dispatch_mode_enabled()) {
    return false;
  }
  using Mode = c10::impl::TorchDispatchModeKey;
  constexpr std::array recorders{Mode::FAKE, Mode::PROXY, Mode::FUNCTIONAL};
  return std::any_of(recorders.begin(), recorders.end(), [](Mode mode) {
    return c10::impl::TorchDispatchModeTLS::get_mode(mode).has_value();
  });
}

// What PyTorch's operator treats differently from ours, or refuses in other words, is left to
// PyTorch.
bool is_served(const at::Tensor& input, const at::Tensor& weight) {
  return has_kernels_for(input) && !input.is_meta() && is_ours(weight) &&
         input.device() == weight.device() && input.scalar_type() == weight.scalar_type() &&
         !is_being_recorded();
}

// No path from here leads back to aten::prelu: PyTorch's kernel and our operator's own fallback
// both call aten::_prelu_kernel.
at::Tensor prelu_switched(const at::Tensor& input, const at::Tensor& weight) {
  if (open_overrides().load(std::memory_order_relaxed) > 0 && is_served(input, weight)) {
    return torch_ext::prelu(input, weight);
  }
  return at::compositeimplicitautograd::prelu(input, weight);
}

// PyTorch warns, once in a process, that a kernel is replaced. This replacement was asked for, and
// another library's should still be warned about: so the handler is switched off meanwhile, and the
// "once" is not used up. (That flag has no lock. Replacing once in a process, while Python's lock
// keeps out torch.set_warn_always, comes closest to one. In a free-threaded Python, a call of that
// function by another thread at this moment may have no effect.)
class NoWarnings : c10::WarningHandler {
 public:
  NoWarnings() { c10::WarningUtils::set_warnAlways(true); }
  ~NoWarnings() override { c10::WarningUtils::set_warnAlways(warn_always_); }
  NoWarnings(const NoWarnings&) = delete;
  NoWarnings& operator=(const NoWarnings&) = delete;
  void process(const c10::Warning&) override {}

 private:
  const bool warn_always_ = c10::WarningUtils::get_warnAlways();
  const c10::WarningUtils::WarningHandlerGuard silence_{this};
};

c10::OperatorHandle aten_prelu() {
  return c10::Dispatcher::singleton().findSchemaOrThrow("aten::prelu", "");
}

// Takes the place of PyTorch's kernel, for every key that PyTorch computes from it. A kernel in
// addition to it, at the keys of a device, would change what tracers do: they do not decompose an
// operator that has a CPU kernel.
torch::Library replace_kernel() {
  const NoWarnings quietly;
  torch::Library library(torch::Library::FRAGMENT, "aten", std::nullopt, __FILE__, __LINE__);
  library.impl(
      "prelu",
      torch::dispatch(c10::DispatchKey::CompositeImplicitAutograd, TORCH_FN(prelu_switched)));
  return library;
}

// The composite kernels, as PyTorch describes them; the one that is used comes first.
std::vector<std::string> composite_kernels() {
  std::istringstream registered(aten_prelu().dumpState());
  std::vector<std::string> found;
  for (std::string line; std::getline(registered, line);) {
    if (line.rfind(c10::toString(c10::DispatchKey::CompositeImplicitAutograd), 0) == 0) {
      found.push_back(line);
    }
  }
  return found;
}

void check_not_replaced(bool not_replaced, c10::DispatchKey key) {
  TORCH_CHECK(
      not_replaced, "torch_ext: override_aten cannot take over aten::prelu: ",
      "another library has replaced it for ", key, ". Use torch_ext.replace_prelu(model) instead.");
}

}  // namespace

void enter_override_aten() {
  for (const auto key :
       {c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU, c10::DispatchKey::CUDA,
        c10::DispatchKey::AutogradCUDA}) {
    check_not_replaced(!aten_prelu().hasKernelForDispatchKey(key), key);
  }
  constexpr auto kComposite = c10::DispatchKey::CompositeImplicitAutograd;
  static const torch::Library library = [] {
    check_not_replaced(composite_kernels().size() <= 1, kComposite);  // PyTorch's own
    return replace_kernel();
  }();
  static const std::string ours = composite_kernels().front();
  check_not_replaced(composite_kernels().front() == ours, kComposite);
  ++open_overrides();
}

void leave_override_aten() {
  std::atomic<int64_t>& open = open_overrides();
  int64_t before = open.load();
  do {
    TORCH_CHECK(before > 0, "torch_ext: override_aten was left more often than entered");
  } while (!open.compare_exchange_weak(before, before - 1));
}

OverrideAten::OverrideAten() {
  enter_override_aten();
}

OverrideAten::~OverrideAten() {
  --open_overrides();
}

}  // namespace torch_ext
