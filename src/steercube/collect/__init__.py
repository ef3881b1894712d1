"""Steering sweeps on real models, to shards and a cube; the only part that knows torch."""
