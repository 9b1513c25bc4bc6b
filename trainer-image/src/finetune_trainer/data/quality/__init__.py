"""What makes data bad although every line of it is right: repetition, leaks, secrets, characters that nobody sees."""
