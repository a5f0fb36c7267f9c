import random

from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.pipelines import chains
from graftline.pipelines.chains import Shard, Summary, chain_folder, cut
from graftline.pipelines.failures import Failure
from graftline.pipelines.ray_workers import shard_of
from graftline.stages import Made, Mapper, Source


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 64))
def test_every_row_is_in_one_range(rows, batch):
    ids = sorted(f"{random.Random(rows).random()}-{number}" for number in range(rows))
    shards = cut(ids, batch)
    assert sum(shard.rows for shard in shards) == rows and len(shards) <= 2 * chains.MOST_SHARDS
    at = 0
    for shard in shards:
        assert (shard.first, shard.last) == (ids[at], ids[at + shard.rows - 1])
        at += shard.rows
    assert all(shard.rows % batch == 0 for shard in shards[:-1]), "batches are the same, however many workers there are"


def test_what_travels_through_ray_data_comes_back():
    import json
    from dataclasses import asdict

    shard = Shard("a", "b", 2, ("one", "two"))
    assert shard_of(json.dumps(asdict(shard))) == shard
    for summary in (Summary(3, [{"in": 1}], {"f": {"bytes": 1}}), Summary(0, failure=Failure("RunError", "x"))):
        assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


def test_folders_of_a_chains_earlier_stages():
    class Change(Mapper):
        """Changes nothing."""

    class One(Source):
        """One row."""

        def make_rows(self, context):
            yield Made({})

    assert chain_folder(2, Change(rows=One())) == "chain/2-Change"
