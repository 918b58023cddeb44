"""DTensor: every way to shard the arguments gives what one process gives on the whole tensors."""

import pytest
import torch
from cases import finite_slopes, forward_backward, integer_values, random_values
from processes import device, mesh, own_part
from reference import (
    assert_both_branches,
    assert_grad_weight_within_bound,
    assert_same_bits,
)
from torch import nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.debug import CommDebugMode

import torch_ext

pytestmark = pytest.mark.contract

pytest_plugins = "process_fixtures"

R, SUM = (Replicate(),), (Partial(),)


def S(*dims):
    """Shards of these dimensions, one for each dimension of the mesh."""
    return tuple(Shard(dim) for dim in dims)


# name: shape of input and weight, placements of input, weight and the weight's gradient
SHARDINGS = {
    "samples": ((6, 4, 5, 7), (4,), S(0), R, SUM),
    "rows": ((3, 4, 5, 6), (4,), S(2), R, SUM),
    "columns": ((3, 4, 6, 5), (4,), S(3), R, SUM),
    "channels": ((3, 8, 5, 6), (8,), S(1), S(0), S(0)),
    "features": ((9, 8), (8,), S(1), S(0), S(0)),
    "rows_of_features": ((9, 8), (8,), S(0), R, SUM),
    "channels_of_one_slope": ((3, 8, 5), (1,), S(1), R, SUM),
    "samples_of_one_slope": ((4, 3, 4, 5, 6), (1,), S(0), R, SUM),
    "scalar_slope": ((6, 4, 5), (), S(0), R, SUM),
    "vector": ((40,), (1,), S(0), R, SUM),
    "replicated": ((3, 8, 5), (8,), R, R, R),
    "uneven_samples": ((5, 4, 7), (4,), S(0), R, SUM),
    "uneven_channels": ((3, 7, 5), (7,), S(1), S(0), S(0)),
}
# over a 2×2 mesh
SHARDINGS_2D = {
    "samples_and_channels": ((4, 8, 5), (8,), S(0, 1), (*R, *S(0)), (*SUM, *S(0))),
    "samples_and_rows": ((4, 8, 6), (8,), S(0, 2), (*R, *R), (*SUM, *SUM)),
    "samples_twice": ((8, 6, 5), (6,), S(0, 0), (*R, *R), (*SUM, *SUM)),
    "channels_twice": ((3, 8, 5), (8,), S(1, 1), S(0, 0), S(0, 0)),
    "channels_of_replicas": ((3, 8, 5), (8,), (*R, *S(1)), (*R, *S(0)), (*R, *S(0))),
}
FLOAT32 = (torch.float32, torch.float32)
OTHER_DTYPES = {
    "float64": (torch.float64, torch.float64),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16_with_weight_float32": (torch.bfloat16, torch.float32),
}


def arguments(values, shape, slopes, dtypes=FLOAT32, seed=0):
    """The same in every process: input, weight and grad_output."""
    input = values(shape, dtypes[0], device(), seed=seed)
    grad_output = values(shape, dtypes[0], device(), seed=seed + 1)
    return input, finite_slopes(slopes, dtypes[1], device()), grad_output


def shard(tensors, over, placements):
    return [distribute_tensor(*pair) for pair in zip(tensors, [over] * 3, placements)]


def whole(tensors):
    return [tensor.full_tensor() for tensor in tensors]


def assert_equal_to_one_process(sharded, exact=True):
    """Runs on DTensors and on the tensors that they stand for; returns the DTensors' results."""
    input, weight, grad_output = (tensor.full_tensor() for tensor in sharded)
    expected = forward_backward(torch_ext.prelu, input, weight, grad_output)
    assert_both_branches(input, *expected)
    results = forward_backward(torch_ext.prelu, *sharded)
    output, grad_input, grad_weight = whole(results)
    assert_same_bits(output, expected[0])
    assert_same_bits(grad_input, expected[1])
    if exact:
        assert_same_bits(grad_weight, expected[2])
    else:
        assert_grad_weight_within_bound(grad_weight, grad_output, input, weight)
    return results


# ---- Rules -------------------------------------------------------------------------------------


def check_sharding(shape, slopes, x, w, grad_w, dtypes=FLOAT32, mesh_shape=()):
    over = mesh(*mesh_shape)
    # The sum over processes is DTensor's, in the gradient's dtype: exact on integers only.
    for values, exact in ((integer_values, True), (random_values, False)):
        if not exact and dtypes[1] == torch.bfloat16:
            continue
        tensors = arguments(values, shape, slopes, dtypes)
        sharded = shard(tensors, over, (x, w, x))
        with CommDebugMode() as communication:
            results = forward_backward(torch_ext.prelu, *sharded)
        assert communication.get_total_counts() == 0, "the operators themselves communicate"
        assert [result.placements for result in results] == [x, x, grad_w]
        assert [result.dtype for result in results] == [dtypes[0], dtypes[0], dtypes[1]]
        assert_equal_to_one_process(sharded, exact)


