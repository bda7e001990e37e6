"""batchkit beside other systems: the same rows, the same UPDATE, each used as its own documentation says."""
