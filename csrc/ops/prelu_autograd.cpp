// Derivatives of both operators, in terms of operators. Knows no device, kernel or layout.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>
#include <torch_ext/prelu.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>

#include "ops/autograd_state.h"
#include "ops/prelu_composite.h"
#include "ops/prelu_foreign.h"

namespace torch_ext {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Undefined tensors are passed on to the kernels, whose checks name the argument.
bool is_recorded(at::ArrayRef<at::Tensor> tensors) {
  return needs_graph(tensors) &&
         std::all_of(
             tensors.begin(), tensors.end(), [](const at::Tensor& t) { return t.defined(); });
}

}  // namespace

// (Not in the unnamed namespace, because profiles and messages show the type's name.)
struct PreluBackwardFunction : public torch::autograd::Function<PreluBackwardFunction> {
  static constexpr bool is_traceable = true;

  // Returns the wanted gradients only.
  static variable_list forward(
      AutogradContext* ctx,
      const at::Tensor& grad_output,
      const at::Tensor& input,
      const at::Tensor& weight,
      std::array<bool, 2> output_mask) {
    ctx->save_for_backward({grad_output, input, weight});
    ctx->saved_data["grad_input"] = output_mask[0];
    ctx->saved_data["grad_weight"] = output_mask[1];
    ctx->set_materialize_grads(false);
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [grad_input, grad_weight] =
        torch_ext::prelu_backward(grad_output, input, weight, output_mask);
    variable_list wanted;
    for (auto& gradient : {grad_input, grad_weight}) {
      if (gradient.defined()) {
        wanted.push_back(gradient);
      }
    }
    return wanted;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    size_t next = 0;
    const at::Tensor none;
    const at::Tensor& by_input = ctx->saved_data["grad_input"].toBool() ? grads[next++] : none;
    const at::Tensor& by_weight = ctx->saved_data["grad_weight"].toBool() ? grads[next++] : none;
    auto [grad_output, input, weight] = prelu_double_backward(
        by_input, by_weight, saved[0], saved[1], saved[2],
        {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2)});
    return {grad_output, input, weight, /*output_mask=*/at::Tensor()};
  }
};

namespace {

// What CppNode requires of a function.
struct Prelu {
  static constexpr bool is_traceable = true;

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) {
      return {at::Tensor(), at::Tensor()};
    }
    const auto saved = ctx->get_saved_variables();
    auto [grad_input, grad_weight] = torch_ext::prelu_backward(
        grads[0], saved[0], saved[1], {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    return {grad_input, grad_weight};
  }
};

// The node that torch::autograd::Function<Prelu>::apply would create, with everything that repeated
// backwards, hooks and compiled autograd need, but created and run by far less code, which is what
// takes the time on tensors of a few elements.
struct PreluNode final : torch::autograd::CppNode<Prelu> {
  variable_list apply(variable_list&& grads) override {
    const std::lock_guard lock(mutex_);  // as CppNode, against a concurrent release
    return Prelu::backward(&ctx_, grads);
  }
  std::string name() const override { return "TorchExtPreluBackward"; }
};

// In the kind of pointer by which this version of PyTorch holds nodes: intrusive since 2.13.
template <typename Node>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, Node>) {
    return c10::make_intrusive<Node>();
  } else {
    return std::shared_ptr<Node>(new Node(), [](Node* node) { deleteNode(node); });
  }
}

template <typename NodePtr>
void record(
    const NodePtr& node,
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& output) {
  node->set_next_edges(torch::autograd::collect_next_edges(input, weight));
  node->set_ctx_grad_fn(node);
  node->ctx_.set_materialize_grads(false);
  node->ctx_.save_for_backward({input, weight});
  node->is_variable_input_ = {true, true};
  node->input_info_ = {torch::autograd::VariableInfo(input), torch::autograd::VariableInfo(weight)};
  node->output_info_ = {torch::autograd::VariableInfo(output)};
  torch::autograd::set_history(output, node);
  node->save_variables_to_ctx();
  if constexpr (requires { fire_node_creation_hooks(node); }) {  // newer than 2.11
    fire_node_creation_hooks(node);
  }
}

at::Tensor prelu_autograd(const at::Tensor& input, const at::Tensor& weight) {
  if (is_foreign(input, weight)) {
    return prelu_foreign(input, weight);
  }
  if (needs_composite({input, weight})) {
    return prelu_composite(input, weight);
  }
  // As in PyTorch's own functions, the node is created first: its sequence number records the order
  // of execution.
  const auto node = is_recorded({input, weight}) ? make_node<PreluNode>() : nullptr;
  at::Tensor output;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    output = torch_ext::prelu(input, weight);
  }
  if (node) {
    record(node, input, weight, output);
  }
  return output;
}

std::tuple<at::Tensor, at::Tensor> prelu_backward_autograd(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    std::array<bool, 2> output_mask) {
  if (is_foreign(input, weight) || needs_composite({grad_output, input, weight})) {
    return prelu_backward_composite(grad_output, input, weight, output_mask);
  }
  if (is_recorded({grad_output, input, weight}) && (output_mask[0] || output_mask[1])) {
    auto wanted = PreluBackwardFunction::apply(grad_output, input, weight, output_mask);
    return {
        output_mask[0] ? wanted.front() : at::Tensor(),
        output_mask[1] ? wanted.back() : at::Tensor()};
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return torch_ext::prelu_backward(grad_output, input, weight, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_ext, Autograd, m) {
  m.impl("prelu", prelu_autograd);
  m.impl("prelu_backward", prelu_backward_autograd);
}

}  // namespace torch_ext
