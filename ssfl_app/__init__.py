"""ssfl between sites."""
