"""Configuration: YAML and `--set` overrides to frozen, validated objects."""
