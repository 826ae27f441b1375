"""What a mapping costs on a target."""
