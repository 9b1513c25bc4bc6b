"""Data files of any form as rows: what a file is, is read from its content."""
