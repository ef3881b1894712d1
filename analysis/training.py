"""Are full-RL models harder to steer?  python analysis/training.py

The same difference by every method: what each takes as random decides how wide its interval is.
"""

from matplotlib import pyplot as plt

import steercube as sc

study = sc.study("data/qwen3.cells.nc", claims="paper/claims.toml")
table = study.table("training_effect").query("outcome == 'cohens_d'").dropna(subset="estimate")
columns = ["method", "random_effects", "covariates", "estimate", "low", "high", "p_value"]
print(table[columns].to_string(index=False, na_rep="", float_format="{:.2f}".format))
print(f"\n{study.posterior()}")

figure, ax = plt.subplots(figsize=(8, 0.3 * len(table) + 1), layout="constrained")
errors = [table["estimate"] - table["low"], table["high"] - table["estimate"]]
names = table["method"] + " (" + table["random_effects"] + "; " + table["covariates"] + ")"
ax.errorbar(table["estimate"], names, xerr=errors, fmt="o", markersize=4)
ax.axvline(0, color="gray", linewidth=0.8)
ax.invert_yaxis()
ax.set_xlabel("full RL minus distilled, Cohen's d, 95%")
figure.savefig("analysis/training.png", dpi=150)
