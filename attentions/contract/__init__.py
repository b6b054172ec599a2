"""The contract of every attention, as checks: `python -m attentions.contract package.module:Class`."""
