"""Conclusions to tables, numbers and figures. Never imports torch."""
