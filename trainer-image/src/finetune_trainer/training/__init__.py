"""Train: a base model and a prepared dataset in, a verified adapter or model out."""
