"""One data set or task a file."""
