"""Where a model computes: one rule for training, measuring, embedding and serving."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from dualtower.errors import ConfigError

__all__ = ["computing_line", "describe_device", "find_device", "present_devices"]


def present_devices() -> dict[str, int]:
    """Kind of device -> how many of them this machine has; the CPU is always one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {"cpu": 1} if accelerator is None else {accelerator.type: torch.accelerator.device_count(), "cpu": 1}


def find_device(name: str = "auto", *, present: Mapping[str, int] | None = None) -> torch.device:
    """The device of that name.

    Args:
        name: ``auto`` (the accelerator where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``. Without a number,
            each process of a launcher takes one of its own.
        present: Kind of device -> how many there are; default this machine's.

    Raises:
        ConfigError: There is no such device here; names those that are.
    """
    present = present_devices() if present is None else present
    device_type, _, number = name.partition(":")
    if device_type == "auto" and not number:
        device_type = next(iter(present))
    if device_type not in present or (number and not (number.isdecimal() and int(number) < present[device_type])):
        here = [k if k == "cpu" or n == 1 else f"{k}:0 to {k}:{n - 1}" for k, n in present.items()]
        raise ConfigError(f"device {name!r} is not here; here are: {', '.join(here)}. Type --device auto")
    if device_type == "cpu":
        return torch.device("cpu")
    return torch.device(
        device_type, int(number) if number else int(os.environ.get("LOCAL_RANK", 0)) % present[device_type]
    )


def describe_device(device: torch.device) -> str:
    """Its name, and for an NVIDIA or AMD GPU which one it is."""
    if device.type == "cuda" and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def computing_line(computes: Mapping[str, str]) -> str:
    """Say in one line on which device a model computes, and each of its towers in which precision.

    Args:
        computes: `DualTower.computes`.
    """
    towers = [f"{name} {value}" for name, value in computes.items() if name != "device"]
    return f"on {computes['device']}: {', '.join(towers)}"
