"""VGG16-BN and ResNet-18 on lossy CIFAR-10, on one GPU, at the budgets of the OTO papers.

    PYTHONPATH=VIEW:benchmarks python -m quality.gpu --data FOLDER/cifar10_jpeg.npz --out out/gpu

VIEW is a folder with a link ``coppice`` to the repository root: nothing needs to be installed, the C library is not
used. Each arm trains in a process of its own (``--jobs`` at once on the one GPU) from the same start for the same
number of steps, in bf16 autocast. Arms: ``dense``, the full network, and coppice's sparse optimizers (``dhspg``,
``hesso``, ``h2spg``), which train once and are cut at the end. ``--limits both`` asks for the paper's parameters
too, not only its MACs.

A run that is stopped goes on from its last checkpoint when the same command is given again. ``--seconds 560`` saves and
stops by itself before a time limit does it; the exit code is then 3. Results are printed, one JSON line each, and kept
in ``OUT/results.jsonl``. ``--device cpu --samples 512 --epochs 1`` tries everything in a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from page import table

import coppice
from quality import report
from quality.gpu_job import ARMS, NETS, RATES, Job, result_file
from quality.images import DATA, FILE, load


def main() -> int:
    options = _options()
    if options.results:
        rows = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
        report.put(options.docs, "gpu", section(rows))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    if options.job:
        return Job(options, *options.job.split("/")).run()
    load(options.data, options.out / "cifar10.npz")
    absent = [arm for arm in options.arms if ARMS[arm] and not hasattr(coppice, ARMS[arm])]
    if absent:
        print(f"left out, not in this coppice: {', '.join(absent)}", file=sys.stderr)
    arms = [arm for arm in options.arms if arm not in absent]
    jobs = [f"{net}/{arm}/{seed}" for seed in options.seeds for net in options.nets for arm in arms]
    codes = _spawn(jobs, options.jobs)
    rows = _report(options.out, jobs)
    if options.docs and rows:
        report.put(options.docs, "gpu", section(rows))
    return max(map(abs, codes), default=0)  # a killed process has a negative code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="quality.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA / FILE, help="cifar10_jpeg.npz")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="checkpoints, decoded images, results")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["dense", "dhspg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limits", choices=("macs", "both"), default="macs")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, help=f"peak learning rate, default {RATES}")
    parser.add_argument("--start", type=float, help="where the penalty starts, as a fraction of the steps")
    parser.add_argument("--stop", type=float, help="where it ends")
    parser.add_argument("--jobs", type=int, default=4, help="processes at once")
    parser.add_argument("--seconds", type=float, default=math.inf, help="save and stop after so long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=50_000, help="training images, and at most as many test ones")
    parser.add_argument("--again", action="store_true", help="start anew, whatever OUT holds")
    parser.add_argument("--docs", type=Path, help="write the table into this page")
    parser.add_argument("--results", type=Path, help="train nothing: write these results.jsonl into the page of --docs")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.results and not options.docs:
        parser.error("--results needs --docs")
    return options


def _spawn(jobs: list[str], at_once: int) -> list[int]:
    """Exit codes of one process per job, at most ``at_once`` of them alive."""
    waiting, alive, codes = list(jobs), list[subprocess.Popen[bytes]](), list[int]()
    while waiting or alive:
        while waiting and len(alive) < at_once:
            command = [sys.executable, "-m", "quality.gpu", *sys.argv[1:], "--job", waiting.pop(0)]
            alive.append(subprocess.Popen(command))
        time.sleep(0.2)
        codes += [p.returncode for p in alive if p.poll() is not None]
        alive = [p for p in alive if p.returncode is None]
    return codes


def _report(out: Path, jobs: list[str]) -> list[dict[str, Any]]:
    """Print what is finished, with the drop against the dense network of the same seed, and write it to one file."""
    rows = [json.loads(file.read_text()) for job in jobs if (file := result_file(out, job)).exists()]
    dense = {(row["net"], row["seed"]): row["accuracy"] for row in rows if row["arm"] == "dense"}
    for row in rows:
        row["accuracy_dense"] = dense.get((row["net"], row["seed"]))
        if row["accuracy_dense"]:
            row["relative_drop"] = round(1 - row["accuracy"] / row["accuracy_dense"], 5)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (out / "results.jsonl").write_text(text, encoding="utf-8")
    print(text, end="", flush=True)
    return rows


HEAD = """## VGG16-BN and ResNet-18 on a GPU

`python -m quality.gpu`, at the budgets of the OTO papers, {steps} steps of {batch} for every arm, bf16 autocast, lossy
images. The papers (OTOv2, on raw images, longer training): VGG16-BN at 26.6 % of the MACs and 5.0 % of the parameters,
93.3 %; ResNet-18 at 20.3 % and 8.8 %, 92.9 % of 93.0 %. Only the relative drop compares.
"""
COLUMNS = ("network", "arm", "seed", "MACs", "parameters", "accuracy", "dense", "relative drop", "equivalence error",
           "seconds", "optimizer ms per step")  # fmt: skip


def section(rows: list[dict[str, Any]]) -> str:
    """The table of docs/quality.md."""
    lines = []
    for row in rows:
        middle = [part["optimizer"] for part in row["milliseconds"].values()]
        lines.append([
            row["net"], row["arm"], str(row["seed"]), f"{row['macs']:.2%}", f"{row['params']:.2%}",
            f"{row['accuracy']:.2%}", f"{row['accuracy_dense']:.2%}" if row["accuracy_dense"] else "",
            f"{row['relative_drop']:.2%}" if "relative_drop" in row else "",
            "" if row["equivalence_error"] is None else f"{row['equivalence_error']:.0e}", f"{row['seconds']:.0f}",
            f"{statistics.median(middle):.1f}" if middle else "",
        ])  # fmt: skip
    settings = rows[0]["settings"] | {"steps": rows[0]["steps"]}
    return HEAD.format(**settings) + "\n" + table(COLUMNS, lines) + f"\ntorch {rows[0]['torch']}.\n"


if __name__ == "__main__":
    sys.exit(main())
