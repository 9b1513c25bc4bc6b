"""The course of a run, written down where it can be compared with others."""
