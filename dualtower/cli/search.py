"""The command that searches a catalog."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from dualtower.cli.placing import say_where
from dualtower.config import to_json
from dualtower.errors import ConfigError, DataError
from dualtower.search.milvus.address import shown_address

if TYPE_CHECKING:
    from dualtower.search.queries import Page

__all__ = ["Search"]


@dataclass(frozen=True)
class Search:
    """Find products by words, by an image, or by both."""

    catalog: Positional[str]
    """Folder of the catalog, or milvus://host:port/name."""
    text: str = ""
    """Words to search for."""
    image: Path | None = None
    """Image file to search with."""
    similar: str | None = None
    """Id of a row: find products like it, instead of words and image."""
    negative_texts: Annotated[tuple[str, ...], arg(name="not")] = ()
    """Words that the hits should have nothing of."""
    weights: tuple[float, float] = (1.0, 1.0)
    """Weights of the words and of the image."""
    target: Literal["image", "text", "product"] | None = None
    """What is compared with: images, titles, or fused products; by default images, or titles where the model embeds
    texts alone."""
    where: str = ""
    """Filter, such as "articleType = 'Dresses' and price < 50"."""
    limit: int = 10
    """Hits per page."""
    cursor: str | None = None
    """Cursor of the page before, as --json prints it."""
    every_row: bool = False
    """Show every row of a product, not only its best."""
    rerank: int | None = None
    """Put the best N rows for --text in order again with the re-ranker of the model, at most 100."""
    model: str | None = None
    """Where the model lies now, if it has moved since the catalog was made."""
    json: bool = False
    """Print {"hits": [...], "cursor": ...}, as the server answers."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.data.transforms.images import open_image
        from dualtower.search.engine import SearchRequest, open_engine

        if self.rerank is not None and self.similar is not None:
            raise ConfigError("--rerank compares images with words, and --similar has none; leave out one of them")
        engine = open_engine(self.catalog, self.model, device=self.device, rerank=self.rerank)
        say_where(engine.model)
        if self.similar is not None:
            page = engine.similar(self.similar, where=self.where, limit=self.limit, cursor=self.cursor)
            if page is None:
                raise DataError(f"no row {self.similar!r} in {shown_address(self.catalog)}")
            return self._print(page)
        if self.image is not None:
            open_image(self.image, where="--image", row=self.image)  # a missing file is named
        request = SearchRequest(
            text=self.text,
            image=self.image.read_bytes() if self.image else None,
            negative_texts=self.negative_texts,
            text_weight=self.weights[0],
            image_weight=self.weights[1],
            target=self.target,
            where=self.where,
            limit=self.limit,
            cursor=self.cursor,
            group_by_product=not self.every_row,
        )
        if self.rerank is not None and not self.cursor and not engine.reorders(request):
            raise ConfigError(
                "--rerank compares images with words alone; give --text without --image, --not, or another --target"
            )
        self._print(engine.find(request))

    def _print(self, page: Page) -> None:
        if self.json:
            print(to_json(page.to_dict()))
            return
        for hit in page.hits:
            facts = ", ".join(str(v) for v in hit.row["attributes"].values() if v is not None)
            print(f"{hit.score:.3f}  {hit.id:<12} {hit.row['title']}  ({facts})")
        if not page.hits:
            print("nothing found")