@pytest.mark.parametrize("name", SHARDINGS)
def test_sharded_arguments_need_no_communication(name, two_processes):
    two_processes.run(check_sharding, *SHARDINGS[name])


def test_sharded_arguments_need_no_communication_on_gpus(gpu_processes):
    for sharding in SHARDINGS.values():
        gpu_processes.run(check_sharding, *sharding)


@pytest.mark.parametrize("name", SHARDINGS_2D)
def test_two_dimensions_of_a_mesh_combine(name, four_processes):
    four_processes.run(check_sharding, *SHARDINGS_2D[name], FLOAT32, (2, 2))


@pytest.mark.parametrize("name", OTHER_DTYPES)
@pytest.mark.parametrize("sharding", ["samples", "channels", "channels_of_one_slope"])
def test_dtypes_are_kept(sharding, name, two_processes):
    two_processes.run(check_sharding, *SHARDINGS[sharding], OTHER_DTYPES[name])


def check_channels_last():
    input, weight, grad_output = arguments(integer_values, (4, 6, 5, 5), (6,))
    _, weight, grad_output = shard((input, weight, grad_output), mesh(), (S(0), R, S(0)))
    part = own_part(input).to(memory_format=torch.channels_last)
    input = DTensor.from_local(part, mesh(), S(0))
    output, grad_input, _ = assert_equal_to_one_process((input, weight, grad_output))
    for result in (output, grad_input):
        assert result.stride() == input.stride()
        assert result.to_local().is_contiguous(memory_format=torch.channels_last)


def test_shards_in_channels_last_stay_so(two_processes):
    two_processes.run(check_channels_last)


# ---- What is redistributed first ---------------------------------------------------------------


def check_any_placement():
    over = mesh()
    for x in (*S(0, 1, 2), *R):
        for w in (*S(0), *R):
            for g in (*S(0, 1, 2), *R):
                tensors = arguments(integer_values, (4, 6, 5), (6,))
                assert_equal_to_one_process(shard(tensors, over, ([x], [w], [g])))


def test_any_placements_of_the_three_arguments_are_reconciled(two_processes):
    two_processes.run(check_any_placement)


def check_pending_sums():
    over = mesh()
    rank = over.get_local_rank()
    input, weight, grad_output = arguments(integer_values, (4, 6, 5), (6,))
    part = integer_values(input.shape, input.dtype, device(), seed=10 + rank)
    replicated = shard((input, weight, grad_output), over, (R, R, R))
    for position in (0, 2):  # input, grad_output
        sharded = [*replicated]
        sharded[position] = DTensor.from_local(part, over, SUM)
        assert not torch.equal(sharded[position].full_tensor().sign(), part.sign()), "vacuous"
        assert_equal_to_one_process(sharded)


def test_pending_sums_are_summed_before_the_sign_is_looked_at(two_processes):
    two_processes.run(check_pending_sums)


def check_odd_sizes():
    over = mesh()
    channels = arguments(integer_values, (4, 5, 6), (5,))  # 2, 2, 1 and none
    results = assert_equal_to_one_process(shard(channels, over, (S(1), S(0), S(1))))
    assert [result.placements for result in results] == [S(1), S(1), S(0)]
    samples = arguments(integer_values, (5, 4, 6), (4,))
    results = assert_equal_to_one_process(shard(samples, over, (S(0), R, S(0))))
    assert [result.placements for result in results] == [S(0), S(0), SUM]
    few = arguments(integer_values, (3, 4, 6), (4,))  # fewer samples than processes
    assert_equal_to_one_process(shard(few, over, (S(0), R, S(0))))


def test_processes_may_be_left_without_elements(four_processes):
    four_processes.run(check_odd_sizes)


# ---- Gradients ---------------------------------------------------------------------------------


def check_masks(masks, shape):
    over = mesh()
    tensors = arguments(integer_values, shape, (6,))
    whole_results = torch.ops.torch_ext.prelu_backward(*_by_schema(tensors), [True, True])
    sharded = shard(tensors, over, (S(0), R, S(0)))
    for mask in masks:
        results = torch.ops.torch_ext.prelu_backward(*_by_schema(sharded), mask)
        for wanted, result, expected in zip(mask, results, whole_results):
            assert (result is not None) == wanted, f"mask {mask}"
            if wanted:
                assert_same_bits(result.full_tensor(), expected)


def _by_schema(tensors):
    input, weight, grad_output = tensors
    return grad_output, input, weight


