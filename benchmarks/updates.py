"""Write a thousand items while four clients search: do the searches wait or fail?

    python benchmarks/updates.py --catalog shop.catalog

Works on a copy. Four clients ask titles of the catalog over HTTP, at first alone. Then a fifth sends a thousand new
items, images included, in requests of a hundred, which the same service embeds and writes, while the four go on.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import shutil
import tempfile
from pathlib import Path

import numpy as np
from common import save_results
from service import Service, ask, http_request, load, load_for, search_request, serving, titles

from dualtower.search.local.store import LocalStore

TOKEN = "a token for this benchmark alone"
CLIENTS, ITEMS, PER_REQUEST = 4, 1000, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20, help="of searching alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shop, token = Path(folder) / "shop", Path(folder) / "token"
        shutil.copytree(args.catalog, shop)
        token.write_text(TOKEN)
        searches = [search_request(title) for title in titles(shop)]
        writes = new_items(shop)
        with serving(shop, token_file=token) as service:
            load_for(service, searches, CLIENTS, 3)
            alone = load_for(service, searches, CLIENTS, args.seconds)
            beside = asyncio.run(while_writing(service, searches, writes))
    rows, values = [], {}
    for name, (taken, errors) in {"searching alone": alone, f"while {ITEMS:,} items are written": beside}.items():
        p50, p99 = np.percentile(taken, [50, 99]) * 1000
        rows.append([name, str(len(taken)), f"{p50:.1f} ms", f"{p99:.1f} ms", str(errors)])
        values[name] = {"queries": len(taken), "p50_ms": float(p50), "p99_ms": float(p99), "errors": errors}
    save_results(
        "updates",
        title=f"{CLIENTS} clients search while {ITEMS:,} items are written",
        tables=[(["", "queries", "p50", "p99", "errors"], rows)],
        values=values,
    )


def new_items(shop: Path) -> list[bytes]:
    """Requests that write rows of the catalog again, under new ids."""
    store = LocalStore(shop)
    items = []
    for row in store.get(list(store.digests())[:ITEMS]):
        content = store.content(row.id)
        image = base64.b64encode(content).decode() if content else None
        items.append({"id": f"new/{row.id}", "title": row.title, "attributes": row.attributes, "image": image})
    store.close()
    parts = [items[start : start + PER_REQUEST] for start in range(0, len(items), PER_REQUEST)]
    return [http_request("PUT", "/items", part, authorization=f"Bearer {TOKEN}") for part in parts]


async def while_writing(service: Service, searches: list[bytes], writes: list[bytes]) -> tuple[list[float], int]:
    """Search as long as the writing takes."""
    return await load(service, searches, CLIENTS, write(service, writes))


async def write(service: Service, requests: list[bytes]) -> None:
    """Send one request after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    for request in requests:
        if not await ask(reader, writer, request):
            raise RuntimeError("a write was refused")
    writer.close()


if __name__ == "__main__":
    main()
