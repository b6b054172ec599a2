"""The bounded cache: budgets, layers, plans, positions, and an engine for long prompts."""
