"""The same bits each time: beside other work, on other streams, in another process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Case, channels_last, finite_slopes, random_values
from cuda_testing import REPEATS, Busy, needs_gpu, run, side_stream
from reference import assert_both_branches, assert_same_bits, same_bits

pytestmark = needs_gpu

CASES = (
    Case("planes", (16, 32, 64, 65), (32,)),
    Case("channels_last", (16, 19, 50, 50), (19,), channels_last),
    Case("tiny_planes", (64, 128, 7, 7), (128,)),
    Case("small", (8, 16, 9, 9), (16,)),
    Case("one_slope", (1_700_001,), ()),
    Case("tall_rows", (200_001, 5), (5,)),
    Case("wide_rows", (40, 15_013), (15_013,)),
)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def tensors(request, dtypes):
    return _tensors(request.param, dtypes)


def _tensors(case, dtypes):
    input, grad_output = (
        case.layout(random_values(case.shape, dtypes[0], "cuda", seed=seed)) for seed in (1, 2)
    )
    return input, finite_slopes(case.slopes, dtypes[1], "cuda"), grad_output


def test_a_hundred_repeats_beside_a_busy_stream_give_the_same_bits(tensors):
    expected = run(*tensors)
    assert_both_branches(tensors[0], *expected)
    busy = Busy()
    different = []
    for repeat in range(REPEATS):
        busy.more()
        results = run(*tensors)
        if not all(same_bits(*pair) for pair in zip(results, expected)):
            different.append(repeat)
    busy.finish()
    assert different == []


def test_streams_that_work_at_the_same_time_do_not_disturb_each_other(tensors):
    """Workspaces and counters, if there were shared ones, would mix."""
    expected = run(*tensors)
    streams = [torch.cuda.Stream() for _ in range(4)]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    results = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(run(*tensors))
    torch.cuda.synchronize()
    for result in results:
        for one, expectation in zip(result, expected):
            assert_same_bits(one, expectation)


def test_another_stream_gives_the_same_bits(tensors):
    expected = run(*tensors)
    with side_stream():
        results = run(*tensors)
    for result, expectation in zip(results, expected):
        assert_same_bits(result, expectation)


def _digest():
    """Of all results of all cases in float32 and bfloat16."""
    digest = hashlib.sha256()
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            for result in run(*_tensors(case, (dtype, dtype))):
                digest.update(
                    result.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                )
    return digest.hexdigest()


def test_another_process_gives_the_same_bits():
    code = "import test_cuda_determinism as test; print(test._digest())"
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert other.stdout.split()[-1] == _digest()
