"""What safety costs, measured."""
