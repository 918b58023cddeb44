#include "python/norm_calls.h"

#include <ATen/SavedTensorHooks.h>
#include <ATen/core/Tensor.h>
#include <c10/core/AutogradState.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <array>

namespace torch_ext {
namespace {

namespace py = pybind11;

// Null for None and for what is no tensor, a subclass of Tensor among them; a Parameter is one.
const at::Tensor* plain_tensor(py::handle object) {
  return THPVariable_CheckExact(object.ptr()) ? &THPVariable_Unpack(object.ptr()) : nullptr;
}

bool may_defer() {
  return c10::AutogradState::get_tls_state().get_fw_grad_mode() &&
         at::SavedTensorDefaultHooks::get_tls_state().stack.empty() &&
         c10::impl::TorchDispatchModeTLS::stack_len() == 0 &&
         // Where there is a mode for what is above autograd, torch.export; a transform of
         // torch.func.
         !c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::PreDispatch) &&
         !c10::impl::tls_is_dispatch_key_included(
             c10::DispatchKey::FuncTorchDynamicLayerFrontMode) &&
         !torch::jit::tracer::isTracing() && !torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

bool is_floating(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

bool go_together(
    py::handle input, py::handle first, py::handle second, py::handle third, py::handle fourth) {
  const at::Tensor* x = plain_tensor(input);
  if (x == nullptr || !is_floating(x->scalar_type())) {
    return false;
  }
  const bool is_16_bit = x->element_size() == 2;
  const at::Tensor* known = nullptr;
  for (const py::handle object : {first, second, third, fourth}) {
    if (object.is_none()) {
      continue;
    }
    const at::Tensor* tensor = plain_tensor(object);
    if (tensor == nullptr || tensor->device() != x->device()) {
      return false;
    }
    const at::ScalarType type = tensor->scalar_type();
    const at::ScalarType wanted = known == nullptr ? x->scalar_type() : known->scalar_type();
    const bool is_wider = known == nullptr && is_16_bit && type == at::kFloat;
    if (type != wanted && !is_wider) {
      return false;
    }
    known = tensor;
  }
  return true;
}

// (Parameters are given other memory by `weight.data = ...`, which does not show in their
// versions.)
py::bytes state_of(
    py::handle input, py::handle weight, py::handle bias, py::handle mean, py::handle var) {
  std::array<int64_t, 8> state{};
  size_t count = 0;
  const auto add = [&](py::handle object, bool with_address) {
    int64_t version = -1;
    const void* address = nullptr;
    if (!object.is_none() || count == 0) {  // the input is no None
      const at::Tensor* tensor = plain_tensor(object);
      TORCH_CHECK_TYPE(tensor != nullptr, "expected a torch.Tensor");
      version = tensor->_version();
      address = with_address ? tensor->data_ptr() : nullptr;
    }
    state[count++] = version;
    if (with_address) {
      state[count++] = reinterpret_cast<intptr_t>(address);
    }
  };
  add(input, false);
  state[count++] = THPVariable_Unpack(input.ptr()).requires_grad();
  add(weight, true);
  add(bias, true);
  add(mean, false);
  add(var, false);
  return py::bytes(reinterpret_cast<const char*>(state.data()), sizeof(state));
}

}  // namespace

void define_norm_calls(py::module_& m) {
  m.def(
      "may_defer", may_defer,
      "Whether nothing but autograd follows what is computed now: no forward mode, mode, hook, "
      "tracer or transform.");
  m.def(
      "go_together", go_together, py::arg("input"), py::arg("first"), py::arg("second"),
      py::arg("third"), py::arg("fourth"),
      "Whether these Tensors (or None) are on the input's device and of one dtype that goes with "
      "the input's.");
  m.def(
      "state_of", state_of, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("mean"),
      py::arg("var"),
      "What differs after any of them was changed in place. Raises RuntimeError for tensors of "
      "inference mode.");
}

}  // namespace torch_ext
