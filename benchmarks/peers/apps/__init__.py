"""Each system used as its documentation says: one module each."""
