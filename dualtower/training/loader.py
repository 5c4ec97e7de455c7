"""What a training reads: a loader that says where it stands, so that a killed run goes on with the batch it missed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch.utils.data import DataLoader

from dualtower.data.batches import Collator, training_loader
from dualtower.data.items import ItemDataset
from dualtower.data.partners import Partners
from dualtower.data.sampling import BatchSampler
from dualtower.errors import CheckpointError
from dualtower.types import Batch

__all__ = ["ItemLoader", "StatefulLoader"]


class StatefulLoader(Protocol):
    """What the trainer takes: batches, one epoch per iteration, and where in them it stands.

    Torchdata's ``StatefulDataLoader`` has the same methods. Each rank has a loader of its own, and all give batches of
    the same length in every step; their numbers per epoch may differ.
    """

    def __iter__(self) -> Iterator[Batch]:
        """Give the rest of the epoch that the state is in; when it has ended, the state is the next one's beginning."""
        ...

    def __len__(self) -> int:
        """Batches per epoch, by which epochs and validations are counted; of a stream without end, any number."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Where the loader stands: behind the batch that the iteration gave last, whatever it has read ahead.

        Returns:
            Plain values and tensors that change no more. The trainer asks after every batch, so it must be cheap.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state_dict` said, so that the next iteration gives the batches after that.

        Raises:
            CheckpointError: It is the state of another kind of loader.
        """
        ...


class ItemLoader:
    """Batches of a split whose rows are at hand, in the order of a plan.

    Args:
        items: Rows of the split.
        plan: Which rows make which batch.
        collator: Makes batches of them.
        workers: Processes that decode and tokenize; their number changes no batch.
        partners: Finds another image for each row; None reads none.
    """

    def __init__(
        self,
        items: ItemDataset,
        plan: BatchSampler,
        collator: Collator,
        *,
        workers: int = 0,
        partners: Partners | None = None,
    ) -> None:
        self.plan = plan
        self.loader: DataLoader[Batch] = training_loader(items, plan, collator, workers=workers, partners=partners)
        self._epoch = self._batch = 0

    def __iter__(self) -> Iterator[Batch]:
        """Give the rest of the epoch."""
        self.plan.set_epoch(self._epoch, self._batch)
        for batch in self.loader:
            self._batch += 1
            yield batch
        self._epoch, self._batch = self._epoch + 1, 0

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan)

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of the next batch in it."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with this batch of this epoch.

        Raises:
            CheckpointError: It is the state of another kind of loader.
        """
        if state.keys() != self.state_dict().keys():
            raise CheckpointError(
                f"the checkpoint's loader stands at {sorted(state)}, this one counts epoch and batch; "
                "resume with the loader that wrote it, or begin anew with --overwrite"
            )
        self._epoch, self._batch = state["epoch"], state["batch"]
