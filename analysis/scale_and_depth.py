"""Do larger models steer otherwise, and where?  python analysis/scale_and_depth.py

Slopes of the effect on the size of the models, and the depth of the best layer.
"""

import steercube as sc

study = sc.study("data/qwen3.cells.nc", claims="paper/claims.toml")
slopes = study.table("scale_trends").query("outcome == 'cohens_d' and size == 'n_params'")
columns = ["concept", "method", "value", "low", "high", "n"]
print("slope of Cohen's d on log10 of the parameters")
print(slopes[columns].to_string(index=False, na_rep="", float_format="{:.2f}".format))

depth = study.table("depth")[["group", "value", "low", "high", "n", "interval_over", "reason"]]
print("\ndepth of the best layer (layer / number of layers)")
print(depth.to_string(index=False, na_rep="", float_format="{:.2f}".format))
study.plot.layers()[0].figure.savefig("analysis/scale_and_depth.png", dpi=150)
