"""Time and peak memory of the contrastive losses, forward and backward: tiled against plain.

    python benchmarks/loss_memory.py

Memory is measured in one process per variant: the kernel's high-water mark of resident memory during the
pass, less what was resident once the inputs were there. Time is measured in one process, all variants in
turn, several rounds; ratios are taken within a round, medians over the rounds. "textbook CLIP" is two cross
entropies of one matrix of logits, as in the pseudocode of Radford et al. 2021; it knows one positive per row.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Table, save_results
from torch import Tensor
from torch.nn import functional as F

from dualtower.losses import info_nce, siglip

Values = dict[str, Tensor]


def textbook_clip(image: Tensor, text: Tensor, *, scale: Tensor, bias: Tensor, product_codes: Tensor) -> Tensor:
    logits = scale * image @ text.T
    labels = torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2 + 0 * bias


# Each variant, and the one it is compared with.
VARIANTS: dict[str, tuple[Callable[[Values], Tensor], str]] = {
    "textbook CLIP": (lambda v: textbook_clip(**v), "InfoNCE, plain"),
    "InfoNCE, plain": (lambda v: info_nce(**v, tile=0), "InfoNCE, plain"),
    "InfoNCE, tiled": (lambda v: info_nce(**v), "InfoNCE, plain"),
    "SigLIP, plain": (lambda v: siglip(**v, tile=0), "SigLIP, plain"),
    "SigLIP, tiled": (lambda v: siglip(**v), "SigLIP, plain"),
}


def inputs(rows: int, dim: int) -> Values:
    """Normalized rows; two in five have others of their product beside them."""
    random = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(rows, dim, generator=random), dim=1) for _ in range(2))
    values = {"image": image, "text": text, "scale": torch.tensor(30.0), "bias": torch.tensor(-10.0)}
    codes = torch.randint(0, 2 * rows, (rows,), generator=random)
    return {name: value.requires_grad_() for name, value in values.items()} | {"product_codes": codes}


def gradients(name: str, values: Values) -> list[Tensor]:
    loss = VARIANTS[name][0](values)
    return list(torch.autograd.grad(loss, [values[k] for k in ("image", "text", "scale", "bias")]))


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_memory(name: str, rows: int, dim: int) -> int:
    """Bytes that one forward and backward pass needs beyond its inputs."""
    gradients(name, inputs(64, dim))  # libraries load and start their threads
    values = inputs(rows, dim)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    gradients(name, values)
    return resident("VmHWM") - before


def measure_time(names: list[str], rows: int, dim: int, rounds: int) -> dict[str, Any]:
    """Seconds of each variant in each round, and the largest relative difference of its gradients."""
    values = inputs(rows, dim)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    differences: dict[str, float] = {}
    for _ in range(rounds):
        reference: dict[str, list[Tensor]] = {}
        for name in names:
            start = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            found = gradients(name, values)
            used = resource.getrusage(resource.RUSAGE_SELF)
            wall[name].append(time.perf_counter() - start[0])
            cpu[name].append(used.ru_utime + used.ru_stime - start[1].ru_utime - start[1].ru_stime)
            baseline = VARIANTS[name][1]
            if name == baseline:
                reference = {name: found}
            elif baseline in reference:
                differences[name] = max(map(relative, found, reference[baseline]))
    return {"wall": wall, "cpu": cpu, "differences": differences}


def relative(mine: Tensor, reference: Tensor) -> float:
    return float((mine - reference).abs().max() / reference.abs().max().clamp_min(1e-30))


def in_its_own_process(*arguments: str) -> Any:
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shape = [f"--rows={options.rows}", f"--dim={options.dim}", f"--threads={options.threads}"]
    memory = {name: in_its_own_process("--memory-of", name, *shape) for name in VARIANTS}
    times = in_its_own_process("--times", f"--rounds={options.rounds}", *shape)
    variants = {}
    for name, (_, baseline) in VARIANTS.items():
        ratio = {
            kind: median(a / b for a, b in zip(times[kind][name], times[kind][baseline], strict=True))
            for kind in ("wall", "cpu")
        }
        variants[name] = {
            "compared_with": baseline,
            "extra_memory_mb": round(memory[name] / 2**20, 1),
            "memory_ratio": round(memory[name] / memory[baseline], 4),
            "seconds": round(median(times["wall"][name]), 2),
            "time_ratio": round(ratio["wall"], 3),
            "cpu_seconds": round(median(times["cpu"][name]), 2),
            "cpu_time_ratio": round(ratio["cpu"], 3),
            "gradient_difference": times["differences"].get(name),
        }
    return variants


def table(variants: dict[str, Any]) -> Table:
    header = ["loss", "peak extra memory", "of plain", "time", "of plain", "CPU time of plain", "gradients differ by"]
    rows = []
    for name, row in variants.items():
        rows.append(
            [
                name,
                f"{row['extra_memory_mb']:,.0f} MB",
                f"{row['memory_ratio']:.3f} x",
                f"{row['seconds']:.1f} s",
                f"{row['time_ratio']:.2f} x",
                f"{row['cpu_time_ratio']:.2f} x",
                "" if row["gradient_difference"] is None else f"{row['gradient_difference']:.1e}",
            ]
        )
    return header, rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory of the losses, tiled against plain.")
    parser.add_argument("--rows", type=int, default=16_384, help="rows of the joined batch")
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the timing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--times", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(measure_memory(options.memory_of, options.rows, options.dim))
    elif options.times:
        print(json.dumps(measure_time(list(VARIANTS), options.rows, options.dim, options.rounds)))
    else:
        variants = measure(options)
        save_results(
            "loss_memory",
            title=f"Forward and backward pass, {options.rows:,} rows of {options.dim} numbers, float32",
            tables=[table(variants)],
            values={**vars(options), "variants": variants},
            notes=f"Medians of {options.rounds} rounds on {options.threads} threads.",
        )


if __name__ == "__main__":
    main()
