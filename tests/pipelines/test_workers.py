from graftline.pipelines.board import LocalBoard
from graftline.pipelines.budget import Budget, Purse
from graftline.pipelines.ray_workers import RayWorkers
from graftline.pipelines.workers import Here, Workers


def test_both_kinds_do_what_the_protocol_says():
    names = [name for name in vars(Workers) if not name.startswith("_") and name not in ("board", "on_ray")]
    assert set(names) == {"nodes", "perform", "shards", "close_chain", "cancel", "close"}
    for kind in (Here, RayWorkers):
        assert all(callable(getattr(kind, name)) for name in names) and isinstance(kind.on_ray, bool)


def test_this_process_is_one_node():
    here = Here(LocalBoard(Purse(Budget()), lambda told: None, lambda key, stage, metric: None))
    (node,) = here.nodes()
    assert node.driver and node.cpus >= 1
    here.cancel()
    here.close()
