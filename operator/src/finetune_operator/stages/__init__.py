"""The pipeline: each stage a pure function of (job, observed, now), and their order as data."""
