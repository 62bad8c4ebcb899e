"""Floor 6: the command line. One module per command; a command imports what is heavy only when it runs."""
