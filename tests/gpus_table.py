"""The tables of docs/gpus.md, by the functions that `--parallel auto` chooses with.

`python tests/gpus_table.py` writes them into the page.
"""

from pathlib import Path
from typing import Any

from builders import ROOT
from transformers import Qwen3Config, Qwen3MoeConfig

from steercube.collect.memory import MOST_ROWS
from steercube.collect.parallel import on_paper
from steercube.collect.ways import Way, best_way, ways

PAGE = ROOT / "docs" / "gpus.md"
BEGIN, END = "<!-- the table is made by tests/gpus_table.py -->\n", "<!-- end of the table -->\n"
OF_QWEN3: dict[str, Any] = {"vocab_size": 151936, "head_dim": 128, "tie_word_embeddings": False}
CONFIGS = {
    "8B": Qwen3Config(
        **OF_QWEN3, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8,
    ),
    "32B": Qwen3Config(
        **OF_QWEN3, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64,
        num_attention_heads=64, num_key_value_heads=8,
    ),
    "235B-A22B": Qwen3MoeConfig(
        **OF_QWEN3, hidden_size=4096, moe_intermediate_size=1536, num_experts=128,
        num_experts_per_tok=8, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4,
    ),
}  # fmt: skip
"""As in the models' config.json."""
MACHINES = {"1 x 80 GB": (1, 80e9), "8 x 80 GB": (8, 80e9), "8 x 141 GB": (8, 141e9)}


def table() -> str:
    """A row for each way, model and machine; what `--parallel auto` chooses is bold."""
    lines = [
        "| model | GPUs | way | weights on a GPU | room for rows | rows in a pass | rows it runs | "
        "work a row |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, config in CONFIGS.items():
        model = on_paper(config, "bfloat16")
        for machine, (n, gpu) in MACHINES.items():
            found = ways(model, n, gpu)
            best = best_way(found)
            for way in found:
                if n == 1 and way.size == 0 and way is not best:
                    continue  # one GPU is all GPUs
                said = f"**{way.words}**" if way is best else way.words
                lines.append(f"| {name} | {machine} | {said} | {' | '.join(cells(way))} |")
    return "\n".join(lines) + "\n"


def cells(way: Way) -> list[str]:
    """The numbers of a way; those of its rows only if there is room for any."""
    weights = f"{way.weights / 1e9:.1f} GB"
    if not way.rows:
        return [weights, "does not fit", "", "", ""]
    return [
        *(weights, f"{way.room / 1e9:.1f} GB", str(min(way.rows, MOST_ROWS))),
        *("all" if way.n_groups == 1 else f"1/{way.n_groups}", f"{way.work:.2f}"),
    ]


def with_table(page: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    Path(PAGE).write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
