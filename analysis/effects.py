"""Does steering work, and how well?  python analysis/effects.py

Cohen's d at the best layer of every model and concept, with its interval over items.
"""

import steercube as sc

study = sc.study("data/qwen3.cells.nc", claims="paper/claims.toml")
columns = ["model", "concept", "layer", "value", "low", "high", "optimism", "n", "reason"]
effects = study.effects("cohens_d")[columns]
print(effects.to_string(index=False, na_rep="", float_format="{:.2f}".format))

steers = study.table("effects")["steers"]
print(f"\nsteers, by a test over all layers: {(steers == 'yes').sum()} of {(steers != '').sum()}")
study.plot.heatmap().figure.savefig("analysis/effects.png", dpi=150)
