"""What intervals cover and tests reject, on sweeps whose truth is known."""
