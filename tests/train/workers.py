"""What runs in the processes of a test with several ranks; each writes what it found to a file of its own."""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from coppice import DHSPG, HESSO, build_space, extract, trace
from coppice.core.tensors import local, shard
from coppice.passes.train.engine import PruningOptimizer
from coppice.passes.train.sharded import ShardedState

Found = dict[str, Any]
STEPS = 12
METHODS: dict[str, Callable[..., PruningOptimizer]] = {"dhspg": DHSPG, "hesso": HESSO}


def spawn(work: Callable[..., Found], folder: Path, *args: Any, ranks: int = 2, seconds: float = 120) -> list[Found]:
    """Run ``work(rank, *args)`` in ``ranks`` processes that form a gloo group; what each returned, in order."""
    processes = start_processes(  # type: ignore[no-untyped-call]
        _enter, (work, str(folder), ranks, args), nprocs=ranks, join=False, start_method="spawn"
    )
    try:
        until = time.monotonic() + seconds
        while not processes.join(timeout=1):
            if time.monotonic() > until:
                raise TimeoutError(f"{work.__name__} took more than {seconds} s")
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def _enter(rank: int, work: Callable[..., Found], folder: str, ranks: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    try:
        torch.save(work(rank, *args), f"{folder}/{rank}.pt")
    except Exception:
        Path(folder, f"{rank}.txt").write_text(traceback.format_exc())
        raise
    distributed.barrier()
    distributed.destroy_process_group()
    # Threads of torch's own (gloo's, the checkpoint writer's) that wait for the interpreter's lock while it shuts down
    # are unwound by it, which C++ answers with std::terminate: now and then a finished rank would abort. Leave at once.
    os._exit(0)


class Net(nn.Module):
    """No batch statistics, so that half a batch on each of two ranks is the whole batch on one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 10, 3)
        self.up = nn.ConvTranspose2d(10, 7, 2, stride=2)
        self.hidden = nn.Linear(7, 21)
        self.norm = nn.LayerNorm(21)
        self.out = nn.Linear(21, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.up(torch.relu(self.conv(x)))).mean(dim=(2, 3))
        logits: torch.Tensor = self.out(torch.relu(self.norm(self.hidden(x))))
        return logits


def model() -> nn.Module:
    torch.manual_seed(3)
    return Net()


def adamw(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.05)


def optimizer_of(base: torch.optim.Optimizer, space: Any, method: str, **options: Any) -> PruningOptimizer:
    options = {"steps": STEPS, "start": 0.25, "stop": 0.75, **options}
    return METHODS[method](space, base, {"macs": "50%"}, **options)


def batch(step: int, rank: int = 0, ranks: int = 1) -> torch.Tensor:
    """Rows of the batch of ``step`` that belong to ``rank``: 8 in all."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 6, 6, generator=generator)[rank * 8 // ranks : (rank + 1) * 8 // ranks]


def train(network: nn.Module, optimizer: PruningOptimizer, steps: range, rank: int = 0, ranks: int = 1) -> None:
    for step in steps:
        optimizer.zero_grad()
        torch.autograd.backward(network(batch(step, rank, ranks)).square().mean())
        optimizer.step()


def built(wrap: str, method: str, **options: Any) -> tuple[nn.Module, Any, PruningOptimizer]:
    """The network as ``wrap`` says, its space, and the optimizer."""
    network = model()
    space = build_space(trace(network, batch(0)))
    trained: nn.Module = network
    if wrap == "ddp":
        trained = DistributedDataParallel(network)
    elif wrap != "one":
        shape = (2, 2) if wrap == "hsdp" else (distributed.get_world_size(),)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards")[-len(shape) :])
        fully_shard(network.get_submodule("hidden"), mesh=mesh)
        fully_shard(network, mesh=mesh)
    base = adamw(trained)
    if wrap not in ("one", "ddp"):
        evaluated(network)  # leaves the outer parameters gathered
    return trained, space, optimizer_of(base, space, method, **options)


def evaluated(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = network(batch(98))
    return output


def summary(space: Any, optimizer: PruningOptimizer) -> Found:
    """The subnet of a finished training, and how far it is from the trained model."""
    config = optimizer.config()
    subnet = extract(space, config)
    return {
        "config": config.to_json(),
        "subnet": subnet.module.state_dict(),
        "kind": subnet.receipt["module"]["kind"],
        "progress": optimizer.progress,
        "output": subnet(batch(99)),
    }


def whole_training(rank: int, wrap: str, method: str, ranks: int = 2) -> Found:
    network, space, optimizer = built(wrap, method)
    train(network, optimizer, range(5), rank, ranks)
    evaluated(network)
    train(network, optimizer, range(5, STEPS), rank, ranks)
    evaluated(network)
    return summary(space, optimizer)


def whole_trainings(rank: int, wrap: str, ranks: int = 2) -> Found:
    return {method: whole_training(rank, wrap, method, ranks) for method in METHODS}


def same_everywhere(network: nn.Module, other: nn.Module) -> bool:
    """Whether this rank's part of every tensor is the same, bit by bit."""
    state, others = network.state_dict(), other.state_dict()
    return all(torch.equal(local(tensor), local(others[name])) for name, tensor in state.items())


def resumptions(rank: int, folder: str) -> Found:
    return {method: resumed(rank, folder, method) for method in METHODS}


def resumed(rank: int, folder: str, method: str) -> Found:
    """A sharded training, and the same one stopped at some steps and continued by objects of its own."""
    options: dict[str, Any] = {"cric": True} if method == "hesso" else {}
    whole, _, optimizer = built("fsdp", method, **options)
    train(whole, optimizer, range(STEPS), rank, 2)
    found: Found = {"one": optimizer.config().to_json(), "same": [], "configs": []}
    for at in (2, 4, 7, 10):
        first, _, stopped = built("fsdp", method, **options)
        train(first, stopped, range(at), rank, 2)
        checkpoint.state_dict_saver.save(
            {"training": ShardedState(first, stopped)}, checkpoint_id=f"{folder}/{method}{at}"
        )
        second, _, continued = built("fsdp", method, **options)
        with torch.no_grad():
            for p in second.parameters():
                p.add_(1.0)
        checkpoint.state_dict_loader.load(
            {"training": ShardedState(second, continued)}, checkpoint_id=f"{folder}/{method}{at}"
        )
        train(second, continued, range(at, STEPS), rank, 2)
        found["same"].append(same_everywhere(second, whole))
        found["configs"].append(continued.config().to_json())
    other, _, strange = built("fsdp", method, **options, stop=0.5)
    found["strange"] = message(
        lambda: checkpoint.state_dict_loader.load(
            {"training": ShardedState(other, strange)}, checkpoint_id=f"{folder}/{method}4"
        )
    )
    return found


def message(action: Callable[[], object]) -> str:
    """The text of the `CoppiceError` (or of what wraps it) that ``action`` raises; empty where it raises none."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 (the loader wraps ours in one of its own)
        return f"{type(error).__name__}: {error}"
    return ""


def disagreement(rank: int) -> Found:
    """What each rank says where rank 1 has built something else than rank 0."""
    network = model()
    space = build_space(trace(network, batch(0)))
    wide = model()
    wide.hidden, wide.norm, wide.out = nn.Linear(7, 23), nn.LayerNorm(23), nn.Linear(23, 3)

    def optimizer(over: nn.Module = network, method: str = "dhspg", of: Any = space, **options: Any) -> Any:
        return optimizer_of(adamw(over), of, method, **options)

    other_space = build_space(trace(network, batch(0)), round_to=2)
    pairs: dict[str, Callable[[], PruningOptimizer]] = {
        "model": lambda: optimizer(wide, of=build_space(trace(wide, batch(0)))),
        "space": lambda: optimizer(of=other_space),
        "schedule": lambda: optimizer(steps=14),
        "optimizer": lambda: optimizer(method="hesso"),
        "options": lambda: optimizer(epsilon=0.5),
    }
    found = {key: message((pairs[key]() if rank else optimizer()).step) for key in pairs}

    ahead = optimizer()
    if rank:
        state = optimizer().state_dict()
        state["pruning"]["values"]["count"] = 2
        ahead.load_state_dict(state)
    found["step"] = message(ahead.step)
    running = optimizer()
    running.step()
    running.count += rank
    found["step later"] = message(running.step)
    return found


def refusals(rank: int) -> Found:
    return {"disagree": disagreement(rank), "nan": bad_gradient_on_one_rank(rank), "placed": odd_placements(rank)}


def odd_placements(rank: int) -> Found:
    """What is said of parameters that are neither shards nor copies, and what of a shard is known."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    partial = DTensor.from_local(torch.ones(2, 3), mesh, [Partial()])
    uneven = distribute_tensor(torch.arange(15.0).reshape(5, 3), mesh, [Shard(0)])
    part = shard(uneven)
    assert part is not None
    return {"partial": message(lambda: shard(partial)), "bounds": part.bounds, "counts": part.counts}


def bad_gradient_on_one_rank(rank: int) -> Found:
    """Rank 1's shard of one gradient holds a NaN: both ranks must leave the step out."""
    network, _, optimizer = built("fsdp", "dhspg")
    before, _, _ = built("fsdp", "dhspg")
    torch.autograd.backward(network(batch(0)).square().mean())
    if rank == 1:
        grad = network.get_parameter("hidden.weight").grad
        assert grad is not None
        local(grad)[0, 0] = torch.nan
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer.step()
    return {
        "progress": optimizer.progress,
        "same": same_everywhere(network, before),
        "said": any("skipped" in str(w.message) for w in said),
    }
