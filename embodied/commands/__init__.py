"""One module a verb of the command line; its docstring is the help text, `run(config)` does the work."""