def test_each_mask_of_gradients_is_sharded_for_itself(two_processes):
    """DTensor keeps what it found for a call; a call that wants more must not be given that."""
    fewer_first = [[False, False], [True, False], [False, True], [True, True]]
    two_processes.run(check_masks, fewer_first, (4, 6, 5))
    two_processes.run(check_masks, fewer_first[1:], (4, 6, 7))
    two_processes.run(check_masks, fewer_first[2:], (4, 6, 9))
    two_processes.run(check_masks, fewer_first[::-1], (4, 6, 11))


def check_second_order():
    over = mesh()

    def gradients(input, weight, grad_output):
        tensors = [tensor.detach().requires_grad_() for tensor in (input, weight, grad_output)]
        first = torch.autograd.grad(
            torch_ext.prelu(*tensors[:2]), tensors[:2], tensors[2], create_graph=True
        )
        return torch.autograd.grad(sum((gradient**2).sum() for gradient in first), tensors)

    for x, w in ((S(0), R), (S(2), R), (S(1), S(0)), (R, R)):
        tensors = arguments(integer_values, (4, 6, 5), (6,))
        expected = gradients(*tensors)
        assert_both_branches(tensors[0], *expected)
        for result, single in zip(gradients(*shard(tensors, over, (x, w, x))), expected):
            assert_same_bits(result.full_tensor(), single)


def test_gradients_have_gradients(two_processes):
    two_processes.run(check_second_order)


# ---- Around them -------------------------------------------------------------------------------


def check_module():
    def shard_slopes(name, module, over):
        slopes = distribute_tensor(module.weight, over, S(0))
        module.register_parameter("weight", nn.Parameter(slopes))

    layer = distribute_module(nn.PReLU(8, device=device()), mesh(), shard_slopes)
    slopes = layer.weight
    assert torch_ext.replace_prelu(layer).swapped == [""]
    assert layer.weight is slopes and slopes.placements == S(0)
    assert layer.state_dict()["weight"].placements == S(0)

    tensors = arguments(integer_values, (4, 8, 5), (8,))
    input, weight, grad_output = shard(tensors, mesh(), (S(1), S(0), S(1)))
    layer.load_state_dict({"weight": weight})
    output = layer(input.requires_grad_())
    output.backward(grad_output)
    expected = forward_backward(torch_ext.prelu, *tensors)
    assert_both_branches(tensors[0], *expected)
    for result, single in zip((output, input.grad, layer.weight.grad), expected):
        assert_same_bits(result.full_tensor(), single)


def test_a_distributed_module_is_replaced_and_keeps_its_sharded_slopes(two_processes):
    two_processes.run(check_module)


def check_modes():
    tensors = arguments(integer_values, (4, 6, 5), (6,))
    sharded = shard(tensors, mesh(), (S(0), R, S(0)))
    expected = torch_ext.prelu(*tensors[:2])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same_bits(torch_ext.prelu(*sharded[:2]).full_tensor(), expected)
    with torch.autocast(device(), torch.bfloat16):
        expected = torch_ext.prelu(*tensors[:2])
        output = torch_ext.prelu(*sharded[:2])
    assert output.dtype == expected.dtype == torch.bfloat16
    assert_same_bits(output.full_tensor(), expected)


def test_no_grad_inference_mode_and_autocast_know_dtensors(two_processes):
    two_processes.run(check_modes)


def check_compiled():
    compiled = torch.compile(torch_ext.prelu, fullgraph=True, backend="aot_eager")
    for x, w in ((S(0), R), (S(1), S(0))):
        tensors = arguments(integer_values, (4, 6, 5), (6,))
        sharded = shard(tensors, mesh(), (x, w, x))
        expected = forward_backward(torch_ext.prelu, *tensors)
        for result, single in zip(forward_backward(compiled, *sharded), expected):
            assert_same_bits(result.full_tensor(), single)


def test_torch_compile_traces_through_dtensors(two_processes):
    two_processes.run(check_compiled)


def check_errors():
    over = mesh()
    input, weight, _ = arguments(integer_values, (4, 6, 5), (6,))
    sharded, too_few = shard((input, weight[:5]), over, (S(0), R))
    with pytest.raises(RuntimeError, match="Mismatch of parameter numbers and input channel size"):
        torch_ext.prelu(sharded, too_few)
    with pytest.raises(RuntimeError, match="got mixed torch.Tensor and DTensor"):
        torch_ext.prelu(sharded, weight)
    assert_same_bits(
        torch_ext.prelu(sharded, weight[0]).full_tensor(), torch_ext.prelu(input, weight[0])
    )


def test_wrong_arguments_are_named(two_processes):
    two_processes.run(check_errors)
