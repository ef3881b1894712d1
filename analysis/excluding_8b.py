"""What is left without 8B, and without any other model?  python analysis/excluding_8b.py

The difference of training in Cohen's d, with the size of the models held fixed.
"""

from matplotlib import pyplot as plt

import steercube as sc

study = sc.study("data/qwen3.cells.nc", claims="paper/claims.toml")
posteriors = {"every model": study.posterior()}
posteriors |= {f"without {m}": study.without(model=m).posterior() for m in study.models}
rows = {name: posterior.summary().loc["contrast"] for name, posterior in posteriors.items()}
for name, row in rows.items():
    p = f"P(below zero) {row['probability_negative']:.2f}"
    print(f"{name:<18} {row['median']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {p}")

figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, row in rows.items():
    ax.plot([row["low"], row["high"]], [name] * 2, color="C0")
    ax.plot(row["median"], name, "o", color="C0")
ax.axvline(0, color="gray", linewidth=0.8)
ax.invert_yaxis()
ax.set_xlabel("full RL minus distilled, Cohen's d, 95% credible")
figure.savefig("analysis/excluding_8b.png", dpi=150)
