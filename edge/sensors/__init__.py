"""Sources of samples: one file a source, and the table that names them."""
