"""Trains one network in several processes, with DistributedDataParallel.

    torchrun --nproc-per-node=2 examples/python/train_ddp.py [--checkpoint FILE] [--resume]

One process for each GPU (nccl), or any number on the CPU (gloo). The network is written with
nn.PReLU, as models are found; its layers are swapped before it is wrapped. The checkpoint holds
tensors only: it loads with weights_only=True, and into the same network without torch_ext.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from shapes import NAMES, pictures
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from training import accuracy, parameter_groups, progress

import torch_ext

RATE, WEIGHT_DECAY = 0.01, 0.01
BATCH = 32  # of each process


def network() -> nn.Sequential:
    """(N, 1, H, W) images to (N, 4) logits; a slope for each channel."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.PReLU(16), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.PReLU(32), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.PReLU(32)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, len(NAMES))),
    )


def join() -> torch.device:
    """Joins the processes that torchrun started; returns where this one computes."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    return device


def leave() -> None:
    """Leaves the processes that were joined, when nothing is left to be exchanged.

    A moment after a collective has returned, gloo's threads let go of its tensors, which takes the
    interpreter: one that ends meanwhile is aborted (found in torch 2.15; pytorch/pytorch#179291).
    """
    if dist.get_backend() == "gloo":
        time.sleep(0.2)
    dist.destroy_process_group()


def train_epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer) -> float:
    """One pass over this process's share of the data; the mean loss over all processes."""
    device = next(model.parameters()).device
    losses = torch.zeros((), device=device)
    for images, labels in progress(loader, "training") if dist.get_rank() == 0 else loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()  # gradients of all processes are averaged, those of slopes too
        optimizer.step()
        losses += loss.detach()
    dist.all_reduce(losses)
    return losses.item() / (len(loader) * dist.get_world_size())


def same_in_all_processes(model: nn.Module) -> bool:
    """Whether the parameters of all processes have the same bits."""
    own = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    first = own.clone()
    dist.broadcast(first, src=0)
    differ = torch.tensor(not torch.equal(own, first), device=own.device, dtype=torch.int32)
    dist.all_reduce(differ)
    return differ.item() == 0


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Writes what resuming needs, or nothing: never half a checkpoint."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Reads it, in every process; returns how many epochs were trained."""
    device = next(model.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"]


def train(arguments: argparse.Namespace, device: torch.device) -> bool:
    """Trains to the last epoch and says how it went; True if all processes agree in the end."""
    torch.manual_seed(0)  # the same start everywhere
    model = network().to(device)
    report = torch_ext.replace_prelu(model)  # after wrapping would do as well
    optimizer = torch.optim.AdamW(parameter_groups(model, RATE, WEIGHT_DECAY))
    trained = load(arguments.checkpoint, model, optimizer) if arguments.resume else 0
    wrapped = DistributedDataParallel(model)

    data = TensorDataset(*pictures(arguments.images, seed=0))
    sampler = DistributedSampler(data, seed=0)
    loader = DataLoader(data, BATCH, sampler=sampler)
    unseen = [tensor.to(device) for tensor in pictures(1000, seed=1)]
    first = dist.get_rank() == 0
    if first:
        print(f"{dist.get_world_size()} processes on {device.type}, {report}")
    for epoch in range(trained + 1, arguments.epochs + 1):
        sampler.set_epoch(epoch)
        loss = train_epoch(wrapped, loader, optimizer)
        if first:
            found = accuracy(model, *unseen)
            print(f"epoch {epoch}  loss {loss:.3f}  accuracy {found:.1%} of unseen pictures")
            save(arguments.checkpoint, model, optimizer, epoch)

    same = same_in_all_processes(model)
    if first:
        slopes = torch.cat([slope.detach() for slope in torch_ext.slope_parameters(model)])
        print(f"slopes {slopes.min():.2f} ... {slopes.max():.2f}, mean {slopes.mean():.2f}")
        print(f"parameters of all processes: {'identical' if same else 'DIFFERENT'}")
        print(f"checkpoint: {arguments.checkpoint}")
    return same


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    default = Path(__file__).resolve().parents[2] / "build" / "demo" / "train_ddp.pt"
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=8, help="trained in the end (%(default)s)")
    parser.add_argument("--images", type=int, default=4000, help="to learn from (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=default, help="(%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, as one of the processes; 0 if all of them agree."""
    arguments = parse_arguments(argv)
    arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    device = join()
    try:
        return 0 if train(arguments, device) else 1
    finally:
        leave()


if __name__ == "__main__":
    sys.exit(main())
