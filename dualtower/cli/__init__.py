"""The command ``dualtower``: thin words around the library.

dualtower evaluate runs/fashion/model --data.card data_cards/fashion_products.md
dualtower index runs/fashion/model --data.card data_cards/fashion_products.md --out shop.catalog
dualtower search shop.catalog --text "red summer dress"
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import OmitSubcommandPrefixes, subcommand

from dualtower.cli.catalog import Delete, Index, Update, Upsert
from dualtower.cli.curate import Classify, Outliers
from dualtower.cli.data import Data
from dualtower.cli.evaluate import Compare, Evaluate, Explain
from dualtower.cli.maintenance import Compact, Repair, Tune, Verify
from dualtower.cli.probe import Probe
from dualtower.cli.robustness import Robustness
from dualtower.cli.search import Search
from dualtower.cli.serve import Serve
from dualtower.errors import DualTowerError, system_message

__all__ = ["main"]

Command = (
    Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Explain, subcommand("explain")]
    | Annotated[Probe, subcommand("probe")]
    | Annotated[Robustness, subcommand("robustness")]
    | Annotated[Index, subcommand("index")]
    | Annotated[Search, subcommand("search")]
    | Annotated[Upsert, subcommand("upsert")]
    | Annotated[Update, subcommand("update")]
    | Annotated[Delete, subcommand("delete")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Repair, subcommand("repair")]
    | Annotated[Compact, subcommand("compact")]
    | Annotated[Tune, subcommand("tune")]
    | Annotated[Classify, subcommand("classify")]
    | Annotated[Outliers, subcommand("outliers")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Data, subcommand("data")]
)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the command ``dualtower``.

    Exit status: 0 done, 1 an error of dualtower or the system (its message is printed), 2 unusable arguments, 130
    interrupted, 141 nobody reads what is printed.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        command: Any = tyro.cli(
            Command,
            prog="dualtower",
            args=args,
            description=__doc__.splitlines()[0],
            config=(OmitSubcommandPrefixes,),
        )
        command.run()
        sys.stdout.flush()
    except BrokenPipeError:  # `dualtower ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # what a shell says of a program that ended so
    except DualTowerError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        sys.exit(system_message(error))
    except KeyboardInterrupt:
        sys.exit(130)
