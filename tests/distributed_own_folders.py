"""Run by torchrun from `test_run`: a recipe on two machines without a common disk, each with an --out of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dualtower.launcher import launch

REPOSITORY = Path(__file__).parent.parent


def main(root: Path, arguments: list[str]) -> None:
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    from train_clip_style import config

    root.mkdir(parents=True, exist_ok=True)
    (root / f"rank{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    launch(config, args=[*arguments, "--out", str(root / f"machine{os.environ['RANK']}")])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
