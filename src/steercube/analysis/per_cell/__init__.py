"""Stage one: reduce the samples of each (model, concept) to its statistics."""
