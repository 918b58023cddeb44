"""What happens in another process is heard of here; else tests that use processes prove nothing."""

import os

import pytest
import torch.distributed as dist
from processes import World

pytestmark = pytest.mark.contract


@pytest.fixture
def world(tmp_path):
    world = World(2, tmp_path)
    yield world
    world.close()


def rank_and_sum():
    everywhere = [None, None]
    dist.all_gather_object(everywhere, dist.get_rank() + 1)
    return dist.get_rank(), sum(everywhere)


def second_fails(how):
    if dist.get_rank() == 1:
        how()
    dist.barrier()


def complain():
    raise ValueError("the second process is unhappy")


def die():
    os._exit(3)


def test_failures_are_reported_and_the_world_goes_on(world):
    assert world.run(rank_and_sum) == [(0, 3), (1, 3)]
    with pytest.raises(pytest.fail.Exception, match="(?s)process 1 of 2:.*second process is unhap"):
        world.run(second_fails, complain)
    assert world.run(rank_and_sum) == [(0, 3), (1, 3)]
    with pytest.raises(pytest.fail.Exception, match="process 1 of 2:\ndied with exit code 3"):
        world.run(second_fails, die)
