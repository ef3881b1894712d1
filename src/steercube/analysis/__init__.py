"""Cube to cells (stage one, `reduce`), cells to conclusions (stage two). Never imports torch."""
