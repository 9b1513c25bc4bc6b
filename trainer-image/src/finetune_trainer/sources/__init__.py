"""Where models and data come from: hf://, pvc://, s3://, https:// and keys of ConfigMaps."""
