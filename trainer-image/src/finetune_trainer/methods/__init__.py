"""Methods: how the weights change. One module a method, and a table of them; `kind` says what they have in common."""
