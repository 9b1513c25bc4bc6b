"""Benchmarks: tasks of lm-eval by their names. Prepare fetches their data, Evaluate does them without a network."""
