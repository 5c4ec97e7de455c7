"""How a recipe becomes a command: typed overrides of its config, ``--smoke``, and errors without a traceback."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import tyro

from dualtower.data.transforms.attributes import AttributesConfig
from dualtower.errors import ConfigError, DualTowerError, system_message
from dualtower.models.config import ModelConfig
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
    except OSError as error:
        sys.exit(system_message(error))
    except KeyboardInterrupt:
        sys.exit(130)
    if not finished:
        sys.exit(130)


def parse_overrides(base: RunConfig, args: Sequence[str], *, description: str | None = None) -> RunConfig:
    """Apply command-line overrides such as ``--train.lr 1e-4`` to a config.

    A budget on the command line replaces the recipe's budget, whatever its unit, and a ``--base`` the recipe's
    towers. A mapping is replaced as a whole by
    JSON (``--model.image.options {}``), and key by key (``--model.image.options.stem-width 16``) where it has that key.
    ``--model.text None`` and ``--model.image None`` leave out a tower.
    Unusable arguments end the process with status 2 and name the nearest option.
    """
    if any(a.split("=")[0] == f"--train.{name}" for a in args for name in _BUDGETS):
        base = replace(base, train=replace(base.train, epochs=None, steps=None, minutes=None))
    if _given(args, "--base") not in (None, "None"):
        model = ModelConfig(reranker=base.model.reranker, fusion=base.model.fusion, decoder=base.model.decoder)
        base = replace(base, model=model)
    try:
        base, rest = _replace_mappings(*_leave_out_towers(_with_attributes(base, args), args))
        return tyro.cli(
            RunConfig,
            default=base,
            args=rest,
            description=description,
            config=(tyro.conf.AvoidSubcommands,),  # a head that a recipe leaves out is no choice of its command
        )
    except DualTowerError as error:  # a config checks its own values
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(2)


def _leave_out_towers(base: RunConfig, args: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """Take ``--model.text None`` and ``--model.image None`` out of the arguments, and the towers out of the config."""
    rest = list(args)
    for tower in ("text", "image"):
        option = f"--model.{tower}"
        if _given(rest, option) == "None":
            place = next(i for i, argument in enumerate(rest) if argument.partition("=")[0] == option)
            del rest[place : place + (1 if "=" in rest[place] else 2)]
            base = _replaced(base, ["model", tower], None)
    return base, rest


def _with_attributes(base: RunConfig, args: Sequence[str]) -> RunConfig:
    """Let a fusion that reads no attributes take the options of those that it is to read."""
    asked = any(argument.startswith("--model.fusion.attributes.") for argument in args)
    if not asked or base.model.fusion is None or base.model.fusion.attributes is not None:
        return base
    return _replaced(base, ["model", "fusion", "attributes"], AttributesConfig())


def _replace_mappings(base: RunConfig, args: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """Take out of the arguments those that give a whole mapping, and put these into the config."""
    rest, left = [], list(args)
    while left:
        option, equals, value = left.pop(0).partition("=")
        path = option.removeprefix("--").replace("-", "_").split(".")
        if not option.startswith("--") or not isinstance(_leaf(base, path), Mapping):
            rest.append(option + equals + value)
            continue
        if not equals:
            value = left.pop(0) if left else ""
        base = _replaced(base, path, _mapping(option, value))
    return base, rest


def _leaf(config: Any, path: Sequence[str]) -> Any:
    for name in path:
        config = getattr(config, name, None) if is_dataclass(config) else None
    return config


def _replaced(config: Any, path: Sequence[str], value: Any) -> Any:
    """The config with another value at a path."""
    inner = value if len(path) == 1 else _replaced(getattr(config, path[0]), path[1:], value)
    return replace(config, **{path[0]: inner})


def _mapping(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        value, reason = None, f" ({error})" if text.startswith("{") else ""
    else:
        reason = ""
    if not isinstance(value, dict):
        raise ConfigError(
            f"{option} takes a JSON object, not {text[:60]!r}{reason}; "
            f'type {option} \'{{"key": 1, "list": [1, 2]}}\', or {option} {{}} for none'
        )
    return value


def _given(args: Sequence[str], option: str) -> str | None:
    """Value of an option on the command line, or None."""
    for place, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(args[place + 1 : place + 2]), None)
    return None


def _description(config: Callable[[], RunConfig]) -> str:
    text = sys.modules[config.__module__].__doc__ or ""
    return text.strip() + "\n\n--smoke runs the whole way in seconds."
