"""The long arena benchmark: cases, configuration, runs, and summary."""
