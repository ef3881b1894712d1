"""Stage one: the samples of each (model, concept) to its statistics."""
