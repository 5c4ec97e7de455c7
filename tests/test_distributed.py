"""On 1, 2 and 4 real gloo processes the gradients equal those of one process on the joined batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from processes import torchrun

from dualtower.distributed import agree_on_step, all_gather_with_grad, all_reduce_max, rank, world_size

SCRIPT = Path(__file__).with_name("distributed_gradients.py")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_gradients_equal_one_process_on_the_joined_batch(processes):
    report = json.loads(torchrun(SCRIPT, str(processes), processes=processes).stdout.splitlines()[-1])
    assert report["world_size"] == processes == len(report["ranks"])
    errors = {
        f"rank {number}: {case}: {parameter}": error
        for number, cases in enumerate(report["ranks"])
        for case, parameters in cases.items()
        for parameter, error in parameters.items()
    }
    assert len(errors) >= processes * 33 * 10
    too_large = {where: error for where, error in errors.items() if not error <= 1e-9}
    assert not too_large


def test_without_a_process_group_everything_is_the_identity():
    embeddings, codes = torch.randn(3, 2, requires_grad=True), torch.tensor([5, 6, 7])
    assert (world_size(), rank()) == (1, 0)
    assert all_gather_with_grad(embeddings, codes) == (embeddings, codes)
    assert agree_on_step(True, 2.0, [3], "cpu") == (True, 2.0)
    assert all_reduce_max(1.0, 2.0, "cpu") == (1.0, 2.0)
