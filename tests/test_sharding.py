"""What several processes measure together is what one of them measures alone, to the last bit."""

from __future__ import annotations

from pathlib import Path

import distributed_evaluation
import numpy as np
import pytest
import torch
from processes import torchrun

from dualtower.sharding import combine, is_sharded, shard, sharded

SCRIPT = Path(distributed_evaluation.__file__)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3])
def test_every_rank_holds_what_one_process_measures(processes: int, tmp_path: Path) -> None:
    torchrun(SCRIPT, tmp_path, processes=processes, timeout=500)
    torch.set_num_threads(1)
    data = distributed_evaluation.items()
    model = distributed_evaluation.model(data)
    counted = distributed_evaluation.Counted(model)
    alone = distributed_evaluation.measure(model, data)
    assert len(alone) > 60
    ranks = [dict(np.load(tmp_path / f"rank{number}.npz")) for number in range(processes)]
    for together in ranks:
        assert together.pop("world_size") == processes
        rows = together.pop("rows")
        assert rows < 0.75 * counted.rows, "a rank does more than its shard"
        assert together.keys() == alone.keys()
        for name, values in alone.items():
            np.testing.assert_array_equal(together[name], values, err_msg=name)


def test_a_single_process_does_it_all() -> None:
    values = np.arange(3)
    with sharded():
        assert not is_sharded() and list(shard(range(5))) == [0, 1, 2, 3, 4]
        combine(values)
    assert values.tolist() == [0, 1, 2]
