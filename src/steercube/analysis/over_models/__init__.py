"""Stage two: inference from the effects over models and concepts."""
