"""Commands on a catalog: make it, and change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from dualtower.cli.evaluate import CardSource
from dualtower.cli.placing import say_where, to_place
from dualtower.errors import ConfigError
from dualtower.search.milvus.address import parse_address, shown_address

if TYPE_CHECKING:
    from accelerate import PartialState

    from dualtower.data.cards import DataCard
    from dualtower.data.items import ItemDataset
    from dualtower.models.dual_tower import DualTower
    from dualtower.models.precision import TowerPrecision
    from dualtower.search.ingest.embed import Indexed
    from dualtower.search.local.store import LocalStore
    from dualtower.search.records import CatalogInfo
    from dualtower.search.store import Store

__all__ = ["CARD", "Delete", "Index", "Update", "Upsert", "open_local"]

CARD = "card.md"


@dataclass(frozen=True)
class Index:
    """Embed a catalog and make it searchable; started again after a stop, it goes on where it was.

    Several processes share the work: `torchrun --nproc_per_node 2 -m dualtower index ...` on CPUs,
    `accelerate launch --quiet -m dualtower index ...` on GPUs, or --backend ray.
    """

    model: Positional[str]
    """Model folder, or user/name on the Hub."""
    data: CardSource
    out: str
    """Folder of the catalog: new, or one of this model, of which only what has changed is embedded; or
    milvus://host:port/name."""
    split: str = "all"
    """Split to index."""
    batch_size: int = 256
    """Rows embedded at a time."""
    recall: float = 0.98
    """The recall@10 that the nearest-neighbor index must reach, against exact search."""
    backend: Literal["local", "ray"] = "local"
    """`ray` embeds with Ray Data, on this machine or on a cluster."""
    workers: int = 2
    """Number of Ray workers that embed."""
    shards: Path | None = None
    """Folder for shards of several workers, one that all of them reach; default beside the catalog."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision to embed in; auto is bf16 on an accelerator that has it, and on CPUs what a second's measurement finds
    fastest for each tower. The catalog records it, and keeps to it when it is indexed again."""

    def run(self) -> None:
        from accelerate import PartialState

        from dualtower.data.cards import load_card
        from dualtower.device import find_device
        from dualtower.files import write_text_atomically
        from dualtower.models.dual_tower import DualTower
        from dualtower.search.ingest.embed import (
            attribute_types_of,
            index_products,
            notes_on_rows,
            open_or_create,
            precision_to_index,
            unseen_rows,
        )
        from dualtower.search.local.store import LocalStore

        device = find_device(self.device)
        card, model, items = load_card(self.data.card), DualTower.from_pretrained(self.model), self._products()
        model = model.placed(device)
        unseen_rows(items, model)  # says so before a catalog is made where there is nothing to search
        kinds = attribute_types_of(items, card.columns.numeric)
        state = PartialState(cpu=device.type == "cpu")
        with state.main_process_first():
            store = open_or_create(
                self.out,
                model,
                name=self.model,
                attributes=kinds,
                card=card.name,
                precision=partial(precision_to_index, model, items, self.precision),
            )
        model = model.for_inference(self._agreed(store.info))
        if state.is_main_process:
            say_where(model)
        if state.num_processes > 1 or self.backend == "ray":
            done = self._with_workers(state, store, model, items)
        else:
            done = index_products(store, model, items, batch_size=self.batch_size, progress=True)
        if not state.is_main_process:
            return
        if isinstance(store, LocalStore):
            if card.path is not None:
                write_text_atomically(store.catalog.folder / CARD, card.path.read_text(encoding="utf-8"))
            if done.written or store.is_stale(thorough=True):
                store.rebuild(recall=self.recall)
        if items.skipped:
            print(f"left out {len(items.skipped)} rows; the first: {items.skipped[0]}")
        for sentence in notes_on_rows(items, model):
            print(sentence)
        where = shown_address(self.out)
        print(f"{done.written:,} rows embedded, {done.unchanged:,} unchanged; {len(store):,} rows in {where}")

    def _agreed(self, info: CatalogInfo) -> TowerPrecision:
        """The catalog's precision; of one that notes none it is float32."""
        from dualtower.models.precision import TowerPrecision

        noted = info.precision or TowerPrecision()
        if self.precision not in ("auto", noted.text) or self.precision not in ("auto", noted.image):
            raise ConfigError(
                f"{shown_address(self.out)} was embedded in another precision ({noted}); "
                f"leave out --precision {self.precision}, or index into a new folder"
            )
        return noted

    def _products(self) -> ItemDataset:
        from dualtower.data.cards import load_card
        from dualtower.data.loading import load_items
        from dualtower.search.store import open_store, store_exists

        card, source = load_card(self.data.card), self.data.source
        if store_exists(self.out):
            card = with_numbers(card, numbers_of(open_store(self.out)))
        return load_items(card, self.split, source=source, on_error=self.data.on_error, check_images=False)

    def _with_workers(self, state: PartialState, store: Store, model: DualTower, items: ItemDataset) -> Indexed:
        """Each process embeds its share of the shards; the first one brings all of them into the catalog."""
        from dualtower.search.ingest.embed import Indexed
        from dualtower.search.ingest.shards import embed_shard, embed_with_ray, import_shards, plan_shards

        beside = Path(parse_address(self.out).collection if self.out.startswith("milvus:") else self.out)
        folder = self.shards or beside.with_name(f"{beside.name}.shards")
        shards = plan_shards(items, store.info, folder, held=store.digests())
        if self.backend == "ray":
            embed_with_ray(shards, self.model, self._products, store.info, workers=self.workers, device=self.device)
        for shard in shards[state.process_index :: state.num_processes]:
            embed_shard(shard, model, items, store.info, batch_size=self.batch_size)
        state.wait_for_everyone()
        return import_shards(store, shards, total=len(items)) if state.is_main_process else Indexed(0, 0)


