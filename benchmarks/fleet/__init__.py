"""A fleet of workers past this machine: the real store and sweep, a virtual clock, and a database with prices."""
