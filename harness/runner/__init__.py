"""Run a sweep: plan the cases, order them, and measure each in a fresh process."""
