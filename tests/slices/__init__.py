"""Tests of slices: a kit on a real database, worked in this process."""
