"""What a run is told by when it is through: a page for people, and the card that goes with its model."""
