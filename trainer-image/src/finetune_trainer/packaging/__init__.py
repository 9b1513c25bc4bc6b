"""What is made of a promoted model, and how it gets to where it shall lie."""
