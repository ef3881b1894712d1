"""What does steering cost in capability?  python analysis/capability.py

Changes of right answers on GSM8K and TriviaQA, by vector, strength and model.
"""

from matplotlib import pyplot as plt

import steercube as sc

study = sc.study("data/qwen3.cells.nc", claims="paper/claims.toml")
table = study.table("capability")
table = table[table["low_strength"] == 0]
over = table[table["model"] == "every model"]
columns = ["concept", "direction", "high_strength", "value", "low", "high", "loss_excluded"]
print(over[columns].to_string(index=False, float_format="{:.3f}".format))

single = table[table["interval_over"] == "items"]
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
for ax, (concept, of) in zip(axes, single.groupby("concept"), strict=True):
    for direction, points in of.groupby("direction"):
        reach = [points["value"] - points["low"], points["high"] - points["value"]]
        ax.errorbar(points["high_strength"], points["value"], reach, fmt="o", label=direction)
    ax.set(title=concept, xlabel="strength", ylabel="change of right answers")
axes[0].legend(frameon=False)
figure.savefig("analysis/capability.png", dpi=150)
