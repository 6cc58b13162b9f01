"""Local servers and data that several tests use."""
