"""Do logits predict generated answers?  python analysis/agreement.py

r of the two measures over layers, for every concept and model whose answers were generated.
"""

from matplotlib import pyplot as plt

import steercube as sc

study = sc.study("data/qwen3.cells.nc", claims="paper/claims.toml")
table = study.table("agreement").dropna(subset="value")
shown = table["statistic"].isin(["r over layers", "mean r of models"])
columns = ["concept", "model", "statistic", "value", "low", "high", "interval_over"]
print(table.loc[shown, columns].to_string(index=False, na_rep="", float_format="{:.2f}".format))

layers = study.table("layer_effects").dropna(subset=["delta", "generation_delta"])
figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
for ax, (concept, of) in zip(axes, layers.groupby("concept"), strict=False):
    for model, points in of.groupby("model", sort=False):
        ax.plot(points["delta"], points["generation_delta"], "o", markersize=4, label=model)
    ax.set(title=concept, xlabel="delta of the logits (nats)", ylabel="delta of the answers")
axes[0].legend(frameon=False)
figure.savefig("analysis/agreement.png", dpi=150)
