"""Training, scoring and predicting from the command line, on a Lightning module."""
