"""Code shared by all parts of the package: the model's configuration, file schemas, and exit codes of commands."""
