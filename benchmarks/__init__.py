"""Commands that measure, each printing a table and writing JSON; see README.md."""
