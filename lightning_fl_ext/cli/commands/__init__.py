"""The commands, one file each: arguments in, a table, a file or an exit code out."""
