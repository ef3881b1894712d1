"""Stage two: what the effects say over models and concepts."""
