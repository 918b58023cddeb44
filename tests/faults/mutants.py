"""Changes of the product that break one rule each, and the tests that have to notice.

Planted one at a time by mutate.py. (Faults of the CUDA kernels have a table of their own, table.py:
each is looked for by sanitizers or a compiler on a copy of a few files, quick enough for `make test`.)
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One rule, broken in one place."""

    rule: str
    file: str
    old: str
    new: str
    tests: str  # files of tests/, or a C++ test of the build


_MATH = "csrc/kernels/prelu_math.h"
_CPU = "csrc/kernels/cpu"
_LANES = f"{_CPU}/lanes.h"
_ARGS = "csrc/ops/prelu_args.cpp"
_AUTOGRAD = "csrc/ops/prelu_autograd.cpp"
_COMPOSITE = "csrc/ops/prelu_composite.cpp"

MUTANTS = (
    # ---- Values ---------------------------------------------------------------------------------
    Mutant(
        "x = 0 takes the slope's side",
        _LANES,
        "x > Vec(typename Wide::acc_t(0))",
        "x >= Vec(typename Wide::acc_t(0))",
        "test_special_values.py",
    ),
    Mutant(
        "NaN takes the slope's side, in 16 bits",
        _LANES,
        "return std::bit_cast<Bits<int16_t>>(shifted) < int16_t(INT16_MIN + kInfinity);",
        "return stored > int16_t(0) && shifted == shifted;",
        "test_special_values.py",
    ),
    Mutant(
        "sides are chosen by the input, not the output",
        _MATH,
        "return Select<T>::by_sign(x, x, weight * x);",
        "return Select<T>::by_sign(weight * x, x, weight * x);",
        "test_contract.py",
    ),
    Mutant(
        "grad_input's side is chosen by the input",
        _MATH,
        "by_sign(x, grad_output, weight * grad_output)",
        "by_sign(grad_output, grad_output, weight * grad_output)",
        "test_values.py",
    ),
    Mutant(
        "grad_weight's side is chosen by the input",
        _MATH,
        "product_unless_positive(x, grad_output)",
        "product_unless_positive(grad_output, x)",
        "test_values.py",
    ),
    Mutant(
        "a select, not a mask that multiplies infinities",
        _LANES,
        "product.vec[v] = by_sign(wide_x.vec[v], Vec(0), product.vec[v]);",
        "product.vec[v] = product.vec[v] * by_sign(wide_x.vec[v], Vec(0), Vec(1));",
        "test_special_values.py",
    ),
    Mutant(
        "bfloat16 is rounded to even",
        _LANES,
        "bits + 0x7FFFu + (bits >> 16 & 1u)",
        "bits + 0x8000u",
        "test_values.py",
    ),
    Mutant(
        "a NaN slope's bits do not turn into infinity",
        _LANES,
        "WideStep::kEvenOdd && std::isnan(value)",
        "false && std::isnan(value)",
        "cpu_engine_test",
    ),
    # ---- Sums -----------------------------------------------------------------------------------
    Mutant(
        "sums leave float32 after short chains",
        f"{_CPU}/sums.h",
        "inline constexpr int kChain = 12;",
        "inline constexpr int kChain = 16;",
        "test_error_bound.py",
    ),
    Mutant(
        "those of float64 are shorter",
        f"{_CPU}/sums.h",
        "inline constexpr int kChain<double> = 5;",
        "inline constexpr int kChain<double> = 12;",
        "test_error_bound.py",
    ),
    Mutant(
        "sums of float64 carry what rounding lost",
        f"{_CPU}/wide_lanes.h",
        "    correction_ = correction_ + next.error;\n",
        "",
        "test_error_bound.py",
    ),
    Mutant(
        "an infinite sum stays infinite",
        f"{_CPU}/sums.h",
        "return std::isfinite(value) ? value + correction : value;",
        "return value + correction;",
        "test_special_values.py",
    ),
    Mutant(
        "products are summed unrounded",
        _LANES,
        "Wide product = wide_x * other.widened();",
        "Wide product = (wide_x * other).widened();",
        "test_accuracy.py test_exact_sums.py",
    ),
    Mutant(
        "every split is added",
        f"{_CPU}/prelu.h",
        "for (int64_t split = 0; split < splits; ++split) {",
        "for (int64_t split = 1; split < splits; ++split) {",
        "test_exact_sums.py",
    ),
    Mutant(
        "sums begin at zero",
        f"{_CPU}/scratch.h",
        "      new (data() + i) T();\n",
        "      (void)i;\n",
        "test_exact_sums.py",
    ),
    Mutant(
        "bits do not depend on threads",
        "csrc/ops/prelu_cpu.cpp",
        "const cpu::ChannelTasks tasks(args.view(), sizeof(scalar_t), grad_weight.defined());",
        "ChannelView view = args.view();\n"
        "  if (view.channels == 1 && view.numel() % at::get_num_threads() == 0) {\n"
        "    view = {at::get_num_threads(), 1, view.numel() / at::get_num_threads()};\n"
        "  }\n"
        "  const cpu::ChannelTasks tasks(view, sizeof(scalar_t), grad_weight.defined());",
        "test_determinism.py",
    ),
    # ---- Walks ----------------------------------------------------------------------------------
    Mutant(
        "tasks cover what does not divide",
        f"{_CPU}/channel_tasks.h",
        "row_blocks_ = ceil_div(rows_, row_block_);",
        "row_blocks_ = std::max<int64_t>(rows_ / row_block_, 1);",
        "cpu_engine_test",
    ),
    Mutant(
        "the end of a plane is computed",
        f"{_CPU}/planes.h",
        "    if (tail == 0) {\n",
        "    if (tail < Step::kSize) {\n",
        "test_layouts.py",
    ),
    Mutant(
        "the end of a plane is summed once",
        f"{_CPU}/planes.h",
        "tail > 0 ? chains[kSteps - 1].last(tail) : chains[kSteps - 1];",
        "chains[kSteps - 1];",
        "test_exact_sums.py",
    ),
    Mutant(
        "the end of a row of columns is summed once",
        f"{_CPU}/columns.h",
        "&columns[(cut.last_step() + 1) * kSize - cut.left];",
        "&columns[cut.last_step() * kSize];",
        "test_exact_sums.py",
    ),
    Mutant(
        "positions have 64 bits",
        f"{_CPU}/channel_tasks.h",
        "constexpr int64_t row_size() const {",
        "constexpr int32_t row_size() const {",
        "cpu_engine_test",
    ),
    # ---- Layouts --------------------------------------------------------------------------------
    Mutant(
        "grad_output's strides are its own",
        _ARGS,
        "return same_memory_order(grad_output, input_) ? grad_output",
        "return true ? grad_output",
        "test_layouts.py",
    ),
    Mutant(
        "channels are dimension 1 wherever it lies in memory",
        _ARGS,
        "(dense.stride(d) > dense.stride(1) ? view.outer : view.inner)",
        "(d < 1 ? view.outer : view.inner)",
        "test_layouts.py",
    ),
    Mutant(
        "channels are not the last dimension",
        _ARGS,
        "input.dim() > 1 ? input.sym_size(1) : c10::SymInt(1);",
        "input.dim() > 1 ? input.sym_size(-1) : c10::SymInt(1);",
        "test_values.py",
    ),
    Mutant(
        "gaps in memory are not read",
        _ARGS,
        "input_ = input.is_non_overlapping_and_dense() ? input : empty_output(input).copy_(input);",
        "input_ = input;",
        "test_layouts.py",
    ),
    Mutant(
        "a slope may have any stride",
        _ARGS,
        "weight_ = weight.contiguous();",
        "weight_ = weight;",
        "test_layouts.py",
    ),
    Mutant(
        "the fake kernel has the real one's strides",
        "csrc/ops/prelu.cpp",
        '  check_prelu_args(input, weight, "prelu_meta");\n  return empty_output(input);',
        '  check_prelu_args(input, weight, "prelu_meta");\n'
        "  return at::empty_like(input, at::MemoryFormat::Contiguous);",
        "test_dispatcher.py",
    ),
    Mutant(
        "an empty input has a gradient of zeros",
        "csrc/ops/prelu_cpu.cpp",
        "      grad_weight.zero_();\n",
        "      grad_weight.fill_(1);\n",
        "test_contract.py",
    ),
    # ---- Arguments ------------------------------------------------------------------------------
    Mutant(
        "float32 slopes are for 16-bit data",
        _ARGS,
        "return is_16_bit(input) && weight == at::kFloat;",
        "return weight == at::kFloat;",
        "test_errors.py",
    ),
    Mutant(
        "as many slopes as channels",
        _ARGS,
        "channels == weight.sym_numel(),",
        "channels >= weight.sym_numel(),",
        "test_errors.py",
    ),
    Mutant(
        "slopes have at most one dimension",
        _ARGS,
        "      weight.dim() <= 1,\n",
        "      weight.dim() <= 2,\n",
        "test_errors.py",
    ),
    Mutant(
        "one device",
        _ARGS,
        "      input.device() == weight.device(),\n",
        "      true,\n",
        "test_errors.py",
    ),
    Mutant(
        "grad_output has the input's shape",
        _ARGS,
        "      grad_output.sym_sizes() == input.sym_sizes(),\n",
        "      grad_output.sym_numel() == input.sym_numel(),\n",
        "test_errors.py",
    ),
    # ---- Autograd -------------------------------------------------------------------------------
    Mutant(
        "input and weight are saved, and nothing else",
        _AUTOGRAD,
        "node->ctx_.save_for_backward({input, weight});",
        "node->ctx_.save_for_backward({input, weight, input.detach()});",
        "test_contract.py",
    ),
    Mutant(
        "saved through hooks, not beside them",
        _AUTOGRAD,
        "node->ctx_.save_for_backward({input, weight});",
        "node->ctx_.save_for_backward({input, weight.detach()});",
        "test_contract.py test_autograd.py",
    ),
    Mutant(
        "an undefined gradient is passed on",
        _AUTOGRAD,
        "    if (!grads[0].defined()) {\n",
        "    if (false) {\n",
        "test_contract.py test_autograd.py test_hooks.py",
    ),
    Mutant(
        "what nobody asks for is not computed",
        _AUTOGRAD,
        "{ctx->needs_input_grad(0), ctx->needs_input_grad(1)});\n    return {grad_input, grad_weight};",
        "{true, true});\n    return {grad_input, grad_weight};",
        "test_autograd.py",
    ),
    Mutant(
        "second order takes the slope's side at 0",
        _COMPOSITE,
        "return at::where(input > 0, 0, values);",
        "return at::where(input >= 0, 0, values);",
        "test_second_order.py",
    ),
    Mutant(
        "forward mode takes the slope's side at 0",
        _COMPOSITE,
        "return at::where(input > 0, 1, along_channels(",
        "return at::where(input >= 0, 1, along_channels(",
        "test_second_order.py",
    ),
    Mutant(
        "composites compute 16-bit data in float32",
        _COMPOSITE,
        "return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;",
        "return input.scalar_type();",
        "test_vmap.py test_second_order.py",
    ),
    Mutant(
        "tangents are seen",
        _AUTOGRAD,
        "return t._fw_grad(/*level=*/0).defined();",
        "return t.defined() && false;",
        "test_forward_mode.py",
    ),
    Mutant(
        "transforms are seen",
        _AUTOGRAD,
        "c10::DispatchKey::FuncTorchDynamicLayerBackMode)) {\n    return true;",
        "c10::DispatchKey::FuncTorchDynamicLayerBackMode)) {\n    return false;",
        "test_transforms.py",
    ),
    # ---- Around the operators -------------------------------------------------------------------
    Mutant(
        "autocast keeps a float32 slope",
        "csrc/ops/prelu_autocast.cpp",
        "keep_weight ? weight : at::autocast",
        "false ? weight : at::autocast",
        "test_autocast.py",
    ),
    Mutant(
        "devices without kernels of ours take float32 slopes",
        "csrc/ops/prelu_composite.cpp",
        "if (input.scalar_type() != weight.scalar_type() &&",
        "if (false && input.scalar_type() != weight.scalar_type() &&",
        "test_dispatcher.py",
    ),
    Mutant(
        "but not in other layouts",
        "csrc/ops/prelu_composite.cpp",
        "  check_same_dtype(input, weight);\n",
        "",
        "test_other_layouts.py",
    ),
    Mutant(
        "an override that is closed does nothing",
        "csrc/ops/override_aten.cpp",
        "open_overrides().load(std::memory_order_relaxed) > 0 &&",
        "open_overrides().load(std::memory_order_relaxed) >= 0 &&",
        "test_override_aten_context.py test_override_aten.py",
    ),
    Mutant(
        "recorded graphs do not know an override",
        "csrc/ops/override_aten.cpp",
        "         !is_being_recorded();",
        "         true;",
        "test_override_aten_modes.py",
    ),
    Mutant(
        "kernels take any strides, and say so",
        "csrc/ops/prelu.cpp",
        "tags{at::Tag::pt2_compliant_tag, at::Tag::flexible_layout};",
        "tags{at::Tag::pt2_compliant_tag};",
        "test_dispatcher.py",
    ),
    # ---- CUDA, from its source ------------------------------------------------------------------
    Mutant(
        "kernels run on the current stream",
        "csrc/kernels/cuda/launch.cuh",
        "config.stream = c10::cuda::getCurrentCUDAStream();",
        "config.stream = nullptr;",
        "test_source_rules.py",
    ),
    Mutant(
        "kernels run on the input's device",
        "csrc/ops/prelu_cuda.cu",
        "  const c10::cuda::CUDAGuard guard(args.input().device());\n  at::Tensor output",
        "  at::Tensor output",
        "test_source_rules.py",
    ),
    Mutant(
        "launches are checked",
        "csrc/kernels/cuda/launch.cuh",
        "C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));",
        "cudaLaunchKernelEx(&config, kernel, arguments...);",
        "test_source_rules.py",
    ),
    # ---- Python ---------------------------------------------------------------------------------
    Mutant(
        "a swap leaves swapped modules alone",
        "torch_ext/replace.py",
        "if not isinstance(module, nn.PReLU) or isinstance(module, PReLU):",
        "if not isinstance(module, nn.PReLU):",
        "test_replace.py",
    ),
    Mutant(
        "the filter is asked",
        "torch_ext/replace.py",
        "if filter_fn is not None and not filter_fn(module, name):",
        "if False and not filter_fn(module, name):",
        "test_replace.py test_replace_report.py",
    ),
)
