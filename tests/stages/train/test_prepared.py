import numpy as np
import pyarrow as pa

from graftline.stages.train.prepared import PreparedRows


def test_rows_by_place_in_the_order_of_ids(rows):
    table = pa.table(
        {
            "id": ["b", "a", "c"],
            "messages": [[], [], []],
            "input_ids": pa.array([[1, 2], [3], [4, 5, 6]], pa.list_(pa.int32())),
            "trained": pa.array([[False, True], [True], [False, False, True]], pa.list_(pa.bool_())),
            "ifd": [0.5, 0.25, None],
        }
    )
    for given in (table, pa.concat_tables([table.slice(2), table.slice(0, 2)])):
        prepared = PreparedRows(given)
        assert prepared.ids == ["a", "b", "c"] and len(prepared) == 3
        row = prepared[2]
        assert row["input_ids"].tolist() == [4, 5, 6] and row["input_ids"].dtype == np.int32
        assert row["trained"].tolist() == [False, False, True] and row["trained"].dtype == bool
        assert row["id"] == "c" and row["ifd"] is None and "messages" not in row
