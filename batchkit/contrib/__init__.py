"""
Hooks and services for platforms and other products, each for those who use that; docs/hooks has their pages.

They are written against public names alone, as yours would be, so each of them is an example, too.
"""
