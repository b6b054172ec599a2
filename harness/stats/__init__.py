"""Statistics on rows: growth laws, crossovers, comparison with a baseline, and expectations."""
