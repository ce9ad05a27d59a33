"""The frame around the commands: start-up, help, errors and their exit codes, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import coppice as package
from clikit import Coppice
from coppice.core.errors import (
    BudgetError,
    CoppiceError,
    EquivalenceError,
    StaleFactError,
    TraceError,
    UnsupportedError,
    UsageError,
)


def fresh(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


def test_version_and_help_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom coppice.cli.main import run\ncodes = run(['--version']), run(['--help'])\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pydantic', 'onnx', 'networkx'} & set(sys.modules)\n"
        "print(codes, sorted(heavy))"
    )
    done = fresh(code, tmp_path)
    assert done.stdout.splitlines()[0] == f"coppice {package.__version__}"
    assert done.stdout.splitlines()[-1] == "(0, 0) []"


def test_without_a_command_help_is_printed(coppice: Coppice) -> None:
    shown = coppice()
    assert shown.code == 0
    for command in ("demo", "trace", "explain", "compile", "bench", "doctor"):
        assert f"\n  {command} " in shown.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["explian"], "Did you mean 'explain'?"),
        (["explain"], "Missing argument 'MODEL'"),
        (["explain", "model.py:build", "--jso"], "--json"),
        (["bench", "--repetitions", "no"], "--repetitions"),
    ],
)
def test_slips_of_the_command_line_are_usage_errors(coppice: Coppice, args: list[str], said: str) -> None:
    shown = coppice(*args)
    assert shown.code == 2
    assert shown.out == ""
    assert shown.err.startswith("error: coppice")
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_parsing_errors_are_json_on_request(coppice: Coppice) -> None:
    shown = coppice("explain", "--json")
    assert shown.code == 2
    assert shown.json["error"]["kind"] == "UsageError"
    assert shown.json["error"]["exit_code"] == 2
    assert "MODEL" in shown.json["error"]["fact"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StaleFactError("the fact", place="the place", remedy="the remedy"), 1),
        (UsageError("the fact", place="the place", remedy="the remedy"), 2),
        (TraceError("the fact", place="the place", remedy="the remedy"), 3),
        (UnsupportedError("the fact", place="the place", remedy="the remedy"), 3),
        (BudgetError("the fact", closest={"macs": 12.0}, place="the place", remedy="the remedy"), 4),
        (EquivalenceError("the fact", error=0.5, place="the place", remedy="the remedy"), 5),
    ],
)
def test_every_error_has_its_exit_code_text_and_json(
    coppice: Coppice, monkeypatch: pytest.MonkeyPatch, error: CoppiceError, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("coppice.frontends.torch.trace", fail)
    shown = coppice("trace", "model.py:build", "--json")
    assert shown.code == code
    assert "error: the place: the fact\n" in shown.err
    assert "  remedy: the remedy\n" in shown.err
    assert "Traceback" not in shown.err
    facts = shown.json["error"]
    assert facts.items() >= {"kind": type(error).__name__, "exit_code": code, "fact": "the fact"}.items()
    if isinstance(error, BudgetError):
        assert facts["closest"] == {"macs": 12.0}
        assert "  closest: macs=12\n" in shown.err


def test_a_bug_is_an_internal_error_with_a_traceback_on_request(
    coppice: Coppice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("coppice.frontends.torch.trace", fail)
    shown = coppice("trace", "model.py:build")
    assert shown.code == 1
    assert "error: internal error: ZeroDivisionError: oh" in shown.err
    assert "--debug" in shown.err
    assert "Traceback" not in shown.err
    assert "Traceback" in coppice("trace", "model.py:build", "--debug").err


def test_ctrl_c_while_the_result_is_written_leaves_nothing(
    coppice: Coppice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coppice.core.files.write_text", interrupted)
    before = set(tmp_path.iterdir())
    shown = coppice("compile", "model.py:build", "--budget", "macs=50%", "--out", "result")
    assert shown.code == 130
    assert "interrupted" in shown.err
    assert {p.name for p in set(tmp_path.iterdir()) - before} <= {"__pycache__"}


def test_a_real_ctrl_c_ends_the_process_with_130(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import sys, time\ndef build():\n    print('building', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [
        sys.executable,
        "-m",
        "coppice.cli.main",
        "compile",
        "slow.py:build",
        "--budget",
        "macs=50%",
        "--out",
        "x",
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell makes children ignore it
    )
    assert process.stderr is not None
    for said in process.stderr:
        if said == "building\n":
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert {p.name for p in tmp_path.iterdir()} <= {"slow.py", "__pycache__"}
