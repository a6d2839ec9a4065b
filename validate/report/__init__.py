"""One report of all checks: a value, rendered as a table, as JSON and as a page."""
