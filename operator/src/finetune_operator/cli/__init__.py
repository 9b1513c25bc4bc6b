"""The `finetune` command. Nothing here decides; it shows what the local loop does."""
