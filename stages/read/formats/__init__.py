"""What rows can lie in: tars, tables, delimited text, folders of images."""
