"""The user's commands: parse, build a configuration, call one function, map errors to exit codes."""
