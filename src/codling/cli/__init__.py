"""The command line: one file a command, arguments only; the work is done by `codling.api` and the folders below it."""
