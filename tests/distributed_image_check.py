"""Run by torchrun from `test_image_check`: two ranks check 1,000 pictures of which two are broken, twice."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import tiny
import torch.distributed as dist

from dualtower import Product
from dualtower.data import pictures
from dualtower.data.image_check import broken_images
from dualtower.data.products import Products
from dualtower.sharding import rank, sharded


def main(out: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    good = tiny.png(tiny.picture())
    rows = [Product(str(i), str(i), ("mug",), b"x" if i in (10, 700) else good) for i in range(1000)]
    seen: list[Any] = []
    real = pictures.open_image

    def noted(picture: Any, **named: Any) -> Any:
        seen.append(named["row"])
        return real(picture, **named)

    pictures.open_image = noted
    with sharded():
        found = broken_images(Products.from_rows(rows), "shop", remember=True)
        decoded = len(seen)
        dist.barrier()
        seen.clear()
        broken_images(Products.from_rows(rows), "shop", remember=True)
    result = {"broken": [row for row, _ in found], "decoded": decoded, "again": len(seen)}
    (out / f"rank{rank()}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
