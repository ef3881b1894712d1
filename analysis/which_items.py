"""Which items follow the vector, and which go the other way?  python analysis/which_items.py

The share of items that move away from the matching answer at the best layer. Of a sweep whose
samples are there, also the items themselves: of SmolLM2's, those that it moves most.
"""

import steercube as sc

study = sc.study("data/qwen3.cells.nc", claims="paper/claims.toml")
share = study.effects("anti_steerable_share").pivot(
    index="concept", columns="model", values="value"
)
print("share of items that move the other way, at the best layer")
print(share[study.models].to_string(na_rep="not run", float_format="{:.0%}".format))

pair = {"model": "smollm2", "concept": "sycophancy"}
best = sc.open("data/smollm2.cells.nc").steercube.best_layer().sel(pair)
at_best = sc.open("data/smollm2.nc")["logit_diff"].sel(pair).sel(layer=best)
shift = at_best["logit_diff"].sel(strength=1) - at_best["logit_diff"].sel(strength=-1)
items = shift.to_series().set_axis(at_best["item_id"].values).dropna().sort_values()
print("\nSmolLM2, sycophancy: shift of each item in nats, the three at either end")
print(items.iloc[[0, 1, 2, -3, -2, -1]].to_string(float_format="{:+.3f}".format))
study.plot.items()[0].figure.savefig("analysis/which_items.png", dpi=150)
