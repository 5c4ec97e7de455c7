"""Run by `test_recipes`, alone or by torchrun: all recipes one after the other in the same processes.

To begin a process and to import everything takes longer than a recipe's ``--smoke``.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState

from dualtower.launcher import launch

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.py"))


def main(options: list[str]) -> None:
    sys.path.insert(0, str(RECIPES[0].parent))
    end_group, PartialState.destroy_process_group = PartialState.destroy_process_group, lambda *_: None
    for recipe in RECIPES:
        module, end = importlib.import_module(recipe.stem), 0
        try:
            launch(module.config, getattr(module, "smoke", None), args=options)
        except SystemExit as exit:
            end = exit.code
        gc.collect()
        AcceleratorState._reset_state()
        if os.environ.get("RANK", "0") == "0":
            print(f"{recipe.stem}: {end}", flush=True)
    end_group(PartialState())


if __name__ == "__main__":
    main(sys.argv[1:])
