"""How a recipe becomes a command: typed overrides of its config, ``--smoke``, and errors without a traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import tyro

from dualtower.errors import DualTowerError
from dualtower.training.config import RunConfig

__all__ = ["launch", "parse_overrides"]

_BUDGETS = ("epochs", "steps", "minutes")


def launch(
    config: Callable[[], RunConfig],
    smoke: Callable[[], RunConfig] | None = None,
    *,
    args: Sequence[str] | None = None,
) -> None:
    """Run a recipe from the command line and exit with its status.

    Args:
        config: Returns the recipe's complete config.
        smoke: Returns the run of ``--smoke``, which takes seconds; default ``config().smoke()``.
        args: Arguments; default those of the process.

    Exit status: 0 done, 1 an error of dualtower (its message is printed), 2 unusable arguments, 130 stopped by a
    signal after saving.
    """
    from dualtower.training.run import run

    given = list(sys.argv[1:] if args is None else args)
    tiny = smoke or (lambda: config().smoke())
    base = tiny() if "--smoke" in given else config()
    overridden = parse_overrides(base, [a for a in given if a != "--smoke"], description=_description(config))
    first = os.environ.get("RANK", "0") == "0"  # one voice for all processes
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
    for chatty in ("httpx", "datasets", "accelerate", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        finished = run(overridden)
    except DualTowerError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if not finished:
        sys.exit(130)


def parse_overrides(base: RunConfig, args: Sequence[str], *, description: str | None = None) -> RunConfig:
    """Apply command-line overrides such as ``--train.lr 1e-4`` to a config.

    A budget on the command line replaces the recipe's budget, whatever its unit. Unusable arguments end the process
    with status 2 and name the nearest option.
    """
    if any(a.split("=")[0] == f"--train.{name}" for a in args for name in _BUDGETS):
        base = replace(base, train=replace(base.train, epochs=None, steps=None, minutes=None))
    try:
        return tyro.cli(
            RunConfig,
            default=base,
            args=list(args),
            description=description,
            config=(tyro.conf.AvoidSubcommands,),  # a head that a recipe leaves out is no choice of its command
        )
    except DualTowerError as error:  # a config checks its own values
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(2)


def _description(config: Callable[[], RunConfig]) -> str:
    text = sys.modules[config.__module__].__doc__ or ""
    return text.strip() + "\n\n--smoke runs the whole way in seconds."
