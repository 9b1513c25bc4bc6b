"""How fast the control plane is, measured on a real API server. `python -m tests.bench`; never a timed test."""
