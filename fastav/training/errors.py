"""What stops a run once it is under way."""


class RunError(Exception):
    """A run cannot go on; the message says why and what to do. The command line shows it without a traceback."""
