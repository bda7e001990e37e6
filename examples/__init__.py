"""Programs to read and to run: `python -m examples.normalize_emails`."""
