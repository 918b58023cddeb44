"""Processes that compute together, as torchrun would start them: for tests of everything distributed.

A test hands a function of its file to a world's `run`. It is called in every process at once, so it
may use collectives; what it raises in any of them fails the test. Processes are kept for the next
test: process_fixtures.py has the worlds that tests share.
"""

import contextlib
import datetime
import itertools
import multiprocessing
import multiprocessing.connection
import os
import time
import traceback
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

START_AND_RUN_SECONDS = 180
COLLECTIVE_SECONDS = 60
GRACE_SECONDS = 2  # for the others, once one process has failed

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # else each process takes all cores, and forking is not safe
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}


class World:
    """`size` processes with one process group; started with the first run, anew after a failure."""

    def __init__(self, size, folder, backend="gloo"):
        self.size = size
        self.folder = folder
        self.backend = backend
        self._members = []  # (process, connection)
        self._starts = itertools.count()

    def run(self, function, *arguments):
        """Calls function(*arguments) in every process. Returns the results by rank, no tensors."""
        if not self._members:
            self._start()
        for _, connection in self._members:
            with contextlib.suppress(OSError):  # it died; that is found below
                connection.send((function, arguments))
        answers = self._answers()
        failures = [
            f"process {rank} of {self.size}:\n{answer['failure']}"
            for rank, answer in sorted(answers.items())
            if "failure" in answer
        ]
        if failures:
            self.close()
            pytest.fail("\n".join(failures), pytrace=False)
        return [answers[rank]["result"] for rank in range(self.size)]

    def close(self):
        """Ends the processes; they have nothing to finish."""
        for process, connection in self._members:
            process.kill()
            process.join()
            connection.close()
        self._members = []

    def _start(self):
        # Forked from one process that has imported torch already: that takes seconds, once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed.tensor", "torch_ext"])
        # A file, not a port: nobody else can take it between the choice and the use.
        store = str(self.folder / f"store{next(self._starts)}")
        with mock.patch.dict(os.environ, ENVIRONMENT):
            for rank in range(self.size):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(rank, self.size, self.backend, store, theirs), daemon=True
                )
                process.start()
                theirs.close()
                self._members.append((process, ours))

    def _answers(self):
        deadline = time.monotonic() + START_AND_RUN_SECONDS
        waiting = {connection: rank for rank, (_, connection) in enumerate(self._members)}
        answers = {}
        while waiting:
            ready = multiprocessing.connection.wait(waiting, max(0, deadline - time.monotonic()))
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    answers[rank] = connection.recv()
                except (EOFError, OSError):
                    process = self._members[rank][0]
                    process.join(GRACE_SECONDS)
                    answers[rank] = {"failure": f"died with exit code {process.exitcode}"}
                if "failure" in answers[rank]:
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            if not ready:
                answers |= {rank: {"failure": "did not answer"} for rank in waiting.values()}
                break
        return answers


def _serve(rank, size, backend, store, connection):
    """What each process does: calls what it is sent, until it is killed or the tests are gone."""
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        store=dist.FileStore(store, size),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS),
    )
    while True:
        try:
            function, arguments = connection.recv()
            answer = {"result": function(*arguments)}
        except EOFError:
            return
        except BaseException:  # noqa: BLE001  (pytest's own failures are no Exceptions)
            answer = {"failure": traceback.format_exc()}
        connection.send(answer)


# ---- For what runs in the processes ------------------------------------------------------------


def device():
    """Where this process computes."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def mesh(*shape, names=None):
    """A mesh over all processes: one-dimensional unless a shape is given."""
    shape = shape or (dist.get_world_size(),)
    return init_device_mesh(device(), shape, mesh_dim_names=names)


def own_part(tensor):
    """This process's share of a batch."""
    return tensor.chunk(dist.get_world_size())[dist.get_rank()]
