"""Fleets that a platform scales down at random, by what the workers report; what is lost, and what cut short."""
