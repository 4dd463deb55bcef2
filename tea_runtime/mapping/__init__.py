"""`map`: one workflow over the rows of a file, many in flight at once, and a second run does what is missing."""
