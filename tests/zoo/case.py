"""What a zoo entry is: a seeded builder, its inputs, and which output axes are prunable, with helpers to make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Args = tuple[Any, ...] | dict[str, Any]
Inputs = Callable[[int], Args]


@dataclass(frozen=True, eq=False)
class Case:
    """One model. The name fields hold globs (fnmatch, ``*`` crosses dots) over ``named_parameters``.

    They judge a parameter's output axis (``axis(name)``) when a unit is removed by zeroing the parameters that produce
    it (rows, biases, norm affines, BN running means) and the consumer's columns are left alone:

    - ``expect``: exact after slicing tensors and rewriting literal sizes; a compiler should find it.
    - ``may``: exact too, but needs more (index remapping, whole groups, range or constant reasoning); either verdict
      is right.
    - ``later``: wrong today, because a known constant reaches the consumer or a divisor changes; a rewrite can fix it.
    - ``expect_frozen``: wrong, or part of the model's output.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    expect: tuple[str, ...] = ()
    expect_frozen: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    axes: Mapping[str, int] = field(default_factory=dict)
    note: str = ""
    slow: bool = False
    resize: Callable[[int], nn.Module] | None = None
    width: int = 0

    def axis(self, name: str) -> int:
        """The output axis of parameter ``name``: 0 unless ``axes`` says otherwise (transposed convs, embeddings)."""
        return next((axis for pattern, axis in self.axes.items() if fnmatchcase(name, pattern)), 0)

    def names(self, model: nn.Module, verdict: str) -> list[str]:
        """The parameters of ``model`` that the globs of field ``verdict`` (say ``"expect"``) select."""
        patterns = getattr(self, verdict)
        return [name for name, _ in model.named_parameters() if any(fnmatchcase(name, p) for p in patterns)]

    def args(self, batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Example ``(args, kwargs)``; floating tensors are cast to ``dtype``."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        given = tree_map(cast, self.inputs(batch))
        return ((), given) if isinstance(given, dict) else (given, {})

    def run(self, model: nn.Module, batch: int = 2, dtype: torch.dtype = torch.float32) -> Any:
        """The model's raw output on the example inputs, without gradients."""
        args, kwargs = self.args(batch, dtype)
        with torch.no_grad():
            return model(*args, **kwargs)


def image(channels: int = 3, *size: int) -> Inputs:
    """Inputs of one normal tensor ``(batch, channels, *size)``; 32x32 when no size is given."""
    return lambda batch: (torch.randn(batch, channels, *(size or (32, 32)), generator=generator()),)


def features(*size: int) -> Inputs:
    """Inputs of one normal tensor ``(batch, *size)``."""
    return lambda batch: (torch.randn(batch, *size, generator=generator()),)


def images(count: int, channels: int = 3, side: int = 8) -> Inputs:
    """Inputs of ``count`` different image tensors."""

    def make(batch: int) -> Args:
        source = generator()
        return tuple(torch.randn(batch, channels, side, side, generator=source) for _ in range(count))

    return make


def tokens(vocabulary: int, length: int) -> Inputs:
    """Inputs of one integer tensor ``(batch, length)``."""
    return lambda batch: (torch.randint(0, vocabulary, (batch, length), generator=generator()),)


def generator(seed: int = 1234) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> Callable[[], nn.Module]:
    """A builder that calls ``make`` under a fixed seed, randomises every parameter and returns the model in eval mode.

    The global random state is left as it was.
    """

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make()
            randomise(model)
        return model.eval()

    return build


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draws parameters and norm statistics so that nothing is zero or one and activations stay of order one."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            _draw(module, name, parameter)
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.6, 1.6)
            module.num_batches_tracked.fill_(7)


def _draw(module: nn.Module, name: str, parameter: Tensor) -> None:
    if isinstance(module, nn.PReLU):
        parameter.uniform_(0.1, 0.4)
    elif isinstance(module, nn.Embedding):
        parameter.normal_(0, 0.7)
    elif name == "original0":
        parameter.uniform_(0.7, 1.3)
    elif parameter.dim() < 2:
        if "weight" in name or "scale" in name:
            parameter.uniform_(0.5, 1.2)
        else:
            parameter.normal_(0, 0.25)
    elif "weight" in name or name.startswith("original"):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        fan_in = parameter.numel() / parameter.shape[1 if transposed else 0]
        parameter.normal_(0, (1.5 / fan_in) ** 0.5)
    else:
        parameter.normal_(0, 0.5)


def registry(*groups: list[Case]) -> dict[str, Case]:
    """All cases by name; a name used twice is an error."""
    cases = [case for group in groups for case in group]
    named = {case.name: case for case in cases}
    assert len(named) == len(cases), "two cases share a name"
    return named
