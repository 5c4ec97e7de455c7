"""Run by `test_recipes`, alone or by torchrun: some recipes one after the other in the same processes.

To begin a process and to import everything takes longer than a recipe's ``--smoke``.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState

from dualtower.launcher import launch

RECIPES = Path(__file__).parent.parent / "recipes"


def main(names: list[str], options: list[str]) -> None:
    sys.path.insert(0, str(RECIPES))
    end_group, PartialState.destroy_process_group = PartialState.destroy_process_group, lambda *_: None
    for name in names:
        module, end = importlib.import_module(name), 0
        try:
            launch(module.config, getattr(module, "smoke", None), args=options)
        except SystemExit as exit:
            end = exit.code
        AcceleratorState._reset_state()
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: {end}", flush=True)
    end_group(PartialState())


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
