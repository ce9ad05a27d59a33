"""The settings of `coppice compile`: from a YAML file and the command line, checked, and written beside the result."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import coppice
from coppice.core.errors import UsageError

MAX_YAML = 1 << 20


class CompileSettings(BaseModel):
    """One run of `coppice compile`: the keys of its YAML file. Relative paths start at the current folder."""

    model_config = ConfigDict(extra="forbid")

    model: str
    out: Path
    budget: dict[str, str | int | float] = Field(min_length=1)
    input: list[str] = []
    ignore: list[str] = []
    round_to: int = Field(1, ge=1)
    bounds: dict[str, int | float | tuple[int | float, int | float]] = {}
    residual: str = "exact"
    score: str = "magnitude"
    calibration: Path | None = None
    reform: bool = False
    batch: int = Field(64, ge=1)
    seed: int = Field(0, ge=0)
    onnx: bool = False

    def to_yaml(self) -> str:
        """YAML that `coppice compile --config` reads back to the same settings."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return (
            f"# coppice {coppice.__version__}: what made this subnet; run again with coppice compile --config\n{text}"
        )


def compile_settings(config: Path | None, given: Mapping[str, Any]) -> CompileSettings:
    """The file's settings, each replaced by the command line's where that has one (None: it has not).

    Raises `UsageError` naming the file or option and the key, with the nearest key for an unknown one.
    """
    merged = {**({} if config is None else _read(config)), **{k: v for k, v in given.items() if v is not None}}
    try:
        return CompileSettings.model_validate(merged)
    except ValidationError as error:
        raise _explained(error, config, given) from None


def parse_budget(texts: Sequence[str] | None) -> dict[str, str | int | float] | None:
    """``["macs=50%", "params=1.2M"]`` as a dict; plain numbers become numbers, so that 0.5 means half as in Python."""
    result: dict[str, str | int | float] = {}
    for text in texts or ():
        metric, equals, amount = (part.strip() for part in text.partition("="))
        if not (metric and equals and amount):
            raise UsageError(
                "it is no budget", place=f"--budget {text}", remedy="write metric=amount, say macs=50% or params=1.2M"
            )
        if metric in result:
            raise UsageError(f"{metric} is given twice", place=f"--budget {text}", remedy="give each metric once")
        result[metric] = _number(amount)
    return result or None


def _number(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError("there is no such file", place=str(path), remedy="give a YAML file, see docs/cli.md")
    if path.stat().st_size > MAX_YAML:
        raise UsageError(
            f"it is larger than {MAX_YAML >> 20} MiB", place=str(path), remedy="give a YAML file of settings"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = " ".join(str(error).split())[:300]
        raise UsageError(f"it is no YAML: {first}", place=str(path), remedy="see docs/cli.md for the keys") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UsageError("it is no mapping of keys to values", place=str(path), remedy="see docs/cli.md for the keys")
    return data


def _explained(error: ValidationError, config: Path | None, given: Mapping[str, Any]) -> UsageError:
    """pydantic's first complaint in our words."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    key = str(first["loc"][0])
    option = "MODEL" if key == "model" else f"--{key.replace('_', '-')}"
    place = option if given.get(key) is not None or config is None else f"{config}: {key}"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key.replace("-", "_"), CompileSettings.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(CompileSettings.model_fields)}"
        return UsageError(f"there is no setting {key!r}", place=place, remedy=hint)
    if first["type"] == "missing":
        return UsageError("it is missing", place=option, remedy=f"give {option}, or {key!r} in the --config file")
    inner = ".".join(map(str, first["loc"][1:]))
    message = str(first["msg"])
    fact = f"{message[0].lower()}{message[1:]}" + (f" (at {inner})" if inner else "")
    return UsageError(fact, place=place, remedy="see docs/cli.md for what the settings take")
