"""
Hooks for platforms and tools that others make; each is an extra, and has its page in docs/hooks.

They use nothing of batchkit that an app could not use as well.
"""