@dataclass(frozen=True)
class Upsert:
    """Add rows to a catalog, replacing those with the same ids."""

    catalog: Positional[Path]
    """Folder of the catalog."""
    rows: Positional[str]
    """File or folder with rows in the columns of the catalog's card."""
    card: Path | None = None
    """Data card of the rows; default the one that the catalog was made with."""
    on_error: Literal["raise", "skip"] = "raise"
    """Stop at the first bad row, or leave bad rows out and count them."""
    model: str | None = None
    """Where the model lies now, if it has moved since the catalog was made."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps ...; auto is an accelerator where there is one."""

    def run(self) -> None:
        from dualtower.models.dual_tower import DualTower
        from dualtower.search.ingest.embed import index_products, notes_on_rows, unseen_rows

        store = open_local(self.catalog)
        model = to_place(DualTower.from_pretrained(self.model or store.info.model), self.device)
        numbers = numbers_of(store)
        items = read_rows(self.card or self.catalog / CARD, self.rows, self.on_error, numeric=numbers)
        unseen_rows(items, model)
        done = index_products(store.catalog, model, items, progress=True)
        if store.is_stale(thorough=True):
            store.rebuild()
        if items.skipped:
            print(f"left out {len(items.skipped)} rows; the first: {items.skipped[0]}")
        for sentence in notes_on_rows(items, model):
            print(sentence)
        print(f"{done.written:,} rows written, {done.unchanged:,} unchanged; {len(store):,} rows in {self.catalog}")


@dataclass(frozen=True)
class Update:
    """Change attributes of rows, such as prices, from a table of ids and new values; nothing is embedded."""

    catalog: Positional[str]
    """Folder of the catalog, or milvus://host:port/name."""
    rows: Positional[Path]
    """File or folder: a column of ids, and columns named as attributes. An empty cell changes nothing."""
    id_column: str | None = None
    """Column of the ids; default that of the catalog's card, or `id`."""
    on_error: Literal["raise", "skip"] = "raise"
    """Stop at the first row that is unknown or bad, or leave such rows out and count them."""

    def run(self) -> None:
        from dualtower.search.ingest.updates import update_rows
        from dualtower.search.store import open_store

        store = open_store(self.catalog)
        where = shown_address(self.catalog)
        done = update_rows(store, self.rows, id_column=self.id_column or self._id_of_card(), on_error=self.on_error)
        if done.skipped:
            print(f"left out {len(done.skipped)} rows; the first: {done.skipped[0]}")
        print(f"{done.changed:,} rows changed, {done.unchanged:,} unchanged; {len(store):,} rows in {where}")

    def _id_of_card(self) -> str:
        from dualtower.data.cards import load_card

        card = Path(self.catalog) / CARD
        return (load_card(card).columns.id if card.exists() else None) or "id"


@dataclass(frozen=True)
class Delete:
    """Remove rows from a catalog."""

    catalog: Positional[str]
    """Folder of the catalog, or milvus://host:port/name."""
    ids: Positional[tuple[str, ...]]
    """Ids of the rows."""

    def run(self) -> None:
        from dualtower.search.store import open_store

        if not self.ids:
            raise ConfigError("name the ids of the rows to remove")
        store = open_store(self.catalog)
        print(f"{store.delete(self.ids):,} of {len(set(self.ids)):,} rows removed; {len(store):,} rows left")


def open_local(folder: Path) -> LocalStore:
    """A catalog folder, for commands that look after files."""
    from dualtower.search.local.store import LocalStore

    return LocalStore(folder)


def numbers_of(store: Store) -> list[str]:
    """Attributes that are numbers in a catalog, whatever a card says of them."""
    return [name for name, kind in store.info.attributes.items() if kind == "number"]


def with_numbers(card: DataCard, names: Sequence[str]) -> DataCard:
    """The card, with some more of its attributes declared to be numbers."""
    known = [name for name in card.columns.attributes if name in {*names, *card.columns.numeric}]
    return replace(card, columns=replace(card.columns, numeric=known))


def read_rows(
    card: Path, source: str, on_error: Literal["raise", "skip"], *, numeric: Sequence[str] = ()
) -> ItemDataset:
    """Rows to be added to a catalog, in the columns of its card, of which some are numbers in the catalog."""
    from dualtower.data.cards import Splits, load_card
    from dualtower.data.loading import load_items

    if card.name == CARD and not card.exists():
        raise ConfigError(f"{card} is missing; name the data card of the rows with --card")
    whole = replace(with_numbers(load_card(card), numeric), splits=Splits())
    return load_items(whole, "all", source=source, on_error=on_error, check_images=False)
