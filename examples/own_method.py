"""Your own method: one class in the pipeline's own file, and it runs on Ray's workers like any other.

graftline run examples/own_method.py        # or: python examples/own_method.py
"""

from graftline.pipelines import run
from graftline.stages import Scorer, read, select


class Shouting(Scorer):
    """Share of a row's letters that are capitals (0 to 1), in the column `shouting`."""

    origin = "our support team's rule of thumb"
    adds = {"shouting": "float64"}

    def score_rows(self, table, context):
        texts = [messages[0]["content"] for messages in table["messages"].to_pylist()]
        letters = [[letter for letter in text if letter.isalpha()] for text in texts]
        return {"shouting": [sum(map(str.isupper, word)) / len(word) if word else 0.0 for word in letters]}


def pipeline(seeds: str = "tickets.jsonl", k: int = 5):
    tickets = read.Jsonl(path=seeds, prompt="{text}", answer="{queue}")
    return select.TopK(rows=Shouting(rows=tickets), by="shouting", k=k)


if __name__ == "__main__":
    for row in run(pipeline())["result"].rows().to_pylist():
        print(f"{row['shouting']:.2f}  {row['messages'][0]['content']}")
