"""Hooks for platforms, each in a module of its own that imports what it needs when it is first used."""
