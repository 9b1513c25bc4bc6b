"""Examples: read, check, split, tokenise, report."""
