"""distilabel's TransformersLLM as a process: a JSON line of what to generate in, a line of answers out.

Run by the peer's own python: `distilabel_generate.py MODEL DTYPE THREADS`.
"""

import json
import sys

import torch
from distilabel.models.llms import TransformersLLM


def main() -> None:
    directory, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    llm = TransformersLLM(model=directory, torch_dtype=dtype)
    llm.load()
    for line in sys.stdin:
        job = json.loads(line)
        llm._pipeline._batch_size = job["batch"]  # it has no field for it: its pipeline's own default is 1
        texts = []
        for part in job["parts"]:
            asked = [[{"role": "user", "content": text}] for text in part["prompts"]]
            # Greedy: its own defaults draw at temperature 0.1 with a penalty on repetition.
            answers = llm.generate(inputs=asked, max_new_tokens=part["limit"], do_sample=False, repetition_penalty=1.0)
            texts.append([each["generations"][0] for each in answers])
        print("ANSWERS", json.dumps({"texts": texts, "dtype": str(llm._pipeline.model.dtype)}), flush=True)


if __name__ == "__main__":
    main()
