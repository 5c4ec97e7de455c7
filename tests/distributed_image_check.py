"""Run by torchrun from `test_image_check`: two ranks check 1,000 images of which two are broken, twice."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import factories
import torch.distributed as dist

from dualtower import Item
from dualtower.data import image_columns
from dualtower.data.image_check import broken_images
from dualtower.data.items import ItemDataset
from dualtower.sharding import rank, sharded


def main(out: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    good = factories.png(factories.photo())
    rows = [Item(str(i), str(i), ("mug",), b"x" if i in (10, 700) else good) for i in range(1000)]
    seen: list[Any] = []
    real = image_columns.open_image

    def noted(photo: Any, **named: Any) -> Any:
        seen.append(named["row"])
        return real(photo, **named)

    image_columns.open_image = noted
    with sharded():
        found = broken_images(ItemDataset.from_rows(rows), "shop", remember=True)
        decoded = len(seen)
        dist.barrier()
        seen.clear()
        broken_images(ItemDataset.from_rows(rows), "shop", remember=True)
    result = {"broken": [row for row, _ in found], "decoded": decoded, "again": len(seen)}
    (out / f"rank{rank()}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
