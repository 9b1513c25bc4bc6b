"""The whole product on a real node."""
