"""Evaluate: base, few-shot and tuned model measured on the same held-out examples."""
